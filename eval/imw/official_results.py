"""The benchmark's own results file: every metric by scene, run and bag size, and its averages.

Source: IMW benchmark.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics import accuracy_histogram, bag_accuracy_histogram, maa_from_histogram, max_error_deg
from eval.core.multiview_metrics import bag_statistics, covisible_pairs
from eval.imw.multiview import OK, Bag, MultiviewScene
from eval.imw.scene import Scene, pair_key
from eval.imw.stereo import StereoPair, StereoScene, depth_curves
from kornia_hardnet8.errors import DataError

Values = dict[str, Any]
NO_DESCRIPTOR = ("none", 0, 0)
STAGES = ("matcher", "filter", "geom")
# What `bag_avg` averages; `avg_num_cameras` is divided by the bag size, `num_in_bag` is left out.
_BAG_METRICS = (
    "qt_auc_colmap_05",
    "qt_auc_colmap_10",
    "qt_colmap_01_10",
    "avg_ate",
    "avg_num_cameras",
    "success_rate",
    "avg_num_3d_points",
    "avg_track_length",
    "avg_num_keypoints",
    "num_input_matches",
    "num_in_bag",
)


def pack(
    config: Mapping[str, Any],
    descriptor: tuple[str, int, int],
    stereo: Sequence[StereoScene],
    multiview: Sequence[MultiviewScene],
    keypoints: Mapping[str, float],
) -> dict[str, Any]:
    """The whole file of one method.

    Args:
        config: the method dictionary of a ``config.json``.
        descriptor: see :func:`descriptor_properties`.
        stereo: the stereo task of every scene that has it.
        multiview: the multiview task of every scene that has it.
        keypoints: mean keypoints of an image, by scene.
    """
    scenes: dict[str, dict[str, Scene]] = {}
    for scene in [result.scene for result in stereo] + [result.scene for result in multiview]:
        scenes.setdefault(scene.dataset, {})[scene.name] = scene
    kind, size, num_bytes = descriptor
    packed: dict[str, Any] = {
        "config": dict(config),
        "properties": {
            "processing_date": datetime.date.today().strftime("%y-%m-%d"),
            "is_submission": False,
            "descriptor_type": kind,
            "descriptor_size": size,
            "descriptor_nbytes": num_bytes,
        },
    }
    for dataset, names in scenes.items():
        runs = {
            "stereo": {
                f.scene.name: [pack_stereo(f, run, keypoints[f.scene.name]) for run in range(len(f.runs))]
                for f in stereo
                if f.scene.dataset == dataset
            },
            "multiview": {
                f.scene.name: [pack_multiview(f, keypoints[f.scene.name])]
                for f in multiview
                if f.scene.dataset == dataset
            },
        }
        averages = {"stereo": average_stereo(runs["stereo"]), "multiview": average_multiview(runs["multiview"])}
        results: dict[str, Any] = {}
        for name in ("allseq", *names):
            results[name] = {}
            for task, of_task in runs.items():
                results[name][task] = {"run_avg": averages[task].get(name, {})}
                for index, values in enumerate(of_task.get(name, [])):
                    results[name][task][f"run_{index}"] = values
        packed[dataset] = {
            **{
                f"num_runs_{task}": max((len(r) for r in of_task.values()), default=0) for task, of_task in runs.items()
            },
            "results": results,
        }
    return packed


def pack_stereo(result: StereoScene, run: int, avg_num_keypoints: float) -> Values:
    """Metrics of one run on one scene.

    Names with ``_th_T`` are about the pairs of co-visibility T; without, about those of the old criterion, which needs
    visibility files. A list without pairs gives zeros.
    """
    judged = {pair_key(pair.pair): pair for pair in result.runs[run]}
    lists = {f"_th_{t}": [pair_key(pair) for pair in result.scene.pairs(t)] for t in result.scene.thresholds}
    old = _old_list(result.scene)
    if old is not None:
        lists = {"": [key for key in judged if key in old], **lists}
    counts = {
        "matcher": {key: len(pair.matches) for key, pair in judged.items()},
        "filter": {key: len(pair.matches) for key, pair in judged.items()},
        "geom": {key: int(pair.inliers.sum()) for key, pair in judged.items()},
    }
    by_threshold = {suffix.removeprefix("_th_"): keys for suffix, keys in lists.items() if suffix}
    values: Values = {"avg_num_keypoints": avg_num_keypoints, **num_matches(by_threshold, counts)}
    for suffix, keys in lists.items():
        pairs = [judged[key] for key in keys]
        histogram = accuracy_histogram([pair.error_deg for pair in pairs])
        values[f"qt_01_10{suffix}"] = histogram.tolist()
        values[f"qt_auc_05{suffix}"] = maa_from_histogram(histogram, 5)
        values[f"qt_auc_10{suffix}"] = maa_from_histogram(histogram, 10)
        if result.depth:
            values |= {f"{name}{suffix}": curve for name, curve in _depth_values(result, pairs).items()}
    of_run = len(result.pairs) or 1
    values["match_cost"] = result.seconds["match"] / of_run
    values["filter_cost"] = 0.0
    values["geom_cost"] = result.seconds["geometry"] / of_run / len(result.runs)
    return values


def pack_multiview(result: MultiviewScene, avg_num_keypoints: float) -> dict[str, Values]:
    """Metrics of one scene by ``<size>bag``, and their average ``bag_avg``."""
    input_matches = float(np.mean([bag.num_matches for bag in result.bags])) if result.bags else 0.0
    sizes = {str(size): _bag_values(bags, avg_num_keypoints, input_matches) for size, bags in result.by_size().items()}
    return {"bag_avg": average_bags(sizes), **{f"{size}bag": values for size, values in sizes.items()}}


def num_matches(pairs: Mapping[str, Sequence[str]], counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Mean matches of a pair, by stage and threshold; without a threshold always 0, as in the original.

    Args:
        pairs: keys of the pairs by threshold; no pair gives 0.
        counts: by stage and key.
    """
    means: dict[str, float] = {f"num_matches_{stage}": 0 for stage in STAGES}
    for threshold, keys in pairs.items():
        for stage in STAGES:
            values = [counts[stage][key] for key in keys]
            means[f"num_matches_{stage}_th_{threshold}"] = float(np.mean(values)) if values else 0.0
    return means


def descriptor_properties(descs: NDArray[Any]) -> tuple[str, int, int]:
    """Type, width and bytes of a descriptor, of descriptors (N, D); :data:`NO_DESCRIPTOR` for N = 0."""
    if len(descs) == 0:
        return NO_DESCRIPTOR
    return descs.dtype.name, descs.shape[1], descs[0].nbytes


def average_stereo(scenes: Mapping[str, Sequence[Values]], compat: bool = False) -> dict[str, dict[str, Values]]:
    """Average the metrics over runs for each scene, and over scenes into ``allseq``.

    Lists have a mean alone. Deviations are those of a population.

    Args:
        scenes: metrics of every run by scene.
        compat: a metric that a scene does not have counts as 0 there, as in the original; else that scene is left out.
    """
    averages: dict[str, dict[str, Values]] = {"allseq": {}} if scenes else {}
    names = list(dict.fromkeys(name for runs in scenes.values() for values in runs for name in values))
    for name in names:
        table = [[values.get(name) for values in runs] for runs in scenes.values()]
        averages["allseq"][name] = _over_scenes(_complete(table, compat), name == "avg_ate")
    for scene, runs in scenes.items():
        averages[scene] = {
            name: _over_runs(np.array([values[name] for values in runs], np.float64), name == "avg_ate")
            for name in runs[0]
        }
    return averages


def _complete(table: list[list[Any]], compat: bool) -> NDArray[np.float64]:
    """Values (scenes, runs, …): scenes that lack one are left out, or have 0 there (``compat``)."""
    if compat:
        like = next(value for row in table for value in row if value is not None)
        table = [[np.zeros_like(like) if value is None else value for value in row] for row in table]
    return np.array([row for row in table if all(value is not None for value in row)], np.float64)


def average_multiview(scenes: Mapping[str, Sequence[Mapping[str, Values]]]) -> dict[str, dict[str, dict[str, Values]]]:
    """The same for each bag size; trajectory errors that are NaN are left out."""
    sizes = list(dict.fromkeys(size for runs in scenes.values() for run in runs for size in run))
    means: dict[str, dict[str, dict[str, Values]]] = {}
    for size in sizes:
        of_size = {scene: [run[size] for run in runs if size in run] for scene, runs in scenes.items()}
        for scene, values in average_stereo({scene: runs for scene, runs in of_size.items() if runs}).items():
            means.setdefault(scene, {})[size] = values
    return means


def average_bags(sizes: Mapping[str, Values]) -> Values:
    """Average over bag sizes, each with the same weight.

    ``avg_num_cameras`` becomes ``ratio_registered_cameras``, the share of the bag size.

    Raises:
        DataError: a metric that is not one of the benchmark.
    """
    means: Values = {}
    names = list(dict.fromkeys(name for values in sizes.values() for name in values))
    for name in names:
        if name not in _BAG_METRICS:
            raise DataError(f"{name} is no metric of the multiview task: {', '.join(_BAG_METRICS)}")
        values = [np.asarray(of_size[name], np.float64) for of_size in sizes.values()]
        if name == "num_in_bag":
            continue
        if name == "avg_num_cameras":
            means["ratio_registered_cameras"] = float(
                np.mean([value / int(size) for size, value in zip(sizes, values, strict=True)])
            )
        elif name == "avg_ate":
            finite = [value for value in values if np.isfinite(value)]
            means[name] = float(np.mean(finite)) if finite else math.nan
        else:
            means[name] = np.mean(values, axis=0).tolist()
    return means


def _bag_values(bags: Sequence[Bag], avg_num_keypoints: float, input_matches: float) -> Values:
    histogram = bag_accuracy_histogram([max_error_deg(bag.errors) for bag in bags])
    errors = [bag.ate for bag in bags if bag.status == OK and bag.ate is not None]
    return {
        "qt_colmap_01_10": histogram.tolist(),
        "qt_auc_colmap_05": maa_from_histogram(histogram, 5),
        "qt_auc_colmap_10": maa_from_histogram(histogram, 10),
        **bag_statistics([bag.counts for bag in bags]),
        "avg_num_keypoints": avg_num_keypoints,
        "num_input_matches": input_matches,
        "avg_ate": float(np.mean(errors)) if errors else math.nan,
    }


def _depth_values(result: StereoScene, pairs: Sequence[StereoPair]) -> Values:
    """Repeatability as the original counts it, and matching scores; the filter stage keeps every match."""
    curves = depth_curves(result, pairs, official=True)
    zeros = np.zeros(10)
    score, final, repeatability = (curves.get(k) for k in ("matching_score_pre", "matching_score", "repeatability"))
    values = {
        "matching_scores_depth_projection_pre_match": score,
        "matching_scores_depth_projection_refined_match": score,
        "matching_scores_depth_projection_final_match": final,
        "repeatability": repeatability,
    }
    return {name: (zeros if curve is None else curve).tolist() for name, curve in values.items()}


def _old_list(scene: Scene) -> set[str] | None:
    """Keys of the pairs of the old criterion: more common points than the threshold, as the matrix orders them."""
    if scene.visibility is None:
        return None
    names = list(scene.images)
    pairs = covisible_pairs(scene.visibility, scene.visibility_threshold)
    return {f"{names[i]}-{names[j]}" for i, j in pairs}


def _over_runs(values: NDArray[np.float64], ignore_nan: bool) -> Values:
    """Statistics of (runs,) values; the mean alone of (runs, K) lists."""
    mean, std, low, high = (
        (_nan_mean, _nan_std, _nan_min, _nan_max) if ignore_nan else (np.mean, np.std, np.min, np.max)
    )
    if values.ndim > 1:
        return {"mean": np.mean(values, axis=0).tolist()}
    return {
        "mean": float(mean(values)),
        "std_runs": float(std(values)),
        "min_runs": float(low(values)),
        "max_runs": float(high(values)),
    }


def _over_scenes(values: NDArray[np.float64], ignore_nan: bool) -> Values:
    """Statistics of (scenes, runs) values; the mean alone of (scenes, runs, K) lists."""
    if values.ndim > 2:
        return {"mean": values.mean(axis=(0, 1)).tolist()}
    mean, std = (_nan_mean, _nan_std) if ignore_nan else (np.mean, np.std)
    return {
        "mean": float(mean(values)),
        "std_scenes": float(std(np.array([mean(row) for row in values]))),
        "std_runs": float(std(np.array([mean(column) for column in values.T]))),
    }


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _nan_mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(_finite(values))) if len(_finite(values)) else math.nan


def _nan_std(values: NDArray[np.float64]) -> float:
    return float(np.std(_finite(values))) if len(_finite(values)) else math.nan


def _nan_min(values: NDArray[np.float64]) -> float:
    return float(np.min(_finite(values))) if len(_finite(values)) else math.nan


def _nan_max(values: NDArray[np.float64]) -> float:
    return float(np.max(_finite(values))) if len(_finite(values)) else math.nan
