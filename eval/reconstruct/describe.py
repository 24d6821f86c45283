"""Local features of photographs, in the pixels of the stored files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.images import read_bgr, reduce_image
from common.jobs import map_on_threads
from common.shell import progress
from eval.features.base import Method
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.reconstruct.photos import MIRRORED, Photo, compose, enlarging, stored_from_upright, turn_upright
from eval.reconstruct.settings import ReconstructSettings
from kornia_hardnet8.errors import DataError

log = logging.getLogger(__name__)

_AT_ONCE = 2  # photographs in memory


class DescribedPhoto(NamedTuple):
    """One photograph and its features."""

    photo: Photo
    size: tuple[int, int]
    """(width, height) as stored, pixels."""
    lafs: Tensor
    """(N, 2, 3) frames in the stored image, pixel centres at integers."""
    features: Features
    """As found in the upright, reduced image."""


def describe_photo(
    photo: Photo,
    stored: NDArray[np.uint8],
    method: Method,
    detector: DogSettings,
    max_side_px: int,
    mr_size: float,
    cache: Cache,
) -> DescribedPhoto:
    """Features of one photograph, found in it as it is to be seen (EXIF) and of at most ``max_side_px``.

    Args:
        photo: which one.
        stored: its pixels (H, W, 3) as they lie in the file.
        method: of features.
        detector: of keypoints, for a descriptor.
        max_side_px: features are found in an image reduced to this.
        mr_size: half side of a patch / sigma.
        cache: what is there is not done again.
    """
    size = (stored.shape[1], stored.shape[0])
    reduced, scale = reduce_image(turn_upright(stored, photo.orientation), max_side_px)
    features = extract(reduced, method, detector, cache, mr_size)
    to_stored = compose(stored_from_upright(photo.orientation, size), enlarging(scale))
    return DescribedPhoto(photo, size, move_lafs(features.keypoints.lafs(mr_size), to_stored), features)


def describe_photos(
    photos: Sequence[Photo], method: Method, settings: ReconstructSettings, cache: Cache
) -> tuple[list[DescribedPhoto], list[str]]:
    """Features of all photographs that can be used, and the names of those that cannot.

    These do not decode, or EXIF calls them mirrored: no camera shows their pixels so. Descriptors, nearly all of what
    many photographs weigh, stay in the cache alone, where matching finds them.

    Raises:
        DataError: fewer than two are left.
    """

    def describe(photo: Photo) -> DescribedPhoto | DataError:
        try:
            if photo.orientation in MIRRORED:
                raise DataError(
                    f"image {photo.path} is stored mirrored (EXIF orientation {photo.orientation}): store it "
                    "unmirrored, e.g. with `exiftran -a`"
                )
            stored = read_bgr(photo.path)
        except DataError as error:
            return error
        return describe_photo(photo, stored, method, settings.detector, settings.max_side_px, settings.mr_size, cache)

    described, unreadable = [], []
    # one is detected and cut while a network describes the other
    results = map_on_threads(describe, photos, _AT_ONCE) if method.device.type == "cpu" else map(describe, photos)
    for photo, result in zip(progress(photos, what=f"describe ({method.name})", unit="image"), results, strict=True):
        if isinstance(result, DataError):
            log.warning("left out: %s", result)
            unreadable.append(photo.name)
        else:
            described.append(result._replace(features=result.features._replace(descs=torch.zeros(0))))
    if len(described) < 2:
        raise DataError(f"a reconstruction needs at least 2 readable photographs, got {len(described)}")
    return described, unreadable


def move_lafs(lafs: Tensor, affine: NDArray[np.float64]) -> Tensor:
    """Frames (N, 2, 3) under an affine map (2, 3); the dtype stays."""
    linear, shift = torch.from_numpy(affine[:, :2]), torch.from_numpy(affine[:, 2:])
    moved = linear @ lafs.double()
    return torch.cat([moved[:, :, :2], moved[:, :, 2:] + shift], dim=2).to(lafs.dtype)
