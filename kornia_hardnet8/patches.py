"""Cutting patches out of an image at local affine frames."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8.errors import DataError, no_tensor

# Samples that a call to grid_sample takes at once: their positions (2 MB) stay in the cache.
_CHUNK_SAMPLES = 256 * 32 * 32


def extract_patches(
    image: Tensor, lafs: Tensor, patch_size: int = 32, *, level: Literal["nearest", "floor"] = "nearest"
) -> Tensor:
    """Cut one square patch for each local affine frame.

    Convention: pixel centres at integers; cell (i, j) reads the image at ``c + A (u_j, u_i)`` with
    ``u_k = (2k + 1) / patch_size - 1`` for the frame ``[A | c]``; bilinear; a cell outside reads the nearest border
    pixel. Pyramid level l has steps of 2**l pixels (5-tap binomial blur, then halving); ``level="nearest"`` takes the
    level whose step is nearest to one cell (in octaves), ``"floor"`` the finer neighbour, as kornia does.

    Args:
        image: (H, W) gray image, uint8 or float; or (C, H, W), images that are all cut in the same frames; or, as
            kornia takes them, (B, C, H, W) with frames of each.
        lafs: (N, 2, 3) frames in pixels; (B, N, 2, 3) for a batch.
        patch_size: side S of a patch in cells.
        level: rule that picks the pyramid level.

    Returns:
        (N, C, S, S) patches in the image's range; float32, or the image's dtype where that is floating; C is 1 for one
        image. N = 0 gives (0, C, S, S). A batch gives (B, N, C, S, S). A frame with a non-finite entry gives a patch of
        NaN.

    Raises:
        InputTypeError: an image or frames that are no tensor.
        DataError: wrong shapes, with the shape that was given.

    Source: the convention of ``kornia.feature.extract_patches_from_pyramid`` (0.9).
    """
    for value in (image, lafs):
        if not isinstance(value, Tensor):
            raise no_tensor(value, "tensors: an image (H, W) and frames (N, 2, 3)")
    if image.dim() == 4 and lafs.dim() == 4 and len(image) == len(lafs):
        batch = [extract_patches(one, of_one, patch_size, level=level) for one, of_one in zip(image, lafs, strict=True)]
        shape = (0, lafs.shape[1], image.shape[1], patch_size, patch_size)
        kind = image.dtype if image.is_floating_point() else torch.float32
        return torch.stack(batch) if batch else image.new_empty(shape, dtype=kind)
    if image.dim() not in (2, 3) or min(image.shape) < 1:
        raise DataError(
            f"extract_patches: the image must be (H, W) or (C, H, W), got {tuple(image.shape)} "
            f"with frames {tuple(lafs.shape)}; (B, C, H, W) goes with (B, N, 2, 3)"
        )
    if lafs.dim() != 3 or lafs.shape[1:] != (2, 3):
        raise DataError(f"extract_patches: the frames must be (N, 2, 3), got {tuple(lafs.shape)}")
    return _cut(image if image.is_floating_point() else image.float(), lafs, patch_size, level)


def _cut(image: Tensor, lafs: Tensor, side: int, level: str) -> Tensor:
    """Patches (N, C, S, S) of one floating-point image ((H, W) or (C, H, W)), level by level of its pyramid."""
    work = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    lafs = lafs.to(device=image.device, dtype=work.dtype)
    current = work.reshape(1, -1, *image.shape[-2:])
    count, channels = lafs.shape[0], current.shape[1]
    if count == 0:
        return image.new_zeros(0, channels, side, side)

    octave = _octaves(lafs, side, level, min(image.shape[-2:]))
    unit = (2.0 * torch.arange(side, device=image.device, dtype=work.dtype) + 1.0) / side - 1.0
    cells = torch.stack([unit.repeat(side), unit.repeat_interleave(side)])  # (2, S*S): u along x, then along y
    size = torch.tensor([[image.shape[-1]], [image.shape[-2]]], device=image.device, dtype=work.dtype)
    patches = work.new_empty(channels, count, side * side)
    chunk = max(1, _CHUNK_SAMPLES // (side * side))
    for index in range(int(octave.max()) + 1):
        if index:
            current = torch.cat([_halve(one) for one in current.split(1, dim=1)], dim=1)  # each in the cache
        for rows in torch.nonzero(octave == index).flatten().split(chunk):
            frames = lafs[rows]
            points = (frames[:, :, :2] @ cells).add_(frames[:, :, 2:])
            grid = points.mul_(2.0).add_(1.0).div_(size).sub_(1.0)  # the same for every level
            # A patch is a row of the grid, all x before all y: so grid_sample reads it as it lies there.
            patches.index_copy_(1, rows, _sample(current, grid.transpose(1, 2)[None])[0])
    bad = ~torch.isfinite(lafs).all(dim=2).all(dim=1)
    if bad.any():
        patches.masked_fill_(bad[:, None], float("nan"))
    return patches.view(channels, count, side, side).transpose(0, 1).to(image.dtype)


def _octaves(lafs: Tensor, side: int, level: str, shorter_px: int) -> Tensor:
    """The pyramid level (N,) that each frame is cut from."""
    step = 2.0 * (lafs[:, 0, 0] * lafs[:, 1, 1] - lafs[:, 0, 1] * lafs[:, 1, 0]).abs().sqrt() / side
    octave = torch.nan_to_num(step.clamp(min=1e-12).log2(), nan=0.0, posinf=64.0)
    octave = (octave + 0.5).floor() if level == "nearest" else octave.floor()
    num_levels = 1
    while shorter_px >> num_levels >= max(side, 3):
        num_levels += 1
    return octave.clamp(0, num_levels - 1).long()


def _sample(image: Tensor, grid: Tensor, clamp: bool | None = None) -> Tensor:
    """Bilinear samples (1, C, h, w) of an image (1, C, H, W) at a grid (1, h, w, 2), outside those of the border.

    Args:
        image: the image.
        grid: positions, -1 and 1 are the outer edges of the outer pixels.
        clamp: the border by moving positions there, which needs no ``padding_mode="border"``; None: on MPS, which lacks
            it before torch 2.13.
    """
    if clamp is None:
        clamp = image.device.type == "mps"
    if clamp:
        edge = 1.0 - 1.0 / torch.tensor([image.shape[3], image.shape[2]], device=grid.device, dtype=grid.dtype)
        grid = torch.minimum(torch.maximum(grid, -edge), edge)
    padding = "zeros" if clamp else "border"
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _halve(image: Tensor) -> Tensor:
    """Binomial 5x5 blur (reflected border), then half the size: kornia's ``pyrdown``."""
    blurred = F.pad(image, (2, 2, 2, 2), mode="reflect")
    for dim in (3, 2):  # sums of shifted images: a convolution with one channel is slow on a CPU
        a, b, c, d, e = (blurred.narrow(dim, i, blurred.shape[dim] - 4) for i in range(5))
        blurred = (a + 4.0 * b).add_(c, alpha=6.0).add_(d, alpha=4.0).add_(e) / 16.0
    half = (image.shape[-2] // 2, image.shape[-1] // 2)
    return F.interpolate(blurred, size=half, mode="bilinear", align_corners=False)
