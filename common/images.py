"""Reading image files with OpenCV, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kornia_hardnet8.errors import DataError, MissingFileError, missing_extra


def load_cv2(extra: str) -> Any:
    """OpenCV, or the error with the line that installs the ``extra`` that brings it."""
    try:
        import cv2
    except ImportError:
        raise missing_extra("opencv-python-headless", extra) from None
    return cv2


def read_bgr(path: Path, extra: str) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) in OpenCV's order, as its pixels lie in the file (no EXIF rotation).

    Raises:
        MissingFileError: the file is not there.
        DataError: it does not decode, or is cut short.
        MissingDependencyError: without OpenCV; names the ``extra`` that brings it.
    """
    cv2 = load_cv2(extra)
    if not path.is_file():
        raise MissingFileError(f"image {path} is not there")
    content = path.read_bytes()
    if _is_cut_short(content):
        raise DataError(f"image {path} is cut short: its end is missing; fetch it again or take it away")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty file, or more pixels than OpenCV reads
        image = None
    if image is None:
        raise DataError(f"image {path} does not decode: it is damaged or of an unknown format")
    return np.asarray(image, np.uint8)


def _is_cut_short(content: bytes) -> bool:
    """Whether a JPEG lacks its end marker: OpenCV fills the rest with gray. Other formats do not decode then."""
    place = 2
    while content.startswith(b"\xff\xd8") and content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xda":  # the first scan
            return content.find(b"\xff\xd9", place) < 0
        # an embedded thumbnail has an end marker of its own: segments are skipped whole
        place += 1 if marker == b"\xff" else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False
