"""The settings of a training run, as one frozen value that is validated, stored and shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from kornia_hardnet8.arch import get_arch
from kornia_hardnet8.errors import DataError, UsageError, closest
from train.augment import PRESETS
from train.losses import get_loss
from train.optim import SCHEDULES
from train.sampling import Sampling

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Attributes:
        arch: architecture token.
        ds: data sets, ``token[*weight][+token[*weight]…]``; the weight is the relative frequency of batches.
        data_root: folder in which tokens are looked up.
        loss: name of the loss.
        bs: tuples in a batch.
        npos: patches in a tuple.
        mpos: margin of the loss.
        fewcams: take the labels of a batch from few cameras.
        cams_in_batch: cameras in a batch; 0: as few as it takes.
        tuples: tuples in an epoch, rounded down to whole batches.
        epochs: epochs.
        steps: steps of the whole run; None: those of the epochs.
        max_minutes: time budget that the schedule is fitted to; None: none.
        optimizer, lr, wd, schedule: optimiser, peak rate, decoupled decay, schedule.
        aug: preset of the augmentation.
        precision: of the forward pass; ``auto``: bf16 where the machine gains from it.
        holdout: share of the labels kept for validation.
        save_every: steps between checkpoints; None: one an epoch.
        seed: of everything random.
        init: weights to start from.
    """

    ds: str
    arch: str = "h8"
    data_root: str = "Datasets"
    loss: str = "tripletMargin"
    bs: int = 3072
    npos: int = 2
    mpos: float = 1.0
    fewcams: bool = False
    cams_in_batch: int = 0
    tuples: int = 5_000_000
    epochs: int = 20
    steps: int | None = None
    max_minutes: float | None = None
    optimizer: str = "adamw"
    lr: float = 3.0
    wd: float = 0.01
    schedule: str = "onecycle"
    aug: str = "published"
    precision: str = "auto"
    holdout: float = 0.02
    save_every: int | None = None
    seed: int = 0
    init: str | None = None

    def __post_init__(self) -> None:
        get_arch(self.arch)
        get_loss(self.loss)
        for value, known, what in (
            (self.schedule, SCHEDULES, "schedule"),
            (self.aug, PRESETS, "augmentation"),
            (self.precision, PRECISIONS, "precision"),
        ):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r} (there are: {', '.join(known)}){closest(value, known)}")
        if self.loss == "tripletMargin" and self.npos != 2:
            raise UsageError(f"--loss tripletMargin takes pairs: --Npos must be 2, got {self.npos}")
        if not 0.0 <= self.holdout < 0.5:
            raise UsageError(f"--holdout must be 0 … 0.5, got {self.holdout}")
        if self.num_steps < 1:
            raise UsageError(f"an epoch of {self.tuples} tuples holds no batch of {self.bs}")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How batches are drawn."""
        return Sampling(self.bs, self.npos, self.fewcams, self.cams_in_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.tuples // self.bs

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else self.steps_per_epoch * self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: unknown or missing settings.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "ds" not in values:
            raise DataError(f"not the settings of a training run: {'unknown ' + unknown[0] if unknown else 'no ds'}")
        return cls(**values)
