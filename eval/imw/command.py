"""``python -m eval imw``: the benchmark on scenes with known poses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.devices import choose_device
from common.jobs import open_executor
from common.shell import positive_number
from eval.core.benchmark import Benchmark
from eval.core.options import (
    add_descriptor_flags,
    add_keypoint_flags,
    add_matching_flags,
    add_pose_flags,
    add_run_flags,
    any_matcher_from,
    detector_from,
    estimator_from,
    given_pose_flags,
    methods_from,
)
from eval.core.results import Result, Score, format_table, strict
from eval.features import Method
from eval.imw.demo import cached_scene
from eval.imw.multiview import MULTIVIEW_RATIO, MultiviewSettings
from eval.imw.official import TASKS
from eval.imw.run import (
    ImwSettings,
    MethodRun,
    add_result,
    dataset_of,
    left_out,
    official_labels,
    run_method,
    to_official,
)
from eval.imw.scene import find_scenes, without_deprecated
from eval.imw.stereo import MAA_DEGREES, StereoSettings
from eval.imw.tune import hold_out, tune
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = ImwSettings()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="a scene, or a folder of scenes; none: the built-in one")
    data.add_argument("--drop-deprecated", action="store_true", help="leave out images that the benchmark deprecated")
    add_descriptor_flags(parser)
    points = add_keypoint_flags(parser)
    points.add_argument("--keypoints", type=int, default=defaults.stereo.detector.num, help="keypoints an image")
    matching = add_matching_flags(parser, imported=True)
    matching.add_argument(
        "--multiview-ratio", type=float, help=f"largest ratio that passes in multiview (default: {MULTIVIEW_RATIO:g})"
    )
    add_pose_flags(parser)
    add_run_flags(parser, "imw", cached="the stages")
    tasks = parser.add_argument_group("tasks and pictures")
    tasks.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="what to run")
    tasks.add_argument("--runs", type=int, default=defaults.stereo.runs, help="of the estimator, seeds counting up")
    tasks.add_argument(
        "--bag-timeout", type=float, default=defaults.multiview.time_limit_s, metavar="S", help="of one bag, seconds"
    )
    tasks.add_argument(
        "--ate-iters", type=positive_number, metavar="N",
        help="alignments that are tried for the trajectory error (default: enough for half of the cameras astray)",
    )  # fmt: skip
    tasks.add_argument(
        "--viz",
        type=int,
        default=1,
        metavar="N",
        help="best, median and worst pairs to draw of each scene; 0: no pictures",
    )
    tasks.add_argument("--print-config", action="store_true", help="print the settings as JSON and stop")
    tasks.add_argument(
        "--tune", metavar="SCENE", help="choose ratio and threshold of stereo on this scene, judge on the others"
    )
    scale = parser.add_argument_group("scale")
    scale.add_argument("--jobs", type=int, metavar="N", help="processes for pairs and bags (default: one a core)")
    scale.add_argument(
        "--executor",
        metavar="dask://HOST:PORT",
        help="run pairs and bags on the workers of a dask scheduler, which see the same files",
    )


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor on every scene; write and print the results."""
    settings = settings_from(args)
    if args.print_config:
        config = {"data": args.data, "desc": args.desc, "task": args.task, **settings.to_dict()}
        print(json.dumps(strict(config), indent=1))
        return
    methods = methods_from(args)
    settings = settings_from(args, methods)
    scenes = find_scenes(args.data if args.data is not None else cached_scene())
    if args.drop_deprecated:
        scenes = [without_deprecated(scene) for scene in scenes]
    tuning = None
    if args.tune is not None:
        if "stereo" not in settings.tasks:
            raise UsageError("--tune chooses settings of the stereo task, which --task leaves out")
        tuning, scenes = hold_out(scenes, args.tune)
    missing = left_out(scenes, settings.tasks)
    with Benchmark.open("imw", args, dataset_of(scenes)) as benchmark:
        runs, notes = [], []
        with open_executor(args.executor, args.jobs) as executor:
            device = choose_device(args.device)
            for method in methods:
                chosen, tuned = settings, None
                if tuning is not None:
                    tuned = tune(tuning, method, settings.stereo, benchmark.cache, executor, device)
                    chosen = replace(settings, stereo=tuned.settings)
                    notes.append(f"{method.name}: {tuned}")
                runs.append(run_method(scenes, method, chosen, benchmark.cache, executor, device))
                add_result(benchmark, runs[-1], {} if tuned is None else {"tuned": tuned.to_dict()})
        for method_run, label in zip(runs, official_labels(runs), strict=True):
            write_json(benchmark.out / "official" / f"{label}.json", strict(to_official(method_run, label)))
        notes += [f"left out: {name}: {part}: {why}" for name, parts in missing.items() for part, why in parts.items()]
        if args.viz > 0:
            notes.append(f"pictures: {len(_draw(benchmark.out, runs, args.viz))} below {benchmark.out}")
        benchmark.finish("\n".join([tables(benchmark.results), *notes]), args.json)


def _draw(out: Path, runs: Sequence[MethodRun], count: int) -> list[Path]:
    """Pairs, accuracy curves and bags of every scene; returns the pictures."""
    from eval.imw.pictures import draw_accuracy, draw_bags, draw_pairs

    names = [method_run.method.name for method_run in runs]
    pictures = []
    for scenes in zip(*(method_run.stereo for method_run in runs), strict=True):
        pictures += [*draw_pairs(out / "matches", names, scenes, count), draw_accuracy(out, names, scenes)]
    for method_run in runs:
        for bags in method_run.multiview:
            pictures += draw_bags(out / "bags", method_run.method.name, bags)
    return pictures


def settings_from(args: argparse.Namespace, methods: Sequence[Method] = ()) -> ImwSettings:
    """The settings that the flags ask for, checked against the methods.

    Raises:
        UsageError: a flag of a task that ``--task`` leaves out, or a value that makes no sense.
    """
    idle = [flag for flag, _ in given_pose_flags(args).values()]
    idle += [flag for flag, value in (("--estimator", args.estimator), ("--ratio", args.ratio)) if value is not None]
    if "stereo" not in args.task and idle:
        raise UsageError(f"{idle[0]} has no effect without the task stereo: leave it out")
    if "multiview" not in args.task and args.multiview_ratio is not None:
        raise UsageError("--multiview-ratio has no effect without the task multiview: leave it out")
    return ImwSettings(
        StereoSettings(
            detector=detector_from(args, args.keypoints),
            mr_size=args.mr_size,
            matcher=any_matcher_from(args.matcher, args.ratio, "stereo", methods if "stereo" in args.task else ()),
            estimator=estimator_from(args),
            seed=args.seed,
            runs=args.runs,
        ),
        MultiviewSettings(
            matcher=any_matcher_from(
                args.matcher,
                args.multiview_ratio,
                "multiview",
                methods if "multiview" in args.task else (),
                "--multiview-ratio",
                MULTIVIEW_RATIO,
            ),
            seed=args.seed,
            time_limit_s=args.bag_timeout,
            ate_iters=args.ate_iters,
        ),
        tuple(task for task in TASKS if task in args.task),
    )


def tables(results: Sequence[Result]) -> str:
    """Means over scenes with 95 % intervals, task by task; then each scene, if there are more; then both tasks."""
    parts = [_stereo(results), _multiview(results)]
    parts += [_by_scene(results, task, unit) for task, unit in (("stereo", "pairs"), ("multiview", "bags"))]
    parts.append(_both(results))
    return "\n\n".join(part for part in parts if part)


def _stereo(results: Sequence[Result]) -> str:
    if not _ran(results, "stereo"):
        return ""
    names = {"matches": "num_matches", "inliers": "num_inliers"}
    depth = {"repeatability@3": "repeatability@3", "matching score@3": "matching_score@3"}
    depth = {head: name for head, name in depth.items() if f"stereo/{name}" in results[0].scores}
    rows = [
        (
            result.method["descriptor"],
            *(result.scores[f"stereo/mAA@{degrees}"] for degrees in MAA_DEGREES),
            *(result.scores[f"stereo/{name}"].value for name in depth.values()),
            *(_count(result.scores[f"stereo/{name}"]) for name in names.values()),
            result.scores["stereo/mAA@10"].n,
        )
        for result in results
    ]
    return format_table(("stereo", "mAA@5 [95 %]", "mAA@10 [95 %]", *depth, *names, "pairs"), rows)


def _multiview(results: Sequence[Result]) -> str:
    if not _ran(results, "multiview"):
        return ""
    rows = []
    for result in results:
        scores = {name.removeprefix("multiview/"): score for name, score in result.scores.items()}
        failed = sum(sum(scene.get("failed_bags", {}).values()) for scene in result.per_scene.values())
        rows.append(
            (
                result.method["descriptor"],
                *(scores[f"mAA@{degrees}"] for degrees in MAA_DEGREES),
                scores["registered_ratio"].value,
                _count(scores["num_points"]),
                scores["track_length"].value,
                scores["ATE"].value,
                scores["ATE_corrected"].value,
                failed,
                scores["mAA@10"].n,
            )
        )
    head = ("mAA@5 [95 %]", "mAA@10 [95 %]", "registered", "points", "track", "ATE", "ATE corrected", "failed", "bags")
    return format_table(("multiview", *head), rows)


def _by_scene(results: Sequence[Result], task: str, unit: str) -> str:
    """The mAA of a task on each scene; empty for a single scene."""
    metric = f"{task}/mAA@10"
    scenes = [name for name, scores in results[0].per_scene.items() if metric in scores]
    if len(results[0].per_scene) < 2 or not scenes:
        return ""
    rows = [
        (name, results[0].per_scene[name][metric].n, *(result.per_scene[name][metric] for result in results))
        for name in scenes
    ]
    descriptors = [result.method["descriptor"] for result in results]
    return format_table((f"{task}, mAA@10 [95 %]", unit, *descriptors), rows)


def _both(results: Sequence[Result]) -> str:
    """The mean of both tasks, by which the challenge ranked."""
    if not (_ran(results, "stereo") and _ran(results, "multiview")):
        return ""
    rows = []
    for result in results:
        values = [result.scores[f"{task}/mAA@10"].value for task in ("stereo", "multiview")]
        mean = None if None in values else sum(value for value in values if value is not None) / 2
        rows.append((result.method["descriptor"], *values, mean))
    return format_table(("both tasks, mAA@10", "stereo", "multiview", "mean"), rows)


def _ran(results: Sequence[Result], task: str) -> bool:
    return f"{task}/mAA@10" in results[0].scores


def _count(score: Score) -> int | None:
    return None if score.value is None else round(score.value)
