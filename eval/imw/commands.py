"""``python -m eval imw``: the benchmark on scenes with known poses."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.cache import Cache, canonical_json
from eval.estimators import METHODS, EstimatorSettings
from eval.features import Descriptor, known_names, load
from eval.features.detect import DogSettings
from eval.imw.scene import find_scenes
from eval.imw.stereo import HEADLINE, StereoScene, StereoSettings, run_stereo
from eval.imw.stereo_results import stereo_pairs, stereo_scene, stereo_scores
from eval.matching import Filter, MatcherSettings
from eval.results import Result, Score, environment, run_folder, strict, write_results
from kornia_hardnet8.errors import UsageError

TASKS = ("stereo",)
# Field's name of a rule -> filter and symmetric step of the benchmark's matcher.
MATCHERS: dict[str, tuple[Filter, str]] = {
    "smnn": ("snn_ratio_pairwise", "both"),
    "mnn": ("none", "both"),
    "snn": ("snn_ratio_pairwise", "none"),
    "nn": ("none", "none"),
    "fginn": ("fginn_ratio_pairwise", "both"),
}
_FGINN_RADIUS_PX = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = StereoSettings()
    parser.epilog = f"descriptors (name[@weights][:option=value,…]): {', '.join(known_names())}"
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="a scene, or a folder of scenes; none: the built-in one")
    data.add_argument("--out", type=Path, metavar="RUN", help="folder of the results (default: runs/<date>-imw)")
    data.add_argument("--cache", type=Path, metavar="DIR", help="cache of the stages (default: RUN/cache)")
    method = parser.add_argument_group("features")
    method.add_argument(
        "--desc", nargs="+", default=["h8E512", "rootsift"], metavar="TOKEN", help="descriptors, listed below"
    )
    method.add_argument("--keypoints", type=int, default=defaults.detector.num, help="strongest DoG keypoints an image")
    method.add_argument("--upright", action="store_true", help="angle 0, every position once")
    method.add_argument("--mr-size", type=float, default=defaults.mr_size, help="half side of a patch / sigma")
    method.add_argument("--device", default="auto", help="of networks: cpu, cuda, or auto")
    matching = parser.add_argument_group("matching")
    matching.add_argument("--matcher", choices=MATCHERS, default="smnn", help="rule; smnn: mutual, ratio both ways")
    matching.add_argument("--ratio", type=float, default=defaults.matcher.threshold, help="largest ratio that passes")
    pose = parser.add_argument_group("pose")
    pose.add_argument("--estimator", choices=METHODS, default=defaults.estimator.method, help="of F")
    pose.add_argument("--threshold", type=float, default=defaults.estimator.threshold_px, help="of inliers, pixels")
    pose.add_argument("--confidence", type=float, default=defaults.estimator.confidence, help="of the estimator")
    pose.add_argument("--max-iters", type=int, default=defaults.estimator.max_iters, help="of the estimator")
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="what to run")
    run_group.add_argument("--seed", type=int, default=0, help="of the estimator and of the intervals")
    run_group.add_argument("--viz", type=int, default=1, metavar="N", help="pairs to draw (best, median and worst)")
    run_group.add_argument("--json", action="store_true", help="print the results file instead of the table")
    run_group.add_argument("--print-config", action="store_true", help="print the settings as JSON and stop")


def run(args: argparse.Namespace) -> int:
    """Judge every descriptor on every scene; write and print the results."""
    settings = settings_from(args)
    if args.print_config:
        config = {"data": args.data, "desc": args.desc, "task": args.task, **settings.to_dict()}
        print(json.dumps(strict(config), indent=1))
        return 0
    if len(set(args.desc)) < len(args.desc):
        raise UsageError(f"--desc names a descriptor twice: {' '.join(args.desc)}")
    device = choose_device(args.device)
    descriptors = [load(token).to(device) for token in args.desc]
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
    path = out / "results.json"
    write_results(path, results)
    if args.json:
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    print(table(results))
    print(f"results: {path}")
    return 0


def settings_from(args: argparse.Namespace) -> StereoSettings:
    """The settings that the flags ask for."""
    kind, symmetric = MATCHERS[args.matcher]
    return StereoSettings(
        detector=DogSettings(num=args.keypoints, upright=args.upright),
        mr_size=args.mr_size,
        matcher=MatcherSettings(
            filter=kind,
            threshold=None if kind == "none" else args.ratio,
            fginn_radius=_FGINN_RADIUS_PX if args.matcher == "fginn" else None,
            symmetric=symmetric,  # type: ignore[arg-type]  # checked by the class
        ),
        estimator=EstimatorSettings(
            method=args.estimator,
            threshold_px=args.threshold,
            confidence=args.confidence,
            max_iters=args.max_iters,
        ),
        seed=args.seed,
    )


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU when there is one.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def table(results: Sequence[Result]) -> str:
    """Lines for people: descriptors below each other, scenes one after the other when there are several."""
    rows = [("all scenes", result.method["descriptor"], result.scores) for result in results]
    names = list(results[0].per_scene)
    if len(names) > 1:
        rows += [(name, r.method["descriptor"], r.per_scene[name]) for name in names for r in results]
    else:
        rows = [(names[0], descriptor, scores) for _, descriptor, scores in rows]
    head = ("scene", "descriptor", "mAA@5", "95 %", "mAA@10", "95 %", "matches", "inliers", "pairs")
    lines = [head]
    for scene, descriptor, scores in rows:
        cells = [scene, descriptor]
        for degrees in (5, 10):
            cells += _percent(scores[f"stereo/mAA@{degrees}"])
        cells += [_count(scores["stereo/num_matches"]), _count(scores["stereo/num_inliers"])]
        lines.append((*cells, str(scores["stereo/mAA@10"].n)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _result(
    descriptor: Descriptor, stereo: Sequence[StereoScene], settings: StereoSettings, about: dict[str, Any]
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
            "detector": settings.detector.to_dict(),
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


def _percent(score: Score) -> list[str]:
    if score.value is None or score.ci95 is None:
        return ["-", "-"]
    low, high = score.ci95
    return [f"{100 * score.value:.1f}", f"{100 * low:.1f}-{100 * high:.1f}"]


def _count(score: Score) -> str:
    return "-" if score.value is None else f"{score.value:.0f}"
