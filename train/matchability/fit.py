"""Fitting the network of :mod:`kornia_hardnet8.matchability` to labelled keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.matchability import Matchability
from train.matchability.labels import Labels

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class FitSettings:
    """``steps`` of ``batch`` keypoints; ``rate`` is the largest of one cycle; ``seed`` of weights and batches."""

    steps: int = 4000
    batch: int = 2048
    rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.rate > 0:
            raise UsageError("steps, batch and rate must be positive")


def fit(labels: Sequence[Labels], settings: FitSettings | None = None) -> Matchability:
    """Fit a network; the same labels and seed give the same weights on one machine.

    Each photograph has an offset of its own beside the network, since its share of right matches says how alike its
    partners are; what the network learns is the order within a photograph. The mean offset stays in the network.

    Raises:
        DataError: no keypoint is labelled, or all of them alike.
    """
    settings = settings or FitSettings()
    if not labels:
        raise DataError("no photograph has labelled keypoints")
    patches, sigma, right, seen = (torch.cat([getattr(one, name) for one in labels]) for name in Labels._fields)
    photograph = torch.cat([torch.full((len(one.sigma),), k) for k, one in enumerate(labels)])
    share = float(right.sum() / seen.sum())
    if not 0.0 < share < 1.0:
        raise DataError(f"{len(right)} keypoints are matched in {share:.0%} of the photographs: nothing to learn")
    generator = torch.Generator().manual_seed(settings.seed)
    network = _initialised(generator)
    offsets = nn.Parameter(torch.full((len(labels),), math.log(share / (1.0 - share))))
    groups = [
        {"params": network.parameters(), "weight_decay": WEIGHT_DECAY},
        {"params": [offsets], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [settings.rate, 10 * settings.rate], settings.steps, pct_start=0.1
    )
    for _ in progress(range(settings.steps), settings.steps, "fit", "step"):
        rows = torch.randint(len(right), (settings.batch,), generator=generator)
        turned = _turned(patches[rows].float() / 255.0, int(torch.randint(8, (1,), generator=generator)))
        logits = network(turned, sigma[rows]) + offsets[photograph[rows]]
        loss = negative_log_likelihood(logits, right[rows], seen[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        _last(network).bias.add_(offsets.mean())
    return network.eval()


def negative_log_likelihood(logits: Tensor, right: Tensor, seen: Tensor) -> Tensor:
    """Of being right ``right`` times out of ``seen``, a mean over all of ``seen``."""
    return (F.softplus(logits) * seen - logits * right).sum() / seen.sum()


def order_quality(scores: Tensor, right: Tensor, seen: Tensor) -> float:
    """Probability that a right match has a higher score than a wrong one (area under the ROC curve); NaN without both.

    Args:
        scores: (N,) of the keypoints of one photograph.
        right: (N,) see :class:`Labels`.
        seen: (N,) likewise.
    """
    order = torch.argsort(scores, stable=True)
    hits, misses = right[order].double(), (seen - right)[order].double()
    below = misses.cumsum(0) - misses / 2
    total = float(hits.sum() * misses.sum())
    return float((hits * below).sum()) / total if total else math.nan


def _initialised(generator: torch.Generator) -> Matchability:
    """A network with weights drawn from ``generator`` alone."""
    network = Matchability()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(_last(network).weight)
    return network.train()


def _last(network: Matchability) -> nn.Linear:
    layer = network.head[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _turned(patches: Tensor, which: int) -> Tensor:
    """One of the eight turns and reflections of a square: an upright photograph is only one of those that are taken."""
    patches = torch.rot90(patches, which % 4, (2, 3))
    return patches.flip(3) if which >= 4 else patches
