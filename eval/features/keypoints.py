"""Keypoints as arrays, to and from OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kornia_hardnet8.lafs import lafs_from_similarity

if TYPE_CHECKING:
    import cv2

FIELDS = ("xy", "size", "angle", "response", "octave")


@dataclass(frozen=True)
class Keypoints:
    """N keypoints in OpenCV's terms; pixel centres at integers.

    Attributes:
        xy: (N, 2) float32, pixels.
        size: (N,) float32, the diameter 2 sigma of the detection scale, pixels.
        angle: (N,) float32, degrees, clockwise on the screen.
        response: (N,) float32, higher is stronger.
        octave: (N,) int32, OpenCV's packed octave and layer (SIFT needs it to describe).
    """

    xy: NDArray[np.float32]
    size: NDArray[np.float32]
    angle: NDArray[np.float32]
    response: NDArray[np.float32]
    octave: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, rows: Any) -> Keypoints:
        return Keypoints(*(getattr(self, name)[rows] for name in FIELDS))

    @classmethod
    def from_opencv(cls, keypoints: Sequence[cv2.KeyPoint]) -> Keypoints:
        """Arrays of a sequence of OpenCV keypoints, in their order."""
        return cls(
            np.array([k.pt for k in keypoints], np.float32).reshape(-1, 2),
            np.array([k.size for k in keypoints], np.float32),
            np.array([k.angle for k in keypoints], np.float32),
            np.array([k.response for k in keypoints], np.float32),
            np.array([k.octave for k in keypoints], np.int32),
        )

    def to_opencv(self) -> list[cv2.KeyPoint]:
        """OpenCV keypoints in the same order; ``class_id`` holds the row, so that a reordered list can be undone."""
        import cv2

        columns = (self.xy.tolist(), self.size.tolist(), self.angle.tolist(), self.response.tolist())
        return [
            cv2.KeyPoint(x, y, size, angle, response, octave, row)
            for row, ((x, y), size, angle, response, octave) in enumerate(
                zip(*columns, self.octave.tolist(), strict=True)
            )
        ]

    def lafs(self, mr_size: float) -> Tensor:
        """Similarity frames (N, 2, 3) of half side ``mr_size * sigma`` pixels, sigma = size / 2."""
        import torch

        return lafs_from_similarity(
            torch.from_numpy(self.xy), torch.from_numpy(self.size * (0.5 * mr_size)), torch.from_numpy(self.angle)
        )
