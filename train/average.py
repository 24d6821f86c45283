"""The average of the weights of several runs: one network that often generalises better than each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from common.machine import autocast
from kornia_hardnet8.errors import DataError, UsageError
from train.run import Run


def average_features(checkpoints: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The mean, tensor by tensor, of the ``features`` of training checkpoints.

    The runs should have started from the same weights: only then does the loss stay low in between. Statistics of batch
    norm do not average; :func:`renew_statistics` measures them.

    Raises:
        UsageError: fewer than two, or of different architectures.
        DataError: one holds no weights.

    Source: averaging along a run is that of Izmailov et al. 2018, averaging of runs that of Wortsman et al. 2022.
    """
    if len(checkpoints) < 2:
        raise UsageError("an average needs at least two checkpoints")
    archs = {content.get("arch") for content in checkpoints}
    if len(archs) > 1:
        raise UsageError(f"checkpoints of different architectures have no average: {sorted(map(str, archs))}")
    parts: list[dict[str, Tensor]] = [content.get("features", {}) for content in checkpoints]
    if not parts[0] or any(part.keys() != parts[0].keys() for part in parts):
        raise DataError("the checkpoints hold different weights, or none")
    return {
        name: torch.stack([part[name] for part in parts]).mean(0) if value.is_floating_point() else value.clone()
        for name, value in parts[0].items()
    }


def renew_statistics(run: Run, batches: int) -> None:
    """Measure the statistics of batch norm of ``run.model`` on the first ``batches`` batches, augmented."""

    def inputs() -> Iterator[Tensor]:
        for step in range(batches):
            run.step = step
            yield run.augmented(run.source.batch(step))

    with autocast(run.precision, run.device):
        update_bn(inputs(), run.model)
    run.step = 0
