"""The solids of the rendered scene: where rays meet them, and what surface they meet there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rendered.textures import Array, Texture, f32


@dataclass
class Surface:
    """What n rays met: unit normals and the tangents of u and v (n, 3), position (n, 2) in metres, texture by ray."""

    normal: Array
    along_u: Array
    along_v: Array
    uv: Array
    texture: NDArray[np.int32]  # index into the solid's textures


class Solid(Protocol):
    """A thing that rays can meet; lengths in metres, z up."""

    textures: Sequence[Texture]
    transient: bool  # stands there in one image only: no depth is recorded

    def corners(self) -> Array:
        """(8, 3) corners of a box around it."""
        ...

    def hit(self, origin: Array, ray: Array) -> Array:
        """Ray parameter (...) of the first meeting with ``origin + t ray``, infinite where there is none."""
        ...

    def surface(self, points: Array) -> Surface:
        """The surface at (n, 3) points that lie on it."""
        ...


@dataclass
class Box:
    """A box standing on ``base`` (x, y, z), turned by ``yaw`` about the vertical.

    Textures: [all sides], or [south, east, north, west, top]; v runs down from the upper edge. ``offset`` shifts uv.
    """

    base: tuple[float, float, float]
    size: tuple[float, float, float]
    textures: Sequence[Texture]
    yaw: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)
    transient: bool = False
    axes: Array = field(init=False)  # rows: the box's axes in the world

    def __post_init__(self) -> None:
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        self.axes = f32([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        self.half = f32(self.size) / 2
        self.center = f32(self.base) + f32([0, 0, self.size[2] / 2])

    def corners(self) -> Array:
        """Corners (8, 3) of a box around it."""
        signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3).astype(np.float32)
        return self.center + (signs * self.half) @ self.axes

    def hit(self, origin: Array, ray: Array) -> Array:
        """Where rays first meet it; see :class:`Solid`."""
        near: Array | None = None
        far: Array | None = None
        for axis, half in zip(self.axes, self.half, strict=True):
            inverse = 1 / _away_from_zero(ray @ axis)
            middle = -((origin - self.center) @ axis) * inverse
            reach = np.abs(half * inverse)
            near = middle - reach if near is None else np.maximum(near, middle - reach)
            far = middle + reach if far is None else np.minimum(far, middle + reach)
        assert near is not None
        assert far is not None
        return np.where((near <= far) & (near > 0), near, np.inf)

    def surface(self, points: Array) -> Surface:
        """What lies at points on it; see :class:`Solid`."""
        local = (points - self.center) @ self.axes.T
        unit = local / self.half
        axis = np.abs(unit).argmax(1)
        positive = unit[np.arange(len(unit)), axis] > 0
        face = np.choose(axis, [np.where(positive, 1, 3), np.where(positive, 2, 0), np.full(len(axis), 4)])
        x, y, z = self.axes
        normals = np.stack([-y, x, y, -x, z])
        along = np.stack([x, y, -x, -y, x])
        down = np.stack([-z, -z, -z, -z, -y])
        hx, hy, hz = self.half
        starts = f32([[hx, hz], [hy, hz], [hx, hz], [hy, hz], [hx, hy]])
        uv = np.stack([np.einsum("ni,ni->n", points - self.center, t[face]) for t in (along, down)], 1) + starts[face]
        texture = face if len(self.textures) == 5 else np.zeros_like(face)
        offset = f32(self.offset) if len(self.textures) == 1 else f32(0)
        return Surface(normals[face], along[face], down[face], uv + offset, texture.astype(np.int32))


@dataclass
class Sheet:
    """A parallelogram from ``corner`` along the edges ``u`` and ``v`` (upper left corner, right, down)."""

    corner: tuple[float, float, float]
    u: tuple[float, float, float]
    v: tuple[float, float, float]
    textures: Sequence[Texture]
    transient: bool = False

    def __post_init__(self) -> None:
        self.edges = f32([self.u, self.v])
        self.lengths = np.linalg.norm(self.edges, axis=1)
        normal = np.cross(*self.edges)
        self.normal = (normal / np.linalg.norm(normal)).astype(np.float32)
        self.dual = np.linalg.pinv(self.edges).T.astype(np.float32)  # coordinates 0..1 along both edges

    def corners(self) -> Array:
        """Corners (8, 3) of a box around it."""
        share = f32([[0, 0], [1, 0], [0, 1], [1, 1]] * 2)
        return f32(self.corner) + share @ self.edges

    def hit(self, origin: Array, ray: Array) -> Array:
        """Where rays first meet it; see :class:`Solid`."""
        start = f32(self.corner)
        t = -((origin - start) @ self.normal) / _away_from_zero(ray @ self.normal)
        inside = t > 0
        for axis in self.dual:
            share = (origin - start) @ axis + t * (ray @ axis)
            inside &= (share >= 0) & (share <= 1)
        return np.where(inside, t, np.inf)

    def surface(self, points: Array) -> Surface:
        """What lies at points on it; see :class:`Solid`."""
        count = len(points)
        unit = self.edges / self.lengths[:, None]
        uv = (points - f32(self.corner)) @ self.dual.T * self.lengths
        spread = [np.broadcast_to(v, (count, 3)) for v in (self.normal, unit[0], unit[1])]
        return Surface(spread[0], spread[1], spread[2], uv, np.zeros(count, np.int32))


@dataclass
class Column:
    """An upright cylinder on ``base``; textures [side] or [side, top]. u runs around, v down."""

    base: tuple[float, float, float]
    radius: float
    height: float
    textures: Sequence[Texture]
    turn: float = 0.0
    transient: bool = False

    def corners(self) -> Array:
        """Corners (8, 3) of a box around it."""
        r, h = self.radius, self.height
        shape = np.stack(np.meshgrid([-r, r], [-r, r], [0, h]), -1).reshape(-1, 3)
        return (f32(self.base) + shape).astype(np.float32)

    def hit(self, origin: Array, ray: Array) -> Array:
        """Where rays first meet it; see :class:`Solid`."""
        start = origin - f32(self.base)
        dx, dy, dz = ray[..., 0], ray[..., 1], _away_from_zero(ray[..., 2])
        sx, sy, sz = start[..., 0], start[..., 1], start[..., 2]
        a = np.maximum(dx * dx + dy * dy, 1e-9)
        b = dx * sx + dy * sy
        root = b * b - a * (sx * sx + sy * sy - self.radius**2)
        side = (-b - np.sqrt(np.maximum(root, 0))) / a
        z = sz + side * dz
        side = np.where((root >= 0) & (side > 0) & (z >= 0) & (z <= self.height), side, np.inf)
        lid = (self.height - sz) / dz
        on_lid = (sx + lid * dx) ** 2 + (sy + lid * dy) ** 2 <= self.radius**2
        return np.minimum(side, np.where(on_lid & (lid > 0) & (dz < 0), lid, np.inf))

    def surface(self, points: Array) -> Surface:
        """What lies at points on it; see :class:`Solid`."""
        local = points - f32(self.base)
        top = (local[:, 2] > self.height - 1e-3) & (np.hypot(local[:, 0], local[:, 1]) < self.radius * 0.9995)
        angle = np.arctan2(local[:, 1], local[:, 0])
        c, s, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
        up = f32([0, 0, 1])
        normal = np.where(top[:, None], up, np.stack([c, s, zero], 1))
        along = np.where(top[:, None], f32([1, 0, 0]), np.stack([-s, c, zero], 1))
        down = np.where(top[:, None], f32([0, -1, 0]), -up)
        around = ((angle + self.turn) % (2 * np.pi)) * self.radius
        uv = np.stack([np.where(top, local[:, 0], around), np.where(top, -local[:, 1], self.height - local[:, 2])], 1)
        return Surface(normal, along, down, uv, (top & (len(self.textures) > 1)).astype(np.int32))


@dataclass
class Ball:
    """A sphere; u runs around, v down from the pole."""

    center: tuple[float, float, float]
    radius: float
    textures: Sequence[Texture]
    turn: float = 0.0
    transient: bool = False

    def corners(self) -> Array:
        """Corners (8, 3) of a box around it."""
        signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
        return (f32(self.center) + self.radius * signs).astype(np.float32)

    def hit(self, origin: Array, ray: Array) -> Array:
        """Where rays first meet it; see :class:`Solid`."""
        start = origin - f32(self.center)
        a = (ray * ray).sum(-1)
        b = (ray * start).sum(-1)
        root = b * b - a * ((start * start).sum(-1) - self.radius**2)
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root >= 0) & (t > 0), t, np.inf)

    def surface(self, points: Array) -> Surface:
        """What lies at points on it; see :class:`Solid`."""
        normal = (points - f32(self.center)) / self.radius
        angle = np.arctan2(normal[:, 1], normal[:, 0])
        polar = np.arccos(np.clip(normal[:, 2], -1, 1))
        along = np.stack([-np.sin(angle), np.cos(angle), np.zeros_like(angle)], 1)
        uv = np.stack([((angle + self.turn) % (2 * np.pi)) * self.radius, polar * self.radius], 1)
        return Surface(normal, along, np.cross(along, normal), uv, np.zeros(len(points), np.int32))


def _away_from_zero(value: Array) -> Array:
    return np.where(np.abs(value) < 1e-9, f32(1e-9), value)
