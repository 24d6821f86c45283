"""Photographs as cameras write them: a folder of them, and the orientation that EXIF asks for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.images import exif_orientation, pictures_below

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
