"""``python -m train average``: the mean of the weights of several networks, often better than each of them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from common.devices import autocast, choose_device
from common.shell import output_file
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import load_weights
from kornia_hardnet8.errors import DataError, UsageError
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.run import Run


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.description = (
        "The mean of the weights of runs that started from the same ones, and of those weights too if they are named; "
        "the statistics of batch norm are measured anew on patches drawn as the first run drew them. Fit the "
        "projection afterwards (python -m train pca)."
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT",
        help="last.ckpt of a run, at least one; or weights: a file, or the name of a bundled model",
    )  # fmt: skip
    parser.add_argument("--out", type=output_file, required=True, help="checkpoint to write")
    parser.add_argument("--batches", type=int, default=24, help="batches for the statistics")
    parser.add_argument("--ds", help="data sets to draw them from, where those of the first run have moved")
    parser.add_argument("--data-root", help="folder in which tokens are looked up")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")


def run(args: argparse.Namespace) -> None:
    """Average and write."""
    if args.batches < 1:
        raise UsageError(f"--batches must be positive, got {args.batches}")
    checkpoints = [_read(source) for source in args.checkpoints]
    features = average_features(checkpoints)
    mr_sizes = {content["metadata"].get("mr_size") for content in checkpoints}
    if len(mr_sizes) > 1:
        raise UsageError(f"the checkpoints differ in mr_size: {sorted(map(str, mr_sizes))}")
    first = next((content for content in checkpoints if content["config"]), None)
    if first is None:
        raise DataError(f"{args.checkpoints[0]} is no checkpoint of a run: it does not say how to draw patches")
    moved = {name: value for name in ("ds", "data_root") if (value := getattr(args, name)) is not None}
    alone = {"init": None, "nested": None, "ema": 0.0, "micro_batch": 0}
    config = TrainConfig.from_dict({**first["config"], **alone, **moved})
    if config.dropout_rate:
        config = dataclasses.replace(config, dropout=0.0)  # statistics as in use
    network = Run(config, args.out.parent, choose_device(args.device))
    network.model.features.load_state_dict(features)
    renew_statistics(network, args.batches)
    features = {name: value.cpu() for name, value in network.model.features.state_dict().items()}
    metadata = {**first["metadata"], "averaged": len(checkpoints)}
    save_checkpoint(
        args.out, {"arch": network.model.arch, "features": features, "projection": None, "metadata": metadata}
    )
    print(f"{args.out}: the average of {len(checkpoints)} networks, statistics of {args.batches} batches")


def _read(source: str) -> dict[str, Any]:
    """Architecture, features and metadata of weights, and the settings of the run that made them, if it says so."""
    weights = load_weights(source)  # checks them
    config = load_checkpoint(source).get("config") if Path(source).suffix == ".ckpt" else None
    config = config if isinstance(config, dict) else {}
    return {"arch": weights.arch, "features": weights.features, "metadata": weights.metadata, "config": config}


def average_features(checkpoints: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The mean, tensor by tensor, of the ``features`` of checkpoints.

    They should come from runs that started from the same weights: only then does the loss stay low in between. A filter
    before batch norm acts by its direction alone, and grows while it is trained: of these the directions are averaged,
    so that all count alike. Statistics of batch norm do not average; :func:`renew_statistics` measures them.

    Raises:
        UsageError: fewer than two, or of different architectures.
        DataError: one holds no weights.

    Source: averaging along a run is that of Izmailov et al. 2018, averaging of runs and of what they started from those
    of Wortsman et al. 2022.
    """
    if len(checkpoints) < 2:
        raise UsageError("an average needs at least two checkpoints")
    archs = {content.get("arch") for content in checkpoints}
    if len(archs) > 1:
        raise UsageError(f"checkpoints of different architectures have no average: {sorted(map(str, archs))}")
    parts: list[dict[str, Tensor]] = [content.get("features", {}) for content in checkpoints]
    if not parts[0] or any(part.keys() != parts[0].keys() for part in parts):
        raise DataError("the checkpoints hold different weights, or none")
    layers = list(HardNet8(arch=checkpoints[0]["arch"]).features.named_children())
    before_norm = {
        f"{name}.weight"
        for (name, layer), (_, after) in pairwise(layers)
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    }
    averaged = {}
    for name, value in parts[0].items():
        values = [part[name].clone() for part in parts]
        mean = torch.stack(values).mean(0) if value.is_floating_point() else values[0]
        averaged[name] = _mean_direction(torch.stack(values)) if name in before_norm else mean
    return averaged


def _mean_direction(filters: Tensor) -> Tensor:
    """Filters (C, I, H, W) of the mean direction and the mean length of those of K networks (K, C, I, H, W)."""
    lengths = torch.linalg.vector_norm(filters, dim=(2, 3, 4), keepdim=True).clamp(min=1e-12)
    mean = (filters / lengths).mean(0)
    return mean / torch.linalg.vector_norm(mean, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) * lengths.mean(0)


def renew_statistics(run: Run, batches: int) -> None:
    """Measure the statistics of batch norm of ``run.model`` on the first ``batches`` batches, augmented."""

    def inputs() -> Iterator[Tensor]:
        for step in range(batches):
            run.step = step
            yield run.augmented(run.source.batch(step))

    with autocast(run.precision, run.device):
        update_bn(inputs(), run.model)
    run.step = 0
