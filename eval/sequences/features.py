"""Local features of the images of a sequence, at the sizes that the protocols ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.homography import crop_geometry, short_side_size
from eval.features import Descriptor, Keypoints
from eval.features.detect import CANDIDATES, DogSettings, Selection, detect_dog
from eval.sequences.protocols import LocalFeatures
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

Gray = NDArray[np.uint8]
Resize = Literal["original", "crop-640x480", "crop-320x240", "short-480"]
CROPS = {"crop-640x480": (640, 480), "crop-320x240": (320, 240)}
SHORT_SIDE = 480


@dataclass(frozen=True)
class DetectorSettings:
    """Difference-of-Gaussians keypoints with a budget for each protocol.

    Attributes:
        keypoints: keypoints an image for MMA, at the original size.
        contrast: OpenCV's contrastThreshold.
        edge: OpenCV's edgeThreshold.
        mr_size: half side of a patch / sigma.
        select: which keypoints are kept, see :class:`eval.features.detect.DogSettings`.
        candidates: likewise.
    """

    keypoints: int = 2048
    contrast: float = 0.002
    edge: float = 10.0
    mr_size: float = DEFAULT_MR_SIZE
    select: Selection = "response"
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if self.keypoints < 1:
            raise UsageError(f"the number of keypoints must be at least 1, got {self.keypoints}")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        settings = self.dog.to_dict() | {"keypoints": self.keypoints, "mr_size": self.mr_size}
        del settings["num"], settings["upright"]
        return settings

    @property
    def dog(self) -> DogSettings:
        """The detector that finds every keypoint, in the order in which the protocols keep them."""
        return DogSettings(
            num=1 << 30, contrast=self.contrast, edge=self.edge, select=self.select, candidates=self.candidates
        )


class SizedImage(NamedTuple):
    """An image after a protocol's resize; ``scale`` = (new width / width, new height / height)."""

    image: NDArray[np.uint8]
    scale: tuple[float, float]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image.shape[1], self.image.shape[0]


def resize_image(image: NDArray[np.uint8], how: Resize) -> SizedImage:
    """Resize an image (H, W) or (H, W, 3) as a protocol does.

    ``crop-…``: the ratio kept, bilinear without antialiasing, central crop. ``short-480``: short side 480, bilinear
    with antialiasing.
    """
    height, width = image.shape[:2]
    if how == "original":
        return SizedImage(image, (1.0, 1.0))
    if how in CROPS:
        target = CROPS[how]
        scale, left, top = crop_geometry(width, height, *target)
        # The target is covered even where rounding down would leave it one pixel short.
        size = (max(int(width * scale), target[0]), max(int(height * scale), target[1]))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return SizedImage(np.ascontiguousarray(resized[top : top + target[1], left : left + target[0]]), (scale, scale))
    new_width, new_height = short_side_size(width, height, SHORT_SIDE)
    channels = torch.from_numpy(image.reshape(height, width, -1))
    tensor = channels.permute(2, 0, 1)[None].float()
    smoothed = torch.nn.functional.interpolate(
        tensor, (new_height, new_width), mode="bilinear", align_corners=False, antialias=True
    )
    pixels = smoothed[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return SizedImage(pixels.reshape(new_height, new_width, *image.shape[2:]), (new_width / width, new_height / height))


def detect(image: Gray, settings: DetectorSettings) -> Keypoints:
    """All keypoints of an image, best first."""
    return detect_dog(image, settings.dog)


def describe(
    image: Gray,
    keypoints: Keypoints,
    descriptor: Descriptor,
    settings: DetectorSettings,
    image_sha256: str,
    how: Resize,
    cache: Cache,
) -> torch.Tensor:
    """Descriptors (N, D) of keypoints, from the cache when they are there."""
    configuration = {
        "image_sha256": image_sha256,
        "resize": how,
        "num_keypoints": len(keypoints),
        **settings.to_dict(),
        **descriptor.identity(settings.mr_size),
        "opencv": cv2.__version__,
    }
    _, arrays = cache.compute(
        "sequence-descriptors",
        configuration,
        lambda: {"descriptors": descriptor.describe_image(image, keypoints, settings.mr_size).numpy()},
    )
    return torch.from_numpy(arrays["descriptors"])


def on_pixels(features: LocalFeatures) -> LocalFeatures:
    """Cut positions down to whole pixels; of several features in one pixel the first stays, the strongest.

    Source: SuperPoint evaluation, where keypoints are maps of probabilities.
    """
    pixels = np.trunc(features.xy)
    rows = np.sort(np.unique(pixels, axis=0, return_index=True)[1]) if len(pixels) else np.empty(0, np.intp)
    kept = features.rows(rows)
    return kept._replace(xy=pixels[rows])
