"""Reading COLMAP models, and the scales and orientations of their keypoints."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kornia_hardnet8.errors import DataError, MissingFileError, missing_extra
from kornia_hardnet8.lafs import lafs_from_colmap
from train.stores.frames import frame_angle, frame_scale

log = logging.getLogger(__name__)
FEATURE_FILES = ("features.h5", "database.db")  # looked for in and beside a model's folder


@dataclass(frozen=True)
class Observations:
    """What one image sees: ``xy`` (n, 2) with pixel centres at integers, ``points`` (n,) labels, sigma and angle."""

    path: Path
    image_id: int
    size: tuple[int, int]
    xy: np.ndarray
    points: np.ndarray
    sigma: np.ndarray | None
    angle: np.ndarray | None

    def take(self, keep: np.ndarray) -> Observations:
        """The rows that ``keep`` selects."""
        sigma = None if self.sigma is None else self.sigma[keep]
        angle = None if self.angle is None else self.angle[keep]
        return replace(self, xy=self.xy[keep], points=self.points[keep], sigma=sigma, angle=angle)


def load_pycolmap() -> Any:
    """pycolmap, silent but for errors, or the error with the line that installs it."""
    try:
        import pycolmap
    except ImportError:
        raise missing_extra("pycolmap", "train") from None
    pycolmap.logging.minloglevel = 2
    return pycolmap


def load_observations(images: Path, model: Path, features: str | Path | None = None) -> list[Observations]:
    """Read a model: the observations of triangulated points of each image, images sorted by name.

    ``points`` holds the 3-D point ids of the model; of several observations of a point in one image the first counts.
    Sigma and angle come from ``features``: HDF5, or a COLMAP database; by default ``features.h5`` or ``database.db``
    in or beside the model folder, the latter if its keypoints are those of the model. They are None without a file.

    Raises:
        MissingFileError: a folder, a file that is named, or an image of the model is not there.
        DataError: the model or the features do not load, or do not fit together.
    """
    pycolmap = load_pycolmap()
    if not images.is_dir():
        raise MissingFileError(f"image folder {images} is not there")
    if not model.is_dir():
        raise MissingFileError(f"model folder {model} is not there")
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except Exception as error:  # pycolmap raises ValueError, RuntimeError, or its own, by what is wrong
        raise DataError(f"{model} is not a COLMAP model: {str(error).splitlines()[0]}") from None
    registered = sorted(reconstruction.images.values(), key=lambda image: image.name)
    missing = [image.name for image in registered if not (images / image.name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingFileError(f"images of the model {model} are not in {images}: {', '.join(missing[:3])}{more}")
    if len(registered) < 2:
        raise DataError(f"{model}: {len(registered)} image(s), at least 2 are needed")
    with _features_of(model, features, registered) as read:
        return [_observations(image, index, images, read) for index, image in enumerate(registered)]


def _observations(image: Any, index: int, images: Path, read: _Read | None) -> Observations:
    ids = np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], dtype=np.int64)
    xy = np.array([p.xy for p in image.points2D], dtype=np.float64).reshape(-1, 2) - 0.5  # corner origin
    first = np.zeros(len(ids), dtype=bool)
    first[np.unique(ids, return_index=True)[1]] = True
    sigma = angle = None
    if read is not None:
        rows = read(image.name, len(ids))
        sigma, angle = rows[:, 2], rows[:, 3]
    size = (int(image.camera.width), int(image.camera.height))
    return Observations(images / image.name, index, size, xy, ids, sigma, angle).take(first & (ids >= 0))


# name of an image and its count of 2-D points -> (count, 4) x, y, sigma, angle
_Read = Callable[[str, int], np.ndarray]


@contextlib.contextmanager
def _features_of(model: Path, named: str | Path | None, registered: list[Any]) -> Iterator[_Read | None]:
    """The reader of the features file that is named, or found in or beside the model folder."""
    folders = (model, model.resolve().parent)
    if named is not None:
        path: Path | None = Path(named)
        if not Path(named).is_file():
            raise MissingFileError(f"features file {named} is not there")
    else:
        path = next((f / name for name in FEATURE_FILES for f in folders if (f / name).is_file()), None)
    if path is None:
        yield None
    elif path.suffix == ".db":
        with _read_database(path) as read:
            if named is None and not _fits(read, registered):
                log.info("%s holds other keypoints than the model: SIFT is detected again", path)
                yield None
            else:
                yield read
    else:
        with _read_hdf5(path) as read:
            yield read


def _fits(read: _Read, registered: list[Any]) -> bool:
    try:
        return all(len(read(image.name, len(image.points2D))) == len(image.points2D) for image in registered)
    except DataError:
        return False


@contextlib.contextmanager
def _read_hdf5(path: Path) -> Iterator[_Read]:
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "train") from None

    def read(name: str, count: int) -> np.ndarray:
        if name not in file:
            raise DataError(f"{path} has no dataset {name!r}")
        return _checked(np.asarray(file[name], dtype=np.float64), count, f"{path}: {name}")

    try:
        with h5py.File(path, "r") as file:
            yield read
    except OSError as error:
        raise DataError(f"{path} does not read: {error}") from None


@contextlib.contextmanager
def _read_database(path: Path) -> Iterator[_Read]:
    pycolmap = load_pycolmap()
    try:
        with pycolmap.Database.open(str(path)) as database:
            ids = {image.name: image.image_id for image in database.read_all_images()}

            def read(name: str, count: int) -> np.ndarray:
                if name not in ids:
                    raise DataError(f"{path} has no image {name!r}")
                rows = np.asarray(database.read_keypoints(ids[name]), dtype=np.float64)
                if rows.shape[1] < 4:
                    raise DataError(f"{path}: the keypoints of {name} have no scale")
                frames = lafs_from_colmap(rows, mr_size=1.0)[0].double().numpy()
                table = np.column_stack([rows[:, :2], frame_scale(frames), frame_angle(frames)])
                return _checked(table, count, f"{path}: {name}")

            yield read
    except RuntimeError as error:  # what SQLite's errors come as
        raise DataError(f"{path} is no COLMAP database: {str(error).splitlines()[0]}") from None


def _checked(rows: np.ndarray, count: int, where: str) -> np.ndarray:
    if rows.shape != (count, 4):
        raise DataError(f"{where} is {rows.shape}, the model has {count} points2D: expected ({count}, 4)")
    if not np.isfinite(rows).all() or (rows[:, 2] <= 0).any():
        raise DataError(f"{where} has a scale that is not positive or a number that is not finite")
    return rows
