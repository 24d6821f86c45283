"""Scenes in the layout of the IMW benchmark, read as they are.

A scene folder holds, directly or in ``set_100``: ``images.txt``, ``images/``, ``calibration/calibration_<name>.h5``,
``new-vis-pairs/keys-th-<T>.npy``, and optionally ``visibility/`` and ``sub_set/``. Poses are world to camera, pixel
centres lie at integers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.h5files import read_h5
from eval.images import SUFFIXES, read_gray
from kornia_hardnet8._files import sha256_file
from kornia_hardnet8.errors import DataError, MissingFileError

THRESHOLDS = tuple(f"{step / 10:.1f}" for step in range(10))
DATASETS = ("phototourism", "pragueparks", "googleurban")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Camera:
    """Calibration of one image: x ~ K (R X + t), pixel centres at integers."""

    K: NDArray[np.float64]
    R: NDArray[np.float64]
    t: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        name: folder name of the scene.
        root: the folder that holds ``images/``.
        images: path of every image by its name (base name without suffix), in the order of ``images.txt``.
    """

    name: str
    root: Path
    images: dict[str, Path]

    @property
    def dataset(self) -> str:
        """Official dataset that the scene lies in, by its parent folder; else ``custom``."""
        parent = _scene_folder(self.root).parent.name
        return parent if parent in DATASETS else "custom"

    def gray(self, name: str) -> NDArray[np.uint8]:
        """The image (H, W) in gray."""
        return read_gray(self.images[name])

    @cached_property
    def cameras(self) -> dict[str, Camera]:
        """Calibration of every image, by name."""
        files = {name: self.root / "calibration" / f"calibration_{name}.h5" for name in self.images}
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise MissingFileError(f"scene {self.name}: {len(missing)} images have no calibration: {missing[0]} …")
        return {name: read_calibration(path) for name, path in files.items()}

    def pairs(self, threshold: str = "0.0") -> list[Pair]:
        """Pairs of names, larger name first, whose co-visibility is at least ``threshold`` ("0.0" … "0.9")."""
        path = self.root / "new-vis-pairs" / f"keys-th-{threshold}.npy"
        if not path.is_file():
            raise MissingFileError(f"scene {self.name}: the list of pairs {path} is not there")
        return [self._split(key, path) for key in read_keys(path)]

    @cached_property
    def thresholds(self) -> list[str]:
        """The co-visibility thresholds whose lists of pairs are there."""
        folder = self.root / "new-vis-pairs"
        return [t for t in THRESHOLDS if (folder / f"keys-th-{t}.npy").is_file()]

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        """SHA-256 of every image file, by name."""
        return {name: sha256_file(path) for name, path in self.images.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, image files, calibrations and lists of pairs: what results of this scene depend on."""
        digest = hashlib.sha256()
        for name, camera in self.cameras.items():
            digest.update(f"{name}\0{self.image_hashes[name]}\0".encode())
            for values in (camera.K, camera.R, camera.t):
                digest.update(np.ascontiguousarray(values, np.float64).tobytes())
        for threshold in self.thresholds:
            digest.update("\0".join([threshold, *map(pair_key, self.pairs(threshold))]).encode())
        return digest.hexdigest()

    def _split(self, key: str, path: Path) -> Pair:
        first, _, second = key.partition("-")
        if "-" in second or first <= second:
            raise DataError(f"{path}: {key!r} is not <name1>-<name2> with the larger name first")
        for name in (first, second):
            if name not in self.images:
                raise DataError(f"{path}: {key!r} names the image {name!r}, which is not in the scene")
        return first, second


def pair_key(pair: Pair) -> str:
    """``name1-name2``, the key of a pair in every file of the benchmark."""
    return f"{pair[0]}-{pair[1]}"


def all_pairs(names: list[str]) -> list[Pair]:
    """Every pair of the names, larger name first, in the order of the names."""
    return [(max(a, b), min(a, b)) for a, b in itertools.combinations(names, 2)]


def find_scenes(path: Path) -> list[Scene]:
    """The scene at ``path``, or all scenes one or two folders below it, sorted.

    Raises:
        MissingFileError: no such folder.
        DataError: no scene, or a scene that is not complete.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"folder {path} is not there")
    for folders in ([path], sorted(path.glob("*")), sorted(path.glob("*/*"))):
        found = [folder for folder in folders if _scene_root(folder) is not None]
        if found:
            scenes = [open_scene(folder) for folder in found]
            twice = [name for name, count in Counter(scene.name for scene in scenes).items() if count > 1]
            if twice:
                raise DataError(f"{path} holds several scenes called {twice[0]!r}: choose a folder below it")
            return scenes
    hint = "; it holds a COLMAP model: make a scene of it with `python -m eval imw-scene`" if _is_colmap(path) else ""
    raise DataError(
        f"{path} holds no scene: expected images/, calibration/ and new-vis-pairs/, in it or in set_100{hint}"
    )


def open_scene(path: Path) -> Scene:
    """Open one scene folder; images and calibrations are read when asked for.

    Raises:
        DataError: no scene, fewer than two images, or a name that holds ``-`` (pair keys are split there).
        MissingFileError: an image of the list that is not there.
    """
    root = _scene_root(path)
    if root is None:
        raise DataError(f"{path} is not a scene: expected images/ and calibration/, in it or in set_100")
    listed = root / "images.txt"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        files = [root / line.strip() for line in lines if line.strip()]
    else:
        files = sorted(p for p in (root / "images").iterdir() if p.suffix.lower() in SUFFIXES)
    images: dict[str, Path] = {}
    for file in files:
        if "-" in file.stem:
            raise DataError(f"scene {path}: the image name {file.stem!r} holds '-', at which pair keys are split")
        if file.stem in images:
            raise DataError(f"scene {path}: two images are called {file.stem!r}")
        images[file.stem] = file
    if len(images) < 2:
        raise DataError(f"scene {path} has {len(images)} image(s), at least 2 are needed")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise MissingFileError(f"scene {path}: {len(missing)} of {len(files)} images are not there: {missing[0]} …")
    return Scene(_scene_folder(root).name, root, images)


def read_calibration(path: Path) -> Camera:
    """Read K, R and T of a calibration file.

    Raises:
        DataError: a damaged file, a missing or misshapen dataset, a value that is not finite.
    """
    raw, _ = read_h5(path, ("K", "R", "T"))
    try:
        arrays = {key: np.asarray(values, np.float64) for key, values in raw.items()}
    except (TypeError, ValueError):
        raise DataError(f"{path}: K, R and T must be numbers") from None
    shapes = {"K": (3, 3), "R": (3, 3), "T": (3,)}
    arrays["T"] = arrays["T"].reshape(-1)
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise DataError(f"{path}: {key} has shape {arrays[key].shape}, expected {shape}")
        if not np.isfinite(arrays[key]).all():
            raise DataError(f"{path}: {key} holds a value that is not finite")
    if min(arrays["K"][0, 0], arrays["K"][1, 1]) <= 0:
        raise DataError(f"{path}: K has a focal length that is not positive")
    return Camera(arrays["K"], arrays["R"], arrays["T"])


def read_keys(path: Path) -> list[str]:
    """Read a list of pair keys: a numpy array of unicode strings; nothing is unpickled."""
    try:
        keys = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable numpy array of strings: {error}") from None
    if keys.ndim != 1 or (keys.size and keys.dtype.kind not in "US"):
        raise DataError(f"{path}: expected a list of strings, got {keys.dtype} of shape {keys.shape}")
    return [k.decode() if isinstance(k, bytes) else str(k) for k in keys.tolist()]


def _scene_root(path: Path) -> Path | None:
    """The folder of a scene that holds ``images``: itself, or its ``set_<number>``."""
    for root in (path, path / "set_100", *sorted(path.glob("set_*"))):
        if (root / "calibration").is_dir() and ((root / "images.txt").is_file() or (root / "images").is_dir()):
            return root
    return None


def _scene_folder(root: Path) -> Path:
    """The folder that names the scene: ``root``, or the one around ``set_<number>``."""
    root = root.resolve()
    return root.parent if root.name.startswith("set_") else root


def _is_colmap(path: Path) -> bool:
    folders = [path, *path.glob("*"), *path.glob("*/*")]
    return any((folder / f"cameras{suffix}").is_file() for folder in folders for suffix in (".bin", ".txt"))
