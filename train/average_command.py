"""``python -m train average``: the average of the weights of several runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from common.machine import choose_device
from kornia_hardnet8.errors import DataError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.description = (
        "The mean of the weights of runs that started from the same ones; the statistics of batch norm are measured "
        "anew on patches drawn as the first run drew them. Fit the projection afterwards (python -m train pca)."
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="last.ckpt of a run")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--batches", type=int, default=24, help="batches for the statistics")
    parser.add_argument("--ds", help="data sets to draw them from, where those of the first run have moved")
    parser.add_argument("--data-root", help="folder in which tokens are looked up")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")


def run(args: argparse.Namespace) -> None:
    """Average and write."""
    from train.average import average_features, renew_statistics
    from train.checkpoint import load_checkpoint, save_checkpoint
    from train.config import TrainConfig
    from train.run import Run

    if args.batches < 1:
        raise UsageError(f"--batches must be positive, got {args.batches}")
    checkpoints = [load_checkpoint(path) for path in args.checkpoints]
    features = average_features(checkpoints)
    mr_sizes = {content["metadata"].get("mr_size") for content in checkpoints}
    if len(mr_sizes) > 1:
        raise UsageError(f"the checkpoints differ in mr_size: {sorted(map(str, mr_sizes))}")
    if not checkpoints[0].get("config"):
        raise DataError(f"{args.checkpoints[0]} is no checkpoint of a run: it does not say how to draw patches")
    moved = {name: value for name in ("ds", "data_root") if (value := getattr(args, name)) is not None}
    alone = {"init": None, "nested": None, "ema": 0.0, "micro_batch": 0, "compile": False}
    config = TrainConfig.from_dict({**checkpoints[0]["config"], **alone, **moved})
    if config.dropout_rate:
        config = dataclasses.replace(config, dropout=0.0)  # statistics as in use
    drawn = Run(config, args.out.parent, choose_device(args.device))
    drawn.model.features.load_state_dict(features)
    renew_statistics(drawn, args.batches)
    metadata = {**checkpoints[0]["metadata"], "averaged": len(checkpoints)}
    state = {name: value.cpu() for name, value in drawn.model.features.state_dict().items()}
    content = {"arch": drawn.model.arch, "features": state, "projection": None, "metadata": metadata}
    save_checkpoint(args.out, content)
    print(f"{args.out}: the average of {len(checkpoints)} runs, statistics of {args.batches} batches")
