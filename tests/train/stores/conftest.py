"""A rendered plane seen by three cameras, as a COLMAP model with images and keypoint scales."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from tests.training_vectors import load_vectors

WIDTH, HEIGHT = 320, 240


@dataclass(frozen=True)
class Scene:
    """Where the files are, and what is true: similarities from the plane to the images, points with frames."""

    images: Path
    model: Path
    features: Path
    names: list[str]
    similarities: list[np.ndarray]
    xy: np.ndarray
    sigma: np.ndarray
    angle: np.ndarray
    observed: list[np.ndarray]


def texture(height: int = 480, width: int = 640, seed: int = 0, finest: float = 2.0) -> np.ndarray:
    """Smooth random texture with detail at several scales, float32 20 ... 235."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for sigma in (finest, 2 * finest, 4 * finest, 10 * finest):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
        image += noise / noise.std()
    image = (image - image.min()) / (image.max() - image.min())
    return 20 + 215 * image


def similarity(scale: float, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Map ``centre`` of the plane to the middle of an image, turned clockwise on the screen."""
    a = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    shift = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) - linear @ centre
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def write_model(folder: Path, names: list[str], observations: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write a classic binary COLMAP model; an observation is (corner-origin xy, point ids with -1 for none)."""
    folder.mkdir(parents=True)
    with open(folder / "cameras.bin", "wb") as file:
        file.write(struct.pack("<Q", 1))
        file.write(struct.pack("<iiQQ3d", 1, 0, WIDTH, HEIGHT, 300.0, WIDTH / 2, HEIGHT / 2))
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for index, (name, (xy, ids)) in enumerate(zip(names, observations, strict=True), 1):
            file.write(struct.pack("<i7di", index, 1, 0, 0, 0, 0, 0, 5, 1) + name.encode() + b"\0")
            file.write(struct.pack("<Q", len(xy)))
            for (x, y), point in zip(xy, ids, strict=True):
                file.write(struct.pack("<ddq", x, y, point))
    points: dict[int, list[tuple[int, int]]] = {}
    for index, (_, ids) in enumerate(observations, 1):
        for row, point in enumerate(ids):
            if point >= 0:
                points.setdefault(int(point), []).append((index, row))
    with open(folder / "points3D.bin", "wb") as file:
        file.write(struct.pack("<Q", len(points)))
        for point, track in points.items():
            file.write(struct.pack("<Qddd3Bd", point, 0.0, 0.0, 0.0, 1, 1, 1, 0.5))
            file.write(struct.pack("<Q", len(track)) + b"".join(struct.pack("<ii", *element) for element in track))


def make_scene(folder: Path, seed: int = 0, finest: float = 2.0) -> Scene:
    """Three similarity views of one textured plane; every point with a frame well inside two views or more."""
    rng = np.random.default_rng(seed)
    plane = texture(seed=seed, finest=finest)
    similarities = [similarity(1.0, 0, (320, 240)), similarity(1.3, 70, (330, 235)), similarity(0.8, -130, (310, 250))]
    names = ["b/first.png", "a second.png", "c.png"]
    images = folder / "images"
    for name, matrix in zip(names, similarities, strict=True):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        large = cv2.warpPerspective(plane, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
        cv2.imwrite(str(images / name), np.clip(np.rint(large), 0, 255).astype(np.uint8))
    gray = cv2.imread(str(images / names[0]), cv2.IMREAD_GRAYSCALE)
    found = [k for k in cv2.SIFT_create(enable_precise_upscale=True).detect(gray) if k.size / 2 < 5]
    places = {k.pt: k for k in sorted(found, key=lambda k: k.response)}  # one direction a place
    found = sorted(places.values(), key=lambda k: -k.response)[:60]
    back = np.linalg.inv(similarities[0])
    xy = np.array([(back @ [*k.pt, 1])[:2] for k in found])
    sigma = np.array([k.size / 2 for k in found])
    angle = np.deg2rad([k.angle for k in found])
    observations, observed = [], []
    with h5py.File(folder / "features.h5", "w") as file:
        for name, matrix in zip(names, similarities, strict=True):
            there = xy @ matrix[:2, :2].T + matrix[:2, 2]
            inside = np.flatnonzero(((there > 1) & (there < [WIDTH - 2, HEIGHT - 2])).all(axis=1))
            rows = rng.permutation(inside)
            scale = np.sqrt(np.linalg.det(matrix[:2, :2]))
            turn = np.arctan2(matrix[1, 0], matrix[0, 0])
            stray = np.array([[5.5, 6.5]])  # a keypoint of no 3-D point
            corner = np.concatenate([there[rows], stray]) + 0.5
            observations.append((corner, np.append(100 + 7 * rows, -1)))
            observed.append(rows)
            table = np.column_stack([corner, np.append(sigma[rows] * scale, 3.0), np.append(angle[rows] + turn, 0.0)])
            file[name] = table.astype(np.float32)
    write_model(folder / "sparse", names, observations)
    return Scene(images, folder / "sparse", folder / "features.h5", names, similarities, xy, sigma, angle, observed)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"))


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixel correlation of patches (n, S, S) pair by pair."""
    x = a.reshape(len(a), -1).astype(float)
    y = b.reshape(len(b), -1).astype(float)
    x -= x.mean(axis=1, keepdims=True)
    y -= y.mean(axis=1, keepdims=True)
    return (x * y).sum(axis=1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1e-9)


@pytest.fixture(scope="session")
def correlate():
    return correlation


@pytest.fixture(scope="session")
def textures():
    return texture


@pytest.fixture(scope="session")
def scene_factory():
    return make_scene


class Vectors:
    """Cases of ``vectors_training.json`` by name, and the images and arrays they speak of."""

    def __init__(self) -> None:
        self._cases = load_vectors()

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._cases if name.startswith(prefix)]

    def __getitem__(self, name: str) -> dict:
        return self._cases[name]

    @staticmethod
    def image(height: int, width: int) -> np.ndarray:
        """``img(h, w)`` of the notes."""
        y, x = np.mgrid[0:height, 0:width].astype(float)
        value = 120 + 50 * np.sin(x / 9) * np.cos(y / 7)
        value += 40 * np.exp(-((x - width / 3) ** 2 + (y - height / 2) ** 2) / 128)
        value -= 45 * np.exp(-((x - 2 * width / 3) ** 2 + (y - height / 3) ** 2) / 50)
        return np.clip(np.rint(value), 0, 255).astype(np.uint8)

    @staticmethod
    def array(packed: dict) -> np.ndarray:
        data = np.frombuffer(base64.b64decode(packed["base64"]), np.dtype(packed["dtype"]))
        return data.reshape(packed["shape"])


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    return Vectors()
