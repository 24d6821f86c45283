"""The patch retrieval task: find the other views of a patch among distractors of other sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.hpatches import LEVELS, NUM_TARGETS, type_index
from eval.core.distances import (
    Floats,
    Floats32,
    apply_mask,
    check_metric,
    exact_pair_distances,
)
from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.tasks import RetrievalTask
from eval.hpatches.verification import precision_from_counts

POOL_SIZES = (100, 500, 1000, 5000, 10000, 15000, 20000)
_BLOCK = 64  # queries at once: a 64 x 20000 block of float64 distances is 10 MB


class RetrievalScores(NamedTuple):
    """APs of every query, each (3 levels, Q, pool sizes); ``tie_share`` is the share of distractors at a tie."""

    ap: Floats
    ap_vl: Floats
    ap_tie_neutral: Floats
    tie_share: float

    def table(self, key: str = "ap") -> dict[str, dict[str, float]]:
        """Mean over queries by level (and ``mean`` of the levels) and pool size."""
        means = getattr(self, key).mean(axis=1)
        rows = [*zip(LEVELS, means, strict=True), ("mean", means.mean(axis=0))]
        return {name: {str(k): float(v) for k, v in zip(POOL_SIZES, row, strict=True)} for name, row in rows}

    def headline(self, key: str = "ap") -> float:
        """Mean of the three levels with the largest pool."""
        return float(getattr(self, key)[:, :, -1].mean())


def score_retrieval(
    descriptors: DescriptorSet,
    task: RetrievalTask,
    metric: str = "L2",
    each: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> RetrievalScores | None:
    """Score every query against its 5 other views and the distractors of other sequences, in file order.

    Pool size k ranks the 5 views and the first k - 5 distractors: it is not a rank. The views stand first, so ties
    favour the descriptor in ``ap`` and ``ap_vl``.

    Returns:
        The scores, queries in the order of the task; None without queries, or when some query has no distractor of
        another sequence.

    Source: HPatches benchmark, task retrieval.
    """
    check_metric(metric, descriptors.dim)
    queries, distractors = task.queries, task.distractors
    with_distractors = [np.any(distractors.s != s) for s in np.unique(queries.s)]
    if not with_distractors or not all(with_distractors):
        return None
    of_query = np.array([descriptors.index.get(name, -1) for name in queries.names], dtype=np.int64)
    of_distractor = np.array([descriptors.index.get(name, -1) for name in distractors.names], dtype=np.int64)
    query_sequence, distractor_sequence = of_query[queries.s], of_distractor[distractors.s]
    data = apply_mask(descriptors.data, metric)
    zero = np.zeros(1, dtype=np.int64)
    negatives = data[descriptors.rows(distractor_sequence, zero, distractors.idx)]

    shape = (len(LEVELS), len(queries), NUM_TARGETS, len(POOL_SIZES))
    fewer, not_more = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    tied = total = 0
    blocks = _blocks(query_sequence)
    others: tuple[int, Floats] = (-1, np.empty((0, 0)))
    for number in each(range(len(blocks))):
        sequence, rows = blocks[number]
        if others[0] != sequence:
            others = (sequence, negatives[distractor_sequence != sequence].astype(np.float64))
        idx = queries.idx[rows]
        reference = data[descriptors.rows(query_sequence[rows], zero, idx)]
        targets = [type_index(level, image) for level in LEVELS for image in range(1, NUM_TARGETS + 1)]
        positive = np.stack(
            [
                exact_pair_distances(reference, data[descriptors.rows(query_sequence[rows], zero + t, idx)], metric)
                for t in targets
            ],
            axis=1,
        )  # (q, 15)
        below, at_most = count_nearer(reference, others[1], positive, metric)
        tied += int((at_most - below)[:, :, -1].sum())
        total += at_most[:, :, -1].size * len(others[1])
        by_level = (len(rows), len(LEVELS), NUM_TARGETS, len(POOL_SIZES))
        order = np.argsort(positive.reshape(by_level[:3]), axis=2, kind="stable")[..., None]
        for counts, store in ((below, fewer), (at_most, not_more)):
            store[:, rows] = np.take_along_axis(counts.reshape(by_level), order, axis=2).swapaxes(0, 1)

    optimistic, vl = precision_from_counts(fewer)
    pessimistic, _ = precision_from_counts(not_more)
    return RetrievalScores(optimistic, vl, (optimistic + pessimistic) / 2.0, tied / max(total, 1))


def _blocks(query_sequence: NDArray[np.int64]) -> list[tuple[int, NDArray[np.intp]]]:
    """Rows of queries with their sequence, at most ``_BLOCK`` at once."""
    return [
        (int(sequence), rows[start : start + _BLOCK])
        for sequence in np.unique(query_sequence)
        for rows in [np.flatnonzero(query_sequence == sequence)]
        for start in range(0, len(rows), _BLOCK)
    ]


def count_nearer(
    queries: Floats32, negatives: Floats32 | Floats, thresholds: Floats, metric: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the first k - 5 negatives are nearer than each threshold, and how many are not farther.

    A matrix product sorts the negatives between the thresholds; those within rounding error of one are placed by
    their exact distance.

    Args:
        queries: (q, D).
        negatives: (M, D), float32 values, best as float64 when they are used again.
        thresholds: (q, T) distances.
        metric: one of ``distances.METRICS``.

    Returns:
        two int64 arrays (q, T, pool sizes).
    """
    num_queries, num_thresholds = thresholds.shape
    order = np.argsort(thresholds, axis=1)
    limits = torch.from_numpy(np.take_along_axis(thresholds, order, axis=1))
    a = torch.from_numpy(queries).double()
    b = torch.from_numpy(negatives) if negatives.dtype == np.float64 else torch.from_numpy(negatives).double()
    if metric == "L2":
        a_square, b_square = a.square().sum(1, keepdim=True), b.square().sum(1)
        values = torch.addmm(b_square[None], a, b.T, alpha=-2.0).add_(a_square)
        limits_of_values = limits.square()
        scale = a_square + (b_square.max() if len(b) else 0.0)
    else:
        values, limits_of_values = torch.cdist(a, b, p=1.0), limits
        scale = values.amax(1, keepdim=True) if len(b) else torch.zeros(num_queries, 1).double()
    tolerance = 1e-11 * scale + 1e-300
    lower = torch.searchsorted(limits_of_values - tolerance, values, out_int32=True, right=True)
    upper = torch.searchsorted(limits_of_values + tolerance, values, out_int32=True, right=True)
    place_below = lower.numpy()  # thresholds with index >= place are larger than the value
    place_at_most = place_below
    row, column = np.nonzero((lower != upper).numpy())
    if len(row):
        place_at_most = place_below.copy()
    for start in range(0, len(row), 1 << 18):
        r, c = row[start : start + (1 << 18)], column[start : start + (1 << 18)]
        exact = exact_pair_distances(queries[r], negatives[c].astype(np.float32), metric)[:, None]
        place_below[r, c] = (limits.numpy()[r] <= exact).sum(axis=1)
        place_at_most[r, c] = (limits.numpy()[r] < exact).sum(axis=1)
    back = np.argsort(order, axis=1)[:, :, None]
    below = np.take_along_axis(_counts_by_pool(place_below, num_thresholds), back, axis=1)
    if place_at_most is place_below:  # no tie
        return below, below
    return below, np.take_along_axis(_counts_by_pool(place_at_most, num_thresholds), back, axis=1)


def _counts_by_pool(place: NDArray[np.integer], num_thresholds: int) -> NDArray[np.int64]:
    """(q, T, pool sizes): of the first k - 5 negatives, how many lie below each threshold; ``place``: (q, M)."""
    num_queries, width = len(place), num_thresholds + 1
    counts = np.zeros((num_queries, num_thresholds, len(POOL_SIZES)), dtype=np.int64)
    running = np.zeros((num_queries, width), dtype=np.int64)
    base = np.arange(num_queries)[:, None] * width
    start = 0
    for k, size in enumerate(POOL_SIZES):
        stop = max(start, min(size - NUM_TARGETS, place.shape[1]))
        cells = (place[:, start:stop] + base).ravel()
        running += np.bincount(cells, minlength=num_queries * width).reshape(num_queries, width)
        counts[:, :, k] = np.cumsum(running[:, :-1], axis=1)
        start = stop
    return counts
