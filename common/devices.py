"""Where torch computes, and in which number format."""

from __future__ import annotations

import contextlib

import torch

from kornia_hardnet8.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the CUDA GPU when there is one.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used: {' '.join(str(error).split())[:120]}") from None
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` becomes bf16 where the device multiplies it natively, else fp16 on CUDA and fp32 elsewhere.

    Raises:
        UsageError: fp16 on a CPU, whose training kernels lack it.
    """
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU: on a CPU use bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in a resolved precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
