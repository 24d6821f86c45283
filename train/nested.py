"""A loss on the shortened descriptor too, so that the network puts what matters into the dimensions that are kept."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8.projection import Projection
from train.criterion import Criterion
from train.losses import Described

SHARE = 2 / 3
"""Weight of the short descriptor's loss, the one that is used; the network's own width has the rest."""


class NestedLoss(nn.Module):
    """The loss of descriptors after a fixed projection, cut to fewer dimensions and brought to unit length.

    Source: losses on nested prefixes of an embedding are those of Matryoshka representation learning (Kusupati et al.
    2022); here the prefix is that of a projection, PCA where the first weights have one.

    Args:
        projection: of the weights that training starts from; None: the first features themselves.
        width: D, of the network.
        dim: dimensions kept, fewer than D.
        criterion: loss of the short descriptors, with a state of its own.

    Raises:
        UsageError: the projection keeps fewer dimensions than ``dim``.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, projection: Projection | None, width: int, dim: int, criterion: Criterion) -> None:
        super().__init__()
        if projection is None:
            mean, basis = torch.zeros(width), torch.eye(width, dim)
        else:
            mean, basis = projection.truncated(dim)
        self.register_buffer("mean", mean.detach().float().clone())
        self.register_buffer("basis", basis.detach().float().contiguous().clone())
        self.criterion = criterion

    def forward(self, described: Described) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss () of a batch of descriptors (n, D), and the means () of its terms."""
        short = (described.unit - self.mean) @ self.basis
        lengths = short.norm(dim=1)
        unit = F.normalize(short, dim=1, eps=1e-12)
        loss, _, terms = self.criterion(dataclasses.replace(described, unit=unit, lengths=lengths))
        return loss, terms
