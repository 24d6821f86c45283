"""Local affine frames (LAFs): conventions, and conversions from other libraries' keypoints.

A frame is ``[[a11, a12, x], [a21, a22, y]]`` in pixels, pixel centres at integers; its patch covers [-1, 1]^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kornia_hardnet8.errors import DataError

# Half side of the patch / sigma of the detection scale: the support that HardNet is used with on DoG keypoints.
DEFAULT_MR_SIZE = 12.0


class OpenCVKeyPoint(Protocol):
    """What is read of a ``cv2.KeyPoint``."""

    @property
    def pt(self) -> Sequence[float]:
        """(x, y), pixels."""

    @property
    def size(self) -> float:
        """Diameter 2 sigma, pixels."""

    @property
    def angle(self) -> float:
        """Degrees clockwise on the screen, -1 for none."""


def lafs_from_similarity(xy: Tensor, half_side: Tensor, angle: Tensor) -> Tensor:
    """Similarity frames from centres, half sides and OpenCV angles.

    Convention: ``angle`` in degrees runs clockwise on the screen (from x to y, y down), as OpenCV's; so
    ``A = s [[cos, -sin], [sin, cos]]``, which is kornia's ``laf_from_center_scale_ori`` at minus the angle.

    Args:
        xy: (N, 2) centres, pixels.
        half_side: (N,) half sides of the patches, pixels.
        angle: (N,) degrees.

    Returns:
        (N, 2, 3) frames of the dtype of ``xy``; N = 0 gives (0, 2, 3).

    Raises:
        DataError: the shapes do not fit, with the shapes in the message.
    """
    count = xy.shape[0]
    if xy.dim() != 2 or xy.shape[1] != 2 or half_side.shape != (count,) or angle.shape != (count,):
        raise DataError(
            f"frames need centres (N, 2), half sides (N,) and angles (N,), got {tuple(xy.shape)}, "
            f"{tuple(half_side.shape)} and {tuple(angle.shape)}"
        )
    radians = torch.deg2rad(angle.to(torch.float64))
    cos, sin = (half_side * radians.cos()).to(xy.dtype), (half_side * radians.sin()).to(xy.dtype)
    return torch.stack([torch.stack([cos, -sin, xy[:, 0]], dim=1), torch.stack([sin, cos, xy[:, 1]], dim=1)], dim=1)


def lafs_from_opencv(keypoints: Sequence[OpenCVKeyPoint], mr_size: float = DEFAULT_MR_SIZE) -> Tensor:
    """Similarity frames of OpenCV keypoints.

    Convention: half side = ``mr_size * sigma`` with ``sigma = KeyPoint.size / 2``; an angle of -1 (none) counts as 0.

    Args:
        keypoints: N ``cv2.KeyPoint``.
        mr_size: half side / sigma.

    Returns:
        (1, N, 2, 3) float32 frames, as kornia's modules take them; N = 0 gives (1, 0, 2, 3).
    """
    rows = torch.tensor(
        [(k.pt[0], k.pt[1], k.size, 0.0 if k.angle == -1 else k.angle) for k in keypoints], dtype=torch.float32
    ).reshape(-1, 4)
    return lafs_from_similarity(rows[:, :2], rows[:, 2] * (0.5 * mr_size), rows[:, 3])[None]
