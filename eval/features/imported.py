"""Features and matches computed elsewhere, found again by the pixels of the image that they belong to.

The file that ``imw-import`` writes holds ``<image>/<column>`` for every image, and ``<task>/<image 0>-<image 1>``
(M, 2) for every matched pair; ``<image>`` is :func:`eval.features.extract.image_digest` of the pixels in gray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.h5files import Arrays, named_dataset, open_h5, read_h5, write_h5
from common.images import gray_from_bgr
from eval.features.base import WholeFeature
from eval.features.keypoints import FIELDS, Keypoints
from eval.features.tokens import Token
from kornia_hardnet8.errors import DataError, UsageError

FORMAT = "imported/1"
MATCH_TASKS = ("stereo", "multiview")


@dataclass(frozen=True)
class ImportedImage:
    """Keypoints and descriptors (N, D) of one image; None: only keypoints and matches were handed in."""

    keypoints: Keypoints
    descs: NDArray[np.float32] | None
    scored: bool
    """Whether the responses mean something; else the order does."""


def write_imported(
    path: Path,
    images: Mapping[str, ImportedImage],
    matches: Mapping[str, Mapping[tuple[str, str], NDArray[np.integer]]],
) -> None:
    """Write features by image hash, and matches (M, 2) by task and pair of image hashes."""
    arrays: Arrays = {}
    for digest, image in images.items():
        arrays |= {f"{digest}/{name}": values for name, values in image.keypoints.to_arrays().items()}
        arrays[f"{digest}/scored"] = np.array(image.scored)
        if image.descs is not None:
            arrays[f"{digest}/descs"] = image.descs
    for task, pairs in matches.items():
        arrays |= {f"{task}/{one}-{two}": np.asarray(rows, np.int32) for (one, two), rows in pairs.items()}
    without = sum(image.descs is None for image in images.values())
    if 0 < without < len(images):
        raise DataError(f"{without} of {len(images)} images have no descriptors: all need them, or none")
    widths = {image.descs.shape[1] for image in images.values() if image.descs is not None}
    if len(widths) > 1:
        raise DataError(f"descriptors of unequal width: {', '.join(map(str, sorted(widths)))}")
    about = {"format": FORMAT, "dim": str(max(widths, default=0)), "tasks": " ".join(matches)}
    write_h5(path, arrays, about)


def imported(token: Token, weights: Path | None) -> WholeFeature:
    """``imported@FILE.h5``: what ``imw-import`` wrote."""
    if weights is None:
        raise UsageError(f"{token.text}: write imported@FILE.h5, the file that `python -m eval imw-import` wrote")
    return Imported(token, weights)


class Imported(WholeFeature):
    """Features of a file of ``imw-import``."""

    def __init__(self, token: Token, weights: Path) -> None:
        token.typed_options({})
        super().__init__(token, weights)
        self.path = weights
        _, about = read_h5(weights, ())
        if about.get("format") != FORMAT:
            raise DataError(f"{weights} is no file of imw-import ({FORMAT})")
        dim, self.match_tasks = about.get("dim", ""), about.get("tasks", "").split()
        if not dim.isdecimal() or len(dim) > 6 or not set(self.match_tasks) <= set(MATCH_TASKS):
            raise DataError(f"{weights} is damaged: it says {dim!r} dimensions and matches of {self.match_tasks}")
        self.dim = int(dim)

    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """The stored keypoints; of more than ``num`` the strongest, or the first ones where nothing is scored.

        Raises:
            DataError: the file does not hold this image, or holds more keypoints and matches of them, which forbid
                to leave any out.
        """
        from eval.features.extract import image_digest

        digest = image_digest(gray_from_bgr(image))
        names = [f"{digest}/{name}" for name in (*FIELDS, "scored", *(["descs"] if self.dim else []))]
        try:
            arrays = {name.partition("/")[2]: values for name, values in read_h5(self.path, names)[0].items()}
        except DataError:
            height, width = image.shape[:2]
            raise DataError(f"{self.path} holds nothing of this {width} x {height} image: import its scene") from None
        try:
            keypoints = Keypoints.from_arrays(arrays)
        except DataError as error:
            raise DataError(f"{self.path} is damaged: {error}") from None
        if self.dim and (arrays["descs"].shape, arrays["descs"].dtype) != ((len(keypoints), self.dim), np.float32):
            raise DataError(
                f"{self.path} is damaged: descriptors {arrays['descs'].shape} of {len(keypoints)} keypoints"
            )
        descs = torch.from_numpy(arrays["descs"]) if self.dim else torch.zeros(len(keypoints), 0)
        if self.match_tasks:
            if len(keypoints) > num:
                raise DataError(
                    f"{self.path}: an image has {len(keypoints)} keypoints, --keypoints must be at least that"
                )
            return keypoints, descs
        order = np.arange(len(keypoints))
        if arrays["scored"]:
            order = np.argsort(-keypoints.response, kind="stable")
        return keypoints[order[:num]], descs[torch.from_numpy(order[:num])]

    def matches(self, task: str, one: str, two: str) -> NDArray[np.int64]:
        """Matches (M, 2) of two images by their hashes, in either order.

        Raises:
            DataError: the file does not hold matches of this task, or of this pair.
        """
        if task not in self.match_tasks:
            raise DataError(f"{self.path} holds no {task} matches")
        with open_h5(self.path) as file:
            for first, second, columns in ((one, two, [0, 1]), (two, one, [1, 0])):
                if (name := f"{task}/{first}-{second}") in file:
                    rows: NDArray[Any] = np.asarray(named_dataset(file, name, self.path))
                    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu" or (rows < 0).any():
                        raise DataError(f"{self.path} is damaged: matches {rows.dtype} {rows.shape} of a pair")
                    return rows.astype(np.int64)[:, columns]
        raise DataError(f"{self.path} holds no {task} matches of a pair that is asked for")
