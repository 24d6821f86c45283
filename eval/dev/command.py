"""``python -m eval dev``: the development judgement in one go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.benchmark import Benchmark
from eval.core.options import (
    add_descriptor_flags,
    add_places_flag,
    add_pose_flags,
    add_run_flags,
    estimator_from,
    load_methods,
)
from eval.core.results import Result, format_table
from eval.dev.data import DevSettings, find_data
from eval.dev.evaluate import HEADLINES, MEAN_MAA, SUMMARY, dataset_of, evaluate
from eval.features.detect import DogSettings, add_selection_flags, selection_from

COLUMNS = (
    SUMMARY,
    "poses/mAA@5",
    "poses/mAA@10",
    f"poses/{MEAN_MAA}",
    "poses/AP",
    "homography/MMA@3",
    "homography/correct_nn",
    "homography/HA@3",
    "webcam/correct_nn",
    "webcam/mAP",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = DevSettings()
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of GROUP/SCENE folders of the three kinds"
    )
    add_descriptor_flags(parser)
    group = parser.add_argument_group("protocol")
    group.add_argument("--keypoints", type=int, default=defaults.detector.num, help="DoG keypoints an image")
    add_selection_flags(group)
    add_places_flag(group)
    group.add_argument("--mr-size", type=float, default=defaults.mr_size, help="half side of a patch / sigma")
    group.add_argument(
        "--ransac-seeds", type=int, default=defaults.ransac_seeds, metavar="N", help="estimates a pair, averaged"
    )
    add_pose_flags(parser, defaults.estimator)
    add_run_flags(parser, "dev", cached="keypoints, matches and scores, which runs may share")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor; write and print the results."""
    base = DevSettings()
    settings = DevSettings(
        detector=DogSettings(
            num=args.keypoints,
            contrast=base.detector.contrast,
            edge=base.detector.edge,
            places=args.places,
            **selection_from(args),
        ),
        mr_size=args.mr_size,
        estimator=estimator_from(args, base.estimator),
        ransac_seeds=args.ransac_seeds,
        seed=args.seed,
    )
    methods = load_methods(args)
    data = find_data(args.data)
    benchmark = Benchmark.open("dev", args, dataset_of(args.data, data))
    evaluate(benchmark, data, methods, settings)
    benchmark.finish(table(benchmark.results), args.json)


def table(results: Sequence[Result]) -> str:
    """Means with intervals, one line a descriptor; then each scene's headline numbers, one line a scene."""
    columns = [name for name in COLUMNS if any(name in r.scores for r in results)]
    rows: list[Sequence[Any]] = [(r.method["descriptor"], *(r.scores.get(name) for name in columns)) for r in results]
    lines = [format_table(("mean [95 %]", *columns), rows)]
    first = max((r.per_scene for r in results), key=len)  # whole local features have no fixed cameras
    scenes = [
        (name, metric, first[name][metric].n, *(_value(r, name, metric) for r in results))
        for name in first
        for metric in (f"{task}/{metric}" for task, metric in HEADLINES.items())
        if metric in first[name]
    ]
    lines.append(format_table(("scene", "metric", "n", *(r.method["descriptor"] for r in results)), scenes))
    if SUMMARY in columns:
        lines.append(f"{SUMMARY} = {results[0].protocol['summary']}")
    return "\n\n".join(lines)


def _value(result: Result, scene: str, metric: str) -> float | None:
    score = result.per_scene.get(scene, {}).get(metric)
    return None if score is None else score.value
