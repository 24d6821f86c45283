"""Extrema of differences of Gaussians: the keypoints of kornia's scale-space detector, without its volumes.

Blurs are products with band matrices, which run at the speed of a matrix product; extrema are looked for in strips of
rows that stay in the cache, and only they are refined.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 3
SIGMA = 1.6
# Blur that an image is taken to have, in its own pixels.
_CAMERA_SIGMA = 0.5
# An octave whose shorter side were at most this is not made.
_MIN_OCTAVE = 32
# Pixels of an octave between its border and the inner half of a frame.
_BORDER = 5.0
# Differences of the Gaussians below this share of the largest gray value are rounding: a flat image has no extrema.
_ROUNDING = 1e-6
_ITERATIONS = 5
_LARGEST_STEP = 0.6
# Columns or rows that one product with a band makes.
_TILE = 64
# Values of one level in one strip of the search.
_STRIP = 1 << 16


@torch.no_grad()
def detect(image: Tensor, num_features: int, mr_size: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The strongest extrema of the differences of Gaussians.

    Convention: pixel centres at integers; the response is the refined |difference| of a bright or dark blob, and
    negative where a maximum lies below zero. The first octave is the image at twice its size. Gradients do not pass.

    Args:
        image: (H, W) gray, float32 or float64, sides of at least 16 pixels.
        num_features: keep at most so many.
        mr_size: scale of a frame / sigma of the blob.
        mask: (H, W), keypoints only on pixels where it is positive; or None.

    Returns:
        upright frames (N, 2, 3) in pixels and responses (N,), strongest first; N may be 0.

    Source: Lowe 2004, sections 3 and 4; octaves, refinement and borders as in kornia 0.9 (``ScaleSpaceDetector`` with
    ``BlobDoG``, ``ScalePyramid(3, 1.6, 32, double_image=True)`` and ``ConvQuadInterp3d``).
    """
    height, width = image.shape
    doubled = F.interpolate(image[None, None], scale_factor=2.0, mode="bilinear", align_corners=True)[0, 0]
    level = blur(doubled, math.sqrt(SIGMA**2 - (2 * _CAMERA_SIGMA) ** 2))
    noise = _ROUNDING * float(image.abs().max())
    octaves: list[tuple[Tensor, Tensor]] = []
    while True:
        octave = _octave(level)
        factors = ((width - 1) / (octave.shape[2] - 1), (height - 1) / (octave.shape[1] - 1))
        points, responses = _extrema(octave, noise)
        sigmas = SIGMA * 2.0 ** (points[:, 0] / LEVELS)
        keep = _inside(points, 0.5 * mr_size * sigmas, octave)
        scale = image.new_tensor(factors)
        centres, sizes = points[:, 1:] * scale, (mr_size * sigmas)[:, None] * scale
        if mask is not None:
            x, y = centres.round().long().unbind(1)
            keep &= mask[y.clamp(0, height - 1), x.clamp(0, width - 1)] > 0
        frames = torch.cat([torch.diag_embed(sizes), centres[:, :, None]], dim=2)
        octaves.append((frames[keep], responses[keep]))
        last = octave[LEVELS]
        if min(last.shape) // 2 <= _MIN_OCTAVE:
            break
        half = [side // 2 for side in last.shape]
        level = F.interpolate(last[None, None], half, mode="bilinear", align_corners=True)[0, 0]
    lafs, strengths = (torch.cat(parts) for parts in zip(*octaves, strict=True))
    order = strengths.sort(descending=True, stable=True).indices[:num_features]
    return lafs[order], strengths[order]


def _octave(level: Tensor) -> Tensor:
    """All levels of an octave (LEVELS + 3, H, W) from its first one."""
    octave = level.new_empty(LEVELS + 3, *level.shape)
    octave[0] = level
    step = 2.0 ** (1.0 / LEVELS)
    for index in range(1, len(octave)):
        blur(octave[index - 1], SIGMA * step ** (index - 1) * math.sqrt(step**2 - 1.0), octave[index])
    return octave


# -- blur --------------------------------------------------------------------------------------------------------------


def blur(image: Tensor, sigma: float, out: Tensor | None = None) -> Tensor:
    """Gaussian blur of an image (H, W) with reflected borders, over 4 sigma; sides must be longer than that."""
    out = torch.empty_like(image) if out is None else out
    taps = _taps(sigma)
    radius = len(taps) // 2
    if image.device.type != "cpu":
        return out.copy_(_convolved(image, taps))
    height, width = image.shape
    rows = torch.empty_like(image)
    for start, stop, low, high in _tiles(width, radius):
        band = _band(taps, start - low, stop - start, high - stop, image.dtype)
        torch.mm(image[:, low:high], band.T, out=rows[:, start:stop])
    for start, stop, low, high in _tiles(height, radius):
        band = _band(taps, start - low, stop - start, high - stop, image.dtype)
        torch.mm(band, rows[low:high], out=out[start:stop])
    return out


def _convolved(image: Tensor, taps: tuple[float, ...]) -> Tensor:
    """The same blur for devices where a convolution is as fast."""
    kernel, radius = image.new_tensor(taps), len(taps) // 2
    padded = F.pad(image[None, None], (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[0, 0]


def _taps(sigma: float) -> tuple[float, ...]:
    size = int(8.0 * sigma + 1.0) | 1
    values = [math.exp(-0.5 * ((k - size // 2) / sigma) ** 2) for k in range(size)]
    total = sum(values)
    return tuple(value / total for value in values)


def _tiles(size: int, radius: int) -> list[tuple[int, int, int, int]]:
    """(start, stop) of tiles of an axis and (low, high) of what they read."""
    starts = range(0, size, _TILE)
    stops = [min(start + _TILE, size) for start in starts]
    return [(a, b, max(0, a - radius), min(size, b + radius)) for a, b in zip(starts, stops, strict=True)]


@functools.lru_cache(maxsize=256)
def _band(taps: tuple[float, ...], lead: int, count: int, trail: int, dtype: torch.dtype) -> Tensor:
    """The matrix (count, lead + count + trail) of a blur for a tile with so many inputs before and after it.

    Fewer than the radius mean that the axis ends there: what lies beyond is read reflected.
    """
    radius = len(taps) // 2
    source = torch.arange(count)[:, None] + torch.arange(-radius, radius + 1) + lead
    last = lead + count + trail - 1
    source = last - (last - source.abs()).abs()
    band = torch.zeros(count, last + 1, dtype=torch.float64)
    values = torch.tensor(taps, dtype=torch.float64).expand(count, -1)
    return band.scatter_add_(1, source, values).to(dtype)


# -- extrema -----------------------------------------------------------------------------------------------------------


def _extrema(octave: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Refined extrema of the differences of an octave: points (N, 3) as level, x, y, and responses (N,)."""
    maxima, minima = _candidates(octave, noise)
    points, values = _refine(octave, maxima, 1.0)
    low_points, low_values = _refine(octave, minima, -1.0)
    # A minimum counts as the blob that it is only below zero.
    dark = low_values > _difference(octave, *minima.unbind(1))
    return torch.cat([points, low_points[dark]]), torch.cat([values, low_values[dark]])


def _candidates(octave: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Strict maxima and minima over level, row and column among differences: two lists (N, 3) of level, y, x."""
    _, height, width = octave.shape
    rows = max(1, _STRIP // width)
    candidates: list[list[Tensor]] = [[], []]
    for start in range(1, height - 1, rows):
        stop = min(start + rows, height - 1)
        strip = octave[:, start - 1 : stop + 1]
        differences = strip[1:] - strip[:-1]
        middle = differences[1:-1, 1:-1, 1:-1]
        strong = middle.abs() > noise
        for sign, extreme in enumerate((torch.maximum, torch.minimum)):
            best = extreme(extreme(differences[:-2], differences[1:-1]), differences[2:])
            best = extreme(extreme(best[:, :-2], best[:, 1:-1]), best[:, 2:])
            best = extreme(extreme(best[:, :, :-2], best[:, :, 1:-1]), best[:, :, 2:])
            places = ((middle == best) & strong).nonzero()
            cubes = _cubes(differences, places + 1)
            good = (cubes == cubes[:, 13:14]).sum(dim=1) == 1  # none of the others is as high
            candidates[sign].append(places[good] + places.new_tensor([1, start, 1]))
    maxima, minima = (torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.long) for parts in candidates)
    return maxima.to(octave.device), minima.to(octave.device)


def _cubes(volume: Tensor, places: Tensor) -> Tensor:
    """The 27 values around each place (N, 3) of a volume (D, H, W), level slowest: (N, 27)."""
    steps = _neighbours(volume.shape[1], volume.shape[2], places.device)
    centre = (places[:, 0] * volume.shape[1] + places[:, 1]) * volume.shape[2] + places[:, 2]
    return volume.reshape(-1)[centre[:, None] + steps]


def _neighbours(height: int, width: int, device: torch.device) -> Tensor:
    step = torch.arange(-1, 2, device=device)
    return ((step[:, None, None] * height + step[:, None]) * width + step).flatten()


def _difference(octave: Tensor, level: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return octave[level + 1, y, x] - octave[level, y, x]


def _refine(octave: Tensor, places: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """Vertices of the parabolas through the 27 values around maxima of ``sign`` times the differences.

    A place moves on by whole steps while the vertex lies further than ``_LARGEST_STEP`` off; one that leaves the
    surroundings of all maxima, does not settle or has no vertex stays where it was found.
    """
    levels, height, width = octave.shape
    top = places.new_tensor([levels - 2, height - 1, width - 1])
    now = places.clone()
    valid = torch.ones(len(places), dtype=torch.bool, device=places.device)
    moved = torch.zeros_like(valid)
    shift = octave.new_zeros(len(places), 3)
    gain = octave.new_zeros(len(places))
    active = torch.arange(len(places), device=places.device)
    for _ in range(_ITERATIONS):
        cubes = sign * (_cubes(octave, now[active] + places.new_tensor([1, 0, 0])) - _cubes(octave, now[active]))
        step, rise, solved = _vertex(cubes)
        solved &= _near(now[active], places, active, height, width)
        valid[active] = solved
        active, step, rise = active[solved], step[solved], rise[solved]
        shift[active], gain[active] = step, rise
        whole = (step > _LARGEST_STEP).long() - (step < -_LARGEST_STEP).long()
        target = now[active] + whole
        within = ((target >= 1) & (target < top)).all(dim=1)
        moved[active] = whole.any(dim=1)
        valid[active] = within
        now[active] = torch.where(within[:, None], target, now[active])
        active = active[within & whole.any(dim=1)]
        if len(active) == 0:
            break
    valid &= ~moved & (shift.abs() <= 1.5).all(dim=1)
    now = torch.where(valid[:, None], now, places)
    shift = torch.where(valid[:, None], shift, torch.zeros_like(shift))
    refined = now.to(shift.dtype) + shift
    values = sign * _difference(octave, *now.unbind(1)) + 0.5 * torch.where(valid, gain, torch.zeros_like(gain))
    return refined[:, [0, 2, 1]], values


def _near(now: Tensor, places: Tensor, active: Tensor, height: int, width: int) -> Tensor:
    """Whether each position is at most one step away from a maximum: from its own, mostly."""
    near = (now - places[active]).abs().amax(dim=1) <= 1
    far = (~near).nonzero().flatten()
    if len(far):
        flat = (places[:, 0] * height + places[:, 1]) * width + places[:, 2]
        here = (now[far, 0] * height + now[far, 1]) * width + now[far, 2]
        around = here[:, None] + _neighbours(height, width, now.device)
        near[far] = torch.isin(around, flat).any(dim=1)
    return near


def _vertex(cubes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of 27 values (N, 27): offset of the vertex (N, 3) as level, y, x; twice its rise (N,); whether there is one."""
    c = cubes.unbind(1)
    gs, gy, gx = 0.5 * (c[22] - c[4]), 0.5 * (c[16] - c[10]), 0.5 * (c[14] - c[12])
    dss, dyy, dxx = (c[a] - 2.0 * c[13] + c[b] for a, b in ((22, 4), (16, 10), (14, 12)))
    dxy = 0.25 * (c[17] - c[15] - c[11] + c[9])
    dxs = 0.25 * (c[23] - c[21] - c[5] + c[3])
    dys = 0.25 * (c[25] - c[19] - c[7] + c[1])
    largest = torch.stack([dss, dyy, dxx, dxy, dxs, dys]).abs().amax(dim=0).clamp(min=torch.finfo(cubes.dtype).tiny)
    dss, dyy, dxx, dxy, dxs, dys = (v / largest for v in (dss, dyy, dxx, dxy, dxs, dys))
    rs, ry, rx = -gs / largest, -gy / largest, -gx / largest
    xx, xy, xs = dyy * dss - dys * dys, dxs * dys - dxy * dss, dxy * dys - dxs * dyy  # cofactors
    yy, ys, ss = dxx * dss - dxs * dxs, dxy * dxs - dxx * dys, dxx * dyy - dxy * dxy
    determinant = dxx * xx + dxy * xy + dxs * xs
    solved = determinant.abs() > 1e-7
    divisor = torch.where(solved, determinant, torch.ones_like(determinant))
    x = (xx * rx + xy * ry + xs * rs) / divisor
    y = (xy * rx + yy * ry + ys * rs) / divisor
    s = (xs * rx + ys * ry + ss * rs) / divisor
    return torch.stack([s, y, x], dim=1), gx * x + gy * y + gs * s, solved


def _inside(points: Tensor, half: Tensor, octave: Tensor) -> Tensor:
    """Whether the inner half of a frame keeps its distance from the border of the octave."""
    x, y = points[:, 1], points[:, 2]
    right, bottom = octave.shape[2] - 1 - _BORDER, octave.shape[1] - 1 - _BORDER
    return (x - half >= _BORDER) & (x + half <= right) & (y - half >= _BORDER) & (y + half <= bottom)
