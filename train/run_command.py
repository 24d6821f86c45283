"""``python -m train --ds …``: train a network."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from pathlib import Path

import torch

from kornia_hardnet8.errors import UsageError
from train.augment import PRESETS
from train.config import PRECISIONS, TrainConfig
from train.losses import LOSSES
from train.optim import SCHEDULES

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags, with the names of the 2020 code where it had them."""

    def add(group: argparse._ArgumentGroup, *names: str, dest: str, help: str, **kwargs: object) -> None:
        group.add_argument(*names, dest=dest, default=_DEFAULTS[dest], help=help, **kwargs)  # type: ignore[arg-type]

    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, help="run folder (default: runs/<date>-<arch>)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder, exactly")
    add(run, "--init", dest="init", help="start from these weights", metavar="FILE")
    add(run, "--seed", dest="seed", type=int, help="seed of everything random")
    add(run, "--save-every", dest="save_every", type=int, help="steps between checkpoints (default: an epoch)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")
    run.add_argument("--threads", type=int, help="threads on a CPU (default: all cores)")
    run.add_argument("--print-config", action="store_true", help="print the effective settings as JSON and stop")

    data = parser.add_argument_group("data")
    data.add_argument("--ds", dest="ds", help="data sets: token[*weight][+token...], a token or a store's path")
    add(data, "--data-root", dest="data_root", help="folder in which tokens are looked up")
    add(data, "--bs", "--batch_size", dest="bs", type=int, help="tuples in a batch")
    add(data, "--Npos", dest="npos", type=int, help="patches in a tuple")
    data.add_argument("--fewcams", action="store_true", help="take the labels of a batch from few cameras")
    add(data, "--cams-in-batch", dest="cams_in_batch", type=int, help="with --fewcams: cameras in a batch; 0: few")
    add(data, "--tuples", "--tps", "--n_triplets", dest="tuples", type=int, help="tuples in an epoch")
    add(data, "--aug", dest="aug", choices=list(PRESETS), help="augmentation")
    add(data, "--holdout", dest="holdout", type=float, help="share of the labels kept for validation")

    learn = parser.add_argument_group("learning")
    add(learn, "--arch", "--model_arch", dest="arch", help="architecture")
    add(learn, "--loss", dest="loss", help=f"loss: {', '.join(LOSSES)}")
    add(learn, "--mpos", "--marginpos", dest="mpos", type=float, help="margin of the loss")
    add(learn, "--epochs", "--ep", dest="epochs", type=int, help="epochs")
    add(learn, "--steps", dest="steps", type=int, help="steps of the whole run (default: those of the epochs)")
    add(learn, "--max-minutes", dest="max_minutes", type=float, help="time budget of the schedule, minutes")
    add(learn, "--optimizer", dest="optimizer", help="optimiser")
    add(learn, "--lr", dest="lr", type=float, help="peak learning rate")
    add(learn, "--wd", dest="wd", type=float, help="decoupled weight decay")
    add(learn, "--schedule", dest="schedule", choices=list(SCHEDULES), help="course of the learning rate")
    add(learn, "--precision", dest="precision", choices=PRECISIONS, help="of the forward pass; auto: what pays here")


def run(args: argparse.Namespace) -> int | None:
    """Train, or print the settings."""
    if args.resume is None and args.ds is None:
        raise UsageError("--ds is missing: which data sets? (a patch store's path, or tokens such as lib+colo*2)")
    if args.resume is not None and args.out is not None:
        raise UsageError("--resume goes on in its own folder: leave --out away")
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    config = None if args.resume else TrainConfig(**{name: getattr(args, name) for name in names})
    if args.print_config and config is not None:
        print(json.dumps({**config.to_dict(), "num_steps": config.num_steps}, indent=1))
        return 0
    from train.loop import resume_run, run_to_end, start_run

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if config is None:
        state = resume_run(args.resume, device)
    else:
        date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        state = start_run(config, args.out or Path("runs") / f"{date}-{config.arch}", device)
    run_to_end(state)
    print(state.out / "last.ckpt")
    return 0


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        UsageError: a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used: {' '.join(str(error).split())[:120]}") from None
    return device
