"""COLMAP models, binary or text, read by their own counts and checked as a whole.

COLMAP's reader believes a file: a damaged one gives other cameras, or takes all memory. Only what every version writes
is read (cameras, images, points3D; of a rig, each image's own pose stands in images), so models of all versions do.
"""

from __future__ import annotations

import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.images import image_size
from kornia_hardnet8.errors import DataError, MissingFileError, need

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FILES = ("cameras", "images", "points3D")
_MOST_PIXELS_A_SIDE = 1 << 20
# A lens outside these, in long sides of the image, is a damaged number. COLMAP itself gives photographs of tourists
# lenses of ten thousands of long sides, nearly parallel rays, with a distortion to match.
_FOCAL_LENGTHS = (0.01, 1e6)
# By which a quaternion's length may miss 1: files of few digits do.
_UNIT = 0.01
# What positions in space and in images stay below; how many image sides a principal point may lie off the
# middle: a small crop is far from it.
_FARTHEST, _FARTHEST_CENTRE = 1e15, 100.0
# Numbers of cameras and images have 32 bits in COLMAP.
_MOST_NUMBERS = 1 << 32
_POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("id", "<u8")])
_TRACK = np.dtype([("image", "<u4"), ("row", "<u4")])


class _Image(NamedTuple):
    """One image as its file has it: quaternion (w, x, y, z), ids of points -1 where there is none."""

    name: str
    camera_id: int
    quaternion: Floats
    translation: Floats
    xy: Floats
    point_ids: Ints


class _Tables(NamedTuple):
    cameras: dict[int, tuple[str, int, int, Floats]]
    images: dict[int, _Image]
    point_ids: Ints
    xyz: Floats
    tracks: Ints
    """(n, 2): image, row of it, of all tracks."""


@dataclass(frozen=True)
class ModelImage:
    """One registered image.

    Attributes:
        name: path below the folder of the images, with ``/``.
        camera: pycolmap's; its pixels have their origin at the corner.
        R, t: world to camera, (3, 3) and (3,).
        xy: (n, 2) its keypoints, origin at the corner of the first pixel.
        point_ids: (n,) the 3-D point of each; -1: none.
    """

    name: str
    camera: Any
    R: Floats
    t: Floats
    xy: Floats
    point_ids: Ints

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.camera.width), int(self.camera.height)


@dataclass(frozen=True)
class SparseModel:
    """A model: its images by name, its points by id, (n,) and (n, 3)."""

    images: list[ModelImage]
    point_ids: Ints
    xyz: Floats


def load_pycolmap() -> Any:
    """pycolmap, silent, since what it cannot do is said by our own errors; SIGTERM stays what it was.

    The logging library inside answers SIGTERM with a stack trace of C++ and the end of the process, behind Python's
    back, from the moment of the import.
    """
    is_first = "pycolmap" not in sys.modules and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_first else None
    need("PIL.Image", "eval,train")  # loaded after pycolmap, Pillow ends the process when it saves a PNG
    pycolmap = need("pycolmap", "eval,train")
    pycolmap.logging.minloglevel = 3
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)
    return pycolmap


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in FILES) for suffix in (".bin", ".txt"))


def read_model(folder: Path) -> SparseModel:
    """Read a model.

    Raises:
        MissingFileError: no such folder.
        DataError: no model; files that are cut short or contradict their counts or each other; numbers that are not
            finite, a rotation or a lens that is none; an image listed twice; a camera of an unknown kind.
    """
    if not folder.is_dir():
        raise MissingFileError(f"model folder {folder} is not there")
    if not is_model(folder):
        raise DataError(f"{folder} holds no COLMAP model: expected {', '.join(FILES)} as .bin or .txt")
    binary = all((folder / f"{name}.bin").is_file() for name in FILES)
    tables = _read_binary(folder) if binary else _read_text(folder)
    _check(tables, folder)
    return _model(tables)


def check_written(folder: Path, target: Path) -> None:
    """Raise a DataError that names ``target`` where COLMAP wrote a binary model in part: it notices no full disk."""
    try:
        _read_binary(folder)
    except (DataError, OSError):
        raise DataError(f"cannot write {target} (is the disk full?): COLMAP left files that are cut short") from None


def open_model(folder: Path, images: Path) -> SparseModel:
    """Read a model whose images are there, of the sizes of their cameras.

    Raises:
        MissingFileError: a folder or an image is not there.
        DataError: see :func:`read_model`; fewer than two images; an image that does not read or is of another size.
    """
    if not images.is_dir():
        raise MissingFileError(f"image folder {images} is not there")
    model = read_model(folder)
    names = [image.name for image in model.images]
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingFileError(f"images of the model {folder} are not in {images}: {', '.join(missing[:3])}{more}")
    if len(names) < 2:
        raise DataError(f"the COLMAP model {folder} has {len(names)} registered image(s), at least 2 are needed")
    for image in model.images:
        size = image_size(images / image.name)
        if size != image.size:
            raise DataError(
                f"{images / image.name} is {size[0]} x {size[1]} pixels, the model says {image.size[0]} x "
                f"{image.size[1]}: it belongs to images of another size"
            )
    return model


def is_distorted(camera: Any) -> bool:
    """Whether a COLMAP camera is no pinhole: a fisheye is none whatever its parameters are."""
    return not camera.is_undistorted() or "FISHEYE" in camera.model_name


# --- binary ----------------------------------------------------------------------------------------------------------


class _Walk:
    """A file that is read from front to back and holds neither less nor more than its counts say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.place = 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of a :mod:`struct` form, little-endian."""
        return struct.unpack_from(f"<{form}", self.content, self._step(struct.calcsize(f"<{form}")))

    def rows(self, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """The next ``count`` rows."""
        return (
            np.frombuffer(self.content, kind, count, self._step(count * kind.itemsize)) if count else np.empty(0, kind)
        )

    def text(self) -> bytes:
        """The next bytes up to a zero."""
        end = self.content.find(b"\0", self.place)
        if end < 0:
            raise self.cut_short()
        start, self.place = self.place, end + 1
        return self.content[start:end]

    def counted(self) -> Iterator[int]:
        """The numbers of as many entries as the next count says; after the last one, the file must be at its end."""
        (count,) = self.take("Q")
        if count > len(self.content):
            raise self.cut_short()
        yield from range(count)
        if self.place != len(self.content):
            raise DataError(f"{self.path} holds {len(self.content) - self.place} bytes more than its counts say")

    def cut_short(self) -> DataError:
        """The error of a file that ends too early."""
        return DataError(f"{self.path} is damaged or cut short: it ends before what its counts say")

    def _step(self, length: int) -> int:
        if self.place + length > len(self.content):
            raise self.cut_short()
        start, self.place = self.place, self.place + length
        return start


def _read_binary(folder: Path) -> _Tables:
    paths = [folder / f"{name}.bin" for name in FILES]
    kinds = _kinds_by_number()
    cameras: dict[int, tuple[str, int, int, Floats]] = {}
    walk = _Walk(paths[0])
    for _ in walk.counted():
        camera_id, number, width, height = walk.take("IiQQ")
        if number not in kinds:
            raise DataError(f"{walk.path}: camera {camera_id} is of the unknown kind {number}")
        params = np.array(walk.take(f"{kinds[number][1]}d"), np.float64)
        _enter(cameras, camera_id, (kinds[number][0], width, height, params), walk.path, "camera")
    images: dict[int, _Image] = {}
    walk = _Walk(paths[1])
    for _ in walk.counted():
        image_id, *pose, camera_id = walk.take("I7dI")
        name = _name(walk.text(), walk.path)
        rows = walk.rows(walk.take("Q")[0], _POINT)
        xy = np.column_stack([rows["x"], rows["y"]])
        image = _Image(name, camera_id, np.array(pose[:4]), np.array(pose[4:]), xy, rows["id"].astype(np.int64))
        _enter(images, image_id, image, walk.path, "image")
    ids, xyz, tracks = [], [], [np.empty(0, _TRACK)]
    walk = _Walk(paths[2])
    for _ in walk.counted():
        point_id, x, y, z, _red, _green, _blue, _error, length = walk.take("Q3d3BdQ")
        ids.append(point_id)
        xyz.append((x, y, z))
        tracks.append(walk.rows(length, _TRACK))
    track = np.concatenate(tracks)
    pairs = np.column_stack([track["image"], track["row"]]).astype(np.int64)
    return _Tables(cameras, images, _numbers(ids, np.uint64, paths[2]).astype(np.int64), _positions(xyz), pairs)


# --- text ------------------------------------------------------------------------------------------------------------


def _read_text(folder: Path) -> _Tables:
    paths = [folder / f"{name}.txt" for name in FILES]
    lengths = dict(_kinds_by_number().values())
    cameras: dict[int, tuple[str, int, int, Floats]] = {}
    for where, line in _entries(paths[0]):
        with_form = "camera, kind, width, height and its parameters"
        camera_id, kind, width, height, *params = _fields(line, where, with_form, (int, str, int, int), float)
        if len(params) != lengths.get(kind, -1):
            expected = f"{lengths[kind]} parameters, got {len(params)}" if kind in lengths else "a kind that is known"
            raise DataError(f"{where}: camera {camera_id} is {kind}: expected {expected}")
        _enter(cameras, camera_id, (kind, width, height, np.array(params, np.float64)), where, "camera")
    images: dict[int, _Image] = {}
    lines = _entries(paths[1], blank=True)
    for where, line in lines:
        if not line.strip():
            continue
        form = "image, quaternion, translation, camera and name"
        head, name = line.split(None, 9)[:9], line.split(None, 9)[9:]
        if not name:
            raise DataError(f"{where}: expected {form}")
        image_id, *pose, camera_id = _fields(" ".join(head), where, form, (int, *[float] * 7, int))
        xy, point_ids = _keypoints(*next(lines, (where, "")), name[0].strip())
        image = _Image(name[0].strip(), camera_id, np.array(pose[:4]), np.array(pose[4:]), xy, point_ids)
        _enter(images, image_id, image, where, "image")
    ids, xyz, tracks = [], [], []
    for where, line in _entries(paths[2]):
        form = "point, x, y, z, three colours, an error and its track"
        (
            point_id,
            x,
            y,
            z,
            *_,
        ) = fields = _fields(line, where, form, (int, *[float] * 3, *[int] * 3, float), int)
        if len(fields) % 2:
            raise DataError(f"{where}: expected pairs of image and keypoint as the track of point {point_id}")
        ids.append(point_id)
        xyz.append((x, y, z))
        tracks += fields[8:]
    pairs = _numbers(tracks, np.int64, paths[2]).reshape(-1, 2)
    return _Tables(cameras, images, _numbers(ids, np.int64, paths[2]), _positions(xyz), pairs)


def _entries(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Where a line stands and the line, without comments; ``blank`` ones too where they mean something."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where, text = f"{path} line {number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.startswith(b"#") and (blank or text.strip()):
                yield where, _name(text.rstrip(b"\r\n"), where)


def _fields(
    line: str, where: str, form: str, kinds: tuple[Callable[[str], Any], ...], rest: Callable[[str], Any] | None = None
) -> list[Any]:
    """The values of a line: of ``kinds``, and any number more of ``rest``."""
    texts = line.split()
    try:
        if len(texts) < len(kinds) or (rest is None and len(texts) > len(kinds)):
            raise ValueError
        return [kind(text) for kind, text in zip((*kinds, *[rest] * (len(texts) - len(kinds))), texts, strict=True)]  # type: ignore[misc]
    except ValueError:
        raise DataError(f"{where}: expected {form}") from None


def _keypoints(where: str, line: str, name: str) -> tuple[Floats, Ints]:
    """The line of keypoints that follows the line of an image; it may be empty, but it must be there."""
    fields = line.split()
    try:
        if len(fields) % 3:
            raise ValueError
        xy = np.array([fields[0::3], fields[1::3]], np.float64).T.reshape(-1, 2)
        return xy, np.array([int(text) for text in fields[2::3]], np.int64)
    except (ValueError, OverflowError):
        raise DataError(
            f"{where}: expected the keypoints of image {name!r} (x, y, point): each image has two lines, the second "
            "one empty where there are none"
        ) from None


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(tables: _Tables, folder: Path) -> None:
    """Raise a DataError for tables that contradict themselves or hold what no model has."""
    for number, (kind, width, height, params) in tables.cameras.items():
        where = f"{folder}: camera {number} ({kind}, {width} x {height})"
        if not (0 < width <= _MOST_PIXELS_A_SIDE and 0 < height <= _MOST_PIXELS_A_SIDE):
            raise DataError(f"{where} has no size that an image can have")
        focal = _focal_lengths(kind, params) / max(width, height)
        if not np.isfinite(params).all() or (focal < _FOCAL_LENGTHS[0]).any() or (focal > _FOCAL_LENGTHS[1]).any():
            raise DataError(f"{where} has parameters that no lens has: {', '.join(f'{value:g}' for value in params)}")
        centre = _principal_point(kind, params)  # none of a panorama
        if len(centre) and (np.abs(centre / (width, height) - 0.5) > _FARTHEST_CENTRE).any():
            raise DataError(f"{where} has its principal point far outside its images")
    known = np.unique(tables.point_ids)
    if len(known) < len(tables.point_ids):
        raise DataError(f"{folder}: a point is listed twice")
    if len(known) and known[0] < 0:
        raise DataError(f"{folder}: a point has the number {known[0]}, expected 0 and more")
    if not (np.abs(tables.xyz) < _FARTHEST).all():
        raise DataError(f"{folder}: a point has a position that is not finite, or beyond {_FARTHEST:g}")
    seen: set[str] = set()
    for image in tables.images.values():
        _check_image(image, known, tables.cameras.keys(), f"{folder}: image {image.name!r}")
        if image.name in seen:
            raise DataError(f"{folder}: image {image.name!r} is listed twice")
        seen.add(image.name)
    ids = np.array(sorted(tables.images), np.int64)
    counts = np.array([len(tables.images[number].xy) for number in ids.tolist()], np.int64)
    at = np.searchsorted(ids, tables.tracks[:, 0]).clip(max=max(len(ids) - 1, 0))
    if len(tables.tracks) and (
        not len(ids) or (ids[at] != tables.tracks[:, 0]).any() or (tables.tracks[:, 1] >= counts[at]).any()
        or tables.tracks.min() < 0
    ):  # fmt: skip
        raise DataError(f"{folder}: a track names an image or a keypoint that is not there")


def _check_image(image: _Image, known: Ints, cameras: Any, where: str) -> None:
    path = PurePosixPath(image.name)
    if not image.name or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: a name is a path below the folder of the images")
    if image.camera_id not in cameras:
        raise DataError(f"{where} names the camera {image.camera_id}, which is not there")
    if not (np.isfinite(image.quaternion).all() and (np.abs(image.translation) < _FARTHEST).all()):
        raise DataError(f"{where} has a pose that is not finite, or beyond {_FARTHEST:g}")
    if not abs(float(np.linalg.norm(image.quaternion.clip(-2, 2))) - 1) < _UNIT:
        raise DataError(f"{where} has a pose that is no rotation: its quaternion is not of length 1")
    if not (np.abs(image.xy) < _FARTHEST).all():
        raise DataError(f"{where} has a keypoint that is not finite, or beyond {_FARTHEST:g}")
    ids = np.unique(image.point_ids)
    lost = ids[(ids != -1) & ~np.isin(ids, known)]
    if len(lost):
        raise DataError(f"{where} names the point {lost[0]}, which is not there (-1 means none)")


def _enter(table: dict[int, Any], number: int, entry: Any, where: object, what: str) -> None:
    if not 0 <= number < _MOST_NUMBERS:
        raise DataError(f"{where}: expected a number of the {what} from 0 to {_MOST_NUMBERS - 1}, got {number}")
    if number in table:
        raise DataError(f"{where}: {what} {number} is listed twice")
    table[number] = entry


def _name(raw: bytes, where: object) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        shown = raw.decode("utf-8", "backslashreplace").strip()[-80:]
        raise DataError(
            f"{where}: a name that is not UTF-8 ({shown}): rename the image and make the model anew"
        ) from None


def _numbers(values: list[int], kind: type, path: Path) -> NDArray[Any]:
    try:
        return np.array(values, kind)
    except OverflowError:
        raise DataError(f"{path} holds a number that is too large") from None


def _positions(xyz: list[tuple[float, float, float]]) -> Floats:
    return np.array(xyz, np.float64).reshape(-1, 3)


# --- cameras and poses -----------------------------------------------------------------------------------------------


def _kinds_by_number() -> dict[int, tuple[str, int]]:
    """Name and number of parameters of every kind of camera that the installed COLMAP knows, by its number."""
    pycolmap = load_pycolmap()
    kinds = {}
    for name, kind in pycolmap.CameraModelId.__members__.items():
        if name != "INVALID":
            kinds[int(kind)] = (name, len(pycolmap.Camera.create_from_model_id(1, kind, 1.0, 2, 2).params))
    return kinds


def _focal_lengths(kind: str, params: Floats) -> Floats:
    camera = load_pycolmap().Camera(model=kind, width=1, height=1, params=params)
    return params[list(camera.focal_length_idxs())]


def _principal_point(kind: str, params: Floats) -> Floats:
    camera = load_pycolmap().Camera(model=kind, width=1, height=1, params=params)
    return params[list(camera.principal_point_idxs())]


def _model(tables: _Tables) -> SparseModel:
    pycolmap = load_pycolmap()
    cameras = {
        number: pycolmap.Camera(camera_id=number, model=kind, width=width, height=height, params=params)
        for number, (kind, width, height, params) in tables.cameras.items()
    }
    images = []
    for image in sorted(tables.images.values(), key=lambda image: image.name):
        w, x, y, z = image.quaternion / np.linalg.norm(image.quaternion)
        rotation = np.asarray(pycolmap.Rotation3d(np.array([x, y, z, w])).matrix(), np.float64)
        camera = cameras[image.camera_id]
        images.append(ModelImage(image.name, camera, rotation, image.translation, image.xy, image.point_ids))
    order = np.argsort(tables.point_ids)
    return SparseModel(images, tables.point_ids[order], tables.xyz[order])
