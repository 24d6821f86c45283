"""Losses on descriptors, always in float32 (distances near 0 lose everything in half precision).

A loss string is ``name[*weight][,name[*weight]…]``: one or more losses and regularisers, summed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8.errors import UsageError, choices
from kornia_hardnet8.projection import Projection
from train.mining import (
    NEAR_DUPLICATE,
    distance_matrix,
    hardest_of_classes,
    hardest_pairs,
    nearest_rows,
    row_distances,
)

DISTILLATION = "distill"
REDUCTIONS = ("min", "average", "random")
NESTED_SHARE = 2 / 3  # weight of the short descriptor's loss, the one that is used; the whole width has the rest


@dataclass(frozen=True)
class Described:
    """A batch as a loss sees it; the patches of a tuple lie in adjacent rows.

    Attributes:
        unit: float32 (n, D), the descriptors, of unit length.
        lengths: float32 (n,), their lengths before that.
        labels: int64 (n,).
        tuples: int64 (n,), the tuple of each row.
        exclude: bool (T, T), tuples that are no negatives of each other, or None.
        targets: float32 (n, D), unit vectors of a teacher, or None.
    """

    unit: Tensor
    lengths: Tensor
    labels: Tensor
    tuples: Tensor
    exclude: Tensor | None = None
    targets: Tensor | None = None

    @property
    def anchors(self) -> Tensor:
        """(N, D) even rows; only for batches of pairs."""
        return self.unit[0::2]

    @property
    def positives(self) -> Tensor:
        """(N, D) odd rows; only for batches of pairs."""
        return self.unit[1::2]


@dataclass(frozen=True)
class LossOptions:
    """Options of the 2020 losses.

    Attributes:
        margin: m, on plain (not squared) distances.
        reduce: negatives of a tuple: ``min`` (hardest), ``average`` (all; entry (i, j) meets the positive distance
            of j, as in the 2020 code) or ``random``.
        protect: near-duplicates are no negatives.
    """

    margin: float = 1.0
    reduce: str = "min"
    protect: bool = True


def pair_distances(batch: Described, options: LossOptions, permutation: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances of matching pairs and of the negatives that go with them, (N,) each, (N * N,) for ``average``.

    Source: Mishchuk et al. 2017 (HardNet), with the anchor swap and constants of the 2020 code.
    """
    anchors, positives = batch.anchors, batch.positives
    if options.reduce == "min":
        hardest = hardest_pairs(anchors, positives, batch.exclude, options.protect)
        negative = row_distances(anchors[hardest.anchors], positives[hardest.positives]) + hardest.penalty
        return row_distances(anchors, positives), negative
    distances = distance_matrix(anchors, positives)
    d_pos = distances.diagonal()
    masked = distances + 10.0 * torch.eye(len(distances), device=distances.device)
    if options.protect:
        masked = masked + 10.0 * (distances.detach() <= NEAR_DUPLICATE)
    if batch.exclude is not None:
        masked = masked + 10.0 * batch.exclude
    if options.reduce == "average":
        return d_pos.repeat(len(d_pos)), torch.minimum(masked, masked.T).flatten()
    if permutation is None:
        permutation = torch.randperm(len(d_pos)).to(distances.device)
    rows = torch.arange(len(d_pos), device=distances.device)
    return d_pos, torch.minimum(masked[rows, permutation], masked[permutation, rows])


def huber(x: Tensor) -> Tensor:
    """Pseudo-Huber ``sqrt(1 + x^2) - 1``."""
    return torch.sqrt(1.0 + x * x) - 1.0


def _robust(pos: Tensor, neg: Tensor, margin: float) -> Tensor:
    losses = F.relu(margin + pos - neg).sort().values
    return losses[: int(0.95 * len(losses))]


# name -> (positive distances, negative distances, margin) -> losses of items
ITEM_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "tripletMargin": lambda pos, neg, m: F.relu(m + pos - neg),
    "tripletMarginHuberInternal": lambda pos, neg, m: F.relu(m + huber(pos) - huber(neg)),
    "tripletMarginHuberExternal": lambda pos, neg, m: huber(F.relu(m + pos - neg)),
    "tripletMarginHuberDouble": lambda pos, neg, m: huber(F.relu(m + huber(pos) - huber(neg))),
    "tripletMarginRobust": _robust,
    "softmax": lambda pos, neg, m: -torch.log(torch.exp(2 - pos) / (torch.exp(2 - pos) + torch.exp(2 - neg) + 1e-8)),
    "contrastive": lambda pos, neg, m: F.relu(m - neg) + pos,
}


class PairLoss(nn.Module):
    """One of ``ITEM_LOSSES`` on the pairs of a batch."""

    def __init__(self, name: str, options: LossOptions) -> None:
        super().__init__()
        self.item, self.options = ITEM_LOSSES[name], options

    def forward(self, batch: Described) -> Tensor:
        """Losses of items, (N,) or as many as the reduction gives."""
        return self.item(*pair_distances(batch, self.options), self.options.margin)


class GeneralisedTriplet(nn.Module):
    """One triplet for each label: its farthest pair against its nearest pair with another label, over all rows.

    Source: the ``++`` loss of the 2020 code; near-duplicates are never negatives.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.margin = options.margin

    def forward(self, batch: Described) -> Tensor:
        """(C,) losses of the distinct labels, ascending."""
        pos, neg = hardest_of_classes(batch.unit, batch.labels, batch.tuples, batch.exclude)
        d_pos = torch.linalg.vector_norm(batch.unit[pos[:, 0]] - batch.unit[pos[:, 1]], dim=1)
        d_neg = torch.linalg.vector_norm(batch.unit[neg[:, 0]] - batch.unit[neg[:, 1]], dim=1)
        return F.relu(self.margin + d_pos - d_neg)


class DynamicSoftMargin(nn.Module):
    """Hardest-in-batch triplets, each weighted by the share of easier triplets seen lately.

    Source: Zhang and Rusinkiewicz 2019, "Learning Local Descriptors With a CDF-Based Dynamic Soft Margin".
    """

    def __init__(self, options: LossOptions, bins: int = 512, momentum: float = 0.01) -> None:
        super().__init__()
        self.protect, self.momentum, self.width = options.protect, momentum, 4.0 / (bins - 1)
        self.register_buffer("histogram", torch.zeros(bins))
        self.histogram: Tensor

    def forward(self, batch: Described) -> Tensor:
        """(N,) weighted differences of positive and negative distance; their mean is the loss."""
        hardest = hardest_pairs(batch.anchors, batch.positives, batch.exclude, self.protect)
        d_pos = _unit_distance(batch.anchors, batch.positives)
        d_neg = _unit_distance(batch.anchors[hardest.anchors], batch.positives[hardest.positives])
        with torch.no_grad():
            place = ((d_pos - d_neg + 2.0) / self.width).clamp(0, len(self.histogram) - 1)
            low = place.floor().long()
            share = place - low
            counts = torch.zeros_like(self.histogram).index_add_(0, low, 1.0 - share)
            counts.index_add_(0, (low + 1).clamp(max=len(counts) - 1), share)
            counts /= counts.sum() + 1e-6
            rate = self.momentum if self.histogram.any() else 1.0
            self.histogram.lerp_(counts, rate)
            weights = (self.histogram / self.histogram.sum()).cumsum(0)[low]
            weights = weights * (hardest.penalty == 0)
        return weights * (d_pos - d_neg)


class HybridTriplet(nn.Module):
    """Hardest triplets over all four kinds of pairs on ``d + d^2``: the angle between for easy, d for hard pairs.

    Source: Tian et al. 2020 (HyNet), alpha = 2, without its constant factor; its margin is 1.2.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.margin = options.margin

    def forward(self, batch: Described) -> Tensor:
        """(C,) losses of the distinct labels, ascending."""
        pos, neg = hardest_of_classes(batch.unit, batch.labels, batch.tuples, batch.exclude)
        similar, other = (_unit_distance(batch.unit[p[:, 0]], batch.unit[p[:, 1]]) for p in (pos, neg))
        return F.relu(self.margin + (similar + similar**2) - (other + other**2))


class StatisticalTriplet(nn.Module):
    """Hardest triplets on angles, whose gradients follow running statistics of the batch.

    Pairs with unusual angles count less (a bell about the running mean), triplets easier than nine tenths of those
    seen lately count nothing, and positives and negatives have the same total weight.

    Source: the three modulations of Deng and Ma 2021 (SDGMNet); the shape of the bell and the share are ours.
    """

    def __init__(self, options: LossOptions, momentum: float = 0.05, share: float = 0.9) -> None:
        super().__init__()
        self.protect, self.momentum, self.share = options.protect, momentum, share
        # mean and variance of positive and negative angles, and the difference that the share exceeds
        self.register_buffer("statistics", torch.full((5,), torch.nan))
        self.statistics: Tensor

    def forward(self, batch: Described) -> Tensor:
        """(N,) weighted differences of positive and negative angle."""
        hardest = hardest_pairs(batch.anchors, batch.positives, batch.exclude, self.protect)
        pos = _angle(batch.anchors, batch.positives)
        neg = _angle(batch.anchors[hardest.anchors], batch.positives[hardest.positives])
        with torch.no_grad():
            now = torch.stack([
                pos.mean(), pos.var(unbiased=False), neg.mean(), neg.var(unbiased=False),
                torch.quantile(pos - neg, 1.0 - self.share),
            ])  # fmt: skip
            self.statistics.copy_(now if self.statistics.isnan().any() else self.statistics.lerp(now, self.momentum))
            mean_pos, var_pos, mean_neg, var_neg, limit = self.statistics
            counts = (pos - neg >= limit) & (hardest.penalty == 0)
            w_pos = torch.exp(-((pos - mean_pos) ** 2) / (8.0 * var_pos + 1e-6)) * counts
            w_neg = torch.exp(-((neg - mean_neg) ** 2) / (8.0 * var_neg + 1e-6)) * counts
            w_pos, w_neg = (w * (len(w) / w.sum().clamp(min=1e-6)) for w in (w_pos, w_neg))
        return w_pos * pos - w_neg * neg


class SecondOrder(nn.Module):
    """Regulariser: an anchor's distances to its neighbours should be those of its positive to theirs.

    Source: Tian et al. 2019 (SOSNet), 8 neighbours.
    """

    def __init__(self, options: LossOptions, neighbours: int = 8) -> None:
        super().__init__()
        self.neighbours = neighbours

    def forward(self, batch: Described) -> Tensor:
        """(N,) root of summed squared differences over the neighbours of anchor or positive."""
        anchors, positives = batch.anchors, batch.positives
        near = torch.cat([nearest_rows(anchors, self.neighbours), nearest_rows(positives, self.neighbours)], 1)
        with torch.no_grad():
            repeats = (near[:, :, None] == near[:, None, :]).sum(2)
        rows = torch.arange(len(anchors), device=near.device)[:, None].expand_as(near)
        first = _unit_distance(anchors[rows.flatten()], anchors[near.flatten()])
        second = _unit_distance(positives[rows.flatten()], positives[near.flatten()])
        return torch.sqrt((((first - second) ** 2).view_as(near) / repeats).sum(1) + 1e-6)


class LengthDifference(nn.Module):
    """Regulariser: the two raw descriptors of a pair should be equally long.

    Source: Tian et al. 2020 (HyNet), there with weight 0.1.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()

    def forward(self, batch: Described) -> Tensor:
        """(N,) squared differences of length."""
        return (batch.lengths[0::2] - batch.lengths[1::2]) ** 2


class GlobalOrthogonality(nn.Module):
    """Regulariser: descriptors of different labels should be spread like random directions.

    Source: Zhang et al. 2017, "Learning Spread-out Local Feature Descriptors"; the next tuple's anchor is the other.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()

    def forward(self, batch: Described) -> Tensor:
        """(1,) squared mean of the products plus what their mean square exceeds 1 / D by."""
        products = (batch.anchors * batch.anchors.roll(1, 0)).sum(1)
        spread = F.relu((products**2).mean() - 1.0 / batch.unit.shape[1])
        return (products.mean() ** 2 + spread)[None]


class Distillation(nn.Module):
    """Descriptors should be those of a teacher, patch by patch; labels have no part in it."""

    def __init__(self, options: LossOptions) -> None:
        super().__init__()

    def forward(self, batch: Described) -> Tensor:
        """(n,) 1 - cosine of the angle between descriptor and target."""
        assert batch.targets is not None  # TrainConfig saw to it
        return 1.0 - (batch.unit * batch.targets).sum(1)


def _unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances of unit vectors, row by row: ``sqrt(2 (1 - a.b + 1e-6))``."""
    return torch.sqrt(2.0 * (1.0 - (a * b).sum(1) + 1e-6).clamp(min=1e-9))


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles between unit vectors, row by row, with a finite gradient everywhere."""
    return torch.acos((a * b).sum(1).clamp(-1.0 + 1e-6, math.cos(1e-3)))


@dataclass(frozen=True)
class LossEntry:
    """What a name stands for.

    Attributes:
        build: from options to a module that maps a batch to losses of items.
        about: one line for the help.
        obeys: the settings of a run that change it, beside its weight.
        pairs_only: takes tuples of two patches alone.
        regulariser: of no use without another loss.
    """

    build: Callable[[LossOptions], nn.Module]
    about: str
    obeys: tuple[str, ...] = ()
    pairs_only: bool = True
    regulariser: bool = False


# settings of a run that some of the losses obey
LOSS_SETTINGS = ("mpos", "batch_reduce", "closeok")
LOSSES: dict[str, LossEntry] = {
    **{
        name: LossEntry(
            partial(PairLoss, name),
            "hardest in batch, as in 2020",
            LOSS_SETTINGS[1:] if name == "softmax" else LOSS_SETTINGS,
        )
        for name in ITEM_LOSSES
    },
    "tripletMargin++": LossEntry(GeneralisedTriplet, "one triplet a label over all rows, as in 2020", ("mpos",), False),
    "softMargin": LossEntry(DynamicSoftMargin, "weights by a running distribution; no margin", ("closeok",)),
    "hybrid": LossEntry(HybridTriplet, "HyNet's similarity; its margin is 1.2, its length*0.1", ("mpos",), False),
    "statistical": LossEntry(StatisticalTriplet, "after SDGMNet; no margin", ("closeok",)),
    DISTILLATION: LossEntry(Distillation, "to imitate the descriptors of --teacher", pairs_only=False),
    "sos": LossEntry(SecondOrder, "SOSNet's second-order similarity", regulariser=True),
    "length": LossEntry(LengthDifference, "HyNet's regularised normalisation", regulariser=True),
    "gor": LossEntry(GlobalOrthogonality, "global orthogonality", regulariser=True),
}


@dataclass(frozen=True)
class LossTerm:
    """One name of a loss string with its weight."""

    name: str
    weight: float


def parse_loss(text: str, npos: int = 2) -> list[LossTerm]:
    """Parse a loss string for tuples of ``npos`` patches.

    Raises:
        UsageError: an unknown name (close ones given), a wrong weight, regularisers alone, or pairs needed.
    """
    terms = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z]+(?:\+\+)?)\s*(?:\*\s*([0-9.eE+-]+)\s*)?", part)
        if match is None:
            raise UsageError(f"loss {text!r}: {part!r} is not of the form name or name*weight")
        name, number = match.groups()
        if name not in LOSSES:
            raise UsageError(f"unknown loss {name!r}{choices(name, LOSSES)}")
        try:
            weight = float(number or 1.0)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"loss {text!r}: the weight of {name} must be a positive number")
        if LOSSES[name].pairs_only and npos != 2:
            raise UsageError(f"loss {name} takes pairs, got tuples of {npos} patches (tripletMargin++ takes more)")
        terms.append(LossTerm(name, weight))
    if all(LOSSES[term.name].regulariser for term in terms):
        raise UsageError(f"loss {text!r} has regularisers alone: add one such as tripletMargin")
    return terms


class Criterion(nn.Module):
    """The weighted sum of the terms of a loss string; state of single terms is in its state dict."""

    def __init__(self, text: str, options: LossOptions, npos: int = 2) -> None:
        super().__init__()
        self.terms = parse_loss(text, npos)
        self.parts = nn.ModuleList(LOSSES[term.name].build(options) for term in self.terms)

    def forward(self, batch: Described) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss (), losses of items of the first term that is no regulariser, and means () of single terms."""
        total, items = batch.unit.new_zeros(()), None
        means: dict[str, Tensor] = {}
        for term, part in zip(self.terms, self.parts, strict=True):
            values = part(batch)
            mean = values.mean()
            total = total + term.weight * mean
            means[term.name] = mean.detach()
            if items is None and not LOSSES[term.name].regulariser:
                items = values.detach()
        assert items is not None  # parse_loss saw to it
        return total, items, means


class NestedLoss(nn.Module):
    """The loss of descriptors after a fixed projection, cut to fewer dimensions and brought to unit length.

    Source: losses on nested prefixes of an embedding are those of Matryoshka representation learning (Kusupati et al.
    2022); here the prefix is that of a projection, PCA where the first weights have one.

    Args:
        projection: of the weights that training starts from; None: the first features themselves.
        width: D, of the network.
        dim: dimensions kept, fewer than D.
        criterion: loss of the short descriptors, which keeps a state apart.

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
