"""The patch verification task: is this a pair of patches of one place?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.distances import apply_mask, check_metric, pair_distances
from eval.hpatches.strips import LEVELS, NUM_TARGETS
from eval.hpatches.tasks import PatchPairs, VerificationTask
from eval.metrics import average_precision, average_precision_vlfeat, roc_auc

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
    table: dict[str, dict[str, dict[str, float] | None]] = {}
    for level in LEVELS:
        positive = _distances(descriptors, data, task.positives, level, metric)
        table[level] = {}
        for kind in KINDS:
            if len(positive) == 0 or (kind == "inter" and num_inter == 0):
                table[level][kind] = None
                continue
            negative = _distances(descriptors, data, getattr(task, kind), level, metric)
            table[level][kind] = verification_scores(positive, negative)
    return table


def verification_scores(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> dict[str, float]:
    """Scores of one table cell from the distances of positives and negatives, (M,) each."""
    few = positive[: int(_POSITIVE_SHARE * len(positive))]
    # Sorted once: the functions of eval.metrics sort again, which costs little on sorted input.
    against = _ranked(negative, few, last_wins=True)
    pessimistic = average_precision(*against)
    ties = tie_share(few, negative)
    in_favour = _ranked(few, negative, last_wins=False) if ties else against
    optimistic = average_precision(*in_favour) if ties else pessimistic
    return {
        "imbalanced_ap": pessimistic,
        "imbalanced_ap_vl": float(np.nan_to_num(average_precision_vlfeat(*in_favour))),
        "imbalanced_ap_tie_neutral": (pessimistic + optimistic) / 2.0,
        "balanced_auc": roc_auc(*_ranked(negative, positive, last_wins=True)),
        "tie_share": ties,
    }


def _ranked(
    first: NDArray[np.float32], second: NDArray[np.float32], last_wins: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (minus distance) and labels, best first; ties keep ``first`` before ``second``.

    ``last_wins``: the positives are ``second``, else ``first``.
    """
    distances = np.concatenate([first, second])
    order = np.argsort(distances, kind="stable")
    return -distances[order], (order >= len(first)) == last_wins


def tie_share(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Share of distances that also occur with the other label."""
    mine, counts = np.unique(positive, return_counts=True)
    others = np.sort(negative)
    same = np.searchsorted(others, mine, side="right") - np.searchsorted(others, mine, side="left")
    return float((counts[same > 0].sum() + same.sum()) / max(len(positive) + len(negative), 1))


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


def summary_rows(table: dict[str, dict[str, dict[str, float] | None]]) -> list[dict[str, Any]]:
    """Rows Noise x (Inter, Intra) for printing: imbalanced AP and balanced AUC."""
    return [
        {
            "level": level,
            **{
                f"{kind} {name}": None if (cell := row[kind]) is None else cell[key]
                for kind in KINDS
                for name, key in (("AP", "imbalanced_ap"), ("AUC", "balanced_auc"))
            },
        }
        for level, row in table.items()
    ]
