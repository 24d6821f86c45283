"""Ray casting, light, and what a camera makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rendered.solids import Solid
from rendered.textures import Array, Texture, f32

SHADOW_REACH_M = 27.0
SHADOW_CELLS = 1400
SAMPLES = 2  # rays a pixel along each side
GRID_PX = 12  # every 12th pixel becomes a point that decides co-visibility
DEPTH_TOLERANCE = 0.01  # a point counts as seen when the depth map agrees to one percent


@dataclass(frozen=True)
class View:
    """A pinhole camera, x_cam = R X + t, pixel centres at integers."""

    K: NDArray[np.float64]
    R: NDArray[np.float64]
    t: NDArray[np.float64]
    width: int
    height: int

    @property
    def center(self) -> Array:
        """Position (3,) in the world."""
        return (-self.R.T @ self.t).astype(np.float32)

    def rays(self, samples: int) -> Array:
        """(height * samples, width * samples, 3) directions in the world whose camera z is 1: t is depth."""
        x, y = (((np.arange(n * samples) + 0.5) / samples - 0.5) for n in (self.width, self.height))
        pixels = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), -1)
        return (pixels @ (np.linalg.inv(self.K).T @ self.R)).astype(np.float32)

    def project(self, points: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels (N, 2) and depths (N,) of world points (N, 3); pixels mean nothing where depth <= 0."""
        local = points @ self.R.T + self.t
        z = local[:, 2]
        image = local @ self.K.T
        return image[:, :2] / np.where(np.abs(z) < 1e-9, 1e-9, z)[:, None], z


@dataclass(frozen=True)
class Light:
    """One time of day: a sun (direction to it), the sky's colours, lamps (position, colour), glow of windows."""

    sun: tuple[float, float, float]
    sun_color: tuple[float, float, float]
    sky: tuple[float, float, float]
    horizon: tuple[float, float, float]
    clouds: float
    lamps: Sequence[tuple[tuple[float, float, float], tuple[float, float, float]]] = ()
    glow: float = 0.0


@dataclass(frozen=True)
class Development:
    """How one camera turns light into a file."""

    exposure: float  # stops from the automatic one
    balance: tuple[float, float, float]
    contrast: float
    saturation: float
    blur_px: float
    shake_px: tuple[float, float]
    noise: float
    vignette: float


def cast(
    solids: Sequence[Solid],
    origin: Array,
    rays: Array,
    place: Callable[[Array], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[Array, NDArray[np.int16]]:
    """Ray parameter and solid index (h, w) of the first meeting; infinite and -1 where a ray meets nothing.

    ``place`` maps points (8, 3) to grid positions (8, 2) and depths (8,); a solid is tried only inside its rectangle.
    """
    shape = np.broadcast_shapes(origin.shape, rays.shape)[:2]
    best = np.full(shape, np.inf, np.float32)
    index = np.full(shape, -1, np.int16)
    for k, solid in enumerate(solids):
        at, z = place(solid.corners())
        rows, columns = slice(None), slice(None)
        if z.min() > 0.05:
            low = np.clip(np.floor(at.min(0)) - 1, 0, shape[::-1]).astype(int)
            high = np.clip(np.ceil(at.max(0)) + 2, 0, shape[::-1]).astype(int)
            if (low >= high).any():
                continue
            rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
        elif z.max() <= 0:
            continue
        part_origin, part_rays = (a[rows, columns] if a.ndim == 3 else a for a in (origin, rays))
        t = solid.hit(part_origin, part_rays).astype(np.float32)
        closer = t < best[rows, columns]
        best[rows, columns][closer] = t[closer]
        index[rows, columns][closer] = k
    return best, index


@dataclass
class ShadowMap:
    """How far light from one direction travels before it meets something."""

    toward: Array  # unit vector to the light
    start: Array  # the middle of the map
    frame: Array  # rows: two axes of the map
    reach: Array = field(init=False)

    @classmethod
    def of(cls, solids: Sequence[Solid], toward: Sequence[float], center: Array) -> ShadowMap:
        """Cast a map around ``center``."""
        direction = f32(toward) / f32(np.linalg.norm(toward))
        side = np.cross(direction, [0.0, 1.0, 0.1])
        side /= np.linalg.norm(side)
        shadows = cls(direction, f32(center + direction * 60), f32([side, np.cross(direction, side)]))
        cell = 2 * SHADOW_REACH_M / SHADOW_CELLS
        offsets = (np.arange(SHADOW_CELLS, dtype=np.float32) + 0.5) * cell - SHADOW_REACH_M
        origins = shadows.start + offsets[None, :, None] * shadows.frame[0] + offsets[:, None, None] * shadows.frame[1]

        def place(points: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            return shadows.position(points).astype(np.float64), np.ones(len(points))

        shadows.reach, _ = cast(solids, origins.astype(np.float32), -direction, place)
        return shadows

    def position(self, points: Array) -> Array:
        """Map cells (N, 2) of world points."""
        return ((points - self.start) @ self.frame.T + SHADOW_REACH_M) * (SHADOW_CELLS / (2 * SHADOW_REACH_M)) - 0.5

    def lit(self, points: Array, normals: Array, taps: int, radius_m: float) -> Array:
        """Share (N,) of ``taps`` map cells around each point from which the light reaches it."""
        moved = points + normals * (0.06 + 0.5 * radius_m)
        at, travelled = self.position(moved), (self.start - moved) @ self.toward
        radius = radius_m * SHADOW_CELLS / (2 * SHADOW_REACH_M)
        seen = np.zeros(len(points), np.float32)
        for k in range(taps):
            angle, far = 2.4 * k, radius * np.sqrt((k + 0.5) / taps)
            column, row = (np.rint(at + f32([far * np.cos(angle), far * np.sin(angle)])).astype(np.int32)).T
            inside = (column >= 0) & (row >= 0) & (column < SHADOW_CELLS) & (row < SHADOW_CELLS)
            cells = self.reach[row.clip(0, SHADOW_CELLS - 1), column.clip(0, SHADOW_CELLS - 1)]
            seen += ~inside | (travelled <= cells + 0.02)
        return seen / taps


def sample(texture: Texture, uv: Array, footprint: Array) -> tuple[Array, Array]:
    """Colour and glow (n, 4) in 0..1 and slope (n, 2) at uv (n, 2) metres, ``footprint`` (n,) metres a sample wide."""
    levels = texture.levels
    level = np.log2(np.maximum(footprint * texture.density, 1.0)).clip(0, len(levels) - 1.001)
    base = level.astype(np.int32)
    color, slope = np.zeros((len(uv), 4), np.float32), np.zeros((len(uv), 2), np.float32)
    for k in range(len(levels)):
        weight = np.where(base == k, 1 - (level - base), np.where(base == k - 1, level - base, 0)).astype(np.float32)
        rows = np.flatnonzero(weight > 1e-3)
        if not len(rows):
            continue
        at = uv[rows] * f32(texture.density / 2**k) - 0.5
        color[rows] += _remap(levels[k][0], at) * (weight[rows, None] / 255)
        slope[rows] += _remap(levels[k][1], at) * weight[rows, None]
    return color, slope


def _remap(image: NDArray[np.uint8] | Array, at: Array) -> Array:
    """Bilinear values (n, C) of an image that continues mirrored."""
    width = 4096
    padded = np.zeros((-(-len(at) // width) * width, 2), np.float32)
    padded[: len(at)] = at
    grid = padded.reshape(-1, width, 2)
    none: Any = None
    parts = [
        cv2.remap(image, grid[k : k + 8192], none, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for k in range(0, len(grid), 8192)
    ]
    return np.concatenate(parts).reshape(len(padded), -1)[: len(at)].astype(np.float32)


def radiance(
    solids: Sequence[Solid], view: View, light: Light, shadows: tuple[ShadowMap, ShadowMap], sky: Array
) -> Array:
    """Linear light (height * SAMPLES, width * SAMPLES, 3) that reaches the camera; ``shadows``: of sun, of zenith."""
    rays = view.rays(SAMPLES)
    place = _grid_place(view, SAMPLES)
    depth, index = cast(solids, view.center, rays, place)
    image = np.zeros((depth.size, 3), np.float32)
    flat_rays, flat_depth, flat_index = rays.reshape(-1, 3), depth.reshape(-1), index.reshape(-1)
    order = np.argsort(flat_index, kind="stable")
    edges = np.searchsorted(flat_index[order], np.arange(-1, len(solids)), side="right")
    nothing = order[: edges[0]]
    if len(nothing):
        image[nothing] = _sky(flat_rays[nothing], light, sky)
    for k in np.flatnonzero(np.diff(edges)).tolist():
        rows = order[edges[k] : edges[k + 1]]
        ray = flat_rays[rows]
        points = view.center + flat_depth[rows, None] * ray
        surface = solids[k].surface(points)
        length = np.linalg.norm(ray, axis=1)
        facing = np.abs(np.einsum("ni,ni->n", surface.normal, ray)) / length
        footprint = flat_depth[rows] / view.K[0, 0] / SAMPLES / np.sqrt(np.maximum(facing, 0.02))
        color, slope = np.empty((len(rows), 4), np.float32), np.empty((len(rows), 2), np.float32)
        for number in np.unique(surface.texture).tolist():
            part = surface.texture == number
            color[part], slope[part] = sample(solids[k].textures[number], surface.uv[part], footprint[part])
        bent = surface.normal - slope[:, :1] * surface.along_u - slope[:, 1:] * surface.along_v
        bent /= np.linalg.norm(bent, axis=1, keepdims=True)
        image[rows] = _lit(points, surface.normal, bent, color, light, shadows)
    return image.reshape(rays.shape)


def _lit(
    points: Array, normals: Array, bent: Array, color: Array, light: Light, shadows: tuple[ShadowMap, ShadowMap]
) -> Array:
    """Linear light (n, 3) leaving surface points."""
    sun, zenith = shadows
    open_sky = 0.35 + 0.65 * zenith.lit(points, normals, 3, 1.2)
    total = (open_sky * (0.55 + 0.45 * bent[:, 2]))[:, None] * f32(light.sky)
    if max(light.sun_color) > 0:
        direct = np.clip(bent @ sun.toward, 0, None) * (normals @ sun.toward > 0)
        rows = np.flatnonzero(direct > 0)
        direct[rows] *= sun.lit(points[rows], normals[rows], 4, 0.05)
        total += direct[:, None] * f32(light.sun_color)
        total += 0.12 * f32(light.sun_color) * open_sky[:, None]  # thrown back by everything else
    for position, lamp in light.lamps:
        way = f32(position) - points
        squared = np.einsum("ni,ni->n", way, way)
        fall = np.clip(np.einsum("ni,ni->n", bent, way), 0, None) / np.sqrt(squared) / (0.6 + squared)
        total += fall[:, None] * f32(lamp)
    reflectance = color[:, :3] ** 2  # textures are painted as the eye judges them
    return reflectance * total + light.glow * color[:, 3:] * f32([1.0, 0.72, 0.38])


def _sky(rays: Array, light: Light, clouds: Array) -> Array:
    """Linear light of the sky (n, 3) along rays (n, 3), with clouds out of a (H, W) noise picture."""
    up = np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1), 0, 1)[:, None]
    at = np.column_stack([np.arctan2(rays[:, 0], rays[:, 1]) * 220 + 700, 500 - up * 420]).astype(np.float32)
    cloud = _remap(clouds, at)
    share = np.clip(cloud * 0.5 + light.clouds, 0, 1) * 0.8
    blue = f32(light.horizon) * (1 - up) + f32(light.sky) * up
    return blue * (1 - share) + share * f32(light.horizon) * (1.1 + 0.15 * cloud)


def develop(light: Array, how: Development, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A linear picture (h * SAMPLES, w * SAMPLES, 3) as an 8-bit one (h, w, 3), r g b."""
    height, width = light.shape[0] // SAMPLES, light.shape[1] // SAMPLES
    picture = cv2.resize(light, (width, height), interpolation=cv2.INTER_AREA)
    if any(how.shake_px):
        picture = _shake(picture, how.shake_px)
    picture = cv2.GaussianBlur(picture, (0, 0), how.blur_px)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    picture *= (1 - how.vignette * (x * x + y * y) / 2)[..., None]
    level = np.exp(np.log(picture.mean(-1) + 1e-4).mean())
    picture = picture * f32(0.16 * 2**how.exposure / level)
    deviation = how.noise * np.sqrt(np.clip(picture, 0, None) + 0.02)
    picture = np.clip(picture + deviation * rng.standard_normal(picture.shape, dtype=np.float32), 0, None)
    picture *= f32(how.balance)
    gray = picture.mean(-1, keepdims=True)
    picture = np.clip(gray + how.saturation * (picture - gray), 0, None)
    picture = picture ** f32(how.contrast / 2.2) * 0.42 ** (1 - how.contrast)
    picture = np.where(picture > 0.7, 0.7 + 0.3 * np.tanh((picture - 0.7) / 0.3), picture)  # soft shoulder
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def depth_map(solids: Sequence[Solid], view: View) -> Array:
    """Depth (height, width) at pixel centres; 0 for the sky and for what stands there in this image only."""
    depth, index = cast(solids, view.center, view.rays(1), _grid_place(view, 1))
    lasting = np.array([not solid.transient for solid in solids] + [False])
    return np.where(lasting[index], depth, 0).astype(np.float32)


def observations(views: Sequence[View], depths: Sequence[Array]) -> list[dict[int, tuple[float, float]]]:
    """Position by point id in each view, of points taken on a grid of pixels of every view.

    A point is seen where it projects into the image and the depth map there (nearest pixel) agrees.
    """
    points = np.concatenate([_grid_points(view, depth) for view, depth in zip(views, depths, strict=True)])
    seen = []
    for view, depth in zip(views, depths, strict=True):
        at, z = view.project(points)
        column, row = np.rint(at).clip(-1, 1e6).astype(int).T
        inside = (z > 0) & (column >= 0) & (row >= 0) & (column < view.width) & (row < view.height)
        rows = np.flatnonzero(inside)
        agrees = np.abs(depth[row[rows], column[rows]] - z[rows]) < DEPTH_TOLERANCE * z[rows]
        rows = rows[agrees]
        seen.append({int(k): (float(x), float(y)) for k, (x, y) in zip(rows, at[rows], strict=True)})
    return seen


def _grid_points(view: View, depth: Array) -> NDArray[np.float64]:
    """World points (N, 3) at every ``GRID_PX``-th pixel that has depth."""
    rows, columns = np.mgrid[GRID_PX // 2 : view.height : GRID_PX, GRID_PX // 2 : view.width : GRID_PX].reshape(2, -1)
    z = depth[rows, columns].astype(np.float64)
    pixels = np.stack([columns, rows, np.ones(len(rows))], 1)[z > 0] * z[z > 0, None]
    return (pixels @ np.linalg.inv(view.K).T - view.t) @ view.R


def _grid_place(view: View, samples: int) -> Callable[[Array], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    def place(points: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        at, z = view.project(points)
        return (at + 0.5) * samples - 0.5, z

    return place


def _shake(picture: Array, shift: tuple[float, float]) -> Array:
    """Motion blur along a straight path of ``shift`` pixels, centred."""
    total = np.zeros_like(picture)
    steps = np.linspace(-0.5, 0.5, 7)
    for share in steps:
        move = f32([[1, 0, share * shift[0]], [0, 1, share * shift[1]]])
        total += cv2.warpAffine(picture, move, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return total / len(steps)
