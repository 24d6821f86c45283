"""Augmentation on the training device: one resampling step from the stored patch to the network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; zeros mean none.

    Attributes:
        rotation_deg: largest rotation of a single patch, either way.
        log2_scale: largest change of scale in octaves, either way.
        shift: largest shift as a share of the plain patch's side, either way.
        symmetries: 8 (all of the square), 4 (transposition and mirror, as published) or 1; one draw for a tuple.
        gamma: largest change of log2 gamma, either way.
        noise: largest standard deviation of added noise, as a share of the patch's own.
        blur: largest standard deviation of a Gaussian blur in output pixels.
    """

    rotation_deg: float = 0.0
    log2_scale: float = 0.0
    shift: float = 0.0
    symmetries: int = 4
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0


PRESETS = {
    "none": Augmentation(symmetries=1),
    "published": Augmentation(symmetries=4),
    "mild": Augmentation(8.0, 0.15, 0.02, 8, 0.3, 0.1, 0.7),
}


def augment(
    patches: Tensor, npos: int, crop: float, size: int, settings: Augmentation, generator: torch.Generator
) -> Tensor:
    """Resample stored patches to ``size`` under random changes.

    Args:
        patches: uint8 (T * npos, P, P) on any device, the patches of a tuple in adjacent rows.
        npos: patches in a tuple.
        crop: stored side / plain side.
        size: output side S.
        settings: strengths.
        generator: source of randomness, on the patches' device.

    Returns:
        float32 (T * npos, 1, S, S) in 0 … 255 or beyond where noise was added.
    """
    count, side, device = patches.shape[0], patches.shape[-1], patches.device

    def uniform(*shape: int) -> Tensor:
        return 2.0 * torch.rand(*shape, generator=generator, device=device) - 1.0

    angle = uniform(count) * math.radians(settings.rotation_deg)
    scale = torch.exp2(uniform(count) * settings.log2_scale)
    shift = uniform(count, 2) * (2.0 * settings.shift)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    linear = linear @ _symmetry(count // npos, settings.symmetries, generator, device).repeat_interleave(npos, 0)
    theta = torch.cat([linear, shift[:, :, None]], 2) / crop
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    source = patches[:, None].float()
    if side > crop * size * 1.5:  # more than 1.5 stored pixels a cell would alias
        source = F.avg_pool2d(source, 2)
    out = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if settings.blur:
        out = _blur(out, (uniform(count) * 0.5 + 0.5) * settings.blur)
    if settings.gamma:
        out = 255.0 * (out / 255.0).clamp(0.0, 1.0) ** torch.exp2(uniform(count, 1, 1, 1) * settings.gamma)
    if settings.noise:
        std = out.std(dim=(1, 2, 3), keepdim=True) * (uniform(count, 1, 1, 1) * 0.5 + 0.5) * settings.noise
        out = out + std * torch.randn(out.shape, generator=generator, device=device)
    return out


def center_crop(patches: Tensor, crop: float, size: int) -> Tensor:
    """The plain patch without any random change: uint8 (N, P, P) -> float32 (N, 1, S, S)."""
    return augment(patches, 1, crop, size, PRESETS["none"], torch.Generator(patches.device))


def _symmetry(count: int, order: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(count, 2, 2) random symmetries of the square: of 8, of the published 4 (transposition, mirror), or identity."""
    if order == 1:
        return torch.eye(2, device=device).expand(count, 2, 2)
    bits = torch.randint(0, 2, (count, 3), generator=generator, device=device).float()
    transpose, mirror_x, mirror_y = bits[:, 0], bits[:, 1], bits[:, 2] if order == 8 else torch.zeros_like(bits[:, 2])
    sx, sy = 1.0 - 2.0 * mirror_x, 1.0 - 2.0 * mirror_y
    keep = 1.0 - transpose
    return torch.stack([torch.stack([keep * sx, transpose * sx], 1), torch.stack([transpose * sy, keep * sy], 1)], 1)


def _blur(patches: Tensor, sigma: Tensor) -> Tensor:
    """Blur each patch with its own Gaussian of up to 7 taps."""
    taps = torch.arange(-3, 4, device=patches.device, dtype=patches.dtype)
    kernels = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    count = patches.shape[0]
    padded = F.pad(patches.transpose(0, 1), (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, kernels.view(count, 1, 1, 7), groups=count)
    return F.conv2d(rows, kernels.view(count, 1, 7, 1), groups=count).transpose(0, 1)
