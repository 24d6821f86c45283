"""Augmentation on the training device: one resampling step from the stored patch to the network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8.errors import UsageError, closest

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; the defaults change nothing. Draws are uniform in their range.

    Attributes:
        rotation_deg: largest rotation of a single patch, either way.
        log2_scale: largest change of scale in octaves, either way.
        shift: largest shift along x and along y as a share of the plain patch's side, either way.
        symmetries: 8 (all of the square), 4 (transposition, then mirror, as published) or 1; one draw for a tuple.
        gamma: largest change of log2 gamma, either way.
        shading: largest slope of a linear change of brightness across half a patch, along x and along y, as a share.
        noise: largest standard deviation of added noise, as a share of the patch's own.
        blur: standard deviation of a Gaussian blur in output pixels.
        zoom: magnification of the content, on top of ``log2_scale``.
        shear_deg: shear along x.
        crop_area, crop_log_aspect: area of a random window as a share of the patch's, and the logarithm of its
            width / height; the window is stretched to the output.
    """

    rotation_deg: float = 0.0
    log2_scale: float = 0.0
    shift: Range = (0.0, 0.0)
    symmetries: int = 1
    gamma: float = 0.0
    shading: float = 0.0
    noise: float = 0.0
    blur: Range = (0.0, 0.0)
    zoom: Range = (1.0, 1.0)
    shear_deg: Range = (0.0, 0.0)
    crop_area: Range = (1.0, 1.0)
    crop_log_aspect: Range = (0.0, 0.0)


_ASPECT = (math.log(0.9), math.log(1.1))
# "full" and "noblur" are the presets of the 2020 option --K; its blur was measured in stored pixels.
_K = Augmentation(rotation_deg=5.0, shift=(0.03, 0.03), symmetries=4, zoom=(0.9, 1.0), shear_deg=(5.0, 5.0))
_MILD = Augmentation(
    rotation_deg=8.0, log2_scale=0.15, shift=(0.02, 0.02), symmetries=8, gamma=0.3, noise=0.1, blur=(0.0, 0.7)
)
PRESETS = {
    "none": Augmentation(),
    "published": Augmentation(symmetries=4),
    "mild": _MILD,
    # For changing light, where fixed cameras are few (docs/what-matters.md#longer-runs).
    "light": replace(_MILD, gamma=0.5, shading=0.25, blur=(0.0, 0.0)),
    # Tracks are the strongest keypoints of a reconstruction; the weak ones, which matching uses too, drown in noise.
    "strong": replace(_MILD, gamma=0.5, shading=0.25, noise=0.4, blur=(0.0, 1.0)),
    "full": replace(_K, blur=(0.3, 0.3)),
    "noblur": _K,
}
# What a preset means for stores of views (webcams), where that differs.
VIEW_PRESETS = {
    "published": Augmentation(
        rotation_deg=25.0,
        symmetries=4,
        zoom=(0.8, 1.4),
        shear_deg=(-25.0, 25.0),
        crop_area=(0.7, 1.0),
        crop_log_aspect=_ASPECT,
    ),
    "full": Augmentation(rotation_deg=25.0, shift=(0.0, 0.1), symmetries=4, zoom=(0.7, 1.1), shear_deg=(-20.0, 20.0)),
}


def get_augmentation(name: str, kind: str = "tuples") -> Augmentation:
    """The strengths of a preset for a kind of store (``tuples`` or ``views``).

    Raises:
        UsageError: an unknown name.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown augmentation {name!r} (there are: {', '.join(PRESETS)}){closest(name, PRESETS)}")
    return VIEW_PRESETS.get(name, PRESETS[name]) if kind == "views" else PRESETS[name]


def augment(
    patches: Tensor,
    npos: int,
    crop: float,
    size: int,
    settings: Augmentation,
    generator: torch.Generator,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Resample stored patches to ``size`` under random changes.

    Args:
        patches: uint8 (T * npos, P, P) on any device, the patches of a tuple in adjacent rows.
        npos: patches in a tuple.
        crop: stored side / plain side.
        size: output side S.
        settings: strengths.
        generator: source of randomness, on the patches' device.
        rows: (first, total) where the patches are a part of a larger batch: they get the changes that they would get
            as a part of the whole.

    Returns:
        float32 (T * npos, 1, S, S) in 0 … 255, beyond where noise was added.
    """
    count, side, device = patches.shape[0], patches.shape[-1], patches.device
    first, total = rows or (0, count)
    here = slice(first, first + count)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(total, *shape, generator=generator, device=device)

    def either_way(high: float) -> Tensor:
        return uniform(-high, high)

    scale = torch.exp2(either_way(settings.log2_scale)) / uniform(*settings.zoom)
    angle, shear = either_way(settings.rotation_deg), uniform(*settings.shear_deg)
    linear = inverse_affine(angle, scale, shear)
    symmetry = _symmetry(total // npos, settings.symmetries, generator, device).repeat_interleave(npos, 0)
    window, offset = _random_window(settings, uniform)
    offset = (linear @ offset[:, :, None])[:, :, 0]
    offset = offset + torch.stack([either_way(2.0 * s) for s in settings.shift], 1)
    theta = torch.cat([linear @ torch.diag_embed(window) @ symmetry, offset[:, :, None]], 2)[here] / crop
    out = resample(patches, theta, size, step=side / crop / size)
    if settings.blur[1]:
        out = _blur(out, uniform(*settings.blur)[here])
    if settings.gamma:
        exponent = torch.exp2(either_way(settings.gamma))[here, None, None, None]
        out = (out / 255.0).clamp_(0.0, 1.0).pow_(exponent).mul_(255.0)
    if settings.shading:
        slopes = torch.stack([either_way(settings.shading), either_way(settings.shading)], 1)[here, :, None]
        centres = (2.0 * torch.arange(size, device=device) + 1.0) / size - 1.0
        along_x, along_y = slopes[:, 0] * centres, slopes[:, 1] * centres
        out = out * (1.0 + along_x[:, None, None, :] + along_y[:, None, :, None])
    if settings.noise:
        std = out.std(dim=(1, 2, 3)) * uniform(0.0, settings.noise)[here]
        noise = torch.randn(total, 1, size, size, generator=generator, device=device)[here]
        out = out.addcmul_(noise, std[:, None, None, None])
    return out


def center_crop(patches: Tensor, crop: float, size: int) -> Tensor:
    """The plain patch without any random change: uint8 (N, P, P) -> float32 (N, 1, S, S)."""
    theta = torch.eye(2, 3, device=patches.device).expand(len(patches), 2, 3) / crop
    return resample(patches, theta, size, step=patches.shape[-1] / crop / size)


def inverse_affine(angle_deg: Tensor, scale: Tensor, shear_deg: Tensor) -> Tensor:
    """(N, 2, 2) maps from output to input offsets: reads ``scale`` apart, sheared along x, turned.

    Source: torchvision's random affine transformation, whose magnification is ``1 / scale``.
    """
    angle, tangent = torch.deg2rad(angle_deg), torch.tan(torch.deg2rad(shear_deg))
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos - sin * tangent, sin + cos * tangent], 1)
    return torch.stack([top, torch.stack([-sin, cos], 1)], 1) * scale[:, None, None]


def resample(patches: Tensor, theta: Tensor, size: int, step: float) -> Tensor:
    """Read stored patches (N, P, P) where ``theta`` (N, 2, 3) says, bilinearly: float32 (N, 1, S, S).

    With a ``step`` of more than 1.5 stored pixels between output pixels they are halved first, by the triangle filter
    that Pillow's bilinear resizing uses.
    """
    source = patches[:, None].float()
    if step > 1.5:
        source = _halve(_halve(source).transpose(2, 3)).transpose(2, 3)
        side, halved = patches.shape[-1], source.shape[-1]
        theta = theta * (side / (2 * halved))  # halving an odd side covers half a pixel more at either end
    centres = (2.0 * torch.arange(size, device=patches.device) + 1.0) / size - 1.0
    x, y = theta[:, :, 0, None, None] * centres, theta[:, :, 1, None, None] * centres[:, None]
    grid = (x + y + theta[:, :, 2, None, None]).permute(0, 2, 3, 1)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _halve(images: Tensor) -> Tensor:
    """Halve the last axis by a triangle of half width 2; taps that fall off the border count for nothing.

    An even axis is read between its pixels (taps 1, 3, 3, 1), an odd one of 2 k + 1 at k + 1 of them (taps 1, 2, 1),
    the first and the last among them.
    """
    padded = F.pad(images, (1, 1))
    if images.shape[-1] % 2:
        outer, inner = padded[..., 0:-2:2] + padded[..., 2::2], padded[..., 1:-1:2]
        factor, total = 2.0, 4.0
    else:
        outer, inner = padded[..., 0:-2:2] + padded[..., 3::2], padded[..., 1:-1:2] + padded[..., 2::2]
        factor, total = 3.0, 8.0
    weight = torch.full((inner.shape[-1],), total, device=images.device)
    weight[0] -= 1.0
    weight[-1] -= 1.0
    return torch.add(outer, inner, alpha=factor).div_(weight)


def _random_window(settings: Augmentation, uniform) -> tuple[Tensor, Tensor]:
    """Half width and half height (N, 2) of a window in [-1, 1]², and its centre (N, 2)."""
    area, aspect = uniform(*settings.crop_area), torch.exp(uniform(*settings.crop_log_aspect))
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1.0)
    if settings.crop_area == (1.0, 1.0):
        return sides, torch.zeros_like(sides)
    return sides, uniform(-1.0, 1.0, 2) * (1.0 - sides)


def _symmetry(count: int, order: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(count, 2, 2) random symmetries of the square: of 8, of the published 4 (transposition, mirror), or identity."""
    if order == 1:
        return torch.eye(2, device=device).expand(count, 2, 2)
    bits = torch.randint(0, 2, (count, 3), generator=generator, device=device).float()
    transpose, mirror_x, mirror_y = bits[:, 0], bits[:, 1], bits[:, 2] if order == 8 else torch.zeros_like(bits[:, 2])
    sx, sy = 1.0 - 2.0 * mirror_x, 1.0 - 2.0 * mirror_y
    keep = 1.0 - transpose
    return torch.stack([torch.stack([keep * sx, transpose * sy], 1), torch.stack([transpose * sx, keep * sy], 1)], 1)


def _blur(patches: Tensor, sigma: Tensor) -> Tensor:
    """Blur each patch with its own Gaussian of up to 7 taps."""
    taps = torch.arange(-3, 4, device=patches.device, dtype=patches.dtype)
    kernels = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    count = patches.shape[0]
    padded = F.pad(patches.transpose(0, 1), (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, kernels.view(count, 1, 1, 7), groups=count)
    return F.conv2d(rows, kernels.view(count, 1, 7, 1), groups=count).transpose(0, 1)
