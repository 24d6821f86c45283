"""From judged pairs to the numbers of the stereo task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.imw.scene import THRESHOLDS, Pair
from eval.imw.stereo import HEADLINE, StereoPair, StereoScene
from eval.metrics import accuracy_curve, maa, maa_per_pair
from eval.results import Score, mean_over_scenes

MAA_DEGREES = (5, 10)


def stereo_scores(scenes: Sequence[StereoScene], seed: int = 0) -> dict[str, Score]:
    """Scores over scenes, every scene with the same weight, on pairs of co-visibility 0.1 and more."""
    chosen = [headline_pairs(found) for found in scenes]
    scores = {
        f"stereo/mAA@{degrees}": mean_over_scenes([maa_per_pair(_errors(pairs), degrees) for pairs in chosen], seed)
        for degrees in MAA_DEGREES
    }
    scores["stereo/num_matches"] = mean_over_scenes([[len(p.matches) for p in pairs] for pairs in chosen], seed)
    scores["stereo/num_inliers"] = mean_over_scenes([[p.inliers.sum() for p in pairs] for pairs in chosen], seed)
    counts = [[len(keypoints) for keypoints in found.keypoints.values()] for found in scenes]
    return scores | {"stereo/num_keypoints": mean_over_scenes(counts, seed)}


def stereo_scene(found: StereoScene, seed: int = 0) -> dict[str, Any]:
    """What is reported of one scene: its scores, the accuracy curve, mAA by co-visibility threshold."""
    by_threshold = {}
    for threshold in found.scene.thresholds:
        pairs = pairs_at(found, threshold)
        by_threshold[threshold] = {
            "n": len(pairs),
            **{f"mAA@{degrees}": maa(_errors(pairs), degrees) if pairs else None for degrees in MAA_DEGREES},
        }
    return {
        **stereo_scores([found], seed),
        "stereo/accuracy_1_to_10_deg": accuracy_curve(_errors(headline_pairs(found))),
        "stereo/by_covisibility": by_threshold,
        "failed_pairs": sum(not np.isfinite(pair.error_deg) for pair in found.pairs),
    }


def stereo_pairs(found: StereoScene) -> list[dict[str, Any]]:
    """One dictionary a pair; ``covisibility`` is the highest threshold whose list holds it, errors are degrees."""
    reached: dict[Pair, str] = {}
    for threshold in sorted(found.scene.thresholds, key=THRESHOLDS.index):
        reached |= dict.fromkeys(found.scene.pairs(threshold), threshold)
    return [
        {
            "task": "stereo",
            "scene": found.scene.name,
            "pair": f"{judged.pair[0]}-{judged.pair[1]}",
            "covisibility": float(reached[judged.pair]),
            "error_deg": judged.error_deg,
            "rotation_deg": float(np.rad2deg(judged.err_q)),
            "translation_deg": float(np.rad2deg(judged.err_t)),
            "num_matches": len(judged.matches),
            "num_inliers": int(judged.inliers.sum()),
            **({"failure": judged.reason} if judged.reason else {}),
        }
        for judged in found.pairs
    ]


def headline_pairs(found: StereoScene) -> list[StereoPair]:
    """The pairs that the headline numbers are about."""
    return pairs_at(found, HEADLINE)


def pairs_at(found: StereoScene, threshold: str) -> list[StereoPair]:
    """The judged pairs of the list of a co-visibility threshold."""
    listed = set(found.scene.pairs(threshold))
    return [judged for judged in found.pairs if judged.pair in listed]


def _errors(pairs: Sequence[StereoPair]) -> list[float]:
    return [judged.error_deg for judged in pairs]
