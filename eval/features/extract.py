"""Keypoints and descriptors of images, kept in the cache."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.cache import Cache
from eval.features.base import Descriptor
from eval.features.detect import DogSettings, detect_dog
from eval.features.keypoints import FIELDS, Keypoints
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE


class Features(NamedTuple):
    """What one image looks like to one descriptor."""

    keypoints: Keypoints
    descs: Tensor
    """(N, D) float32."""
    key: str
    """Cache key: all that keypoints and descriptors depend on."""
    seconds: float
    """What describing took when it was done, without detection."""


def extract(
    image: NDArray[np.uint8],
    descriptor: Descriptor,
    detector: DogSettings,
    cache: Cache,
    mr_size: float = DEFAULT_MR_SIZE,
) -> Features:
    """Detect and describe a gray image (H, W), or read both from the cache.

    Raises:
        DataError: the descriptor gave another number of rows or columns than it should.
    """
    keypoints, keypoints_key = detect(image, detector, cache)
    described = {"keypoints": keypoints_key, **descriptor.identity(mr_size)}
    arrays = cache.compute("descriptors", described, lambda: _describe(image, keypoints, descriptor, mr_size))
    descs = torch.from_numpy(arrays["descs"])
    return Features(keypoints, descs, cache.key("descriptors", described), float(arrays["seconds"]))


def detect(image: NDArray[np.uint8], detector: DogSettings, cache: Cache) -> tuple[Keypoints, str]:
    """Keypoints of a gray image (H, W), detected or from the cache, and their cache key."""
    configuration = _detector_configuration(image, detector)
    stored = cache.compute("keypoints", configuration, lambda: _detect(image, detector))
    return Keypoints(*(stored[name] for name in FIELDS)), cache.key("keypoints", configuration)


def _detector_configuration(image: NDArray[np.uint8], detector: DogSettings) -> dict[str, Any]:
    import cv2

    digest = hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    return {"image": digest, "opencv": cv2.__version__, **detector.to_dict()}


def _detect(image: NDArray[np.uint8], detector: DogSettings) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    keypoints = detect_dog(image, detector)
    arrays = {name: getattr(keypoints, name) for name in FIELDS}
    return {**arrays, "seconds": np.array(time.perf_counter() - start)}


def _describe(
    image: NDArray[np.uint8], keypoints: Keypoints, descriptor: Descriptor, mr_size: float
) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    descs = descriptor.describe_image(image, keypoints, mr_size)
    if descs.shape != (len(keypoints), descriptor.dim):
        raise DataError(
            f"{descriptor.name} gave descriptors of shape {tuple(descs.shape)}, "
            f"expected {(len(keypoints), descriptor.dim)}"
        )
    return {"descs": descs.float().cpu().numpy(), "seconds": np.array(time.perf_counter() - start)}
