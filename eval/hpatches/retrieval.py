"""The patch retrieval task: find the other views of a patch among distractors of other sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.hpatches import LEVELS, NUM_TARGETS, type_index
from common.jobs import map_on_threads
from eval.core.distances import (
    Floats,
    Floats32,
    apply_mask,
    check_metric,
    exact_pair_distances,
)
from eval.core.rough import TINY, product_rounding
from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.tasks import RetrievalTask
from eval.hpatches.verification import precision_from_counts

POOL_SIZES = (100, 500, 1000, 5000, 10000, 15000, 20000)
_BLOCK = 128  # queries at once: a 128 x 20000 block of distances is 10 MB
_PAIRS = 1 << 16  # of query and negative, compared with the thresholds at once


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
    targets = [type_index(level, image) for level in LEVELS for image in range(1, NUM_TARGETS + 1)]

    def count(block: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Negatives that are nearer, and not farther, than each view (q, levels, targets, pool sizes), best first."""
        of_views = [descriptors.rows(query_sequence[block], zero + t, queries.idx[block]) for t in (0, *targets)]
        reference, *views = (data[rows] for rows in of_views)
        positive = np.stack([exact_pair_distances(reference, view, metric) for view in views], axis=1)  # (q, 15)
        others = distractor_sequence != query_sequence[block[0]]
        by_level = (len(block), len(LEVELS), NUM_TARGETS, len(POOL_SIZES))
        order = np.argsort(positive.reshape(by_level[:3]), axis=2, kind="stable")[..., None]
        counts = (c.reshape(by_level) for c in count_nearer(reference, negatives, positive, metric, others))
        nearer, not_farther = (np.take_along_axis(c, order, axis=2) for c in counts)
        return nearer, not_farther

    shape = (len(LEVELS), len(queries), NUM_TARGETS, len(POOL_SIZES))
    fewer, not_more = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    tied = total = 0
    blocks = _blocks(query_sequence)
    for number, (nearer, not_farther) in zip(each(range(len(blocks))), map_on_threads(count, blocks), strict=True):
        block = blocks[number]
        fewer[:, block], not_more[:, block] = nearer.swapaxes(0, 1), not_farther.swapaxes(0, 1)
        others = int((distractor_sequence != query_sequence[block[0]]).sum())
        tied += int((not_farther - nearer)[..., -1].sum())
        total += nearer[..., -1].size * others

    optimistic, vl = precision_from_counts(fewer)
    pessimistic, _ = precision_from_counts(not_more)
    return RetrievalScores(optimistic, vl, (optimistic + pessimistic) / 2.0, tied / max(total, 1))


def _blocks(query_sequence: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Rows of queries of one sequence each, at most ``_BLOCK`` at once."""
    return [
        rows[start : start + _BLOCK]
        for sequence in np.unique(query_sequence)
        for rows in [np.flatnonzero(query_sequence == sequence)]
        for start in range(0, len(rows), _BLOCK)
    ]


def count_nearer(
    queries: Floats32,
    negatives: Floats32,
    thresholds: Floats,
    metric: str,
    counted: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the first k - 5 negatives are nearer than each threshold, and how many are not farther.

    A matrix product finds those not farther than the largest threshold and sorts them between the others; those within
    rounding error of one are placed by their exact distance.

    Args:
        queries: (q, D).
        negatives: (M, D).
        thresholds: (q, T) distances.
        metric: one of ``distances.METRICS``.
        counted: (M,), which negatives there are; default all.

    Returns:
        two int64 arrays (q, T, pool sizes).
    """
    counted = np.ones(len(negatives), bool) if counted is None else counted
    order = np.argsort(thresholds, axis=1)
    limits = np.take_along_axis(thresholds, order, axis=1)
    values, edges, tolerance = _rough_distances(queries, negatives, limits, metric)
    with np.errstate(over="ignore"):
        far = values > (edges[:, -1:] + tolerance).astype(values.dtype)
    row, column = np.nonzero(~far & counted)
    pool = np.searchsorted(np.array(POOL_SIZES) - NUM_TARGETS, (np.cumsum(counted) - 1)[column], side="right")
    inside = pool < len(POOL_SIZES)
    row, column, pool = row[inside], column[inside], pool[inside]
    place_below, place_at_most = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        r, c = row[part], column[part]
        value, slack = values[r, c].astype(np.float64)[:, None], tolerance[r]
        place = (edges[r] <= value - slack).sum(axis=1)  # limits from there on are larger than the value
        sure = (place == (edges[r] <= value + slack).sum(axis=1)) & np.isfinite(value + slack)[:, 0]
        place_below[part] = place_at_most[part] = place
        unsure = np.flatnonzero(~sure)
        r, c = r[unsure], c[unsure]
        exact = exact_pair_distances(queries[r], negatives[c], metric)[:, None]
        place_below[start + unsure] = (limits[r] <= exact).sum(axis=1)
        place_at_most[start + unsure] = (limits[r] < exact).sum(axis=1)
    back = np.argsort(order, axis=1)[:, :, None]
    below, at_most = (
        np.take_along_axis(_counts_by_pool(row, pool, place, thresholds.shape), back, axis=1)
        for place in (place_below, place_at_most)
    )
    return below, at_most


def _rough_distances(
    queries: Floats32, negatives: Floats32, limits: Floats, metric: str
) -> tuple[Floats | Floats32, Floats, Floats]:
    """Values (q, M) that lie to the edges (q, T) as distances to limits do, but for rounding up to a tolerance (q, 1).

    Edges and tolerance are float64.
    """
    a, b = torch.from_numpy(queries), torch.from_numpy(negatives)
    if metric == "L2":
        a_square, b_square = a.square().sum(dim=1, keepdim=True), b.square().sum(dim=1)
        values = torch.addmm(b_square, a, b.T, alpha=-2.0)  # squares of distances, less that of the query
        longest = b_square.amax().sqrt() if len(b) else 0.0
        tolerance = product_rounding(a.shape[1]) * (a_square.sqrt() + longest).square() + TINY
        edges = np.square(limits) - a_square.numpy()
    else:
        values, edges = torch.cdist(a.double(), b.double(), p=1.0), limits
        tolerance = 1e-11 * (values.amax(dim=1, keepdim=True) if len(b) else values.new_zeros(len(a), 1))
    return values.numpy(), edges, tolerance.double().numpy() + 1e-300


def _counts_by_pool(
    row: NDArray[np.int64], pool: NDArray[np.int64], place: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """(q, T, pool sizes): how many negatives of each pool lie below each threshold.

    ``row``: of the query; ``pool``: the smallest one that holds the negative; ``place``: thresholds at and after it are
    larger; (P,) each. ``shape``: q, T.
    """
    num_queries, num_thresholds = shape
    cells = (row * len(POOL_SIZES) + pool) * (num_thresholds + 1) + place
    counts = np.bincount(cells, minlength=num_queries * len(POOL_SIZES) * (num_thresholds + 1))
    counts = counts.reshape(num_queries, len(POOL_SIZES), num_thresholds + 1)[:, :, :-1]
    result: NDArray[np.int64] = counts.cumsum(axis=1).cumsum(axis=2).swapaxes(1, 2)
    return result
