"""``python -m eval dev``: the development judgement in one go."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.cache import Cache, canonical_json
from common.metrics import maa_per_pair
from common.shell import progress
from eval.core.benchmark import Benchmark, rows_by_scene
from eval.core.options import (
    add_descriptor_flags,
    add_places_flag,
    add_pose_flags,
    add_run_flags,
    add_upright_flag,
    estimator_from,
    load_methods,
    upright_from,
)
from eval.core.results import Result, Score, format_table, mean_over_scenes, mean_score
from eval.dev.data import DevData, DevSettings, find_data, open_pose_scene
from eval.dev.planes import (
    HA_THRESHOLDS_PX,
    PreparedCamera,
    PreparedSequence,
    judge_camera,
    judge_sequence,
    prepare_camera,
    prepare_sequence,
)
from eval.dev.poses import PreparedScene, choose_ratios, held_out, judge_scene, prepare_scene
from eval.features import Method, WholeFeature
from eval.features.detect import DogSettings, add_selection_flags, selection_from
from eval.features.extract import detector_of
from eval.sequences.protocols import MMA_THRESHOLDS_PX
from kornia_hardnet8.files import sha256_file

MAA_DEGREES = (5, 10)
MEAN_MAA = "mAA@10_mean"
METRICS = {
    "poses": [*(f"mAA@{degrees}" for degrees in MAA_DEGREES), MEAN_MAA, "AP"],
    "homography": [*(f"MMA@{t}" for t in MMA_THRESHOLDS_PX), "correct_nn", *(f"HA@{t}" for t in HA_THRESHOLDS_PX)],
    "webcam": ["correct_nn", "mAP"],
}
# The summary is the plain mean of these, of the kinds that the data holds.
HEADLINES = {"poses": "mAA@10", "homography": "MMA@3", "webcam": "mAP"}
SUMMARY = "dev"

Rows = list[dict[str, Any]]

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
    add_upright_flag(group)
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
            **upright_from(args),
        ),
        mr_size=args.mr_size,
        estimator=estimator_from(args, base.estimator),
        ransac_seeds=args.ransac_seeds,
        seed=args.seed,
    )
    methods = load_methods(args)
    data = find_data(args.data)
    with Benchmark.open("dev", args, dataset_of(args.data, data)) as benchmark:
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


def evaluate(benchmark: Benchmark, data: DevData, methods: Sequence[Method], settings: DevSettings) -> None:
    """Judge methods by the development protocol and add a result for each.

    Args:
        benchmark: where the results go; its cache holds keypoints, matches and scores.
        data: see :func:`eval.dev.data.find_data`.
        methods: see :func:`eval.features.load_method`; whole local features use their own keypoints, and have no
            part in what fixed cameras ask: they are not given the places there.
        settings: of the protocol.

    ``per_pair`` holds one row a pair with its ``task`` (``poses``, ``homography``, ``webcam``), ``scene``, ``pair`` and
    scores; ``scores`` are means over all pairs of a task; ``poses/mAA@10_mean`` is the mean over all ratios, free of
    the luck of the choice; ``poses/AP`` is :func:`eval.dev.poses.ranking_quality`, which has no RANSAC in it: far less
    noisy than mAA, it tells apart what the poses of some hundred pairs cannot; the score ``dev`` is the mean of
    ``poses/mAA@10``, ``homography/MMA@3`` and ``webcam/mAP``; whole local features have none.

    Raises:
        DataError, MissingFileError: see :func:`eval.dev.data.open_pose_scene`.
    """
    prepared = _prepare(data, settings, benchmark.cache)
    for method in methods:
        judged = _judge(prepared, method, settings, benchmark.cache)
        benchmark.result(
            method,
            scores_of(judged.rows, settings.seed, summary=not isinstance(method, WholeFeature)),
            {
                scene: scores_of(rows, settings.seed, summary=False)
                for scene, rows in rows_by_scene(judged.rows).items()
            },
            judged.rows,
            about={
                "detector": detector_of(method, settings.detector),
                "matcher": "mutual nearest neighbours, L2",
                "geometry": settings.estimator.to_dict(),
            },
            protocol={**settings.to_dict(), "chosen_ratios": judged.chosen_ratios, "summary": _summary_text(data)},
            timing=judged.seconds,
        )


class _Prepared(NamedTuple):
    """What does not depend on the descriptor: images, keypoints, patches, truth."""

    scenes: list[PreparedScene]
    sequences: list[PreparedSequence]
    cameras: list[PreparedCamera]
    seconds: float


class _Judged(NamedTuple):
    """One descriptor on everything."""

    rows: Rows
    chosen_ratios: dict[str, float]
    seconds: dict[str, float]


def _prepare(data: DevData, settings: DevSettings, cache: Cache) -> _Prepared:
    start = time.perf_counter()
    scenes = [
        prepare_scene(
            open_pose_scene(name, folder, settings.min_common, settings.pose_pairs, settings.seed), settings, cache
        )
        for name, folder in progress(data.poses.items(), len(data.poses), "poses: keypoints", "scene")
    ]
    sequences = [prepare_sequence(name, sequence, settings, cache) for name, sequence in data.homography.items()]
    cameras = [prepare_camera(name, files, settings, cache) for name, files in data.webcam.items()]
    return _Prepared(scenes, sequences, cameras, time.perf_counter() - start)


def _judge(prepared: _Prepared, descriptor: Method, settings: DevSettings, cache: Cache) -> _Judged:
    timing: dict[str, float] = {}
    rows, chosen = _judge_poses(prepared.scenes, descriptor, settings, cache, timing)
    for sequence in progress(prepared.sequences, what=f"{descriptor.name}: homographies", unit="sequence"):
        scored, seconds = judge_sequence(sequence, descriptor, settings, cache)
        rows += [{"task": "homography", "scene": sequence.name, **row} for row in scored]
        _add_time(timing, {"homography": seconds})
    if not isinstance(descriptor, WholeFeature):
        for camera in progress(prepared.cameras, what=f"{descriptor.name}: webcams", unit="camera"):
            scored, seconds = judge_camera(camera, descriptor, settings, cache)
            rows += [{"task": "webcam", "scene": camera.name, **row} for row in scored]
            _add_time(timing, {"webcam": seconds})
    return _Judged(rows, chosen, {**timing, "prepare": prepared.seconds})


def scores_of(rows: Rows, seed: int, summary: bool = True) -> dict[str, Score]:
    """Means over pairs with their intervals, by ``task/metric``, and the summary when every kind of it is asked for."""
    scores: dict[str, Score] = {}
    headlines = []
    for task, metrics in METRICS.items():
        chosen = [row for row in rows if row["task"] == task]
        if not chosen:
            continue
        for metric in metrics:
            scores[f"{task}/{metric}"] = mean_score([row[metric] for row in chosen], seed)
        headlines.append([row[HEADLINES[task]] for row in chosen])
    if summary:
        scores = {SUMMARY: mean_over_scenes(headlines, seed), **scores}
    return scores


def _judge_poses(
    scenes: Sequence[PreparedScene],
    descriptor: Method,
    settings: DevSettings,
    cache: Cache,
    timing: dict[str, float],
) -> tuple[Rows, dict[str, float]]:
    """Rows of all pose pairs, and the ratio that judges each half."""
    if not scenes:
        return [], {}
    judged = []
    for scene in progress(scenes, what=f"{descriptor.name}: poses", unit="scene"):
        judged.append(judge_scene(scene, descriptor, settings, cache))
        _add_time(timing, judged[-1].seconds)
    errors = np.concatenate([f.errors_deg for f in judged], axis=2)
    chosen = choose_ratios(errors)
    kept = held_out(errors, chosen)  # (S, P)
    shares = {f"mAA@{degrees}": np.mean([maa_per_pair(e, degrees) for e in kept], axis=0) for degrees in MAA_DEGREES}
    inliers = held_out(np.concatenate([f.num_inliers for f in judged], axis=2), chosen).mean(axis=0)
    every_ratio = np.mean([[maa_per_pair(seed, 10) for seed in ratio] for ratio in errors], axis=(0, 1))
    precision = np.concatenate([f.average_precision for f in judged])
    matches = held_out(np.concatenate([f.num_matches for f in judged], axis=1), chosen)
    names = [(scene.scene.name, f"{a}-{b}") for scene in scenes for a, b in scene.scene.pairs]
    rows = [
        {
            "task": "poses",
            "scene": scene,
            "pair": pair,
            "error_deg": kept[:, k].tolist() if settings.ransac_seeds > 1 else float(kept[0, k]),
            **{name: float(share[k]) for name, share in shares.items()},
            MEAN_MAA: float(every_ratio[k]),
            "AP": float(precision[k]),
            "num_matches": int(matches[k]),
            "num_inliers": float(inliers[k]),
        }
        for k, (scene, pair) in enumerate(names)
    ]
    return rows, {"even_pairs": settings.ratios[chosen[0]], "odd_pairs": settings.ratios[chosen[1]]}


def _summary_text(data: DevData) -> str:
    parts = {"poses": data.poses, "homography": data.homography, "webcam": data.webcam}
    return "mean of " + ", ".join(f"{task}/{metric}" for task, metric in HEADLINES.items() if parts[task])


def dataset_of(root: Path, data: DevData) -> dict[str, Any]:
    """What the results say of the data."""
    files = {name: sorted(p for p in folder.rglob("*") if p.is_file()) for name, folder in data.poses.items()}
    for name, sequence in data.homography.items():
        files[name] = [sequence.reference, *(path for _, path, _ in sequence.targets)]
    files |= {name: list(paths) for name, paths in data.webcam.items()}
    hashes = {name: [(p.name, sha256_file(p)) for p in paths] for name, paths in files.items()}
    scenes = {name: hashlib.sha256(canonical_json(entry).encode()).hexdigest()[:16] for name, entry in hashes.items()}
    return {
        "name": Path(root).resolve().name,
        "fingerprint": hashlib.sha256(canonical_json(scenes).encode()).hexdigest(),
        "scenes": scenes,
    }


def _add_time(timing: dict[str, float], seconds: dict[str, float]) -> None:
    for stage, value in seconds.items():
        timing[stage] = timing.get(stage, 0.0) + value
