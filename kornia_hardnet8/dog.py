"""Extrema of differences of Gaussians: the keypoints of kornia's scale-space detector, without its volumes.

Blurs are convolutions whose channels are pixels side by side, or products with band matrices; extrema are looked for in
strips that stay in the cache, and only they are refined.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 3
SIGMA = 1.6
# Blur that an image is taken to have, in its own pixels.
_CAMERA_SIGMA = 0.5
# An octave whose shorter side were at most this is not made.
_MIN_OCTAVE = 32
# Blurs from each level of an octave to the next.
_STEPS = tuple(SIGMA * 2.0 ** (index / LEVELS) * math.sqrt(2.0 ** (2.0 / LEVELS) - 1.0) for index in range(LEVELS + 2))
# Pixels of an octave between its border and the inner half of a frame.
_BORDER = 5.0
# Differences of the Gaussians below this share of the largest gray value are rounding: a flat image has no extrema.
_ROUNDING = 1e-6
_ITERATIONS = 5
_LARGEST_STEP = 0.6
# Pixels of a row that a convolution takes for the channels of one place: at least the radius of every blur.
_BLOCK = 16
# Rows of an octave that are searched at once.
_BAND = 512
# Rows that refinement may read beyond the place where it began.
_REACH = _ITERATIONS + 2
# oneDNN takes longer for fewer taps than for so many.
_FAST_TAPS = 15
# Columns or rows that one product with a band makes.
_TILE = 64
# Values of one level that are searched at once.
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
    level = F.interpolate(image[None, None], scale_factor=2.0, mode="bilinear", align_corners=True)[0, 0]
    missing = math.sqrt(SIGMA**2 - (2 * _CAMERA_SIGMA) ** 2)
    noise = _ROUNDING * float(image.abs().max())
    octaves: list[tuple[Tensor, Tensor]] = []
    while True:
        rows, columns = level.shape
        points, responses = _search(level, missing, noise)
        sigmas = SIGMA * 2.0 ** (points[:, 0] / LEVELS)
        keep = _inside(points, 0.5 * mr_size * sigmas, rows, columns)
        scale = image.new_tensor([(width - 1) / (columns - 1), (height - 1) / (rows - 1)])
        centres, sizes = points[:, 1:] * scale, (mr_size * sigmas)[:, None] * scale
        if mask is not None:
            x, y = centres.round().long().unbind(1)
            keep &= mask[y.clamp(0, height - 1), x.clamp(0, width - 1)] > 0
        frames = torch.cat([torch.diag_embed(sizes), centres[:, :, None]], dim=2)
        octaves.append((frames[keep], responses[keep]))
        if min(rows, columns) // 2 <= _MIN_OCTAVE:
            break
        missing = 0.0
        level = F.interpolate(level[None, None], [rows // 2, columns // 2], mode="bilinear", align_corners=True)[0, 0]
    lafs, strengths = (torch.cat(parts) for parts in zip(*octaves, strict=True))
    order = strengths.sort(descending=True, stable=True).indices[:num_features]
    return lafs[order], strengths[order]


def _search(level: Tensor, missing: float, noise: float) -> tuple[Tensor, Tensor]:
    """Extrema of an octave: points (N, 3) as level, x, y, and responses (N,).

    Bands of rows, each with what blurs and refinement read beyond it, bound the memory.

    Args:
        level: the first level of the octave but for a blur; overwritten by that of twice its sigma.
        missing: sigma of that blur, 0 for none.
        noise: differences up to this are no extrema.
    """
    height, width = level.shape
    reach = sum(len(_taps(sigma)) // 2 for sigma in (missing, *_STEPS) if sigma)
    space = level.new_empty(LEVELS + 2, min(height, _BAND + 2 * _REACH), width)
    found: list[tuple[Tensor, Tensor]] = []
    before: tuple[slice, Tensor] | None = None
    for start in range(0, height, _BAND):
        stop = min(start + _BAND, height)
        first, end = max(0, start - _REACH), min(height, stop + _REACH)
        low, high = max(0, first - reach), min(height, end + reach)
        differences = space.view(-1)[: len(space) * (end - first) * width].view(len(space), -1, width)
        last = _octave(level[low:high], missing, slice(first - low, end - low), differences)
        if before is not None:
            level[before[0]] = before[1]  # not sooner: this band has read some of its rows
        before = slice(start, stop), last[start - low : stop - low]
        points, responses, places = _extrema(differences, noise)
        own = (places[:, 1] >= start - first) & (places[:, 1] < stop - first)
        found.append((points[own] + points.new_tensor([0, 0, first]), responses[own]))
    if before is not None:
        level[before[0]] = before[1]
    points, responses = (torch.cat(parts) for parts in zip(*found, strict=True))
    return points, responses


def _octave(level: Tensor, missing: float, rows: slice, differences: Tensor) -> Tensor:
    """Fill the differences between the levels of an octave in its rows; returns the level of twice its sigma."""
    level = blur(level, missing) if missing else level
    last = level
    for index, sigma in enumerate(_STEPS):
        blurred = blur(level, sigma)
        torch.sub(blurred[rows], level[rows], out=differences[index])
        last, level = level if index == LEVELS else last, blurred
    return last


# -- blur --------------------------------------------------------------------------------------------------------------


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of an image (H, W) with reflected borders, over 4 sigma; sides must be longer than that."""
    taps = _taps(sigma)
    radius = len(taps) // 2
    if image.device.type != "cpu":
        return _convolved(image, taps)
    height, width = image.shape
    direct = image.dtype == torch.float32 and _has_direct_convolutions()
    rows = _along_rows(image, taps) if direct else torch.empty_like(image)
    for start, stop in _ends(width, 2 * _BLOCK) if direct else _tiles(width):
        low, high = max(0, start - radius), min(width, stop + radius)
        band = _band(taps, start - low, stop - start, high - stop, image.dtype)
        torch.mm(image[:, low:high], band.T, out=rows[:, start:stop])
    out = _along_columns(rows, taps) if direct else torch.empty_like(image)
    for start, stop in _ends(height, radius) if direct else _tiles(height):
        low, high = max(0, start - radius), min(height, stop + radius)
        band = _band(taps, start - low, stop - start, high - stop, image.dtype)
        torch.mm(band, rows[low:high], out=out[start:stop])
    return out


def _has_direct_convolutions() -> bool:
    """Whether oneDNN has kernels of its own for convolutions whose channels lie side by side."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _along_rows(image: Tensor, taps: tuple[float, ...]) -> Tensor:
    """The blur along rows, right further than ``2 * _BLOCK`` columns from both ends.

    The image is read as one line, ``_BLOCK`` pixels of which are the channels of one place: each of them is a sum over
    the channels of three places.
    """
    band = _band(taps, _BLOCK, _BLOCK, _BLOCK, image.dtype)
    kernel = band.view(_BLOCK, 3, _BLOCK).transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)
    line = image.reshape(-1)
    if rest := -len(line) % _BLOCK:
        line = F.pad(line, (0, rest))
    channels = line.view(1, 1, -1, _BLOCK).permute(0, 3, 1, 2)
    blurred = F.conv2d(channels, kernel, padding=(0, 1)).permute(0, 2, 3, 1)
    return blurred.reshape(-1)[: image.numel()].view(image.shape)


def _along_columns(image: Tensor, taps: tuple[float, ...]) -> Tensor:
    """The blur along columns, right further than its radius from both ends: each column is a channel."""
    width, spare = image.shape[1], max(0, (_FAST_TAPS - len(taps)) // 2)
    kernel = F.pad(image.new_tensor(taps), (spare, spare)).expand(width, 1, 1, -1)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    channels = image[None, None].permute(0, 3, 1, 2)
    padding = (0, len(taps) // 2 + spare)
    return F.conv2d(channels, kernel, padding=padding, groups=width).permute(0, 2, 3, 1)[0, 0]


def _convolved(image: Tensor, taps: tuple[float, ...]) -> Tensor:
    """The same blur for devices where a plain convolution is as fast."""
    kernel, radius = image.new_tensor(taps), len(taps) // 2
    padded = F.pad(image[None, None], (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[0, 0]


def _taps(sigma: float) -> tuple[float, ...]:
    size = int(8.0 * sigma + 1.0) | 1
    values = [math.exp(-0.5 * ((k - size // 2) / sigma) ** 2) for k in range(size)]
    total = sum(values)
    return tuple(value / total for value in values)


def _tiles(size: int) -> list[tuple[int, int]]:
    """(start, stop) of the tiles of an axis."""
    return [(start, min(start + _TILE, size)) for start in range(0, size, _TILE)]


def _ends(size: int, margin: int) -> list[tuple[int, int]]:
    """(start, stop) of the first and the last places of an axis."""
    return [(0, min(margin, size)), (max(0, size - margin), size)]


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


def _extrema(differences: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Refined extrema of differences (D, H, W): points (N, 3) as level, x, y, responses (N,), first places (N, 3)."""
    places, cubes = _candidates(differences, noise)
    points, values = _refine(differences, places, cubes)
    # A minimum counts as the blob that it is only below zero.
    kept = (cubes[13] > cubes[12]) | (values > cubes[13])
    return points[kept], values[kept], places[kept]


def _candidates(differences: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Strict maxima and minima over level, row and column: level, y, x of each (N, 3), and its 27 values (27, N).

    What is no extremum along each of the three axes is left out first.
    """
    levels, height, width = differences.shape
    flat = differences.view(levels, -1)
    found = []
    for start in range(width, (height - 1) * width, _STRIP):
        stop = min(start + _STRIP, (height - 1) * width)
        turns = _turns(flat[1:-1, start - 1 : stop + 1], 1)
        turns &= _turns(flat[1:-1, start - width : stop + width], width)
        rising = _above(flat[1:, start:stop], flat[:-1, start:stop])
        turns &= rising[:-1] ^ rising[1:]
        level, place = _nonzero(turns)
        found.append(torch.stack([level + 1, place + start]))
    level, place = torch.cat(found, dim=1)
    x = place % width
    inner = (x > 0) & (x < width - 1)
    places = torch.stack([level, place // width, x], dim=1)[inner]
    cubes = _cubes(differences, places)
    centre = cubes[13]
    others = torch.cat([cubes[:13], cubes[14:]])
    extreme = (centre > others.amax(dim=0)) | (centre < others.amin(dim=0))
    extreme &= centre.abs() > noise
    return places[extreme], cubes[:, extreme]


def _turns(values: Tensor, step: int) -> Tensor:
    """Where rows of values stop to rise or to fall, comparing each with those ``step`` before and after it."""
    rising = _above(values[:, step:], values[:, :-step])
    return rising[:, :-step] ^ rising[:, step:]


def _above(values: Tensor, others: Tensor) -> Tensor:
    """``values > others``; by floats, which torch compares several times faster on CPUs."""
    return torch.gt(values, others, out=torch.empty_like(values)).bool()


def _nonzero(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column where flags (R, C) are set; by numpy on CPUs, several times faster there."""
    if flags.device.type == "cpu":
        places = torch.from_numpy(np.flatnonzero(flags.numpy()))
    else:
        places = flags.flatten().nonzero().flatten()
    return places // flags.shape[1], places % flags.shape[1]


def _cubes(volume: Tensor, places: Tensor) -> Tensor:
    """The 27 values around each place (N, 3) of a volume (D, H, W), level slowest: (27, N)."""
    steps = _neighbours(volume.shape[1], volume.shape[2], places.device)
    centre = (places[:, 0] * volume.shape[1] + places[:, 1]) * volume.shape[2] + places[:, 2]
    return volume.view(-1).index_select(0, (steps[:, None] + centre).view(-1)).view(27, -1)


def _neighbours(height: int, width: int, device: torch.device) -> Tensor:
    step = torch.arange(-1, 2, device=device)
    return ((step[:, None, None] * height + step[:, None]) * width + step).flatten()


def _refine(differences: Tensor, places: Tensor, cubes: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices of the parabolas through the 27 values around extrema, as level, x, y; their height, of minima negated.

    A place moves on by whole steps while the vertex lies further than ``_LARGEST_STEP`` off; one that leaves the
    surroundings of all extrema of its kind, does not settle or has no vertex stays where it was found.
    """
    levels, height, width = differences.shape
    top = places.new_tensor([levels - 1, height - 1, width - 1])
    sign = torch.where(cubes[13] > cubes[12], 1.0, -1.0).to(cubes.dtype)
    cubes = sign * cubes
    now = places.clone()
    valid = torch.ones(len(places), dtype=torch.bool, device=places.device)
    moved = torch.zeros_like(valid)
    shift = cubes.new_zeros(len(places), 3)
    gain = cubes.new_zeros(len(places))
    active = torch.arange(len(places), device=places.device)
    for iteration in range(_ITERATIONS):
        step, rise, solved = _vertex(cubes)
        if iteration > 1:  # before, none is further from its own
            solved &= _near(now[active], places, sign, active, differences)
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
        cubes = sign[active] * _cubes(differences, now[active])
    valid &= ~moved & (shift.abs() <= 1.5).all(dim=1)
    now = torch.where(valid[:, None], now, places)
    shift = torch.where(valid[:, None], shift, torch.zeros_like(shift))
    refined = now.to(shift.dtype) + shift
    level, y, x = now.unbind(1)
    values = sign * differences[level, y, x] + 0.5 * torch.where(valid, gain, torch.zeros_like(gain))
    return refined[:, [0, 2, 1]], values


def _near(now: Tensor, places: Tensor, sign: Tensor, active: Tensor, differences: Tensor) -> Tensor:
    """Whether each position is at most one step away from an extremum of its kind: from its own, mostly."""
    near = (now - places[active]).abs().amax(dim=1) <= 1
    far = (~near).nonzero().flatten()
    if len(far):
        size = torch.tensor(differences.shape, device=now.device)
        strides = torch.tensor(differences.stride(), device=now.device)
        side = (sign < 0).long() * size.prod()
        around = (now[far] * strides).sum(dim=1)[:, None] + _neighbours(int(size[1]), int(size[2]), now.device)
        near[far] = torch.isin(around + side[active[far], None], (places * strides).sum(dim=1) + side).any(dim=1)
    return near


def _vertex(cubes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of 27 values (27, N): offset of the vertex (N, 3) as level, y, x; twice its rise (N,); whether there is one."""
    c = cubes.unbind(0)
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


def _inside(points: Tensor, half: Tensor, height: int, width: int) -> Tensor:
    """Whether the inner half of a frame keeps its distance from the border of an octave."""
    x, y = points[:, 1], points[:, 2]
    right, bottom = width - 1 - _BORDER, height - 1 - _BORDER
    return (x - half >= _BORDER) & (x + half <= right) & (y - half >= _BORDER) & (y + half <= bottom)
