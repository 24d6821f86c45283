"""``python -m train --ds …``: train a network."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.devices import choose_device
from common.folders import claimed
from common.machine import keep_freed_memory
from common.shell import output_folder, positive_number, seed_number
from kornia_hardnet8.arch import get_arch
from kornia_hardnet8.errors import UsageError
from train.augment import PRESETS
from train.config import COMBINATIONS, PRECISIONS, RECIPES, SettingError, TrainConfig
from train.datasets import parse_mix
from train.losses import LOSS_SETTINGS, LOSSES, REDUCTIONS, parse_loss
from train.optim import OPTIMIZERS, SCHEDULES

_Add = Callable[..., None]
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags, with the names of the 2020 code where it had them."""
    parser.epilog = "docs/training-2020.md tells what differs from the 2020 code, and how much memory a step takes."

    # Settings have no default in the parser, so that --resume and --recipe tell which were given.
    spellings = {"out": "--out"}

    def adder(title: str) -> tuple[argparse._ArgumentGroup, _Add]:
        group = parser.add_argument_group(title)

        def add(*names: str, dest: str, help: str, **kwargs: Any) -> None:
            spellings[dest] = names[0]
            default = _DEFAULTS[dest]
            silent = default in (None, dataclasses.MISSING) or isinstance(default, bool)
            text = help if silent else f"{help} (default: {default})"
            group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=text, **kwargs)

        return group, add

    _add_run(*adder("run"))
    _add_data(adder("data")[1])
    _add_learning(adder("learning")[1])
    parser.set_defaults(spellings=spellings)


def _add_run(run: argparse._ArgumentGroup, add: _Add) -> None:
    run.add_argument("--out", type=output_folder, help="run folder (default: runs/<date>-<arch>)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder, exactly")
    run.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="defaults of the settings below: 2020, made for days of a GPU, or short, for a core and 20 minutes, "
        "which is " + ", ".join(f"{name} {value}" for name, value in RECIPES["short"].items()) + " (default: 2020)",
    )
    add("--init", dest="init", help="start from these weights: a file, or the name of a bundled model",
        metavar="FILE")  # fmt: skip
    add("--seed", dest="seed", type=seed_number, help="seed of everything random")
    add("--save-every", dest="save_every", type=int, help="steps between checkpoints (default: an epoch)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")
    run.add_argument("--threads", type=positive_number, help="threads on a CPU (default: all cores)")
    run.add_argument("--print-config", action="store_true", help="print the effective settings as JSON and stop")


def _add_data(add: _Add) -> None:
    add("--ds", dest="ds", help="data sets: token[*weight][+token...], a token or a store's path")
    add("--data-root", dest="data_root", help="folder in which tokens are looked up")
    add("--bs", "--batch_size", dest="bs", type=int, help="tuples in a batch")
    add("--Npos", dest="npos", type=int, help="patches in a tuple; more than 2 for tripletMargin++")
    add("--fewcams", dest="fewcams", action="store_true", help="take the labels of a batch from few cameras")
    add("--cams-in-batch", "--cams_in_batch", "--camsb", dest="cams_in_batch", type=int,
        help="with --fewcams: cameras in a batch; 0: as few as it takes")  # fmt: skip
    add("--combine", dest="combine", choices=COMBINATIONS,
        help="random: each batch from one set; epoch: one set after the other in an epoch; inbatch: --bs tuples of "
        "each set in every batch")  # fmt: skip
    add("--tuples", "--tps", "--n_triplets", dest="tuples", type=int, help="tuples in an epoch")
    add("--aug", "--K", dest="aug", help=f"random changes of the patches: {', '.join(PRESETS)}")
    add("--no_fliprot", dest="fliprot", action="store_false", help="neither transpose nor mirror tuples")
    add("--holdout", dest="holdout", type=float, help="share of the labels kept for validation")
    add("--val", dest="val",
        help="data sets to validate on instead, at most 2000 labels of each")  # fmt: skip


def _add_learning(add: _Add) -> None:
    add("--arch", "--model_arch", dest="arch", help="architecture of the network")
    add("--loss", dest="loss", help="losses and regularisers, name[*weight][,name[*weight]...]: "
        + "; ".join(f"{name} ({entry.about})" for name, entry in LOSSES.items()))  # fmt: skip
    add("--teacher", dest="teacher", metavar="FILE",
        help="whose descriptors the loss distill imitates: weights, or the name of a bundled model")  # fmt: skip
    add("--mpos", "--marginpos", dest="mpos", type=float, help="margin of the loss")
    add("--nested", dest="nested", type=int, metavar="DIM",
        help="two thirds of the loss on the descriptor cut to DIM dimensions, after the projection of --init"
    )  # fmt: skip
    add("--batch_reduce", dest="batch_reduce", metavar="HOW",
        help=f"negatives of the 2020 pair losses: {', '.join(REDUCTIONS)}")  # fmt: skip
    add("--closeok", dest="closeok", action="store_true", help="near-duplicates may be negatives")
    add("--epochs", "--ep", dest="epochs", type=int, help="epochs")
    add("--steps", dest="steps", type=int, help="steps of the whole run (default: those of the epochs)")
    add("--max-minutes", dest="max_minutes", type=float,
        help="minutes that the run takes, validation and saving included; the schedule fits them")  # fmt: skip
    add("--optimizer", dest="optimizer", help=f"optimiser: {', '.join(OPTIMIZERS)}")
    add("--lr", dest="lr", type=float, help="peak learning rate")
    add("--wd", dest="wd", type=float, help="weight decay")
    add("--eps", dest="eps", type=float,
        help="what adamw adds to its denominator; 1e-8 makes the steps of all weights alike (docs/what-matters.md)"
    )  # fmt: skip
    add("--schedule", dest="schedule", choices=list(SCHEDULES), help="course of the learning rate")
    add("--dropout", dest="dropout", type=float, metavar="RATE",
        help="rate of the dropout layer; 0: none (default: the architecture's, 0.3 for h8E512)")  # fmt: skip
    add("--ema", dest="ema", type=float, help="decay of a running mean of the weights, e.g. 0.999; 0: none")
    add("--precision", dest="precision", choices=PRECISIONS, help="of the forward pass; auto: what pays here")
    add("--micro-batch", dest="micro_batch", type=int,
        help="patches in the network at once, which bounds the memory; 0: all")  # fmt: skip


def run(args: argparse.Namespace) -> int | None:
    """Train, or print the settings."""
    from train.distributed import join_world, leave_world
    from train.loop import resume_run, run_to_end, start_run

    config = _settings(args)
    if args.print_config:
        print(json.dumps({**config.to_dict(), **effective_settings(config)}, indent=1))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    world = join_world(args.device)
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    out = args.resume or args.out or Path("runs") / f"{date}-{config.arch}"
    try:
        with claimed(out) if world.is_first else contextlib.nullcontext():
            resumes = args.resume is not None
            state = resume_run(out, device, world) if resumes else start_run(config, out, device, world)
            run_to_end(state)
    finally:
        leave_world(world)
    if world.is_first:
        print(state.out / "last.ckpt")
    return 0


def _settings(args: argparse.Namespace) -> TrainConfig:
    """The settings that the flags ask for, or those of the run that is to go on."""
    given = {name: getattr(args, name) for name in _DEFAULTS if hasattr(args, name)}
    if args.resume is not None:
        from train.loop import read_config

        config = read_config(args.resume)
        beside = [flag for name, flag in args.spellings.items() if name in given or (name == "out" and args.out)]
        if beside := beside + ["--recipe"] * (args.recipe is not None):
            raise UsageError(
                f"--resume goes on with the settings and the folder of its run: leave out {', '.join(beside)}"
            )
        return config
    if "ds" not in given:
        raise UsageError("--ds is missing: which data sets? (a patch store's path, or tokens such as lib+colo*2)")
    try:
        config = TrainConfig(**{**RECIPES[args.recipe or "2020"], **given})
    except SettingError as error:
        raise UsageError(f"{args.spellings[error.name]} {error.problem}") from None
    _refuse_idle(config, {args.spellings[name]: name for name in given})
    return config


def _refuse_idle(config: TrainConfig, given: dict[str, str]) -> None:
    """Refuse a flag (spelling and name of its setting) that changes nothing beside the others."""
    obeyed = {name for term in parse_loss(config.loss, config.npos) for name in LOSSES[term.name].obeys}
    for flag, name in given.items():
        beside = ""
        if name in LOSS_SETTINGS and name not in obeyed:
            beside = f"--loss {config.loss}"
        elif name == "eps" and config.optimizer != "adamw":
            beside = f"--optimizer {config.optimizer}"
        elif name == "epochs" and config.steps is not None:
            beside = f"--steps {config.steps}"
        elif name == "holdout" and config.val is not None:
            beside = f"--val {config.val}"
        if beside:
            raise UsageError(f"{flag} has no effect with {beside}: leave it out")


def effective_settings(config: TrainConfig) -> dict[str, Any]:
    """What the settings amount to, JSON values."""
    arch = get_arch(config.arch)
    schedule = SCHEDULES[config.schedule]
    rates = {name: schedule(at, config.lr, 0.0) for name, at in (("start", 0.0), ("quarter", 0.25), ("end", 1.0))}
    return {
        "num_steps": config.num_steps,
        "steps_per_epoch": config.steps_per_epoch,
        "tuples_per_epoch": config.steps_per_epoch * config.bs,
        "patches_per_batch": config.bs * config.npos,
        "data": [{"token": item.token, "weight": item.weight} for item in parse_mix(config.ds)],
        "network": {
            "parameters": arch.num_params, "macs": arch.macs, "dim": arch.dim, "patch_size": arch.patch_size,
            "layers": arch.layers,
        },
        "rates": {name: {"lr": rate.lr, "momentum": rate.momentum} for name, rate in rates.items()},
        "dropout": config.dropout_rate,
        "beta2": 0.99 if config.optimizer == "adamw" else None,
        "eps": config.eps if config.optimizer == "adamw" else None,
        "augmentation": {kind: dataclasses.asdict(config.augmentation(kind)) for kind in ("tuples", "views")},
    }  # fmt: skip
