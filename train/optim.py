"""Optimisers and schedules, as functions of the position in the run."""

from __future__ import annotations

import math
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


def one_cycle(position: float, lr: float) -> Rate:
    """Rate at ``position`` in [0, 1): up over the first quarter from lr / 25, then down to lr / 1e5.

    Source: fastai2 ``fit_one_cycle`` with its defaults, which the 2020 code ran.
    """
    if position < 0.25:
        x = position / 0.25
        return Rate(_anneal(lr / 25.0, lr, x), _anneal(0.95, 0.85, x))
    x = (position - 0.25) / 0.75
    return Rate(_anneal(lr, lr / 1e5, x), _anneal(0.85, 0.95, x))


def cosine(position: float, lr: float, warm_up: float = 0.03) -> Rate:
    """Rate at ``position`` in [0, 1): linear warm-up over the first 3 %, then a cosine to zero."""
    if position < warm_up:
        return Rate(lr * (position + 1e-3) / (warm_up + 1e-3), 0.9)
    return Rate(_anneal(lr, 0.0, (position - warm_up) / (1.0 - warm_up)), 0.9)


SCHEDULES = {"onecycle": one_cycle, "cosine": cosine}


def build_optimizer(name: str, module: nn.Module, lr: float, wd: float) -> torch.optim.Optimizer:
    """AdamW with decoupled decay; beta2 0.99 and eps 1e-5 are those of the 2020 code.

    Raises:
        UsageError: an unknown name.
    """
    if name != "adamw":
        raise UsageError(f"unknown optimizer {name!r}: there is adamw")
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=wd)


def set_rate(optimizer: torch.optim.Optimizer, rate: Rate) -> None:
    """Set learning rate and momentum of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate.lr
        group["betas"] = (rate.momentum, group["betas"][1])
