"""``python -m train --ds …``: train a network."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import torch

from common.machine import choose_device
from common.shell import positive_number, seed_number
from kornia_hardnet8.arch import get_arch
from kornia_hardnet8.errors import UsageError
from train.augment import PRESETS
from train.config import COMBINATIONS, PRECISIONS, TrainConfig
from train.criterion import LOSS_SETTINGS, LOSSES, parse_loss
from train.datasets import parse_mix
from train.losses import REDUCTIONS
from train.optim import OPTIMIZERS, SCHEDULES

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
MEMORY = (
    "memory of a step: the network keeps 0.55 MB a patch in bf16, 1.2 MB in fp32 (h8E512): 10 or 22 GB for "
    "--bs 9000, 3.4 or 7.4 GB for --bs 3072; a process on Linux keeps what it freed, up to half as much again "
    "(6.2 GiB for --bs 3072 in bf16). --micro-batch N keeps that of N patches instead (2.1 GiB for --bs 9000 "
    "--micro-batch 1500 in bf16, 2.7 GiB for --bs 3072 --micro-batch 1536 in fp32; about a third slower; batch norm "
    "then takes its statistics from N patches). Mining keeps blocks of 64 MB, never the whole matrix of distances."
)
CHANGES = (
    "differences from the 2020 code, which ran AdamW with decay 0.01 whatever --optimizer and --wd said: those "
    "defaults are the settings that it ran with; FPR95 is at 95 % recall (it printed that at 99 %), on labels that are "
    "never trained on; labels with one patch are left out; sampling repeats with --seed; --no_fliprot works; "
    "the schedule of --combine inbatch counts the steps that it takes; --fewcams takes random labels of its last "
    "camera (there: the lowest) and all labels where a batch is larger than the set (there: an error); --ds takes any "
    "mix; --loss refuses names that it does not know; tuples of --Npos patches are equally long; checkpoints hold what "
    "--resume needs, and no code; they are saved after their validation, the best one too (there: the last before it); "
    "patches are read from the disk as they are needed (there: all in memory); options that had no effect are refused. "
    "Kept as it was: --batch_reduce average sets entry (i, j) against the positive distance of j; webcam patches are "
    "sheared along x alone, and turned by the augmentation, not their frames."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags, with the names of the 2020 code where it had them."""
    parser.epilog = f"{MEMORY}\n\n{CHANGES}"

    # Settings have no default in the parser, so that --resume tells which were given.
    spellings = {"out": "--out"}

    def add(group: argparse._ArgumentGroup, *names: str, dest: str, help: str, **kwargs: Any) -> None:
        spellings[dest] = names[0]
        default = _DEFAULTS[dest]
        shown = "" if default in (None, dataclasses.MISSING) or isinstance(default, bool) else f" (default: {default})"
        group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=help + shown, **kwargs)

    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, help="run folder (default: runs/<date>-<arch>)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder, exactly")
    add(run, "--init", dest="init", help="start from these weights", metavar="FILE")
    add(run, "--seed", dest="seed", type=seed_number, help="seed of everything random")
    add(run, "--save-every", dest="save_every", type=int, help="steps between checkpoints (default: an epoch)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")
    run.add_argument("--threads", type=positive_number, help="threads on a CPU (default: all cores)")
    run.add_argument("--print-config", action="store_true", help="print the effective settings as JSON and stop")

    data = parser.add_argument_group("data")
    add(data, "--ds", dest="ds", help="data sets: token[*weight][+token...], a token or a store's path")
    add(data, "--data-root", dest="data_root", help="folder in which tokens are looked up")
    add(data, "--bs", "--batch_size", dest="bs", type=int, help="tuples in a batch")
    add(data, "--Npos", dest="npos", type=int, help="patches in a tuple; more than 2 for tripletMargin++")
    add(data, "--fewcams", dest="fewcams", action="store_true", help="take the labels of a batch from few cameras")
    add(data, "--cams-in-batch", "--cams_in_batch", "--camsb", dest="cams_in_batch", type=int,
        help="with --fewcams: cameras in a batch; 0: as few as it takes")  # fmt: skip
    add(data, "--combine", dest="combine", choices=COMBINATIONS, help="how a batch is made of several sets")
    add(data, "--tuples", "--tps", "--n_triplets", dest="tuples", type=int, help="tuples in an epoch")
    add(data, "--aug", "--K", dest="aug", help=f"augmentation: {', '.join(PRESETS)}")
    add(data, "--no_fliprot", dest="fliprot", action="store_false", help="neither transpose nor mirror tuples")
    add(data, "--holdout", dest="holdout", type=float, help="share of the labels kept for validation")
    add(
        data,
        "--val",
        dest="val",
        help="data sets to validate on, at most 2000 labels of each, instead of a share of the labels of --ds",
    )

    learn = parser.add_argument_group("learning")
    add(learn, "--arch", "--model_arch", dest="arch", help="architecture; as in 2020 a run without it trains h8")
    add(learn, "--loss", dest="loss", help="losses and regularisers, name[*weight][,name[*weight]...]: "
        + "; ".join(f"{name} ({entry.about})" for name, entry in LOSSES.items()))  # fmt: skip
    add(learn, "--mpos", "--marginpos", dest="mpos", type=float, help="margin of the loss")
    add(learn, "--nested", dest="nested", type=int, metavar="DIM",
        help="take the loss of the descriptor cut to DIM dimensions too, after the projection of --init where it has "
        "one: two thirds of the loss, so that little is lost by the cut")  # fmt: skip
    add(
        learn,
        "--batch_reduce",
        dest="batch_reduce",
        metavar="HOW",
        help=f"negatives of the 2020 pair losses: {', '.join(REDUCTIONS)}",
    )
    add(learn, "--closeok", dest="closeok", action="store_true", help="near-duplicates may be negatives")
    add(learn, "--epochs", "--ep", dest="epochs", type=int, help="epochs")
    add(learn, "--steps", dest="steps", type=int, help="steps of the whole run (default: those of the epochs)")
    add(learn, "--max-minutes", dest="max_minutes", type=float,
        help="time budget in minutes, validation and saving included; the schedule fits it")  # fmt: skip
    add(learn, "--optimizer", dest="optimizer", help=f"optimiser: {', '.join(OPTIMIZERS)}")
    add(learn, "--lr", dest="lr", type=float, help="peak learning rate")
    add(learn, "--wd", dest="wd", type=float, help="weight decay")
    add(learn, "--eps", dest="eps", type=float,
        help="what adamw adds to its denominator: well above the gradients its steps are in proportion to them; "
        "1e-8 makes the steps of all weights alike (see docs/what-matters.md)")  # fmt: skip
    add(learn, "--schedule", dest="schedule", choices=list(SCHEDULES), help="course of the learning rate")
    add(learn, "--dropout", dest="dropout", type=float, metavar="RATE",
        help="rate of the dropout layer; 0: none (default: the architecture's own, 0.3 for h8E512)")  # fmt: skip
    add(learn, "--ema", dest="ema", type=float, help="decay of a running mean of the weights, e.g. 0.999; 0: none")
    add(learn, "--precision", dest="precision", choices=PRECISIONS, help="of the forward pass; auto: what pays here")
    add(learn, "--micro-batch", dest="micro_batch", type=int, help="patches in the network at once; 0: all")
    add(learn, "--compile", dest="compile", action="store_true",
        help="let torch.compile fuse the network; measured on CPUs it gains nothing")  # fmt: skip
    parser.set_defaults(spellings=spellings)


def run(args: argparse.Namespace) -> int | None:
    """Train, or print the settings."""
    from train.loop import read_config, resume_run, run_to_end, start_run

    given = {name: getattr(args, name) for name in _DEFAULTS if hasattr(args, name)}
    if args.resume is None:
        if "ds" not in given:
            raise UsageError("--ds is missing: which data sets? (a patch store's path, or tokens such as lib+colo*2)")
        config = TrainConfig(**given)
        _refuse_idle(config, {args.spellings[name]: name for name in given})
    else:
        config = read_config(args.resume)
        wrong = [flag for name, flag in args.spellings.items() if name in given or (name == "out" and args.out)]
        if wrong:
            raise UsageError(
                f"--resume goes on with the settings and the folder of its run: leave {', '.join(wrong)} away"
            )
    if args.print_config:
        print(json.dumps({**config.to_dict(), **effective_settings(config)}, indent=1))
        return 0
    from common.machine import keep_freed_memory
    from train.distributed import join_world, leave_world

    if args.threads:
        torch.set_num_threads(args.threads)
    world = join_world(args.device)
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        if args.resume is not None:
            state = resume_run(args.resume, device, world)
        else:
            date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
            state = start_run(config, args.out or Path("runs") / f"{date}-{config.arch}", device, world)
        run_to_end(state)
    finally:
        leave_world(world)
    if world.is_first:
        print(state.out / "last.ckpt")
    return 0


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
            raise UsageError(f"{flag} has no effect with {beside}: leave it away")


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
