"""``python -m eval imw``: the benchmark on scenes with known poses."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.cache import Cache, canonical_json
from eval.command_line import add_descriptor_flags, add_run_flags, finish, format_table, load_methods
from eval.features import Method
from eval.features.extract import detector_of
from eval.imw.flags import MATCHERS as MATCHERS
from eval.imw.flags import (
    add_keypoint_flags,
    add_matching_flags,
    add_pose_flags,
    detector_from,
    estimator_from,
    matcher_from,
)
from eval.imw.scene import find_scenes
from eval.imw.stereo import HEADLINE, StereoScene, StereoSettings, run_stereo
from eval.imw.stereo_results import MAA_DEGREES, stereo_pairs, stereo_scene, stereo_scores
from eval.results import Result, Score, environment, run_folder, strict

TASKS = ("stereo",)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = StereoSettings()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="a scene, or a folder of scenes; none: the built-in one")
    data.add_argument("--cache", type=Path, metavar="DIR", help="cache of the stages (default: RUN/cache)")
    add_descriptor_flags(parser)
    points = add_keypoint_flags(parser)
    points.add_argument("--keypoints", type=int, default=defaults.detector.num, help="strongest keypoints an image")
    add_matching_flags(parser)
    add_pose_flags(parser)
    add_run_flags(parser, "imw")
    tasks = parser.add_argument_group("tasks and pictures")
    tasks.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="what to run")
    tasks.add_argument("--viz", type=int, default=1, metavar="N", help="pairs to draw, from the easiest to the hardest")
    tasks.add_argument("--print-config", action="store_true", help="print the settings as JSON and stop")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor on every scene; write and print the results."""
    settings = settings_from(args)
    if args.print_config:
        config = {"data": args.data, "desc": args.desc, "task": args.task, **settings.to_dict()}
        print(json.dumps(strict(config), indent=1))
        return
    descriptors = load_methods(args)
    if args.data is None:
        from eval.demo import cached_scene

        scenes = find_scenes(cached_scene())
    else:
        scenes = find_scenes(args.data)
    out = run_folder(args.out, "imw")
    cache = Cache(args.cache or out / "cache")
    found = [[run_stereo(scene, descriptor, settings, cache) for scene in scenes] for descriptor in descriptors]
    about = environment()
    results = [_result(d, stereo, settings, about) for d, stereo in zip(descriptors, found, strict=True)]
    lines = [table(results)]
    if args.viz > 0:
        from eval.imw.pictures import draw_pairs

        pictures = draw_pairs(out / "matches", args.desc, [stereo[0] for stereo in found], args.viz)
        lines += [f"picture: {path}" for path in pictures]
    finish(out, results, args.json, "\n".join(lines))


def settings_from(args: argparse.Namespace) -> StereoSettings:
    """The settings that the flags ask for."""
    return StereoSettings(
        detector=detector_from(args, args.keypoints),
        mr_size=args.mr_size,
        matcher=matcher_from(args.matcher, args.ratio),
        estimator=estimator_from(args),
        seed=args.seed,
    )


def table(results: Sequence[Result]) -> str:
    """One line a descriptor: means over scenes with 95 % intervals; then the mAA of each scene, if there are more."""
    rows = [
        (
            result.method["descriptor"],
            *(result.scores[f"stereo/mAA@{degrees}"] for degrees in MAA_DEGREES),
            *(_count(result.scores[f"stereo/{name}"]) for name in ("num_matches", "num_inliers")),
            result.scores["stereo/mAA@10"].n,
        )
        for result in results
    ]
    text = format_table(("stereo", "mAA@5 [95 %]", "mAA@10 [95 %]", "matches", "inliers", "pairs"), rows)
    scenes = list(results[0].per_scene)
    if len(scenes) < 2:
        return text
    metric = "stereo/mAA@10"
    by_scene = [
        (name, results[0].per_scene[name][metric].n, *(result.per_scene[name][metric] for result in results))
        for name in scenes
    ]
    head = ("mAA@10 [95 %]", "pairs", *(result.method["descriptor"] for result in results))
    return f"{text}\n\n{format_table(head, by_scene)}"


def _result(
    descriptor: Method, stereo: Sequence[StereoScene], settings: StereoSettings, about: dict[str, Any]
) -> Result:
    """The entry of one descriptor in the results file."""
    fingerprints = {found.scene.name: found.scene.fingerprint for found in stereo}
    return Result(
        benchmark="imw",
        protocol={"tasks": list(TASKS), "covisibility": float(HEADLINE), **settings.to_dict()},
        dataset={
            "name": ", ".join(fingerprints),
            "fingerprint": hashlib.sha256(canonical_json(fingerprints).encode()).hexdigest(),
            "scenes": fingerprints,
        },
        method={
            "descriptor": descriptor.name,
            "detector": detector_of(descriptor, settings.detector),
            "matcher": settings.matcher.to_dict(),
            "geometry": settings.estimator.to_dict(),
            "weights_sha256": descriptor.weights_sha256,
        },
        scores=stereo_scores(stereo, settings.seed),
        per_scene={found.scene.name: stereo_scene(found, settings.seed) for found in stereo},
        per_pair=[pair for found in stereo for pair in stereo_pairs(found)],
        timing={stage: sum(found.seconds[stage] for found in stereo) for stage in stereo[0].seconds},
        environment=about,
    )


def _count(score: Score) -> int | None:
    return None if score.value is None else round(score.value)
