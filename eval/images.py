"""Reading images for the evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common import images as _images

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".webp")


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Gray image (H, W) uint8, converted from colour as OpenCV does; an EXIF orientation is ignored.

    Poses and homographies belong to the pixels as stored, so nothing is turned.

    Raises:
        MissingFileError: no such file.
        DataError: not an image that OpenCV decodes, or cut short.
    """
    return gray_from_bgr(read_bgr(path))


def gray_from_bgr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray image (H, W) of a colour image (H, W, 3) in OpenCV's order; a gray one is returned as it is."""
    if image.ndim == 2:
        return image
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def rgb_tensor(image: NDArray[np.uint8]) -> Tensor:
    """An image (H, W, 3) in OpenCV's order, or a gray one (H, W), as RGB (1, 3, H, W) float32 in [0, 1]."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(image)).float() / 255.0
    rgb = pixels.expand(3, -1, -1) if image.ndim == 2 else pixels.permute(2, 0, 1).flip(0)
    return rgb[None].contiguous()


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Colour image (H, W, 3) uint8 in OpenCV's order; see :func:`read_gray`."""
    return _images.read_bgr(path, extra="eval")


def reduce_image(image: NDArray[np.uint8], max_side_px: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Shrink an image so that its long side is at most ``max_side_px`` (area interpolation), and the factors (x, y).

    A point moves to ``s (x + 0.5) - 0.5``. Smaller images are returned as they are, with factors of 1.
    """
    height, width = image.shape[:2]
    if max(height, width) <= max_side_px:
        return image, (1.0, 1.0)
    import cv2

    scale = max_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return smaller, (size[0] / width, size[1] / height)
