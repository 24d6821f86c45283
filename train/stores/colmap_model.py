"""Reading COLMAP models, and the scales and orientations of their keypoints."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.colmap import ModelImage, open_model
from common.colmap_database import open_database
from common.h5files import named_dataset, open_h5
from kornia_hardnet8.errors import DataError, MissingFileError
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


def load_observations(images: Path, model: Path, features: str | Path | None = None) -> list[Observations]:
    """Read a model: the observations of triangulated points of each image, images sorted by name.

    ``points`` holds the 3-D point ids of the model; of several observations of a point in one image the first counts.
    Sigma and angle come from ``features``: HDF5, or a COLMAP database; by default ``features.h5`` or ``database.db``
    in or beside the model folder, if its keypoints are those of the model. They are None without a file.

    Raises:
        MissingFileError: a folder, a file that is named, or an image of the model is not there.
        DataError: the model or the features do not load, or do not fit together.
    """
    registered = open_model(model, images).images
    with _features_of(model, features, registered) as read:
        return [_observations(image, index, images, read) for index, image in enumerate(registered)]


def _observations(image: ModelImage, index: int, images: Path, read: _Read | None) -> Observations:
    first = np.zeros(len(image.point_ids), dtype=bool)
    first[np.unique(image.point_ids, return_index=True)[1]] = True
    sigma = angle = None
    if read is not None:
        rows = read(image.name, len(first))
        sigma, angle = rows[:, 2], rows[:, 3]
    xy = image.xy - 0.5  # corner origin
    observations = Observations(images / image.name, index, image.size, xy, image.point_ids, sigma, angle)
    return observations.take(first & (image.point_ids >= 0))


# name of an image and its count of 2-D points -> (count, 4) x, y, sigma, angle
_Read = Callable[[str, int], np.ndarray]


@contextlib.contextmanager
def _features_of(model: Path, named: str | Path | None, registered: list[ModelImage]) -> Iterator[_Read | None]:
    """The reader of the features file that is named, or of the first one in or beside the model folder that fits."""
    if named is not None:
        path = Path(named)
        if not path.is_file():
            raise MissingFileError(f"features file {path} is not there")
        with _reader(path) as read:
            yield read
        return
    folders = (model, model.resolve().parent)
    for path in (folder / name for name in FEATURE_FILES for folder in folders):
        if not path.is_file():
            continue
        try:
            with _reader(path) as read:
                for image in registered:
                    read(image.name, len(image.xy))
        except DataError as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        with _reader(path) as read:
            yield read
        return
    yield None


def _reader(path: Path) -> contextlib.AbstractContextManager[_Read]:
    return _read_database(path) if path.suffix == ".db" else _read_hdf5(path)


@contextlib.contextmanager
def _read_hdf5(path: Path) -> Iterator[_Read]:
    def read(name: str, count: int) -> np.ndarray:
        dataset = named_dataset(file, name, path)
        if dataset.shape != (count, 4) or dataset.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} is {dataset.dtype} {dataset.shape}, expected numbers of ({count}, 4)")
        return _checked(np.asarray(dataset, dtype=np.float64), count, f"{path}: {name}")

    with open_h5(path) as file:
        yield read


@contextlib.contextmanager
def _read_database(path: Path) -> Iterator[_Read]:
    with open_database(path) as database:
        ids = database.image_ids()

        def read(name: str, count: int) -> np.ndarray:
            if name not in ids:
                raise DataError(f"{path} has no image {name!r}")
            if database.count(ids[name]) != count:
                raise DataError(f"{path}: {name} has {database.count(ids[name])} keypoints, the model has {count}")
            rows = database.keypoints(ids[name]).astype(np.float64)
            if rows.shape[1] < 4:
                raise DataError(f"{path}: the keypoints of {name} have no scale")
            frames = lafs_from_colmap(rows, mr_size=1.0)[0].double().numpy()
            table = np.column_stack([rows[:, :2], frame_scale(frames), frame_angle(frames)])
            return _checked(table, count, f"{path}: {name}")

        yield read


def _checked(rows: np.ndarray, count: int, where: str) -> np.ndarray:
    if rows.shape != (count, 4):
        raise DataError(f"{where} is {rows.shape}, the model has {count} points2D: expected ({count}, 4)")
    if not np.isfinite(rows).all() or (rows[:, 2] <= 0).any():
        raise DataError(f"{where} has a scale that is not positive or a number that is not finite")
    return rows
