"""A corner of two textured walls, seen by four cameras, as a COLMAP model and as a scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from eval.imw.build import build_scene

SIZE = (360, 270)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Corner:
    """Images and model of the corner; ``K`` has its origin at the centre of the first pixel."""

    images: Path
    model: Path
    K: Array
    poses: dict[str, tuple[Array, Array]]


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Corner:
    folder = tmp_path_factory.mktemp("corner")
    (folder / "images").mkdir()
    (folder / "model").mkdir()
    K = np.array([[340.0, 0, 179.5], [0, 340.0, 134.5], [0, 0, 1]])
    centers = [(-1.3, 0.1, -6.0), (-0.4, -0.2, -5.6), (0.5, 0.2, -5.9), (1.4, -0.1, -6.2)]
    poses = {f"view-{k}.png": _look_at(np.array(c)) for k, c in enumerate(centers)}
    rng = np.random.default_rng(0)
    walls = [_texture(rng), _texture(rng)]
    for name, (R, t) in poses.items():
        assert cv2.imwrite(str(folder / "images" / name), _render(K, R, t, walls))
    write_model(folder / "model", K, poses, _points(rng), SIZE)
    return Corner(folder / "images", folder / "model", K, poses)


@pytest.fixture(scope="session")
def corner_scene(corner: Corner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "corner"
    build_scene(corner.images, corner.model, out, {2: 3, 3: 2})
    return out


@pytest.fixture(scope="session", name="write_model")
def write_model_fixture() -> Callable[..., None]:
    return write_model


def write_model(
    folder: Path,
    K: Array,
    poses: dict[str, tuple[Array, Array]],
    points: Array,
    size: tuple[int, int],
    camera: str | None = None,
) -> None:
    """A COLMAP model as text; every point is seen where it falls into an image. Corner-origin pixels, as COLMAP's."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5
    camera = camera or f"PINHOLE {size[0]} {size[1]} {fx} {fy} {cx} {cy}"
    (folder / "cameras.txt").write_text(f"1 {camera}\n")
    tracks: list[list[str]] = [[] for _ in points]
    seen: list[tuple[str, list[tuple[str, int]]]] = []
    for image_id, (name, (R, t)) in enumerate(poses.items(), 1):
        x = (points @ R.T + t) @ K.T
        xy = x[:, :2] / x[:, 2:] + 0.5
        inside = (x[:, 2] > 0) & (xy > 0).all(1) & (xy < size).all(1)
        rows: list[tuple[str, int]] = []
        for index in np.flatnonzero(inside):
            tracks[index].append(f"{image_id} {len(rows)}")
            rows.append((f"{xy[index, 0]:.17g} {xy[index, 1]:.17g}", index))
        quaternion = " ".join(map(str, _quaternion(R).tolist()))
        seen.append((f"{image_id} {quaternion} {' '.join(map(str, t.tolist()))} 1 {name}", rows))
    lines = []
    for head, rows in seen:  # a point that one image sees is none
        lines += [head, " ".join(f"{xy} {k + 1 if len(tracks[k]) > 1 else -1}" for xy, k in rows)]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text(
        "".join(
            f"{k + 1} {p[0]} {p[1]} {p[2]} 0 0 0 0.1 {' '.join(track)}\n"
            for k, (p, track) in enumerate(zip(points, tracks, strict=True))
            if len(track) > 1
        )
    )


def _look_at(center: Array) -> tuple[Array, Array]:
    forward = -center / np.linalg.norm(center)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ center


def _texture(rng: np.random.Generator) -> NDArray[np.float32]:
    noise = sum(
        cv2.GaussianBlur(rng.normal(0, 1, (900, 900)).astype(np.float32), (0, 0), s) * s for s in (1.5, 3, 6, 12)
    )
    return np.clip(128 + 90 * noise, 0, 255).astype(np.float32)


def _render(K: Array, R: Array, t: Array, walls: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Two walls z = |x| seen from inside, each with its own texture."""
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T @ R
    center = -R.T @ t
    image = np.zeros(u.shape, np.float32)
    for sign, texture in zip((-1.0, 1.0), walls, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (center[0] * sign - center[2] + 2.0) / (rays[..., 2] - sign * rays[..., 0])
        hit = center + rays * depth[..., None]
        good = (depth > 0) & (hit[..., 0] * sign >= 0)
        maps = [(coordinate * 120 + 450).astype(np.float32) for coordinate in (hit[..., 0] * 1.2, hit[..., 1])]
        image = np.where(good, cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), image)
    return image.clip(0, 255).astype(np.uint8)


def _points(rng: np.random.Generator) -> Array:
    x = rng.uniform(-3, 3, 400)
    return np.column_stack([x, rng.uniform(-2, 2, 400), np.abs(x) + 2.0])


def _quaternion(R: Array) -> Array:
    vector, _ = cv2.Rodrigues(R)
    angle = float(np.linalg.norm(vector))
    axis = vector.ravel() / max(angle, 1e-12)
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * axis])
