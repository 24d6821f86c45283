"""Exact nearest neighbours of descriptors, in blocks of bounded memory, on any device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Distance = Literal["l2", "l1", "hamming"]

_BLOCK_BYTES = 32 << 20  # of distances at once
_BLOCK_BYTES_GPU = 512 << 20
_EXTRA_CANDIDATES = 6  # beyond k: leaves room for rounding without touching whole rows again
_GROUP = 64  # columns whose minimum stands for them in the search for candidates


class Neighbours(NamedTuple):
    """The nearest rows of the database for every query, ascending; ``k`` is less than asked in a small database."""

    dists: Tensor
    """(N, k) float32."""
    idx: Tensor
    """(N, k) int64."""


def nearest(queries: Tensor, database: Tensor, k: int, distance: Distance = "l2") -> Neighbours:
    """The ``k`` nearest rows of ``database`` for every row of ``queries``, equal distances by ascending index.

    The same as comparing all pairs by direct differences: a matrix product finds candidates, their distances are
    computed anew, and a row is redone in full when rounding could have hidden a nearer neighbour or a tie.

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
        ascending rows of ``queries`` (R,), among them all that pass the test, and their neighbours. Where most rows of
        a block may pass, all of it stays.

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
    rows = max(1, limit // (4 * max(len(database), (k + _EXTRA_CANDIDATES) * database.shape[1])))
    search = _Search(database, min(rows, len(queries)), k, distance, max_ratio)
    starts = range(0, len(queries), rows)
    kept, parts = zip(*(search(block) for block in queries.split(rows)), strict=True)
    return (
        torch.cat([start + inside for start, inside in zip(starts, kept, strict=True)]),
        Neighbours(torch.cat([part.dists for part in parts]), torch.cat([part.idx for part in parts])),
    )


class _Search:
    """What the blocks of one search share."""

    def __init__(self, database: Tensor, rows: int, k: int, distance: Distance, max_ratio: float | None) -> None:
        self.database, self.k, self.distance, self.max_ratio = database, k, distance, max_ratio
        self.candidates = min(len(database), k + _EXTRA_CANDIDATES)
        if distance == "l2":
            squares = database.square().sum(dim=1)
            self.largest = squares.max().sqrt()
            # |d|^2 - 2 q d as one product, into memory that is written again and again: fresh pages cost a third of it
            self.factors = torch.cat([database, squares[:, None]], dim=1).T
            self.rough = database.new_empty(rows, len(database))
            exact_products = torch.get_float32_matmul_precision() == "highest"
            self.rounding = (database.shape[1] + 8) * 2.0**-23 if exact_products else 2.0**-6

    def __call__(self, block: Tensor) -> tuple[Tensor, Neighbours]:
        """Rows of a block of queries that are not left out, and their neighbours."""
        kept = torch.arange(len(block), device=block.device)
        if self.distance == "l2":
            squares = block.square().sum(dim=1)
            bound = self.rounding * (squares.sqrt() + self.largest).square()
            rough = self.rough[: len(block)]  # squared distances, less |query|^2
            torch.mm(torch.cat([-2.0 * block, block.new_ones(len(block), 1)], dim=1), self.factors, out=rough)
            if self.max_ratio is not None:
                passing = self._may_pass(rough, squares, bound).nonzero().squeeze(1)
                if 2 * len(passing) < len(block):  # else moving them costs more than it spares
                    kept = passing
                    rough, block, squares, bound = rough[kept], block[kept], squares[kept], bound[kept]
            last, idx = _smallest(rough, self.candidates)
            idx = idx.sort(dim=1).values
            dists = (block[:, None] - self.database[idx]).square_().sum(dim=2).sqrt_()
            dists, order = dists.sort(dim=1, stable=True)
            idx = idx.gather(1, order)
            unsure = last[:, -1] + squares - bound <= dists[:, self.k - 1].square()
        else:
            whole = self._all_pairs(block)
            last, idx = _smallest(whole, self.candidates)
            idx = idx.sort(dim=1).values
            dists, order = whole.gather(1, idx).sort(dim=1, stable=True)
            idx = idx.gather(1, order)
            unsure = last[:, -1] <= dists[:, self.k - 1]
        dists, idx = dists[:, : self.k].contiguous(), idx[:, : self.k].contiguous()
        if self.candidates < len(self.database):
            again = unsure.nonzero().squeeze(1)
            if len(again):
                dists[again], idx[again] = self._full_rows(block[again])
        return kept, Neighbours(dists, idx)

    def _may_pass(self, rough: Tensor, squares: Tensor, bound: Tensor) -> Tensor:
        """Whether the ratio of a row may be at most ``max_ratio``, (rows,) bool; True for NaN.

        The smallest value lies above the least minimum of groups of columns, the second one below the next minimum.
        """
        assert self.max_ratio is not None
        minima = _group_minima(rough)
        if minima.shape[1] < 2:
            return torch.ones_like(bound, dtype=torch.bool)
        least = minima.topk(2, dim=1, largest=False).values + squares[:, None]
        slack = 1.0 + 8.0 * self.rounding  # of the distances that are compared in the end
        return ~((least[:, 0] - bound).clamp(min=0.0) > self.max_ratio**2 * slack * (least[:, 1] + bound))

    def _all_pairs(self, block: Tensor) -> Tensor:
        """Distances to the whole database without cancellation."""
        if self.distance == "hamming":
            return (block.shape[1] - block @ self.database.T) / 2.0  # of +-1 vectors: small integers, exact in float32
        norm = 1.0 if self.distance == "l1" else 2.0
        return torch.cdist(block, self.database, p=norm, compute_mode="donot_use_mm_for_euclid_dist")

    def _full_rows(self, block: Tensor) -> tuple[Tensor, Tensor]:
        dists, order = self._all_pairs(block).sort(dim=1, stable=True)
        return dists[:, : self.k], order[:, : self.k]


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest values of each row of a contiguous (N, M), ascending, with their columns; ties anyhow.

    The smallest values lie in the groups of columns with the smallest minima, and what is left over at the end.
    """
    rows, columns = values.shape
    groups = columns // _GROUP
    if groups < 3 * count or rows == 0:
        smallest = values.topk(count, dim=1, largest=False)
        return smallest.values, smallest.indices
    grouped = groups * _GROUP
    chosen = _group_minima(values[:, :grouped]).topk(count, dim=1, largest=False).indices
    starts = torch.arange(0, rows * columns, columns, device=values.device)[:, None] + chosen * _GROUP
    windows = values.as_strided((rows * columns - _GROUP + 1, _GROUP), (1, 1), values.storage_offset())
    inside = torch.cat([windows.index_select(0, starts.flatten()).view(rows, -1), values[:, grouped:]], dim=1)
    chosen = torch.cat([chosen, chosen.new_full((rows, 1), groups)], dim=1)
    smallest = inside.topk(count, dim=1, largest=False)
    return smallest.values, chosen.gather(1, smallest.indices // _GROUP) * _GROUP + smallest.indices % _GROUP


def _group_minima(values: Tensor) -> Tensor:
    """The smallest value of each group of columns of (N, M), and of what is left over at the end: (N, groups)."""
    groups = values.shape[1] // _GROUP
    minima = values[:, : groups * _GROUP].unflatten(1, (groups, _GROUP)).amin(dim=2)
    rest = values[:, groups * _GROUP :]
    return torch.cat([minima, rest.amin(dim=1, keepdim=True)], dim=1) if rest.shape[1] else minima


def _unpack_bits(packed: Tensor) -> Tensor:
    """(N, D) bytes -> (N, 8 D) float32 of -1 and +1."""
    bits = packed.to(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((bits & 1).flatten(1).float() * 2.0) - 1.0
