"""Rendered homography sequences: painted walls seen from several sides and in several lights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.files import atomic_dir, atomic_path
from rendered.textures import Array, Painter

NAMES = ("i_brick", "i_posters", "v_hall", "v_plaster")
SIZE = (480, 360)
_DENSITY = 90.0  # texture cells a metre
_WALL_M = (9.0, 7.0)


def write_planes(folder: Path, seed: int = 0, names: tuple[str, ...] = NAMES) -> Path:
    """Write four sequences (two change the light, two the viewpoint) of 6 images and exact homographies.

    The same seed gives the same files on one machine; some seconds on one core. Returns ``folder``, which is new.
    """
    with atomic_dir(folder) as temporary:
        for number, name in enumerate(names):
            rng = np.random.default_rng([seed, number])
            wall = _wall(name.partition("_")[2], rng)
            inside = temporary / name
            inside.mkdir()
            reference = _view(wall.shape[:2], 0.0, rng)
            for k in range(1, 7):
                strength = (k - 1) / 5.0
                view = reference if name.startswith("i_") or k == 1 else _view(wall.shape[:2], strength, rng)
                light = strength if name.startswith("i_") else 0.15 * strength
                picture = _photograph(wall, view, light, rng)
                with atomic_path(inside / f"{k}.png") as path:
                    encoded = cv2.imencode(".png", picture)[1]
                    path.write_bytes(encoded.tobytes())
                if k > 1:
                    H = view @ np.linalg.inv(reference)
                    np.savetxt(inside / f"H_1_{k}", H / H[2, 2], fmt="%.12g")
    return Path(folder)


def _wall(kind: str, rng: np.random.Generator) -> Array:
    """Colour (H, W, 3) in 0..1 of a painted wall with shading of its relief."""
    painter = Painter(rng, *_WALL_M, _DENSITY)
    if kind == "brick":
        painter.masonry(0.26, 0.085, (0.58, 0.30, 0.22), 0.014)
    elif kind == "posters":
        painter.tint((0.6, 0.58, 0.5)).posters(60)
    elif kind == "hall":
        painter.masonry(0.7, 0.32, (0.70, 0.64, 0.52), 0.02).sign(2.0, 3.0, 4.0, 0.7)
    else:
        painter.plaster((0.80, 0.68, 0.45), 30).sign(1.0, 3.4, 4.0, 0.7)
    if kind != "posters":
        for row in range(3):
            for column in range(4):
                painter.window(0.5 + 2.2 * column, 0.6 + 2.2 * row, 1.1, 1.4, (2, int(rng.integers(2, 5))))
        painter.scatter(14)
    slope = cv2.Sobel(painter.relief, cv2.CV_32F, 1, 1, ksize=3)
    shaded = np.clip(painter.color * (1.0 + np.clip(12.0 * slope, -0.6, 0.6))[..., None], 0.0, 1.0)
    return shaded.astype(np.float32)


def _view(shape: tuple[int, int], strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A homography of wall pixels to picture pixels; ``strength`` 0 looks straight at the middle."""
    height, width = shape
    turn = rng.uniform(-0.6, 0.6) * strength
    zoom = 0.66 * 2.0 ** (rng.uniform(-0.5, 0.5) * strength)
    tilt = rng.uniform(-1.0, 1.0, 2) * 0.0009 * strength
    shift = rng.uniform(-30.0, 30.0, 2) * strength
    cos, sin = np.cos(turn) * zoom, np.sin(turn) * zoom
    centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1.0]])
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [tilt[0], tilt[1], 1.0]])
    to_picture = np.array([[1, 0, (SIZE[0] - 1) / 2 + shift[0]], [0, 1, (SIZE[1] - 1) / 2 + shift[1]], [0, 0, 1.0]])
    result: NDArray[np.float64] = to_picture @ turned @ centre
    return result


def _photograph(wall: Array, view: NDArray[np.float64], strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The wall as a camera sees it: ``strength`` 0 in even light, 1 dark, with a hard shadow and a warm side light."""
    # Twice the size, then halved by area: no aliasing, and pixel centres stay at integers.
    double = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1.0]])
    size = (2 * SIZE[0], 2 * SIZE[1])
    picture = cv2.warpPerspective(wall, double @ view, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    picture = cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[0.0 : 1.0 : SIZE[1] * 1j, 0.0 : 1.0 : SIZE[0] * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    light = 1.0 + strength * (0.7 * along - 0.35)
    shadow = 1.0 / (1.0 + np.exp(-80.0 * (along + rng.uniform(-0.2, 0.2))))
    light = light * (1.0 - 0.55 * strength * shadow)
    tint = np.array([1.0, 1.0 - 0.1 * strength, 1.0 - 0.3 * strength], np.float32)
    picture = np.clip(picture * np.clip(light, 0.05, 2.0)[..., None] * tint, 0.0, 1.0) ** (1.0 + 0.5 * strength)
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.5 + 0.4 * strength)
    picture = picture + rng.normal(0.0, 0.008 + 0.012 * strength, picture.shape)
    return np.asarray(np.clip(picture[..., ::-1] * 255.0, 0, 255).round(), np.uint8)
