"""Loss strings: ``name[*weight][,name[*weight]…]``, one or more losses and regularisers summed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from kornia_hardnet8.errors import UsageError, closest
from train import losses
from train.losses import ITEM_LOSSES, Described, LossOptions


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
            partial(losses.PairLoss, name),
            "hardest in batch, as in 2020",
            LOSS_SETTINGS[1:] if name == "softmax" else LOSS_SETTINGS,
        )
        for name in ITEM_LOSSES
    },
    "tripletMargin++": LossEntry(
        losses.GeneralisedTriplet, "one triplet a label over all rows, as in 2020", ("mpos",), False
    ),
    "softMargin": LossEntry(losses.DynamicSoftMargin, "weights by a running distribution; no margin", ("closeok",)),
    "hybrid": LossEntry(
        losses.HybridTriplet, "HyNet's similarity; its margin is 1.2, its length*0.1", ("mpos",), False
    ),
    "statistical": LossEntry(losses.StatisticalTriplet, "after SDGMNet; no margin", ("closeok",)),
    "sos": LossEntry(losses.SecondOrder, "SOSNet's second-order similarity", regulariser=True),
    "length": LossEntry(losses.LengthDifference, "HyNet's regularised normalisation", regulariser=True),
    "gor": LossEntry(losses.GlobalOrthogonality, "global orthogonality", regulariser=True),
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
            raise UsageError(f"unknown loss {name!r}{closest(name, LOSSES)}")
        try:
            weight = float(number or 1.0)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"loss {text!r}: the weight of {name} must be a positive number")
        if LOSSES[name].pairs_only and npos != 2:
            raise UsageError(f"--loss {name} takes pairs: --Npos must be 2, got {npos} (tripletMargin++ takes more)")
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
