"""Losses on unit descriptors, always in float32 (distances near 0 lose everything in half precision)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8.errors import UsageError, closest

NEAR_DUPLICATE = 0.008  # a negative nearer than this shows the same thing


def distance_matrix(anchors: Tensor, positives: Tensor) -> Tensor:
    """(N, M) Euclidean distances, ``sqrt(|a|^2 + |p|^2 - 2 a.p + 1e-6) + 1e-8``: identical vectors get 0.001."""
    squared = (anchors**2).sum(1)[:, None] + (positives**2).sum(1)[None] - 2.0 * anchors @ positives.T
    return torch.sqrt(squared.clamp(min=0.0) + 1e-6) + 1e-8


def triplet_margin(descs: Tensor, labels: Tensor, margin: float = 1.0, exclude: Tensor | None = None) -> Tensor:
    """Hardest-in-batch triplet margin with anchor swap.

    Args:
        descs: (2N, D) unit descriptors, anchors in even rows, their positives in odd rows.
        labels: (2N,) label of each row; unused, since every tuple has its own label.
        margin: m of ``max(0, m + d_pos - d_neg)``.
        exclude: (N, N) bool, pairs (anchor, positive) that are no negatives.

    Returns:
        (N,) losses. Negatives are the nearest of row and column; those within 0.008 count as duplicates.

    Source: Mishchuk et al. 2017 (HardNet), in the 2020 code's form.
    """
    anchors, positives = descs[0::2].float(), descs[1::2].float()
    distances = distance_matrix(anchors, positives)
    d_pos = distances.diagonal()
    off = torch.eye(len(distances), device=distances.device) * 10.0
    off = off + (distances.detach() <= NEAR_DUPLICATE) * 10.0
    if exclude is not None:
        off = off + exclude * 10.0
    masked = distances + off
    d_neg = torch.minimum(masked.min(dim=1).values, masked.min(dim=0).values)
    return F.relu(margin + d_pos - d_neg)


Loss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {"tripletMargin": triplet_margin}


def get_loss(name: str) -> Loss:
    """The loss of a name: ``(descs, labels, margin, exclude) -> per-item losses``.

    Raises:
        UsageError: unknown, with the close names.
    """
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}{closest(name, LOSSES)}")
    return LOSSES[name]
