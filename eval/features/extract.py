"""Keypoints and descriptors of images, kept in the cache."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.h5files import Arrays
from common.images import gray_from_bgr
from eval.features.base import Descriptor, Method, WholeFeature
from eval.features.detect import DogSettings, detect_dog
from eval.features.keypoints import Keypoints
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
    """What describing took when it was done, without detection unless the feature does both."""
    image_shape: tuple[int, int] = (0, 0)
    """(H, W)."""
    image_sha256: str = ""
    """Of the pixels in gray, see :func:`image_digest`."""
    method: str = ""
    """The token that made the features."""


def extract(
    image: NDArray[np.uint8],
    method: Method,
    detector: DogSettings,
    cache: Cache,
    mr_size: float = DEFAULT_MR_SIZE,
) -> Features:
    """Detect and describe an image, or read both from the cache.

    Args:
        image: colour (H, W, 3) in OpenCV's order, or gray (H, W). Patch descriptors see it in gray.
        method: a descriptor, for keypoints by ``detector``; or a whole local feature, which takes its ``num``
            strongest of its own and none of the other settings.
        detector: of keypoints.
        cache: what is there is not done again; ``Cache(None)`` keeps nothing.
        mr_size: half side of a patch / sigma.

    Raises:
        DataError: the method gave another number of rows or columns than it should.
    """
    gray = gray_from_bgr(image)
    digest = image_digest(gray)
    keypoints: Keypoints | None = None
    make: Callable[[], Arrays]
    if isinstance(method, WholeFeature):
        stage, about = "features", {"image": image_digest(image), **method.identity(detector.num)}
        make = functools.partial(_detect_and_describe, image, method, detector.num)
    else:
        keypoints, keypoints_key = detect(gray, detector, cache, digest)
        stage, about = "descriptors", {"keypoints": keypoints_key, **method.identity(mr_size)}
        make = functools.partial(_describe, gray, keypoints, method, mr_size)
    key, arrays = cache.compute(stage, about, make)
    keypoints = keypoints if keypoints is not None else Keypoints.from_arrays(arrays)
    descs, seconds = torch.from_numpy(arrays["descs"]), float(arrays["seconds"])
    return Features(keypoints, descs, key, seconds, (gray.shape[0], gray.shape[1]), digest, method.name)


def detector_of(method: Method, detector: DogSettings) -> dict[str, Any]:
    """What a results file says about where the keypoints of a method, and its patches, come from."""
    if isinstance(method, WholeFeature):
        return {"detector": method.token.name, "num": detector.num}
    settings = detector.to_dict()
    return settings if method.patches == "kornia" else {**settings, "patches": method.patches}


def image_digest(image: NDArray[np.uint8]) -> str:
    """Hex SHA-256 over shape and pixels of an image."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def detect(
    image: NDArray[np.uint8], detector: DogSettings, cache: Cache, digest: str | None = None
) -> tuple[Keypoints, str]:
    """Keypoints of a gray image (H, W), detected or from the cache, and their cache key; ``digest``: of the image."""
    import cv2

    about = {"image": digest or image_digest(image), "opencv": cv2.__version__, **detector.to_dict()}
    key, arrays = cache.compute("keypoints", about, functools.partial(_detect, image, detector))
    return Keypoints.from_arrays(arrays), key


def _detect(image: NDArray[np.uint8], detector: DogSettings) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    keypoints = detect_dog(image, detector)
    return {**keypoints.to_arrays(), "seconds": np.array(time.perf_counter() - start)}


def _describe(
    image: NDArray[np.uint8], keypoints: Keypoints, descriptor: Descriptor, mr_size: float
) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    descs = descriptor.describe_image(image, keypoints, mr_size)
    return {**_checked(descs, keypoints, descriptor), "seconds": np.array(time.perf_counter() - start)}


def _detect_and_describe(image: NDArray[np.uint8], feature: WholeFeature, num: int) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    keypoints, descs = feature.detect_and_describe(image, num)
    if len(keypoints) > num:
        raise DataError(f"{feature.name} gave {len(keypoints)} keypoints, at most {num} were asked for")
    arrays = {**keypoints.to_arrays(), **_checked(descs, keypoints, feature)}
    return {**arrays, "seconds": np.array(time.perf_counter() - start)}


def _checked(descs: Tensor, keypoints: Keypoints, method: Method) -> dict[str, NDArray[Any]]:
    if descs.shape != (len(keypoints), method.dim):
        raise DataError(
            f"{method.name} gave descriptors of shape {tuple(descs.shape)}, expected {(len(keypoints), method.dim)}"
        )
    return {"descs": descs.float().cpu().numpy()}
