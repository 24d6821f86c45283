"""Prepared forms of a network: which precision runs where, and the ranges that 8 bits need."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kornia_hardnet8 import fused
from kornia_hardnet8.errors import DataError, UsageError, closest
from kornia_hardnet8.fused import Precision
from kornia_hardnet8.hardnet8 import HardNet8


def prepare_for_inference(module: HardNet8, precision: Literal["auto"] | Precision = "auto") -> HardNet8:
    """A copy of ``module`` that describes in the given precision; the module itself is left as it is.

    The copy is in eval mode and its parameters need no gradient. Standardisation, projection and unit length stay
    float32; only the convolutions change. Its fused form follows its weights: loading others, moving or changing
    them remakes it. Where the input needs a gradient, under autocast, and in ``torch.compile``, ``torch.jit`` and
    exports, the plain network runs.

    Args:
        module: the network.
        precision: ``"fp32"``; ``"bf16"`` (CPUs with AVX-512, GPUs); ``"fp16"`` (GPUs); ``"int8"`` (x86 CPUs with
            VNNI or AVX2; the ranges come with the weights, and where they do not, from generated patches);
            ``"auto"``: fp16 on CUDA devices; int8 on CPUs that can; bf16 on those with instructions for it
            (AVX512_BF16, AMX) where int8 cannot run the network; else fp32.

    Raises:
        UsageError: an unknown precision, or one that this machine or this network cannot run.
    """
    known = ("auto", *get_args(Precision))
    if precision not in known:
        raise UsageError(f"unknown precision {precision!r}: it is one of {', '.join(known)}{closest(precision, known)}")
    device = next(module.features.parameters()).device
    chosen = best_precision(module, device) if precision == "auto" else precision
    reason = _why_not(chosen, module, device)
    if reason:
        raise UsageError(f"precision {chosen} is not available: {reason}; take fp32 or auto")
    prepared = copy.deepcopy(module).float().eval().requires_grad_(False)
    prepared._precision = chosen
    return prepared


def best_precision(module: HardNet8, device: torch.device | str = "cpu") -> Precision:
    """What ``"auto"`` means for a network on a device."""
    device = torch.device(device)
    if device.type == "cuda":
        return "fp16"
    if not _why_not("int8", module, device):
        return "int8"  # the fastest; on real photographs its poses and matches are as good as those of fp32
    return "bf16" if _has_bf16_units() and not _why_not("bf16", module, device) else "fp32"


def _has_bf16_units() -> bool:
    """Whether the CPU multiplies bf16 itself; elsewhere it is emulated, no faster than fp32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _why_not(precision: Precision, module: HardNet8, device: torch.device) -> str | None:
    """The reason why a precision cannot run, or None."""
    if precision == "fp32":
        return None
    if device.type == "cpu":
        if precision == "fp16":
            return "it is for GPUs, CPUs have bf16 or int8"
        if not fused.has_onednn():
            return "this build of torch has no oneDNN"
        if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this CPU has no AVX-512"
        if precision == "int8":
            if not (torch.cpu._is_vnni_supported() or torch.cpu._is_avx2_supported()):
                return "this CPU has neither VNNI nor AVX2 instructions"
            if not fused.has_onednn_int8():
                return "this build of torch has no quantised oneDNN operators"
            if not fused.fits_int8(module.features):
                return f"{module.arch} is no plain chain of convolutions with ReLU"
    elif precision == "int8":
        return "it runs on CPUs only"
    return None


def calibrate(module: HardNet8, patches: Tensor) -> dict[str, Any]:
    """Ranges of the activations for int8, to be stored as ``metadata["int8_ranges"]`` of the weights.

    Args:
        module: the network.
        patches: (B, 1, S, S) real patches of any intensity range, a few thousand.

    Returns:
        JSON values: ``input`` and ``outputs``, the magnitudes that a share of 1e-5 of the activations exceeds.

    Raises:
        DataError: no patches, or NaN in them.
        UsageError: the network is no plain chain of convolutions with ReLU.
    """
    if len(patches) == 0 or not torch.isfinite(patches).all():
        raise DataError("calibration needs finite patches, at least one")
    steps = fused.fuse(module.features)
    if steps is None or not fused.fits_int8(module.features):
        raise UsageError(f"precision int8 is not available: {module.arch} is no plain chain of convolutions with ReLU")
    convs = [step for step in steps if isinstance(step, fused.FusedConv)]
    with torch.no_grad():
        parts = (module._normalize_input(part.float()) for part in patches.split(fused.CPU_CHUNK))
        return fused.ranges_to_json(fused.measure_ranges(convs, parts))
