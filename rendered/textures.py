"""Procedural surfaces of the rendered scene: colour, relief and glow, with their mip levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]  # float32 throughout
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX, cv2.FONT_HERSHEY_DUPLEX)


def f32(values: ArrayLike) -> Array:
    """Values as a float32 array."""
    return np.asarray(values, np.float32)


@dataclass
class Texture:
    """One painted surface.

    ``color`` (H, W, 3) reflectance in 0..1, ``relief`` (H, W) height in metres, ``glow`` (H, W) share of light that
    the surface itself gives off at night, ``density`` texels a metre. Row 0 is the upper edge.
    """

    color: Array
    relief: Array
    glow: Array
    density: float

    @cached_property
    def levels(self) -> list[tuple[NDArray[np.uint8], Array]]:
        """Mip levels, finest first: (H, W, 4) colour and glow as 8 bit, (H, W, 2) slope along u and v."""
        color = np.dstack([self.color, self.glow]).clip(0, 1)
        slope = np.stack([cv2.Sobel(self.relief, cv2.CV_32F, dx, 1 - dx, scale=self.density / 8) for dx in (1, 0)], -1)
        pyramid = []
        while True:
            pyramid.append(((color * 255 + 0.5).astype(np.uint8), slope))
            height, width = slope.shape[:2]
            if min(height, width) < 8:
                return pyramid
            half = (width // 2, height // 2)
            color = cv2.resize(color, half, interpolation=cv2.INTER_AREA)
            slope = cv2.resize(slope, half, interpolation=cv2.INTER_AREA)


class Painter:
    """Paints textures of given size in metres; the same generator state gives the same texture."""

    def __init__(self, rng: np.random.Generator, width_m: float, height_m: float, density: float) -> None:
        self.rng = rng
        self.density = density
        self.shape = (round(height_m * density), round(width_m * density))
        y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) / density for n in self.shape), indexing="ij")
        self.x, self.y = x, y  # metres from the upper left corner
        self.color: Array = np.ones((*self.shape, 3), np.float32)
        self.relief: Array = np.zeros(self.shape, np.float32)
        self.glow: Array = np.zeros(self.shape, np.float32)

    def done(self) -> Texture:
        """The finished texture."""
        return Texture(self.color, self.relief, self.glow, self.density)

    @cached_property
    def grain(self) -> Array:
        """One fine noise field, shared by the small things painted on this surface."""
        return self.noise(0.15)

    def noise(self, cell_m: float, octaves: int = 4, gain: float = 0.6) -> Array:
        """Fractal noise (H, W) of mean about 0 and deviation about 1, its coarsest cells ``cell_m`` wide."""
        total = np.zeros(self.shape, np.float32)
        weight, power = 1.0, 0.0
        for _ in range(octaves):
            grid = [max(2, round(n / (cell_m * self.density)) + 1) for n in self.shape]
            values = self.rng.standard_normal(grid, dtype=np.float32)
            total += weight * cv2.resize(values, self.shape[::-1], interpolation=cv2.INTER_CUBIC)
            power += (0.75 * weight) ** 2
            weight, cell_m = weight * gain, cell_m / 2
            if cell_m * self.density < 1:
                break
        return total / np.float32(np.sqrt(power))

    def tint(self, color: tuple[float, float, float]) -> Painter:
        """Set one colour (r, g, b) everywhere."""
        self.color[:] = color
        return self

    def shade(self, amount: Array | float) -> Painter:
        """Multiply the colour by 1 + ``amount``."""
        self.color *= np.clip(f32(1 + amount), 0.15, 2.5)[..., None]
        return self

    def masonry(self, width_m: float, height_m: float, color: tuple[float, float, float], joint_m: float) -> Painter:
        """Rows of blocks with joints, each block of its own tone and slightly its own height."""
        row = np.floor(self.y / height_m).astype(np.int32)
        shift = self.rng.random(row.max() + 1, dtype=np.float32) * 0.3 + 0.5 * (np.arange(row.max() + 1) % 2)
        along = self.x / width_m + shift.astype(np.float32)[row]
        column = np.floor(along).astype(np.int32)
        tone = self.rng.normal(0, 1, (row.max() + 1, column.max() + 1, 2)).astype(np.float32)[row, column]
        to_edge = np.minimum((along - column) * width_m, self.y - row * height_m)
        to_edge = np.minimum(to_edge, np.minimum((1 + column - along) * width_m, (row + 1) * height_m - self.y))
        inside = np.clip(to_edge / joint_m, 0, 1)
        self.tint(color)
        self.color += 0.06 * tone[..., :1] * np.array([1.0, 0.6, 0.3], np.float32)
        self.shade(0.16 * tone[..., 1] + 0.10 * self.noise(0.12, 4, 0.8))
        joint = f32([0.62, 0.60, 0.56])
        self.color = self.color * inside[..., None] + joint * (1 - inside[..., None])
        self.relief += 0.012 * inside + 0.003 * tone[..., 0] + 0.0016 * self.noise(0.1, 3, 0.8)
        return self

    def plaster(self, color: tuple[float, float, float], cracks: int) -> Painter:
        """A plastered wall: stains that run down, patches, cracks."""
        self.tint(color)
        self.shade(0.08 * self.noise(2.0, 7, 0.75))
        runs = cv2.resize(self.noise(0.4, 5), self.shape[::-1])
        runs = cv2.blur(runs, (1, max(3, self.shape[0] // 6)))
        self.shade(-0.35 * np.clip(runs - 0.2, 0, 1) * np.clip(1.2 - self.y / self.y.max(), 0, 1))
        bare = np.clip((self.noise(1.3, 6, 0.7) - 1.1) * 4, 0, 1)[..., None]
        self.color = self.color * (1 - bare) + bare * f32([0.55, 0.42, 0.34]) * (1 + 0.2 * self.noise(0.1)[..., None])
        self.relief += 0.002 * self.noise(0.15, 4, 0.8) - 0.01 * bare[..., 0]
        for _ in range(cracks):
            steps = self.rng.normal(0, 0.09, (self.rng.integers(8, 30), 2)) + self.rng.normal(0, 0.05, 2)
            path = np.cumsum(steps, 0) + self.rng.random(2) * [self.x.max(), self.y.max()]
            points = np.round(path * self.density).astype(np.int32)[:, None]
            cv2.polylines(self.color, [points], False, (0.25, 0.22, 0.2), 1, cv2.LINE_AA)
            cv2.polylines(self.relief, [points], False, -0.008, 1, cv2.LINE_AA)
        return self

    def pavers(self, cell_m: float) -> Painter:
        """Irregular paving stones: cells of a jittered grid, with joints, puddle stains and drain covers."""
        grid_x, grid_y = self.x / cell_m, self.y / cell_m
        cx, cy = grid_x.astype(np.int32), grid_y.astype(np.int32)
        rows, columns = cy.max() + 3, cx.max() + 3
        jitter = (0.5 + self.rng.uniform(-0.38, 0.38, (rows, columns, 2))).astype(np.float32)
        tone = self.rng.normal(0, 1, (rows, columns)).astype(np.float32)
        nearest = np.full(self.shape, 9, np.float32)
        second = nearest.copy()
        color = np.zeros(self.shape, np.float32)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                j, i = cy + dy + 1, cx + dx + 1
                distance = np.hypot(cx + dx + jitter[j, i, 0] - grid_x, cy + dy + jitter[j, i, 1] - grid_y)
                closer = distance < nearest
                second = np.where(closer, nearest, np.minimum(second, distance))
                color = np.where(closer, tone[j, i], color)
                nearest = np.minimum(nearest, distance)
        stone = np.clip((second - nearest) * 5, 0, 1)
        self.tint((0.74, 0.72, 0.68))
        self.shade(0.2 * color + 0.10 * self.noise(0.08, 3, 0.8))
        self.color *= (0.45 + 0.55 * stone)[..., None]
        self.shade(-0.4 * np.clip(self.noise(4.0, 6, 0.6) - 0.4, 0, 1) + 0.10 * self.noise(7.0, 3))
        self.relief += 0.012 * stone + 0.001 * self.noise(0.06, 3)
        for _ in range(14):
            at, radius = self.rng.random(2) * self.shape[::-1], 0.4 * self.density
            for k in range(5):
                center = (int(at[0]), int(at[1]))
                cv2.circle(self.color, center, int(radius * (1 - k / 6)), (0.12 + 0.2 * (k % 2),) * 3, -1, cv2.LINE_AA)
        return self

    def rows(self, height_m: float, width_m: float, color: tuple[float, float, float]) -> Painter:
        """Overlapping roof tiles or boards."""
        row = np.floor(self.y / height_m).astype(np.int32)
        along = self.x / width_m + 0.5 * (row % 2)
        column = np.floor(along).astype(np.int32)
        tone = self.rng.normal(0, 1, (row.max() + 1, column.max() + 1)).astype(np.float32)[row, column]
        fall = self.y / height_m - row
        side = np.minimum(along - column, 1 + column - along) * width_m
        self.tint(color)
        self.shade(0.18 * tone + 0.12 * self.noise(0.3, 5, 0.8) - 0.45 * (fall > 0.9) - 0.3 * (side < 0.012))
        self.relief += 0.03 * fall * height_m + 0.004 * tone
        return self

    def foliage(self) -> Painter:
        """Leaves: bright and dark clumps."""
        self.tint((0.20, 0.32, 0.12))
        self.shade(0.55 * self.noise(0.35, 5, 0.9))
        self.relief += 0.02 * self.noise(0.3, 4, 0.8)
        return self

    def stripes(self, width_m: float, colors: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Painter:
        """Awning cloth."""
        first = (np.floor(self.x / width_m) % 2 == 0)[..., None]
        self.color[:] = np.where(first, f32(colors[0]), f32(colors[1]))
        self.shade(0.05 * self.noise(0.5, 5, 0.8))
        return self

    def flutes(self, width_m: float) -> Painter:
        """A fluted stone column."""
        self.tint((0.74, 0.71, 0.64))
        self.shade(0.10 * self.noise(0.6, 6, 0.8) - 0.3 * np.clip(self.noise(1.5, 5) - 0.8, 0, 1))
        self.relief += 0.02 * np.abs(np.sin(np.pi * self.x / width_m)) + 0.001 * self.noise(0.1, 3)
        return self

    def window(self, x: float, y: float, width: float, height: float, panes: tuple[int, int]) -> Painter:
        """A framed window whose curtain and light are its own; the frame stands out, the glass lies back."""
        self._block(x - 0.14, y - 0.14, width + 0.28, height + 0.28, 0.03, self.rng.uniform(0.62, 0.78), 0.06)
        self._block(x, y, width, height, -0.08, self.rng.uniform(0.05, 0.14), 0.0)
        rows, columns = self._slices(x, y, width, height)
        tone = self.rng.uniform(0.05, 0.45) * self.rng.uniform(0.75, 1.25, 3)
        curtain = self.rng.uniform(0.0, 0.9) * (1 + 0.3 * np.sin(self.x[rows, columns] * self.rng.uniform(30, 70)))
        part = np.abs(self.x[rows, columns] - x - width / 2) > width * self.rng.uniform(0.05, 0.45)
        blind = self.y[rows, columns] - y < height * self.rng.uniform(0, 0.6)
        glass = self.color[rows, columns]
        glass += (curtain * part)[..., None] * f32(tone) + blind[..., None] * f32(tone[::-1]) * 0.6
        self.glow[rows, columns] = self.rng.choice([0.0, 0.0, 0.5, 1.0]) * glass.mean(-1)
        bar = 0.06
        for k in range(panes[0] + 1):
            self._block(x + k * (width - bar) / panes[0], y, bar, height, 0.0, 0.85, 0.03)
        for k in range(panes[1] + 1):
            self._block(x, y + k * (height - bar) / panes[1], width, bar, 0.0, 0.85, 0.03)
        return self

    def door(self, x: float, width: float, height: float) -> Painter:
        """A panelled door at the lower edge."""
        bottom = self.shape[0] / self.density
        self._block(x - 0.2, bottom - height - 0.25, width + 0.4, height + 0.25, 0.04, 0.6, 0.1)
        self._block(x, bottom - height, width, height, -0.05, self.rng.uniform(0.12, 0.3), 0.12)
        for row in range(4):
            for column in range(2):
                left = x + (0.1 + 0.5 * column) * width
                self._block(left, bottom - height * (0.95 - 0.23 * row), 0.3 * width, 0.16 * height, 0.02, 0.4, 0.15)
        return self

    def sign(self, x: float, y: float, width: float, height: float, glow: float = 0.0) -> Painter:
        """A painted board with random letters, bars and discs."""
        board = self.rng.uniform(0.25, 0.95) + self.rng.normal(0, 0.10, 3)
        ink = self.rng.uniform(0.05, 0.5) + self.rng.normal(0, 0.12, 3)
        board, ink = board.clip(0.1, 1), ink.clip(0, 1)
        if abs(board.mean() - ink.mean()) < 0.25:
            ink = board * 0.25
        rows, columns = self._slices(x, y, width, height)
        self.glow[rows, columns] = glow * f32(board.mean())
        h, w = self.color[rows, columns].shape[:2]
        area = np.full((h, w, 3), board * 255, np.uint8)
        ink = ink * 255
        lines = max(1, round(1.6 * h / max(w, 1)) + self.rng.integers(0, 2))
        for line in range(lines):
            kind = self.rng.integers(0, 4)
            top, bottom = (line + 0.15) * h / lines, (line + 0.85) * h / lines
            tone = tuple(float(v) for v in np.clip(ink + self.rng.normal(0, 20, 3), 0, 255))
            if kind == 0:
                for k in range(int(self.rng.integers(2, 6))):
                    center = (int(self.rng.uniform(0.1, 0.9) * w), int((top + bottom) / 2))
                    size = (bottom - top) * self.rng.uniform(0.15, 0.5)
                    cv2.circle(area, center, max(1, int(size)), tone, -1 if k % 2 else 2, cv2.LINE_AA)
            else:
                length = max(2, int(w / max(0.75 * (bottom - top), 1)))
                text = "".join(self.rng.choice(list("ABCDEFGHKLMNOPRSTUVXYZ&2345689"), min(length, 14)))
                scale = (bottom - top) / 24
                font = FONTS[int(self.rng.integers(len(FONTS)))]
                cv2.putText(
                    area, text, (int(0.05 * w), int(bottom)), font, scale, tone, max(1, int(2 * scale)), cv2.LINE_AA
                )
        cv2.rectangle(area, (0, 0), (w - 1, h - 1), tuple(float(v) for v in ink * 0.6), max(1, h // 30))
        self.color[rows, columns] = area / 255.0 * (1 + 0.05 * self.grain[rows, columns, None])
        return self

    def posters(self, count: int) -> Painter:
        """Bills pasted over one another."""
        width, height = self.shape[1] / self.density, self.shape[0] / self.density
        for _ in range(count):
            w, h = self.rng.uniform(0.3, 0.8), self.rng.uniform(0.4, 1.1)
            self.sign(self.rng.uniform(0, width - 0.3), self.rng.uniform(0, max(height - h, 0.1)), w, h)
        return self

    def scatter(self, count: int) -> Painter:
        """Graffiti tags, plates, and bills at random places."""
        width, height = self.shape[1] / self.density, self.shape[0] / self.density
        for _ in range(count):
            w = self.rng.uniform(0.4, 1.4)
            self.sign(
                self.rng.uniform(0, width - w), self.rng.uniform(0.55, 0.9) * height, w, w * self.rng.uniform(0.3, 0.8)
            )
        return self

    def _block(self, x: float, y: float, width: float, height: float, relief: float, tone: float, rough: float) -> None:
        rows, columns = self._slices(x, y, width, height)
        self.color[rows, columns] = tone * (1 + rough * self.grain[rows, columns, None])
        self.relief[rows, columns] = relief
        self.glow[rows, columns] = 0

    def _slices(self, x: float, y: float, width: float, height: float) -> tuple[slice, slice]:
        def span(start: float, length: float, limit: int) -> slice:
            low = min(max(round(start * self.density), 0), limit - 1)
            return slice(low, min(max(round((start + length) * self.density), low + 1), limit))

        return span(y, height, self.shape[0]), span(x, width, self.shape[1])
