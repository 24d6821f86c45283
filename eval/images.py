"""Reading images for the evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError, MissingFileError, missing_extra

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".webp")


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Gray image (H, W) uint8, converted from colour as OpenCV does; an EXIF orientation is ignored.

    Poses and homographies belong to the pixels as stored, so nothing is turned.

    Raises:
        MissingFileError: no such file.
        DataError: not an image that OpenCV decodes.
    """
    import cv2

    color = read_bgr(path)
    return np.asarray(cv2.cvtColor(color, cv2.COLOR_BGR2GRAY), np.uint8)


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Colour image (H, W, 3) uint8 in OpenCV's order; see :func:`read_gray`."""
    try:
        import cv2
    except ImportError:
        raise missing_extra("opencv-python-headless", "eval") from None
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError:
        raise MissingFileError(f"image {path} is not there") from None
    image = None
    if len(encoded):
        try:
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            image = None
    if image is None:
        raise DataError(f"image {path} does not decode: it is damaged or of an unknown format")
    return np.asarray(image, np.uint8)
