"""Keypoints as arrays, to and from OpenCV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import lafs_from_similarity

if TYPE_CHECKING:
    import cv2

Places = Literal["exact", "imw2020"]
"""Where OpenCV's SIFT has its keypoints: at what was detected, or a quarter of a pixel off (its default)."""
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
        shape: (N, 2, 2) float32, linear part of the frames, of unit determinant; None: rotations by the angle.
    """

    xy: NDArray[np.float32]
    size: NDArray[np.float32]
    angle: NDArray[np.float32]
    response: NDArray[np.float32]
    octave: NDArray[np.int32]
    shape: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, rows: Any) -> Keypoints:
        return Keypoints(**{name: values[rows] for name, values in self.to_arrays().items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The columns by name; ``shape`` only where there is one."""
        arrays = {name: getattr(self, name) for name in FIELDS}
        return arrays if self.shape is None else {**arrays, "shape": self.shape}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Keypoints:
        """The inverse of :meth:`to_arrays`; further names are left out.

        Raises:
            DataError: an array of another shape, or a number that is not finite.
        """
        count = len(arrays["xy"]) if arrays["xy"].ndim else 0
        for name in FIELDS:
            wanted, values = (count, 2) if name == "xy" else (count,), arrays[name]
            if values.shape != wanted or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
                raise DataError(f"{name} of the keypoints is no array {wanted} of finite numbers")
        return cls(**{name: arrays[name] for name in FIELDS}, shape=arrays.get("shape"))

    @classmethod
    def from_points(
        cls, xy: NDArray[np.floating], response: NDArray[np.floating], size: float | NDArray[np.floating] = 1.0
    ) -> Keypoints:
        """Points (N, 2) with responses (N,) of one size or sizes (N,), angle 0."""
        count = len(xy)
        sizes = np.broadcast_to(np.asarray(size, np.float32), (count,)).copy()
        zeros = np.zeros(count, np.float32)
        return cls(
            np.asarray(xy, np.float32), sizes, zeros, np.asarray(response, np.float32), np.zeros(count, np.int32)
        )

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
        """Frames (N, 2, 3) of half side ``mr_size * sigma`` pixels, sigma = size / 2: similarities without a shape."""
        import torch

        if self.shape is not None:
            linear = self.shape * (self.size * (0.5 * mr_size))[:, None, None]
            return torch.from_numpy(np.concatenate([linear, self.xy[:, :, None]], axis=2))
        return lafs_from_similarity(
            torch.from_numpy(self.xy), torch.from_numpy(self.size * (0.5 * mr_size)), torch.from_numpy(self.angle)
        )


def spread_places(keypoints: Keypoints, spacing_px: float, num: int) -> Keypoints:
    """The strongest keypoints with no stronger one nearer than ``spacing_px``: also one orientation a place.

    ``keypoints`` are sorted strongest first.
    """
    from scipy.spatial import cKDTree

    if len(keypoints) == 0:
        return keypoints
    neighbours = cKDTree(keypoints.xy).query_ball_point(keypoints.xy, np.nextafter(spacing_px, 0.0))
    taken = np.zeros(len(keypoints), dtype=bool)
    blocked = np.zeros(len(keypoints), dtype=bool)
    for i, near in enumerate(neighbours):
        if not blocked[i]:
            taken[i] = True
            blocked[near] = True
        if taken.sum() == num:
            break
    return keypoints[np.flatnonzero(taken)]
