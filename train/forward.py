"""The network in training mode, forward and backward: what its layers say, by the kernels that are fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8 import HardNet8
from train.distributed import World, batch_norm


def raw_descriptors(model: HardNet8, patches: Tensor, world: World | None = None) -> Tensor:
    """Descriptors before the unit length, (B, D), of patches (B, 1, S, S) in training mode.

    The last convolution covers its whole input, so it is a matrix product; dropout draws 16 bits an element. Between
    the layers, forward and backward, Python gets control, so that a signal is heard within a layer.
    """
    x = HardNet8._normalize_input(patches).contiguous(memory_format=torch.channels_last)
    for layer in model.features:
        x = _layer(layer, x, world or World())
        if x.requires_grad:
            x.register_hook(_hear_signals)
    return x.flatten(1)


def _layer(layer: nn.Module, x: Tensor, world: World) -> Tensor:
    if isinstance(layer, nn.Conv2d) and x.shape[2:] == layer.kernel_size and layer.padding == (0, 0) and x.shape[2] > 1:
        # both are views where the memory format is channels-last
        flat, weight = x.permute(0, 2, 3, 1).flatten(1), layer.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(flat, weight)[:, :, None, None]
    if isinstance(layer, nn.Dropout):
        return dropout(x, layer.p)
    if isinstance(layer, nn.ReLU) and x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return _ReluOfBf16.apply(x)
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d) and world.size > 1:
        return batch_norm(x, layer, world)
    return layer(x)


class _ReluOfBf16(torch.autograd.Function):
    """ReLU in place on a CPU: bf16 values compared as integers, which torch does eight times as fast.

    A NaN whose sign bit is set becomes 0 here; it goes on in the batch norm before and in the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.view(torch.int16).clamp_min_(0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(gradient, ctx.saved_tensors[0], 0)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero elements with probability ``rate`` (to 16 bits) and scale the others up; draws from the global generator."""
    if not rate:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()] >= round(rate * 65536) - 32768
    mask = kept.to(x.dtype).mul_(1.0 / (1.0 - rate))
    return x * mask.as_strided(x.shape, x.stride())


def _hear_signals(gradient: Tensor) -> None:
    """Nothing: a call from the backward pass into Python, where pending signals are handled."""


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use the statistics of the batch without adding them to their running ones again."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in layers]
    for layer in layers:
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, values in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = values
