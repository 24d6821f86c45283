"""Keypoints of an image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.features.keypoints import Keypoints
from kornia_hardnet8.errors import DataError, UsageError, missing_extra


@dataclass(frozen=True)
class DogSettings:
    """Difference-of-Gaussians keypoints by OpenCV's SIFT.

    The thresholds of -10000 accept every extremum, as the IMW baselines do; the budget then decides.

    Attributes:
        num: keep this many of the strongest responses; places with several orientations count several times.
        contrast: OpenCV's contrastThreshold.
        edge: OpenCV's edgeThreshold.
        upright: angle 0, each place once.
    """

    num: int = 2048
    contrast: float = -10000.0
    edge: float = -10000.0
    upright: bool = False

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UsageError(f"the number of keypoints must be at least 1, got {self.num}")

    def to_dict(self) -> dict[str, Any]:
        """What a cache key and a results file say about the detector."""
        return {"detector": "dog-opencv", **asdict(self)}


def detect_dog(image: NDArray[np.uint8], settings: DogSettings) -> Keypoints:
    """Detect keypoints in a gray image (H, W) uint8, strongest first; a blank image gives none.

    Of equal responses the one that OpenCV found last comes first, as in the IMW code. Upright keypoints are made
    unique by position before the budget cuts, so that it is filled.
    """
    try:
        import cv2
    except ImportError:
        raise missing_extra("opencv-python-headless", "eval") from None
    if image.ndim != 2 or image.dtype != np.uint8:
        raise DataError(f"detect_dog: the image must be (H, W) uint8, got {image.shape} {image.dtype}")
    sift = cv2.SIFT.create(contrastThreshold=settings.contrast, edgeThreshold=settings.edge)
    return select(Keypoints.from_opencv(sift.detect(image, None)), settings.num, settings.upright)


def select(keypoints: Keypoints, num: int, upright: bool) -> Keypoints:
    """The ``num`` strongest keypoints, strongest first; ``upright``: angle 0 and each position once."""
    keypoints = keypoints[np.argsort(keypoints.response, kind="stable")[::-1]]
    if upright:
        _, first = np.unique(keypoints.xy, axis=0, return_index=True)
        keypoints = keypoints[np.sort(first)]
        keypoints.angle[:] = 0.0
    return keypoints[:num]
