"""Several processes (torchrun), one batch: negatives, batch statistics and gradients over all of them.

Every process computes the loss of the whole batch from all descriptors; only its own ones carry gradients, so the
gradients of the processes are summed, not averaged.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kornia_hardnet8.errors import UsageError


@dataclass(frozen=True)
class World:
    """Number of this process, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The process that writes files."""
        return self.rank == 0


def join_world(device_name: str = "auto") -> World:
    """Meet the other processes that torchrun started; a world of one without it. Call :func:`leave_world` at the end.

    Raises:
        UsageError: more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    on_gpu = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs of this machine"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world(world: World) -> None:
    """Part from the other processes."""
    if world.size > 1:
        dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process at once, its output flushed; for processes that were in a world of several.

    After such a world torch (2.13, gloo) now and then aborts while the interpreter is torn down, when all is done and
    saved: "terminate called without an active exception". torchrun would report the finished run as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join_rows(rows: Tensor, world: World) -> Tensor:
    """All processes' rows (W * n, …), in the order of the processes; gradients flow to this process' own."""
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[world.rank] = rows
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Add the gradients of all processes, in place, in one message."""
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def agree_on(values: list[float], world: World, device: torch.device) -> list[float]:
    """The largest of each value over all processes."""
    if world.size == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [float(v) for v in shared]


def wait_for_all(world: World) -> None:
    """Return when every process has come here."""
    if world.size > 1:
        dist.barrier()


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def batch_norm(x: Tensor, layer: nn.modules.batchnorm._BatchNorm, world: World) -> Tensor:
    """What a batch norm without affine part gives in training mode, with the statistics of all processes' rows."""
    axes = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    wide = x if x.dtype == torch.float64 else x.float()
    count = wide.numel() // wide.shape[1] * world.size
    mean = _SumOverProcesses.apply(wide.sum(axes)) / count
    centred = wide - mean.view(shape)
    variance = _SumOverProcesses.apply((centred**2).sum(axes)) / count
    if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
        momentum = layer.momentum if layer.momentum is not None else 0.1
        with torch.no_grad():
            layer.running_mean.lerp_(mean, momentum)
            layer.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += 1
    return (centred * torch.rsqrt(variance + layer.eps).view(shape)).to(x.dtype)
