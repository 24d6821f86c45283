"""The patch verification task: is this a pair of patches of one place?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.hpatches import LEVELS, NUM_TARGETS
from common.jobs import map_on_threads
from eval.core.distances import apply_mask, check_metric, pair_distances
from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.tasks import PatchPairs, VerificationTask

_POSITIVE_SHARE = 0.2  # of the imbalanced sets: 1 positive to 5 negatives
KINDS = ("inter", "intra")


def score_verification(
    descriptors: DescriptorSet, task: VerificationTask, metric: str = "L2"
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Scores by noise level (e, h, t) and kind of negatives (inter, intra).

    ``imbalanced_ap`` (trapezoid) and ``balanced_auc``: negatives stand before positives, so ties count against the
    descriptor. ``imbalanced_ap_vl``: VLFeat's AP with positives first, as in the article's figures.
    ``imbalanced_ap_tie_neutral``: mean over both orders. ``tie_share``: share of pairs at the distance of some pair of
    the other label.

    A kind is None when the task holds no such pairs (``inter`` with a single sequence).

    Source: HPatches benchmark, task verification.
    """
    check_metric(metric, descriptors.dim)
    data = apply_mask(descriptors.data, metric)
    num_inter = int((task.inter.s1 != task.inter.s2).sum())
    cells: dict[tuple[str, str], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for level in LEVELS:
        positive = _distances(descriptors, data, task.positives, level, metric)
        for kind in KINDS:
            if len(positive) and (kind != "inter" or num_inter):
                negative = _distances(descriptors, data, getattr(task, kind), level, metric)
                cells[level, kind] = (positive, negative)
    scored = map_on_threads(lambda cell: verification_scores(*cell), cells.values())
    scores = dict(zip(cells, scored, strict=True))
    return {level: {kind: scores.get((level, kind)) for kind in KINDS} for level in LEVELS}


def verification_scores(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> dict[str, float]:
    """Scores of one table cell from the distances of positives and negatives, (M,) each, M >= 1.

    Everything follows from how many negatives stand before each positive, so only values are sorted, never lists.
    """
    few = np.sort(positive[: int(_POSITIVE_SHARE * len(positive))])
    others = np.sort(negative)
    nearer = np.searchsorted(others, few, side="left")
    not_farther = np.searchsorted(others, few, side="right")
    pessimistic, _ = _aps(not_farther)
    optimistic, vlfeat = _aps(nearer)
    first_of_equals = np.ones(len(few), dtype=bool)
    first_of_equals[1:] = few[1:] != few[:-1]
    tied = not_farther - nearer
    return {
        "imbalanced_ap": pessimistic,
        "imbalanced_ap_vl": vlfeat,
        "imbalanced_ap_tie_neutral": (pessimistic + optimistic) / 2.0,
        "balanced_auc": 1.0 - float(np.searchsorted(others, np.sort(positive), side="right").mean() / len(others)),
        "tie_share": float((tied > 0).sum() + tied[first_of_equals].sum()) / (len(few) + len(others)),
    }


def _aps(false_positives: NDArray[np.int64]) -> tuple[float, float]:
    """Trapezoid and VLFeat AP; 0 without a positive."""
    if len(false_positives) == 0:
        return 0.0, 0.0
    trapezoid, vlfeat = precision_from_counts(false_positives[:, None])
    return trapezoid.item(), vlfeat.item()


def headline(table: dict[str, dict[str, dict[str, float] | None]], key: str = "imbalanced_ap") -> float | None:
    """Mean over 3 levels x {inter, intra}; None when a cell is missing."""
    cells = [cell for row in table.values() for cell in row.values()]
    values = [cell[key] for cell in cells if cell is not None]
    return float(np.mean(values)) if len(values) == len(cells) and values else None


def _distances(
    descriptors: DescriptorSet, data: NDArray[np.float32], pairs: PatchPairs, level: str, metric: str
) -> NDArray[np.float32]:
    sequence = np.array([descriptors.index.get(name, -1) for name in pairs.names], dtype=np.int64)
    offset = LEVELS.index(level) * NUM_TARGETS
    rows = [
        descriptors.rows(sequence[s], np.where(t == 0, 0, t + offset), idx)
        for s, t, idx in ((pairs.s1, pairs.t1, pairs.idx1), (pairs.s2, pairs.t2, pairs.idx2))
    ]
    return pair_distances(data, rows[0], rows[1], metric)


Floats = NDArray[np.float64]


def precision_from_counts(false_positives: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Trapezoid and VLFeat AP when ``false_positives[..., j, :]`` negatives stand before the j-th best positive.

    Args:
        false_positives: (..., P, K), all P positives of a query, ascending along P.

    Returns:
        both (..., K).
    """
    num = false_positives.shape[-2]
    rank = np.arange(1, num + 1)[:, None]
    at = rank / (rank + false_positives)
    before = (rank - 1) / np.maximum(rank - 1 + false_positives, 1)
    before[..., :1, :] = false_positives[..., :1, :] == 0  # the curve starts at precision 1
    return ((at + before) / 2.0).mean(axis=-2), at.mean(axis=-2)
