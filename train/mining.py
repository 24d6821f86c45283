"""Which negatives a loss sees: searched without gradient, in float32, in row blocks of bounded memory.

A search over N anchors holds blocks of ``BLOCK`` distances (64 MB), never the N x N matrix; gradients flow through the
distances of the chosen pairs alone, which the losses compute anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR_DUPLICATE = 0.008  # a negative nearer than this shows the same thing
FAR = 10.0  # added to the distance of pairs that are no negatives
BLOCK = 2**24


def distance_matrix(anchors: Tensor, positives: Tensor) -> Tensor:
    """(N, M) Euclidean distances, ``sqrt(|a|^2 + |p|^2 - 2 a.p + 1e-6) + 1e-8``: identical vectors get 0.001."""
    squared = (anchors**2).sum(1)[:, None] + (positives**2).sum(1)[None] - 2.0 * anchors @ positives.T
    return torch.sqrt(squared.clamp(min=0.0) + 1e-6) + 1e-8


def row_distances(anchors: Tensor, positives: Tensor) -> Tensor:
    """(N,) distances of row i to row i by the formula of :func:`distance_matrix`."""
    squared = (anchors**2).sum(1) + (positives**2).sum(1) - 2.0 * (anchors * positives).sum(1)
    return torch.sqrt(squared.clamp(min=0.0) + 1e-6) + 1e-8


@dataclass(frozen=True)
class Negatives:
    """The hardest negative pair of each of N tuples.

    Attributes:
        anchors, positives: (N,) rows of the pair (anchor of one tuple, positive of another).
        penalty: (N,) added to the distance; 0 for a real negative.
    """

    anchors: Tensor
    positives: Tensor
    penalty: Tensor


@torch.no_grad()
def hardest_pairs(anchors: Tensor, positives: Tensor, exclude: Tensor | None = None, protect: bool = True) -> Negatives:
    """For each tuple the nearest of (its anchor, another's positive) and (another's anchor, its positive).

    Args:
        anchors: (N, D) float32.
        positives: (N, D) float32.
        exclude: (N, N) bool, pairs (anchor, positive) that are no negatives.
        protect: neither are pairs within ``NEAR_DUPLICATE``.
    """
    count, device = len(anchors), anchors.device
    row_best = torch.empty(count, device=device)
    row_arg = torch.empty(count, dtype=torch.int64, device=device)
    col_best = torch.full((count,), torch.inf, device=device)
    col_arg = torch.zeros(count, dtype=torch.int64, device=device)
    penalty = torch.empty(2, count, device=device)
    for rows in _blocks(count, count):
        distances = distance_matrix(anchors[rows], positives)
        masked = distances.clone()
        masked.diagonal(rows.start)[:] += FAR
        if protect:
            masked += FAR * (distances <= NEAR_DUPLICATE)
        if exclude is not None:
            masked += FAR * exclude[rows]
        row_best[rows], row_arg[rows] = masked.min(dim=1)
        penalty[0, rows] = row_best[rows] - distances.gather(1, row_arg[rows, None])[:, 0]
        best, arg = masked.min(dim=0)
        better = best < col_best
        col_best[better] = best[better]
        col_arg[better] = arg[better] + rows.start
        penalty[1, better] = (best - distances.gather(0, arg[None])[0])[better]
    tuples = torch.arange(count, device=device)
    by_row = row_best <= col_best
    penalty = torch.where(by_row, penalty[0], penalty[1]).div(FAR).round() * FAR
    return Negatives(torch.where(by_row, tuples, col_arg), torch.where(by_row, row_arg, tuples), penalty)


@torch.no_grad()
def nearest_rows(descs: Tensor, count: int) -> Tensor:
    """(N, count) the rows nearest to each row, itself left out; fewer columns where there are fewer rows."""
    total = len(descs)
    out = torch.empty(total, min(count, total - 1), dtype=torch.int64, device=descs.device)
    for rows in _blocks(total, total):
        similarity = descs[rows] @ descs.T
        similarity.diagonal(rows.start)[:] = -torch.inf
        out[rows] = similarity.topk(out.shape[1], dim=1).indices
    return out


@torch.no_grad()
def hardest_of_classes(descs: Tensor, labels: Tensor, tuples: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each distinct label, ascending, its farthest pair of rows (C, 2) and its nearest pair with another label.

    Args:
        descs: (n, D) float32.
        labels: (n,), groups of any size.
        tuples: (n,) the tuple of each row, by which ``exclude`` (T, T) is addressed.
        exclude: tuples that are no negatives of each other, or None.
    """
    count, device = len(descs), descs.device
    farthest, partner = torch.empty(count, device=device), torch.empty(count, dtype=torch.int64, device=device)
    nearest, other = torch.empty_like(farthest), torch.empty_like(partner)
    squares = (descs**2).sum(1)
    for rows in _blocks(count, count):
        squared = squares[rows, None] + squares - 2.0 * descs[rows] @ descs.T
        distances = squared.clamp_(min=0.0).sqrt_()
        same = labels[rows, None] == labels
        distances.diagonal(rows.start)[:] = 0.0  # exactly, whatever the rounding
        farthest[rows], partner[rows] = distances.masked_fill(~same, -1.0).max(dim=1)
        barred = same | (distances <= NEAR_DUPLICATE)
        if exclude is not None:
            barred |= exclude[tuples[rows]][:, tuples]
        nearest[rows], other[rows] = (distances + 1e5 * barred).min(dim=1)
    _, group = torch.unique(labels, return_inverse=True)
    hard_pos, hard_neg = _first_of_groups(farthest, group), _first_of_groups(-nearest, group)
    return torch.stack([hard_pos, partner[hard_pos]], 1), torch.stack([hard_neg, other[hard_neg]], 1)


def _first_of_groups(values: Tensor, group: Tensor) -> Tensor:
    """The first row of each group that holds the group's largest value."""
    groups = int(group.max()) + 1
    best = torch.full((groups,), -torch.inf, device=values.device).scatter_reduce_(0, group, values, "amax")
    rows = torch.arange(len(values), device=values.device)
    rows = torch.where(values == best[group], rows, len(values))
    return torch.full((groups,), len(values), device=values.device).scatter_reduce_(0, group, rows, "amin")


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
