"""The settings of a training run, as one frozen value that is validated, stored and shown."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from kornia_hardnet8.arch import get_arch
from kornia_hardnet8.errors import DataError, UsageError, closest
from train.augment import Augmentation, get_augmentation
from train.losses import DISTILLATION, REDUCTIONS, Criterion, LossOptions, parse_loss
from train.optim import OPTIMIZERS, SCHEDULES
from train.sampling import Sampling, SettingError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COMBINATIONS = ("random", "epoch", "inbatch")
# Settings that replace the defaults where a recipe is asked for. "2020" are the defaults: the settings that the 2020
# code ran with, made for days of a GPU. "short" is what learned most from the same patches in 200 steps on one core
# (docs/what-matters.md), with a budget.
RECIPES: dict[str, dict[str, Any]] = {
    "2020": {},
    "short": {
        "arch": "h7nodrop", "loss": "tripletMargin,sos", "bs": 128, "fewcams": True, "cams_in_batch": 2, "aug": "mild",
        "lr": 1e-2, "eps": 1e-8, "max_minutes": 20.0, "save_every": 200,
    },
}  # fmt: skip
# Settings of earlier versions that are gone, and the only value that a run can have had and go on.
_GONE = {"compile": False}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Attributes:
        arch: architecture token.
        ds: data sets, ``token[*weight][+token[*weight]…]``; the weight is the relative frequency of batches.
        data_root: folder in which tokens are looked up.
        val: data sets to validate on; None: on the held-out labels of ``ds``.
        loss: loss string, see :mod:`train.losses`.
        batch_reduce: which negatives the 2020 pair losses take.
        closeok: near-duplicates may be negatives.
        bs: tuples in a batch.
        npos: patches in a tuple.
        mpos: margin of the loss.
        nested: take the loss of the descriptor cut to so many dimensions too; None: that of the whole one alone.
        fewcams: take the labels of a batch from few cameras.
        cams_in_batch: cameras in a batch; 0: as few as it takes.
        combine: ``random``: each batch from one set, drawn by weight; ``epoch``: the sets one after the other in each
            epoch; ``inbatch``: each batch holds ``bs`` tuples of every set.
        tuples: tuples in an epoch, rounded down to whole batches.
        epochs: epochs.
        steps: steps of the whole run; None: those of the epochs.
        max_minutes: time budget that the schedule is fitted to; None: none.
        optimizer, lr, wd, eps, schedule: optimiser, peak rate, decay, what adamw adds to its denominator, schedule.
        ema: decay of a running mean of the weights, which is what is validated and saved for use; 0: none.
        aug: preset of the augmentation.
        fliprot: transpose and mirror whole tuples, where the preset does.
        precision: of the forward pass; ``auto``: bf16 where the machine gains from it.
        micro_batch: patches that the network sees at once, to bound the memory; 0: the whole batch.
        dropout: rate of the architecture's dropout layer; None: its own.
        holdout: share of the labels kept for validation, unless ``val`` is set.
        save_every: steps between checkpoints; None: one an epoch.
        seed: of everything random.
        init: weights to start from.
        teacher: weights whose descriptors the loss ``distill`` imitates.
    """

    ds: str
    arch: str = "h8"
    data_root: str = "Datasets"
    val: str | None = None
    loss: str = "tripletMargin"
    batch_reduce: str = "min"
    closeok: bool = False
    bs: int = 3072
    npos: int = 2
    mpos: float = 1.0
    nested: int | None = None
    fewcams: bool = False
    cams_in_batch: int = 0
    combine: str = "random"
    tuples: int = 5_000_000
    epochs: int = 20
    steps: int | None = None
    max_minutes: float | None = None
    optimizer: str = "adamw"
    lr: float = 3.0
    wd: float = 0.01
    eps: float = 1e-5
    schedule: str = "onecycle"
    ema: float = 0.0
    aug: str = "published"
    fliprot: bool = True
    precision: str = "auto"
    micro_batch: int = 0
    dropout: float | None = None
    holdout: float = 0.02
    save_every: int | None = None
    seed: int = 0
    init: str | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        width = get_arch(self.arch).dim
        get_augmentation(self.aug)
        for value, known, what in (
            (self.schedule, SCHEDULES, "schedule"),
            (self.optimizer, OPTIMIZERS, "optimizer"),
            (self.precision, PRECISIONS, "precision"),
            (self.batch_reduce, REDUCTIONS, "reduction of negatives"),
            (self.combine, COMBINATIONS, "combination of sets"),
        ):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r} (there are: {', '.join(known)}){closest(value, known)}")
        _ = self.sampling
        self._check_numbers()
        distils = DISTILLATION in {term.name for term in parse_loss(self.loss, self.npos)}
        if distils != (self.teacher is not None):
            raise SettingError("teacher", f"and the loss {DISTILLATION} need each other, got --loss {self.loss}")
        if distils and self.nested is not None:
            raise SettingError("nested", "has no effect on what a teacher says: leave it out")
        if self.nested is not None and not 1 <= self.nested < width:
            raise SettingError(
                "nested", f"must be 1 … {width - 1} for a network of {width} dimensions, got {self.nested}"
            )
        if self.micro_batch and (self.micro_batch < 2 * self.npos or self.micro_batch % self.npos):
            raise SettingError("micro_batch", f"must hold whole tuples, at least two, of {self.npos} patches")
        if self.num_steps < 1:
            raise UsageError(f"an epoch of {self.tuples} tuples holds no batch of {self.bs}")

    def _check_numbers(self) -> None:
        for name, low, high in (("holdout", 0.0, 0.5), ("ema", 0.0, 1.0), ("dropout", 0.0, 1.0)):
            if (value := getattr(self, name)) is not None and not low <= value < high:
                raise SettingError(name, f"must be {low:g} … {high:g}, got {value}")
        if self.dropout and not self._arch_dropout:
            raise SettingError("dropout", f"{self.dropout:g}: {self.arch} has no dropout layer")
        for name in ("epochs", "steps", "save_every", "max_minutes", "lr", "eps"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise SettingError(name, f"must be positive, got {value}")
        for name in ("wd", "mpos"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise SettingError(name, f"must be a number of 0 and more, got {value}")
        if not 0 <= self.seed < 1 << 63:
            raise SettingError("seed", f"must be 0 … 2**63 - 1, got {self.seed}")

    @property
    def sampling(self) -> Sampling:
        """How batches are drawn."""
        return Sampling(self.bs, self.npos, self.fewcams, self.cams_in_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one set in an epoch; with ``combine="inbatch"`` a step takes several of them."""
        return self.tuples // self.bs

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else self.steps_per_epoch * self.epochs

    @property
    def _arch_dropout(self) -> float:
        return max((float(layer[1:]) for layer in get_arch(self.arch).layers.split() if layer[0] == "D"), default=0.0)

    @property
    def dropout_rate(self) -> float:
        """The rate that is trained with: as set, or the architecture's own; 0: no dropout."""
        return self._arch_dropout if self.dropout is None else self.dropout

    def augmentation(self, kind: str) -> Augmentation:
        """Random changes of the patches of a kind of store."""
        settings = get_augmentation(self.aug, kind)
        return settings if self.fliprot else dataclasses.replace(settings, symmetries=1)

    def build_criterion(self) -> Criterion:
        """The loss."""
        return Criterion(self.loss, LossOptions(self.mpos, self.batch_reduce, not self.closeok), self.npos)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: unknown or missing settings, or values that no run can have.
        """
        kinds = get_type_hints(cls)
        wrong = "not the settings of a training run: "
        if not isinstance(values, dict) or "ds" not in values:
            raise DataError(f"{wrong}no ds")
        values = {name: value for name, value in values.items() if (name, value) not in _GONE.items()}
        for name, value in values.items():
            if name not in kinds:
                raise DataError(f"{wrong}unknown {name}")
            if not _is_of(value, get_args(kinds[name]) or (kinds[name],)):
                raise DataError(f"{wrong}{name} is {value!r}")
        try:
            return cls(**values)
        except UsageError as error:
            raise DataError(f"{wrong}{error}") from None


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; a whole number is a number, a bool is none."""
    return type(value) in kinds or (type(value) is int and float in kinds)
