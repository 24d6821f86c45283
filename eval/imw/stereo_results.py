"""From judged pairs to the numbers of the stereo task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics import accuracy_curve, maa, maa_per_pair
from eval.core.pairs import Pair
from eval.core.reprojection import matching_score, mean_repeatability
from eval.core.results import Score, mean_over_scenes
from eval.imw.scene import HEADLINE, THRESHOLDS
from eval.imw.stereo import StereoPair, StereoScene

MAA_DEGREES = (5, 10)
# Pixels of the repeatability and matching score that stand in the tables.
DEPTH_PX = 3


def stereo_scores(scenes: Sequence[StereoScene], seed: int = 0) -> dict[str, Score]:
    """Scores over scenes, every scene with the same weight, on pairs of co-visibility 0.1 and more.

    Every number of a pair is the mean over the runs.
    """
    rows = [[row for row in stereo_pairs(found) if row["covisibility"] >= float(HEADLINE)] for found in scenes]

    def mean(name: str) -> Score:
        return mean_over_scenes([[row[name] for row in of_scene if name in row] for of_scene in rows], seed)

    names = [f"mAA@{degrees}" for degrees in MAA_DEGREES] + ["num_matches", "num_inliers"]
    if any(found.depth for found in scenes):
        names += [f"{kind}@{DEPTH_PX}" for kind in ("repeatability", "matching_score_pre", "matching_score")]
    counts = [[len(keypoints) for keypoints in found.keypoints.values()] for found in scenes]
    return {f"stereo/{name}": mean(name) for name in names} | {
        "stereo/num_keypoints": mean_over_scenes(counts, seed),
    }


def stereo_scene(found: StereoScene, seed: int = 0) -> dict[str, Any]:
    """What is reported of one scene: its scores, the accuracy curve, mAA by co-visibility threshold."""
    by_threshold = {}
    for threshold in found.scene.thresholds:
        runs = [_errors(pairs) for pairs in runs_at(found, threshold)]
        by_threshold[threshold] = {
            "n": len(runs[0]),
            **{
                f"mAA@{degrees}": float(np.mean([maa(errors, degrees) for errors in runs])) if runs[0] else None
                for degrees in MAA_DEGREES
            },
        }
    headline = [_errors(pairs) for pairs in runs_at(found, HEADLINE)]
    return {
        **stereo_scores([found], seed),
        "stereo/accuracy_1_to_10_deg": np.mean([accuracy_curve(errors) for errors in headline], axis=0),
        "stereo/by_covisibility": by_threshold,
        **_depth_curves(found),
        **_runs(found),
        "failed_pairs": sum(not np.isfinite(pair.error_deg) for pair in found.pairs),
    }


def stereo_pairs(found: StereoScene) -> list[dict[str, Any]]:
    """One dictionary a pair; ``covisibility`` is the highest threshold whose list holds it, errors are degrees.

    With several runs the errors are those of the first, ``errors_deg`` lists all, and ``mAA@k`` and the counts of
    inliers are means.
    """
    reached: dict[Pair, str] = {}
    for threshold in sorted(found.scene.thresholds, key=THRESHOLDS.index):
        reached |= dict.fromkeys(found.scene.pairs(threshold), threshold)
    rows = []
    for runs in zip(*found.runs, strict=True):
        judged, errors = runs[0], [run.error_deg for run in runs]
        rows.append(
            {
                "task": "stereo",
                "scene": found.scene.name,
                "pair": f"{judged.pair[0]}-{judged.pair[1]}",
                "covisibility": float(reached[judged.pair]),
                "error_deg": judged.error_deg,
                **({"errors_deg": errors} if len(runs) > 1 else {}),
                "rotation_deg": float(np.rad2deg(judged.err_q)),
                "translation_deg": float(np.rad2deg(judged.err_t)),
                **{f"mAA@{degrees}": float(maa_per_pair(errors, degrees).mean()) for degrees in MAA_DEGREES},
                "num_matches": len(judged.matches),
                "num_inliers": _number(np.mean([run.inliers.sum() for run in runs])),
                **_depth_row(found, runs),
                **({"failure": judged.reason} if judged.reason else {}),
            }
        )
    return rows


def headline_pairs(found: StereoScene) -> list[StereoPair]:
    """The pairs that the headline numbers are about, in the first run."""
    return runs_at(found, HEADLINE)[0]


def runs_at(found: StereoScene, threshold: str) -> list[list[StereoPair]]:
    """The judged pairs of the list of a co-visibility threshold, run by run."""
    listed = set(found.scene.pairs(threshold))
    return [[judged for judged in run if judged.pair in listed] for run in found.runs]


def depth_curves(found: StereoScene, pairs: Sequence[StereoPair], official: bool = False) -> dict[str, Any]:
    """Repeatability and matching scores (before and after the estimator) at 1 … 10 px, means over pairs.

    The denominators are those of the original: pairs without repeatability are left out, pairs without a match that
    has depth count as 0 in the matching scores. Empty without depth maps.

    Args:
        found: the task on one scene.
        pairs: of one run.
        official: repeatability as the original counts visible keypoints.
    """
    judged = [(pair, found.depth[pair.pair]) for pair in pairs if pair.pair in found.depth]
    if not judged:
        return {}
    curves = [depth.repeatability_official if official else depth.repeatability for _, depth in judged]
    return {
        "repeatability": mean_repeatability(curves),
        "matching_score_pre": matching_score([depth.chosen() for _, depth in judged]),
        "matching_score": matching_score([depth.chosen(pair.inliers) for pair, depth in judged]),
    }


def _depth_curves(found: StereoScene) -> dict[str, NDArray[np.float64]]:
    runs = [depth_curves(found, pairs) for pairs in runs_at(found, HEADLINE)]
    return {f"stereo/{name}_1_to_10_px": np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def _depth_row(found: StereoScene, runs: Sequence[StereoPair]) -> Mapping[str, float]:
    """Repeatability and matching score of one pair at :data:`DEPTH_PX`."""
    depth = found.depth.get(runs[0].pair)
    if depth is None:
        return {}
    after = [_share(depth.chosen(run.inliers)) for run in runs]
    return {
        f"repeatability@{DEPTH_PX}": float(depth.repeatability[DEPTH_PX - 1]),
        f"matching_score_pre@{DEPTH_PX}": _share(depth.chosen()),
        f"matching_score@{DEPTH_PX}": float(np.mean(after)),
    }


def _share(distances: NDArray[np.float64]) -> float:
    return float(matching_score([distances], [DEPTH_PX])[0])


def _runs(found: StereoScene) -> dict[str, Any]:
    """MAA of every run, where there are several."""
    if len(found.runs) < 2:
        return {}
    runs = [_errors(pairs) for pairs in runs_at(found, HEADLINE)]
    return {f"stereo/mAA@{degrees}_runs": [maa(errors, degrees) for errors in runs] for degrees in MAA_DEGREES}


def _errors(pairs: Sequence[StereoPair]) -> list[float]:
    return [judged.error_deg for judged in pairs]


def _number(value: np.floating) -> int | float:
    """A mean of counts, as an integer where it is one."""
    return int(value) if float(value).is_integer() else float(value)
