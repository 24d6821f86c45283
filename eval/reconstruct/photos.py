"""Photographs as cameras write them: a folder of them, and the orientation that EXIF asks for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.images import NOT_COLMAPS, exif_orientation, open_picture, pictures_below, read_bgr
from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_dir

log = logging.getLogger(__name__)

MIRRORED = (2, 4, 5, 7)


class Photo(NamedTuple):
    """One photograph of a folder."""

    name: str
    """Path below the folder, with ``/``: its name in a COLMAP database."""
    path: Path
    orientation: int
    """EXIF orientation, 1 … 8; 1: shown as stored."""


def find_photos(folder: Path, leave_out: Path | None = None) -> list[Photo]:
    """The photographs in a folder and the folders below it; see :func:`common.images.pictures_below`."""
    paths = pictures_below(folder, leave_out)
    return [Photo(path.relative_to(folder).as_posix(), path, exif_orientation(path)) for path in paths]


def converted(folder: Path, photos: Sequence[Photo], out: Path) -> tuple[Path, list[Photo]]:
    """The photographs where COLMAP can read all of them: as they are, or copied to ``out``.

    Of formats that COLMAP does not read, JPEGs are made there (``a.webp.jpg``), with their EXIF; the others are copied.

    Returns:
        The folder, and the photographs in it.

    Raises:
        UsageError: the photographs are in ``out`` themselves.
    """
    if not any(photo.path.suffix.lower() in NOT_COLMAPS for photo in photos):
        return folder, list(photos)
    if folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{folder} is where JPEGs of its photographs are to be written: choose another --out")
    log.info("COLMAP does not read all formats here: JPEGs of the others, and the rest, are copied to %s", out)
    shutil.rmtree(out, ignore_errors=True)
    names = []
    with atomic_dir(out) as temporary:
        for photo in progress(photos, what="copy", unit="image"):
            is_foreign = photo.path.suffix.lower() in NOT_COLMAPS
            names.append(f"{photo.name}.jpg" if is_foreign else photo.name)
            target = temporary / names[-1]
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_foreign:
                _write_jpeg(photo.path, target)
            else:
                shutil.copyfile(photo.path, target)
    return out, [Photo(name, out / name, photo.orientation) for name, photo in zip(names, photos, strict=True)]


def _write_jpeg(source: Path, target: Path) -> None:
    """The pixels and the EXIF of a picture as a JPEG; a picture that does not decode stays what it is."""
    try:
        pixels = read_bgr(source)
        with open_picture(source) as header:
            exif = header.getexif()
        Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).save(target, quality=95, subsampling=0, exif=exif)
    except DataError:
        shutil.copyfile(source, target)


def turn_upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """An image (H, W) or (H, W, C) as EXIF says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def stored_from_upright(orientation: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """The affine map (2, 3) from pixels of the upright image to those of the stored one, centres at integers.

    Args:
        orientation: EXIF orientation.
        size: (width, height) of the stored image.
    """
    last_x, last_y = size[0] - 1, size[1] - 1
    maps = {
        1: [[1, 0, 0], [0, 1, 0]],
        2: [[-1, 0, last_x], [0, 1, 0]],
        3: [[-1, 0, last_x], [0, -1, last_y]],
        4: [[1, 0, 0], [0, -1, last_y]],
        5: [[0, 1, 0], [1, 0, 0]],
        6: [[0, 1, 0], [-1, 0, last_y]],
        7: [[0, -1, last_x], [-1, 0, last_y]],
        8: [[0, -1, last_x], [1, 0, 0]],
    }
    return np.array(maps[orientation], np.float64)


def enlarging(scale: tuple[float, float]) -> NDArray[np.float64]:
    """The affine map (2, 3) from pixels of an image that was shrunk by ``scale`` (x, y) to those of the original."""
    x, y = scale
    return np.array([[1 / x, 0, 0.5 / x - 0.5], [0, 1 / y, 0.5 / y - 0.5]])


def compose(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map (2, 3) that applies ``first``, then ``second``."""
    linear = second[:, :2] @ first[:, :2]
    return np.column_stack([linear, second[:, :2] @ first[:, 2] + second[:, 2]])
