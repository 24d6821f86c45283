"""Exact nearest neighbours of descriptors, in blocks of bounded memory, on any device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eval.core.rough import GROUP, Fp32Products, Int8Products, Rough, pad, products

Distance = Literal["l2", "l1", "hamming"]

_BLOCK_BYTES = 32 << 20  # of distances at once
_BLOCK_BYTES_GPU = 512 << 20
_MOST_GROUPS = 64  # that may hold neighbours of a query; a query with more is searched anew, with better bounds
_MOST_CANDIDATES = 64


class Neighbours(NamedTuple):
    """The nearest rows of the database for every query, ascending; ``k`` is less than asked in a small database."""

    dists: Tensor
    """(N, k) float32."""
    idx: Tensor
    """(N, k) int64."""


def nearest(queries: Tensor, database: Tensor, k: int, distance: Distance = "l2") -> Neighbours:
    """The ``k`` nearest rows of ``database`` for every row of ``queries``, equal distances by ascending index.

    The same as comparing all pairs by direct differences: a matrix product, on most CPUs in 8 bits, finds the
    candidates that its rounding allows to be a neighbour or a tie, and their distances are computed anew.

    Args:
        queries: descriptors (N, D), finite; for hamming packed bits (N, D) uint8 (floats are truncated).
        database: descriptors (M, D).
        k: neighbours wanted; min(k, M) are returned.
        distance: Euclidean (not squared), city block, or number of differing bits.

    Raises:
        ValueError: not two matrices of one width.
    """
    return _search(queries, database, k, distance)[1]


def nearest_below_ratio(
    queries: Tensor, database: Tensor, max_ratio: float, distance: Distance = "l2"
) -> tuple[Tensor, Neighbours]:
    """The two nearest rows, as :func:`nearest` gives them, for the queries that a ratio test can still let through.

    Queries are left out only where rounding cannot have turned ``first > max_ratio * second`` round. Most descriptors
    have no counterpart in another image, and this spares them the search for their neighbours.

    Args:
        queries: see :func:`nearest`.
        database: see :func:`nearest`.
        max_ratio: upper bound of first / second distance.
        distance: see :func:`nearest`; only ``l2`` leaves queries out.

    Returns:
        ascending rows of ``queries`` (R,), among them all that pass the test, and their neighbours.

    Raises:
        ValueError: not two matrices of one width.
    """
    return _search(queries, database, 2, distance, max_ratio)


@torch.no_grad()
def _search(
    queries: Tensor, database: Tensor, k: int, distance: Distance, max_ratio: float | None = None
) -> tuple[Tensor, Neighbours]:
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"descriptors must be (N, D) and (M, D), got {tuple(queries.shape)} and {tuple(database.shape)}"
        )
    if distance not in ("l2", "l1", "hamming"):
        raise ValueError(f"unknown distance {distance!r}: l2, l1 or hamming")
    if distance == "hamming":
        queries, database = _unpack_bits(queries), _unpack_bits(database)
    else:
        queries, database = queries.float(), database.float()
    k = min(k, len(database))
    if len(queries) == 0 or k <= 0:
        none = Neighbours(queries.new_zeros(len(queries), k), queries.new_zeros(len(queries), k, dtype=torch.long))
        return torch.arange(len(queries), device=queries.device), none
    limit = _BLOCK_BYTES if queries.device.type == "cpu" else _BLOCK_BYTES_GPU
    rows = min(len(queries), max(1, limit // (4 * len(database))))
    kinds = {"l2": products, "l1": _CityBlocks, "hamming": _Bits}
    search = _Search(database, kinds[distance](database, rows), k)
    starts = range(0, len(queries), rows)
    kept, parts = zip(*(search(block, max_ratio) for block in queries.split(rows)), strict=True)
    return (
        torch.cat([start + inside for start, inside in zip(starts, kept, strict=True)]),
        Neighbours(torch.cat([part.dists for part in parts]), torch.cat([part.idx for part in parts])),
    )


class _CityBlocks:
    """Distances that need no second look, in the form of rough ones."""

    def __init__(self, database: Tensor, rows: int) -> None:
        self.database = pad(database)
        self.finite = database.isfinite().all()
        self.one, self.zero = database.new_ones(1, 1), database.new_zeros(1, 1)

    def __call__(self, queries: Tensor) -> Rough:
        values = self.distances(queries).view(len(queries), -1, GROUP)
        zero = self.zero.expand(len(queries), 1)
        return Rough(values, self.one, zero, self.zero, zero, queries.isfinite().all(dim=1) & self.finite)

    def distances(self, queries: Tensor) -> Tensor:
        """(N, columns)."""
        return torch.cdist(queries, self.database, p=1.0)


class _Bits(_CityBlocks):
    """The number of differing bits of vectors of -1 and +1: small integers, exact in float32."""

    def distances(self, queries: Tensor) -> Tensor:
        return (queries.shape[1] - queries @ self.database.T) / 2.0


class _Search:
    """What the blocks of one search share."""

    def __init__(self, database: Tensor, rough: Fp32Products | Int8Products | _CityBlocks, k: int) -> None:
        self.database, self.rough, self.k = database, rough, k
        self.final = isinstance(rough, _CityBlocks)  # else distances are squared, and computed anew
        self.precise: _Search | None = None

    def __call__(self, block: Tensor, max_ratio: float | None = None) -> tuple[Tensor, Neighbours]:
        """Rows of a block of queries that are not left out, and their neighbours."""
        rough = self.rough(block)
        lower, upper = rough.group_bounds()
        if upper.shape[1] < 4 * self.k:  # each column for itself: k groups would say too little
            upper = rough.upper_bounds()[:, : len(self.database)]
        bound, best = _kth_smallest(upper, self.k)
        kept = torch.arange(len(block), device=block.device)
        if max_ratio is not None and self.k == 2 and not self.final:
            # the slack is for the rounding of the distances that are compared in the end
            passes = lower.amin(dim=1).clamp_(min=0.0) <= max_ratio**2 * (1.0 + 2.0**-20) * bound
            kept = (passes | ~rough.sound).nonzero().squeeze(1)
            lower, bound, best = lower[kept], bound[kept], best[kept]
        if isinstance(self.rough, Int8Products) and upper.shape[1] == lower.shape[1]:
            bound = torch.minimum(bound, self._measured(block, rough, kept, best))
        row, column, dists = self._candidates(rough, kept, lower, bound)
        counts = row.bincount(minlength=len(kept))
        crowded = (counts > _MOST_CANDIDATES) | (counts == 0) | ~rough.sound[kept]
        if crowded.any():
            few = ~crowded[row]
            row, column, dists = row[few], column[few], dists[few]
            counts[crowded] = 0
        if not self.final:
            dists = _distances(block.index_select(0, kept.index_select(0, row)), self.database.index_select(0, column))
        found = _smallest(_table(_keys(dists, column), row, counts, self.k), self.k)
        again = crowded.nonzero().squeeze(1)
        if len(again):
            found.dists[again], found.idx[again] = self._again(block[kept[again]])
        if self.precise is not None and 4 * len(again) > len(block):
            self.rough = self.precise.rough  # these descriptors lie too close together for 8 bits
        return kept, found

    def _measured(self, block: Tensor, rough: Rough, kept: Tensor, groups: Tensor) -> Tensor:
        """The largest squared distance (R,) of rows of a block to the roughly nearest columns of k groups (R, k)."""
        windows, _ = rough.windows((kept[:, None] * rough.values.shape[1] + groups).flatten())
        columns = (groups.flatten() * GROUP + windows.argmin(dim=1)).clamp_(max=len(self.database) - 1)
        queries = block.index_select(0, kept.repeat_interleave(self.k))
        largest = _distances(queries, self.database.index_select(0, columns)).view(-1, self.k).amax(dim=1)
        return largest.square() * (1.0 + 2.0**-20)  # others are as near after the root

    def _candidates(self, rough: Rough, kept: Tensor, lower: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All columns that may be as near as ``bound``: ascending rows of ``kept``, columns, rough distances.

        A row where too many groups may be has none.
        """
        near = lower <= bound[:, None]
        near &= (near.sum(dim=1) <= _MOST_GROUPS)[:, None]
        row, group = near.nonzero(as_tuple=True)
        windows, margin = rough.windows(kept.index_select(0, row) * lower.shape[1] + group)
        limit = bound.index_select(0, row).add_(margin)
        inside = (windows <= limit[:, None]).flatten().nonzero().squeeze(1)
        pair = torch.div(inside, GROUP, rounding_mode="floor")
        column = group.index_select(0, pair) * GROUP + inside % GROUP
        row, dists = row.index_select(0, pair), windows.flatten().index_select(0, inside)
        real = column < len(self.database)  # the others repeat the last one
        return row[real], column[real], dists[real]

    def _again(self, queries: Tensor) -> Neighbours:
        """Neighbours of queries that have too many candidates, by narrower bounds or by all distances."""
        if isinstance(self.rough, Int8Products):
            if self.precise is None:
                self.precise = _Search(self.database, Fp32Products(self.database, len(self.rough.memory)), self.k)
            return self.precise(queries)[1]
        num, columns = len(self.database), torch.arange(len(self.database), device=queries.device)
        parts = []
        for query in queries:
            if isinstance(self.rough, _CityBlocks):
                dists = self.rough.distances(query[None])[0, :num]
            else:
                dists = _distances(query, self.database)
            parts.append(_smallest(_keys(dists, columns)[None], self.k))
        return Neighbours(torch.cat([part.dists for part in parts]), torch.cat([part.idx for part in parts]))


def _kth_smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k-th smallest value of each row of (N, M), and where the k smallest are: (N, k)."""
    if k != 2:
        least = values.topk(k, dim=1, largest=False)
        return least.values[:, -1], least.indices
    first = values.argmin(dim=1, keepdim=True)  # two searches take a third of the time of topk
    second = values.scatter(1, first, torch.inf).min(dim=1, keepdim=True)
    return second.values.squeeze(1), torch.cat([first, second.indices], dim=1)


def _distances(queries: Tensor, database: Tensor) -> Tensor:
    """Euclidean distances of rows, (L,), without cancellation."""
    return (queries - database).square_().sum(dim=1).sqrt_()


def _keys(dists: Tensor, columns: Tensor) -> Tensor:
    """int64 that order by distance, then by column; NaN comes last."""
    return (dists.abs().view(torch.int32).long() << 32) | columns


def _table(keys: Tensor, row: Tensor, counts: Tensor, k: int) -> Tensor:
    """Keys of ascending rows as a matrix of at least k columns, filled up with the largest int64."""
    width = max(k, int(counts.max())) if len(counts) else k
    table = keys.new_full((len(counts), width), torch.iinfo(torch.int64).max)
    starts = counts.cumsum(0) - counts
    table[row, torch.arange(len(row), device=row.device) - starts[row]] = keys
    return table


def _smallest(keys: Tensor, k: int) -> Neighbours:
    """The neighbours behind the k smallest keys of each row."""
    least = keys.topk(k, dim=1, largest=False).values
    return Neighbours((least >> 32).int().view(torch.float32), least & 0xFFFFFFFF)


def _unpack_bits(packed: Tensor) -> Tensor:
    """(N, D) bytes -> (N, 8 D) float32 of -1 and +1."""
    bits = packed.to(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((bits & 1).flatten(1).float() * 2.0) - 1.0
