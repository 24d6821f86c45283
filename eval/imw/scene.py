"""Scenes in the layout of the IMW benchmark, read as they are.

A scene folder holds, directly or in ``set_100``: ``images.txt``, ``images/``, ``calibration/calibration_<name>.h5``,
``new-vis-pairs/keys-th-<T>.npy``, and optionally ``visibility/``, ``sub_set/`` and ``depth_maps/``. Poses are world to
camera, pixel centres lie at integers.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.arrays import read_npy
from common.h5files import read_h5
from common.images import folders_in, is_picture, pictures_in, read_gray
from eval.core.pairs import Pair
from eval.imw.official import DATASETS, TEST_SCENES
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import read_object, read_text, sha256_file

THRESHOLDS = tuple(f"{step / 10:.1f}" for step in range(10))
# Co-visibility of the pairs that the headline numbers are about.
HEADLINE = "0.1"
# More common points than this make a pair of the multiview task.
VISIBILITY_THRESHOLD, VISIBILITY_THRESHOLDS = 100, {"googleurban": 1}
_ROTATION_TOLERANCE = 1e-3  # of the entries of R Rᵀ
# Images that the benchmark wanted to drop, but never does, by (dataset, scene).
DEPRECATED = {
    ("phototourism", "london_bridge"): frozenset(
        ("21416139_3508932720", "61662402_4816310161", "92273298_5039274514", "50666539_5168136646")
    )
}


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
        dropped: images whose pairs and bags are left out.
    """

    name: str
    root: Path
    images: dict[str, Path]
    dropped: frozenset[str] = field(default=frozenset())

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
        pairs = [self._split(key, path) for key in read_keys(path)]
        if len(set(pairs)) < len(pairs):
            raise DataError(f"{path} lists a pair twice")
        return [pair for pair in pairs if self.dropped.isdisjoint(pair)]

    @cached_property
    def bags(self) -> dict[int, dict[str, list[str]]]:
        """Image names of every bag of the multiview task, by size and name (``5bag_000``); {} without ``sub_set``."""
        by_size: dict[int, dict[str, list[str]]] = {}
        for path in sorted((self.root / "sub_set").glob("*bag_*.txt")):
            matched = re.fullmatch(r"(\d+)bag_\d+", path.stem)
            if matched is None:
                continue
            size = int(matched[1])
            names = [Path(line).stem for line in read_lines(path)]
            unknown = next((name for name in names if name not in self.images), None)
            if unknown is not None:
                raise DataError(f"{path} names the image {unknown!r}, which is not in the scene")
            if len(names) != size or len(set(names)) != size or size < 2:
                raise DataError(f"{path}: expected {size} different images, got {len(names)}: {', '.join(names[:5])} …")
            if self.dropped.isdisjoint(names):
                by_size.setdefault(size, {})[path.stem] = names
        return dict(sorted(by_size.items()))

    @cached_property
    def visibility(self) -> NDArray[np.float32] | None:
        """(N, N) common points of image i (row) and image j; counts may stand on one side alone. None without files."""
        if not (self.root / "visibility").is_dir():
            return None
        files = self._listed("visibility", "{}.txt")
        missing = [path for path in files.values() if not path.is_file()]
        if missing:
            raise MissingFileError(f"scene {self.name}: {len(missing)} visibility files are not there: {missing[0]} …")
        rows = []
        for path in files.values():
            try:
                row = np.array(read_text(path).split(), np.float32)
            except ValueError:
                raise DataError(f"{path} holds something that is not a number") from None
            # -1: of an image with itself
            if len(row) != len(self.images) or not np.isfinite(row).all() or (row < -1).any():
                raise DataError(f"{path}: {len(row)} counts for {len(self.images)} images, or some are no counts")
            rows.append(row)
        return np.stack(rows)

    @cached_property
    def visibility_threshold(self) -> float:
        """More common points than this make a pair of the multiview task."""
        about = self.root / "scene.json"
        if about.is_file():
            value = read_object(about).get("visibility_threshold")
            if not isinstance(value, (int, float)):
                raise DataError(f"{about}: visibility_threshold must be a number, got {value!r}")
            return float(value)
        return VISIBILITY_THRESHOLDS.get(self.dataset, VISIBILITY_THRESHOLD)

    @cached_property
    def depth_maps(self) -> dict[str, Path]:
        """The depth maps that are there, by image name."""
        if not (self.root / "depth_maps").is_dir():
            return {}
        return {name: path for name, path in self._listed("depth_maps", "{}.h5").items() if path.is_file()}

    def depth(self, name: str) -> NDArray[np.float32]:
        """Depth map (H, W) of an image, in the units of the poses; 0 where there is none."""
        return read_depth(self.depth_maps[name])

    def left_out(self) -> dict[str, str]:
        """What cannot be judged here, and why: ``stereo``, ``multiview``, ``depth``."""
        missing = {}
        if HEADLINE not in self.thresholds:
            missing["stereo"] = f"no list of pairs of co-visibility {HEADLINE} (new-vis-pairs/keys-th-{HEADLINE}.npy)"
        if not self.bags:
            missing["multiview"] = "no bags (sub_set/*bag_*.txt)"
        elif self.visibility is None:
            missing["multiview"] = "no visibility files (visibility/*.txt)"
        if not self.depth_maps:
            missing["depth"] = "no depth maps: no repeatability, no matching score"
        elif len(self.depth_maps) < len(self.images):
            missing["depth"] = f"{len(self.images) - len(self.depth_maps)} images have no depth map: nor do their pairs"
        return missing

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
        for bags in self.bags.values():
            digest.update("\0".join(f"{name} {' '.join(images)}" for name, images in bags.items()).encode())
        if self.visibility is not None:
            digest.update(f"{self.visibility_threshold}".encode() + self.visibility.tobytes())
        for name in self.depth_maps:
            digest.update(f"{name} {self.depth_hashes[name]}".encode())
        return digest.hexdigest()

    @cached_property
    def depth_hashes(self) -> dict[str, str]:
        """SHA-256 of every depth map, by image name."""
        return {name: sha256_file(path) for name, path in self.depth_maps.items()}

    def _listed(self, what: str, pattern: str) -> dict[str, Path]:
        """Files of a kind by image name: as the list file has them, in the order of ``images.txt``, or by name."""
        listed = self.root / f"{what}.txt"
        if not listed.is_file():
            return {name: self.root / what / pattern.format(name) for name in self.images}
        files = [self.root / line for line in read_lines(listed)]
        if len(files) != len(self.images):
            raise DataError(f"{listed}: {len(files)} files for {len(self.images)} images")
        return dict(zip(self.images, files, strict=True))

    def _split(self, key: str, path: Path) -> Pair:
        first, _, second = key.partition("-")
        if "-" in second or first <= second:
            raise DataError(f"{path}: {key!r} is not <name1>-<name2> with the larger name first")
        for name in (first, second):
            if name not in self.images:
                raise DataError(f"{path}: {key!r} names the image {name!r}, which is not in the scene")
        return first, second


def without_deprecated(scene: Scene, deprecated: Mapping[tuple[str, str], frozenset[str]] = DEPRECATED) -> Scene:
    """The scene without the pairs and bags of deprecated images, names compared as a whole."""
    return replace(scene, dropped=deprecated.get((scene.dataset, scene.name), frozenset()))


def read_lines(path: Path) -> list[str]:
    """The entries of a list file; blank lines are none."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def pair_key(pair: Pair) -> str:
    """``name1-name2``, the key of a pair in every file of the benchmark."""
    return f"{pair[0]}-{pair[1]}"


def all_pairs(names: list[str]) -> list[Pair]:
    """Every pair of the names, larger name first, in the order of the names."""
    return [(max(a, b), min(a, b)) for a, b in itertools.combinations(names, 2)]


def camera_hash(pairs: Sequence[Pair], cameras: Mapping[str, Camera]) -> str:
    """Hex SHA-256 over pairs and their calibrations."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair_key(pair).encode())
        for camera in (cameras[name] for name in pair):
            digest.update(np.concatenate([camera.K.ravel(), camera.R.ravel(), camera.t]).tobytes())
    return digest.hexdigest()


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
        roots = [folder for folder in folders if _scene_root(folder) is not None]
        if roots:
            scenes = [open_scene(folder) for folder in roots]
            twice = [name for name, count in Counter(scene.name for scene in scenes).items() if count > 1]
            if twice:
                raise DataError(f"{path} holds several scenes called {twice[0]!r}: choose a folder below it")
            return scenes
    raise DataError(
        f"{path} holds no scene: expected images/, calibration/ and new-vis-pairs/, in it or in set_100{_hint(path)}"
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
    files = [root / line for line in read_lines(listed)] if listed.is_file() else pictures_in(root / "images")
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


def is_scene(path: Path) -> bool:
    """Whether a folder holds a scene with calibrations, in it or in ``set_<number>``."""
    return _scene_root(path) is not None


def read_calibration(path: Path) -> Camera:
    """Read K, R and T of a calibration file.

    Raises:
        DataError: a damaged file, a missing or misshapen dataset; see :func:`checked_camera`.
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
    return checked_camera(arrays["K"], arrays["R"], arrays["T"], str(path))


def checked_camera(K: NDArray[np.float64], R: NDArray[np.float64], t: NDArray[np.float64], where: str) -> Camera:
    """A camera of K (3, 3), R (3, 3) and t (3,) that were read.

    Raises:
        DataError: a value that is not finite, a K that is no calibration, an R that is no rotation; begins with
            ``where``.
    """
    for name, values in (("K", K), ("R", R), ("T", t)):
        if not np.isfinite(values).all():
            raise DataError(f"{where}: {name} holds a value that is not finite")
    if min(K[0, 0], K[1, 1]) <= 0:
        raise DataError(f"{where}: K has a focal length that is not positive")
    if K[1, 0] != 0 or (K[2] != (0, 0, 1)).any():
        raise DataError(f"{where}: K is no calibration: expected [f, s, cx], [0, f, cy], [0, 0, 1]")
    if not (np.abs(R) < 2).all() or np.abs(R @ R.T - np.eye(3)).max() > _ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise DataError(f"{where}: R is no rotation")
    return Camera(K, R, t)


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth map (H, W); 0 where there is no depth.

    Raises:
        DataError: a damaged file, no dataset ``depth``, or one that is not a matrix.
    """
    depth = read_h5(path, ("depth",))[0]["depth"]
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "fiu":
        raise DataError(f"{path}: depth is {depth.dtype} of shape {depth.shape}, expected numbers (height, width)")
    return known_depth(np.asarray(depth, np.float32))


def known_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map with 0, which means unknown, for what is no positive number."""
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def read_keys(path: Path) -> list[str]:
    """Read a list of pair keys: a numpy array of unicode strings; nothing is unpickled."""
    keys = read_npy(path)
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


def _hint(path: Path) -> str:
    """What a folder that is no scene may be, and what to do with it."""
    folders = [path, *path.glob("*"), *path.glob("*/*")]
    if any((folder / f"cameras{suffix}").is_file() for folder in folders for suffix in (".bin", ".txt")):
        return "; it holds a COLMAP model: make a scene of it with `python -m eval imw-scene`"
    if any((folder / "H_1_2").is_file() for folder in folders):
        return "; it holds homography sequences: judge them with `python -m eval sequences`"
    if any(is_picture(file) for file in folders):
        return "; it holds images without calibration, which only `python -m eval imw-submit` can use"
    return ""


# The official code takes these alone.
SUFFIXES = (".png", ".jpg")


@dataclass(frozen=True)
class RawScene:
    """One scene: its dataset, its name, and its images by name in sorted order."""

    dataset: str
    name: str
    images: dict[str, Path]

    @property
    def where(self) -> str:
        """``DATASET/SCENE``."""
        return f"{self.dataset}/{self.name}"


def find_raw_scenes(root: Path) -> list[RawScene]:
    """The scenes below a folder, in the order of the datasets and of the names.

    Raises:
        MissingFileError: no such folder.
        DataError: no scene of an official dataset, fewer than two images, or a name that pair keys cannot hold.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"folder {root} is not there")
    scenes = []
    for dataset in TEST_SCENES:
        folder = root / dataset
        scenes += [open_raw_scene(dataset, scene) for scene in (folders_in(folder) if folder.is_dir() else [])]
    if not scenes:
        raise DataError(f"{root} holds no DATASET/SCENE folder with images; DATASET is one of {', '.join(TEST_SCENES)}")
    return scenes


def open_raw_scene(dataset: str, folder: Path) -> RawScene:
    """One scene: a folder of images, or a full scene with its calibration."""
    if is_scene(folder):
        images = open_scene(folder).images
    else:
        files = [path for path in pictures_in(folder) if path.suffix.lower() in SUFFIXES]
        images = {file.stem: file for file in files}
        if len(images) < len(files):
            raise DataError(f"scene {folder}: two images have one name without suffix")
    if len(images) < 2:
        raise DataError(f"scene {folder} has {len(images)} image(s) ({', '.join(SUFFIXES)}), at least 2 are needed")
    for name in images:
        if "-" in name:
            raise DataError(f"scene {folder}: the image name {name!r} holds '-', at which pair keys are split")
    return RawScene(dataset, folder.name, dict(sorted(images.items())))
