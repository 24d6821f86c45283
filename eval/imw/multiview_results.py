"""From reconstructed bags to the numbers of the multiview task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.metrics import bag_accuracy_histogram, maa_from_histogram, max_error_deg
from eval.core.multiview_metrics import bag_statistics
from eval.core.results import Score, nested_mean
from eval.imw.multiview import OK, Bag, MultiviewScene
from eval.imw.stereo_results import MAA_DEGREES

# name -> value of one bag; None where a bag has none (a failed bag has no points, few cameras no trajectory error)
_VALUES: dict[str, Callable[[Bag], float | None]] = {
    **{f"mAA@{k}": lambda bag, k=k: bag_maa(bag, k) for k in MAA_DEGREES},  # type: ignore[misc]
    "registered_ratio": lambda bag: len(bag.poses) / bag.size,
    "success_rate": lambda bag: float(bag.status == OK),
    "num_points": lambda bag: float(len(bag.track_lengths)) if bag.status == OK else None,
    "track_length": lambda bag: _track_length(bag) if bag.status == OK else None,
    "ATE": lambda bag: bag.ate,
    "ATE_corrected": lambda bag: bag.ate_corrected,
    "num_matches": lambda bag: bag.num_matches,
}


def bag_maa(bag: Bag, max_deg: int = 10) -> float:
    """MAA over all pairs of a bag; an image that is not registered fails in all its pairs."""
    return float(maa_from_histogram(bag_accuracy_histogram([max_error_deg(bag.errors)]), max_deg))


def multiview_scores(scenes: Sequence[MultiviewScene], seed: int = 0) -> dict[str, Score]:
    """Scores over scenes: in each the mean over bag sizes, with the same weight, of the mean over bags.

    Failed bags count with mAA 0 and no registered image; numbers of points and tracks are over the others, as in the
    original. ``ATE`` is the original's, ``ATE_corrected`` with an alignment that is a similarity. ``n`` counts bags.
    Then mAA for each bag size.
    """
    groups = [list(found.by_size().values()) for found in scenes]
    scores = {f"multiview/{name}": _score(name, groups, seed) for name in _VALUES}
    for size in sorted({size for found in scenes for size in found.by_size()}):
        of_size = [[found.by_size()[size]] for found in scenes if size in found.by_size()]
        scores |= {f"multiview/{size}bag/mAA@{k}": _score(f"mAA@{k}", of_size, seed) for k in MAA_DEGREES}
    return scores


def multiview_scene(found: MultiviewScene, seed: int = 0) -> dict[str, Any]:
    """What is reported of one scene: its scores, the same for each bag size, and the failed bags by reason."""
    failed = [bag.status for bag in found.bags if bag.status != OK]
    return {
        **multiview_scores([found], seed),
        "multiview/by_bag_size": {
            str(size): {
                **{name: _score(name, [[bags]], seed) for name in _VALUES},
                "official": {**bag_statistics([bag.counts for bag in bags])},
            }
            for size, bags in found.by_size().items()
        },
        "failed_bags": {status: failed.count(status) for status in sorted(set(failed))},
    }


def multiview_bags(found: MultiviewScene) -> list[dict[str, Any]]:
    """One dictionary a bag, called ``pair`` as in every results file; ``errors_deg`` in the order of its pairs."""
    return [
        {
            "task": "multiview",
            "scene": found.scene.name,
            "group": f"{bag.size}bag",
            "pair": bag.name,
            "images": bag.images,
            "status": bag.status,
            **{name: value(bag) for name, value in _VALUES.items()},
            "num_registered": len(bag.poses),
            "reprojection_px": bag.reprojection_px if bag.status == OK else None,
            "errors_deg": max_error_deg(bag.errors),
            "seconds": bag.seconds,
        }
        for bag in found.bags
    ]


def _score(name: str, scenes: Sequence[Sequence[Sequence[Bag]]], seed: int) -> Score:
    value = _VALUES[name]
    values = [[[v for bag in bags if (v := value(bag)) is not None] for bags in groups] for groups in scenes]
    return nested_mean(values, seed)


def _track_length(bag: Bag) -> float:
    """Mean images of a point; 0 without points."""
    return float(np.mean(bag.track_lengths)) if len(bag.track_lengths) else 0.0
