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


@torch.no_grad()
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
        return Neighbours(queries.new_zeros(len(queries), k), queries.new_zeros(len(queries), k, dtype=torch.long))
    limit = _BLOCK_BYTES if queries.device.type == "cpu" else _BLOCK_BYTES_GPU
    search = _Search(database, k, distance)
    rows = max(1, limit // (4 * max(len(database), search.candidates * database.shape[1])))
    parts = [search(block) for block in queries.split(rows)]
    return Neighbours(torch.cat([p.dists for p in parts]), torch.cat([p.idx for p in parts]))


class _Search:
    """What the blocks of one search share."""

    def __init__(self, database: Tensor, k: int, distance: Distance) -> None:
        self.database, self.k, self.distance = database, k, distance
        self.candidates = min(len(database), k + _EXTRA_CANDIDATES)
        if distance == "l2":
            self.squares = (database * database).sum(dim=1)
            self.largest = self.squares.max().sqrt()
            exact_products = torch.get_float32_matmul_precision() == "highest"
            self.rounding = (database.shape[1] + 8) * 2.0**-23 if exact_products else 2.0**-6

    def __call__(self, block: Tensor) -> Neighbours:
        """Neighbours of a block of queries."""
        if self.distance == "l2":
            rough = torch.addmm(self.squares, block, self.database.T, alpha=-2.0)  # squared, less |query|^2
            last, idx = _smallest(rough, self.candidates)
            idx = idx.sort(dim=1).values
            dists = (block[:, None] - self.database[idx]).square_().sum(dim=2).sqrt_()
            dists, order = dists.sort(dim=1, stable=True)
            idx = idx.gather(1, order)
            squares = block.square().sum(dim=1)
            bound = self.rounding * (squares.sqrt() + self.largest).square()
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
        return Neighbours(dists, idx)

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
    if groups < 3 * count:
        found = values.topk(count, dim=1, largest=False)
        return found.values, found.indices
    grouped = groups * _GROUP
    minima = values[:, :grouped].unflatten(1, (groups, _GROUP)).amin(dim=2)
    chosen = minima.topk(count, dim=1, largest=False).indices
    starts = torch.arange(0, rows * columns, columns, device=values.device)[:, None] + chosen * _GROUP
    windows = values.as_strided((rows * columns - _GROUP + 1, _GROUP), (1, 1), values.storage_offset())
    inside = torch.cat([windows.index_select(0, starts.flatten()).view(rows, -1), values[:, grouped:]], dim=1)
    chosen = torch.cat([chosen, chosen.new_full((rows, 1), groups)], dim=1)
    found = inside.topk(count, dim=1, largest=False)
    return found.values, chosen.gather(1, found.indices // _GROUP) * _GROUP + found.indices % _GROUP


def _unpack_bits(packed: Tensor) -> Tensor:
    """(N, D) bytes -> (N, 8 D) float32 of -1 and +1."""
    bits = packed.to(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((bits & 1).flatten(1).float() * 2.0) - 1.0
