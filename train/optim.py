"""Optimisers and schedules, as functions of the position in the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kornia_hardnet8.errors import UsageError


@dataclass(frozen=True)
class Rate:
    """Learning rate and first momentum at one step."""

    lr: float
    momentum: float


def _anneal(start: float, end: float, position: float) -> float:
    return start + (1.0 + math.cos(math.pi * (1.0 - position))) * (end - start) / 2.0


def one_cycle(position: float, lr: float, step: float = 0.0) -> Rate:
    """Rate at ``position`` in [0, 1): up over the first quarter from lr / 25, then down to lr / 1e5.

    Source: fastai2 ``fit_one_cycle`` with its defaults, which the 2020 code ran.
    """
    if position < 0.25:
        x = position / 0.25
        return Rate(_anneal(lr / 25.0, lr, x), _anneal(0.95, 0.85, x))
    x = (position - 0.25) / 0.75
    return Rate(_anneal(lr, lr / 1e5, x), _anneal(0.85, 0.95, x))


def cosine(position: float, lr: float, step: float = 0.0, warm_up: float = 0.03) -> Rate:
    """Rate at ``position`` in [0, 1): linear warm-up over the first 3 %, then a cosine to zero."""
    if position < warm_up:
        return Rate(lr * (position + 1e-3) / (warm_up + 1e-3), 0.9)
    return Rate(_anneal(lr, 0.0, (position - warm_up) / (1.0 - warm_up)), 0.9)


def linear(position: float, lr: float, step: float = 0.0) -> Rate:
    """Rate at ``position`` in [0, 1): straight down; the first two steps, each ``step`` long, both take ``lr``.

    Source: the 2017 HardNet code.
    """
    return Rate(lr * (1.0 - max(0.0, position - step)), 0.9)


# name -> (position, peak rate, position that one step takes) -> rate
SCHEDULES: dict[str, Callable[[float, float, float], Rate]] = {
    "onecycle": one_cycle,
    "cosine": cosine,
    "linear": linear,
}


def _adamw(module: nn.Module, lr: float, wd: float, eps: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99), eps=eps, weight_decay=wd, fused=True)


def _sgd2017(module: nn.Module, lr: float, wd: float, eps: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, dampening=0.9, weight_decay=wd)


# adamw: decoupled decay, with beta2 of the 2020 code; sgd2017: momentum and dampening of the 2017 one.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, float, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd2017": _sgd2017,
}


def build_optimizer(name: str, module: nn.Module, lr: float, wd: float, eps: float = 1e-5) -> torch.optim.Optimizer:
    """The optimiser of a name over all parameters; ``eps`` is that of adamw, by default that of the 2020 code.

    Raises:
        UsageError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer {name!r} (there are: {', '.join(OPTIMIZERS)})")
    return OPTIMIZERS[name](module, lr, wd, eps)


def set_rate(optimizer: torch.optim.Optimizer, rate: Rate) -> None:
    """Set the learning rate of every group, and the momentum of those that have a changing one."""
    for group in optimizer.param_groups:
        group["lr"] = rate.lr
        if "betas" in group:
            group["betas"] = (rate.momentum, group["betas"][1])
