"""Exact nearest neighbours of descriptors, in blocks of bounded memory, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eval.core.rough import GROUP, Fp32Products, Int8Products, Rough, pad, products

Distance = Literal["l2", "l1", "hamming"]

_BLOCK_BYTES = 16 << 20  # of distances at once: as long as they stay in the cache, the search takes a fifth less time
_FEWEST_ROWS = 32  # of a block: a product of fewer is slower
_BLOCK_BYTES_GPU = 512 << 20
_MOST_GROUPS = 64  # that may hold neighbours of a query; a query with more is searched anew, with better bounds
_MOST_CANDIDATES = 64
_PAIRS = 1 << 12  # whose distances are computed at once


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


class Candidates(NamedTuple):
    """The rows of the database that may be neighbours of each query, in whatever precision distances are compared."""

    row: Tensor
    """(P,) int64, ascending: rows of the queries."""
    column: Tensor
    """(P,) int64, ascending for each row: rows of the database."""
    undecided: Tensor
    """(N,) bool: queries that any row may be nearest to; nothing is listed for them."""


@torch.no_grad()
def candidates(queries: Tensor, database: Tensor, k: int) -> Candidates:
    """All that can be among the ``k`` nearest (L2) of each query, or tie with one of them: most often k rows.

    For those who compare distances otherwise than :func:`nearest`, not less precisely than in float32.

    Args:
        queries: see :func:`nearest`; rows that are not finite are undecided.
        database: see :func:`nearest`, M at least 1.
        k: neighbours wanted, at least 1.

    Raises:
        ValueError: not two matrices of one width.
    """
    rows, columns, undecided = [], [], []
    for start, block, search in _blocks(queries, database, k, "l2"):
        found = search.candidates(block)
        rows.append(start + found.row)
        columns.append(found.column)
        undecided.append(found.crowded)
    if not rows:
        none = torch.zeros(0, dtype=torch.long, device=queries.device)
        return Candidates(none, none, none.bool())
    return Candidates(torch.cat(rows), torch.cat(columns), torch.cat(undecided))


@torch.no_grad()
def _search(
    queries: Tensor, database: Tensor, k: int, distance: Distance, max_ratio: float | None = None
) -> tuple[Tensor, Neighbours]:
    kept, parts = [], []
    for start, block, search in _blocks(queries, database, k, distance):
        rows, found = search.neighbours(block, max_ratio)
        kept.append(start + rows)
        parts.append(found)
    if not parts:
        num = min(k, len(database))
        none = queries.new_zeros(len(queries), num, dtype=torch.float32)
        return torch.arange(len(queries), device=queries.device), Neighbours(none, none.long())
    return torch.cat(kept), Neighbours(torch.cat([p.dists for p in parts]), torch.cat([p.idx for p in parts]))


def _blocks(queries: Tensor, database: Tensor, k: int, distance: Distance) -> Iterator[tuple[int, Tensor, _Search]]:
    """Blocks of queries: where each starts, its rows, and the search that all share; none where nothing is found."""
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
        return
    limit = _BLOCK_BYTES if queries.device.type == "cpu" else _BLOCK_BYTES_GPU
    rows = min(len(queries), max(_FEWEST_ROWS, limit // (4 * len(database))))
    kinds = {"l2": products, "l1": _CityBlocks, "hamming": _Bits}
    search = _Search(database, kinds[distance](database, rows), k)
    for number, block in enumerate(queries.split(rows)):
        yield number * rows, block, search


class _CityBlocks:
    """Distances that need no second look, in the form of rough ones."""

    def __init__(self, database: Tensor, rows: int) -> None:
        self.database = pad(database)
        self.finite = database.isfinite().all()
        self.one, self.zero = database.new_ones(1, 1), database.new_zeros(1, 1)

    def __call__(self, queries: Tensor) -> Rough:
        values = self.distances(queries).view(len(queries), -1, GROUP)
        zero = self.zero.expand(len(queries), 1)
        sound = queries.isfinite().all(dim=1) & self.finite
        return Rough(values, values.amin(dim=2), self.one, zero, zero, self.zero, sound)

    def distances(self, queries: Tensor) -> Tensor:
        """(N, columns)."""
        return torch.cdist(queries, self.database, p=1.0)


class _Bits(_CityBlocks):
    """The number of differing bits of vectors of -1 and +1: small integers, exact in float32."""

    def distances(self, queries: Tensor) -> Tensor:
        return (queries.shape[1] - queries @ self.database.T) / 2.0


class _Found(NamedTuple):
    """Candidates of a block of queries, or of those of its rows that were not left out."""

    rough: Rough
    kept: Tensor
    """(R,) int64, ascending rows of the block."""
    row: Tensor
    """(P,) int64, ascending: of ``kept``."""
    column: Tensor
    """(P,) int64, ascending for each row: of the database."""
    crowded: Tensor
    """(R,) bool: too many candidates, or none for want of bounds; nothing is listed for them."""


class _Search:
    """What the blocks of one search share."""

    def __init__(self, database: Tensor, rough: Fp32Products | Int8Products | _CityBlocks, k: int) -> None:
        self.database, self.rough, self.k = database, rough, k
        self.precise: _Search | None = None

    def neighbours(self, block: Tensor, max_ratio: float | None = None) -> tuple[Tensor, Neighbours]:
        """Rows of a block of queries that are not left out, and their neighbours."""
        found = self.candidates(block, max_ratio)
        dists = self._settled(block, found, found.kept.index_select(0, found.row), found.column)
        counts = found.row.bincount(minlength=len(found.kept))
        least = _smallest(_table(_keys(dists, found.column), found.row, counts, self.k), self.k)
        columns = torch.arange(len(self.database), device=block.device)
        for row in found.crowded.nonzero().squeeze(1).tolist():
            dists = self._settled(block, found, found.kept[row].expand(len(columns)), columns)
            anew = _smallest(_keys(dists, columns)[None], self.k)
            least.dists[row], least.idx[row] = anew.dists[0], anew.idx[0]
        return found.kept, least

    def _settled(self, block: Tensor, found: _Found, row: Tensor, column: Tensor) -> Tensor:
        """The distances (P,) that are compared in the end, of rows of the block."""
        if isinstance(self.rough, _CityBlocks):
            return found.rough.values.flatten(1)[row, column]
        return _distances(block, row, self.database, column)

    def candidates(self, block: Tensor, max_ratio: float | None = None) -> _Found:
        """What may be a neighbour, by the narrowest bounds that are needed."""
        found = self._by_bounds(block, max_ratio)
        if not isinstance(self.rough, Int8Products) or not found.crowded.any():
            return found
        if self.precise is None:
            self.precise = _Search(self.database, Fp32Products(self.database, self.rough.rows), self.k)
        again = found.crowded.nonzero().squeeze(1)
        if 4 * len(again) > len(block):
            self.rough = self.precise.rough  # these descriptors lie too close together for 8 bits
        second = self.precise.candidates(block[found.kept[again]])
        row, order = torch.cat([found.row, again[second.row]]).sort(stable=True)
        found.crowded[again] = second.crowded
        return found._replace(row=row, column=torch.cat([found.column, second.column])[order])

    def _by_bounds(self, block: Tensor, max_ratio: float | None) -> _Found:
        """What may be a neighbour, by one product."""
        rough = self.rough(block)
        lower, upper = rough.group_bounds()
        by_groups = upper.shape[1] >= 4 * self.k
        if not by_groups:  # each column for itself: k groups would say too little
            upper = rough.upper_bounds()[:, : len(self.database)]
        bound, best = _kth_smallest(upper, self.k)
        kept = torch.arange(len(block), device=block.device)
        if isinstance(self.rough, _CityBlocks) or self.k != 2:
            max_ratio = None
        if max_ratio is not None:
            kept = kept[self._may_pass(rough, lower, bound, max_ratio)]
        if by_groups and isinstance(self.rough, Int8Products):
            measured = self._measured(block, rough, kept, best.index_select(0, kept))
            bound[kept] = torch.minimum(bound.index_select(0, kept), measured)
            if max_ratio is not None:
                kept = kept[self._may_pass(rough, lower, bound, max_ratio).index_select(0, kept)]
        if len(kept) < len(block):
            lower, bound = lower.index_select(0, kept), bound.index_select(0, kept)
        row, group = (lower <= bound[:, None]).nonzero(as_tuple=True)
        crowded = (row.bincount(minlength=len(kept)) > _MOST_GROUPS) | ~rough.sound.index_select(0, kept)
        row, group = _without(crowded, row, group)
        pairs = kept.index_select(0, row) * lower.shape[1] + group
        pair, column = rough.within(pairs, bound.index_select(0, row))
        row, column = row.index_select(0, pair), (group * GROUP).index_select(0, pair) + column
        real = column < len(self.database)  # the others repeat the last one
        if not real.all():
            row, column = row[real], column[real]
        counts = row.bincount(minlength=len(kept))
        crowded |= (counts > _MOST_CANDIDATES) | (counts == 0)
        return _Found(rough, kept, *_without(crowded, row, column), crowded)

    def _may_pass(self, rough: Rough, lower: Tensor, bound: Tensor, max_ratio: float) -> Tensor:
        """Which queries (N,) may pass the ratio test when ``bound`` is that of the second distance."""
        # the slack is for the rounding of the distances that are compared in the end
        return (lower.amin(dim=1).clamp_(min=0.0) <= max_ratio**2 * (1.0 + 2.0**-20) * bound) | ~rough.sound

    def _measured(self, block: Tensor, rough: Rough, kept: Tensor, groups: Tensor) -> Tensor:
        """The largest squared distance (R,) of rows of a block to the roughly nearest columns of k groups (R, k)."""
        windows = rough.windows((kept[:, None] * rough.values.shape[1] + groups).flatten())
        columns = (groups.flatten() * GROUP + windows.argmin(dim=1)).clamp_(max=len(self.database) - 1)
        dists = _distances(block, kept.repeat_interleave(self.k), self.database, columns)
        largest = dists.view(-1, self.k).amax(dim=1)
        return largest.square() * (1.0 + 2.0**-20)  # others are as near after the root


def _without(crowded: Tensor, row: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs whose row is not crowded."""
    if not crowded.any():
        return row, other
    listed = ~crowded.index_select(0, row)
    return row[listed], other[listed]


def _kth_smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k-th smallest value of each row of (N, M), and where the k smallest are: (N, k); for k = 2 values change."""
    if k > 2:
        least = values.topk(k, dim=1, largest=False)
        return least.values[:, -1], least.indices
    first = values.min(dim=1, keepdim=True)  # one or two searches take a third of the time of topk
    if k == 1:
        return first.values.squeeze(1), first.indices
    second = values.scatter_(1, first.indices, torch.inf).min(dim=1, keepdim=True)
    return second.values.squeeze(1), torch.cat([first.indices, second.indices], dim=1)


def _distances(queries: Tensor, row: Tensor, database: Tensor, column: Tensor) -> Tensor:
    """Euclidean distances (P,) of rows of both, without cancellation, in parts that stay in the cache."""
    parts = []
    for some, other in zip(row.split(_PAIRS), column.split(_PAIRS), strict=True):
        gaps = queries.index_select(0, some).sub_(database.index_select(0, other))
        parts.append(gaps.square_().sum(dim=1).sqrt_())
    return torch.cat(parts)


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
    least = keys.topk(k, dim=1, largest=False).values if k > 1 else keys.amin(dim=1, keepdim=True)
    return Neighbours((least >> 32).int().view(torch.float32), least & 0xFFFFFFFF)


def _unpack_bits(packed: Tensor) -> Tensor:
    """(N, D) bytes -> (N, 8 D) float32 of -1 and +1."""
    bits = packed.to(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((bits & 1).flatten(1).float() * 2.0) - 1.0
