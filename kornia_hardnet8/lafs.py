"""Local affine frames (LAFs): conventions, and conversions from other libraries' keypoints.

A frame is ``[[a11, a12, x], [a21, a22, y]]`` in pixels, pixel centres at integers; its patch covers [-1, 1]^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kornia_hardnet8.errors import DataError, need

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def opencv_from_lafs(lafs: Tensor, responses: Tensor | None = None, mr_size: float = DEFAULT_MR_SIZE) -> list[Any]:
    """OpenCV keypoints of frames: the inverse of :func:`lafs_from_opencv` for similarity frames.

    Convention: ``size = 2 sqrt(det A) / mr_size``; the angle, in [0, 360), is the direction of the frame's x axis.
    What OpenCV's keypoints cannot hold, the affine shape, is lost.

    Args:
        lafs: (N, 2, 3) or (1, N, 2, 3) frames, pixels.
        responses: (N,) or (1, N) strengths, or None.
        mr_size: half side / sigma.

    Returns:
        N ``cv2.KeyPoint``.

    Raises:
        DataError: wrong shapes.
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = need("cv2", "opencv")
    frames = _single(lafs).to("cpu", torch.float64)
    strengths = [0.0] * len(frames) if responses is None else responses.detach().flatten().tolist()
    if len(strengths) != len(frames):
        raise DataError(f"{len(frames)} frames have {len(strengths)} responses")
    sizes = 2.0 * torch.linalg.det(frames[:, :, :2]).abs().sqrt() / mr_size
    angles = torch.rad2deg(torch.atan2(frames[:, 1, 0], frames[:, 0, 0])) % 360.0
    rows = torch.cat([frames[:, :, 2], sizes[:, None], angles[:, None]], dim=1).tolist()
    return [cv2.KeyPoint(x, y, size, angle, s) for (x, y, size, angle), s in zip(rows, strengths, strict=True)]


def lafs_from_colmap(keypoints: Tensor | NDArray[Any], mr_size: float = DEFAULT_MR_SIZE) -> Tensor:
    """Frames of COLMAP keypoints, as its database and pycolmap have them.

    Convention: COLMAP's corner of the first pixel is (0, 0), so centres move by -0.5; its scale is sigma; its angle,
    in radians, runs like OpenCV's; its affine keypoints map the unit circle of sigma.

    Args:
        keypoints: (N, 2) x, y (taken as upright with sigma 1); (N, 4) x, y, scale, angle; or (N, 6) x, y, a11, a12,
            a21, a22.
        mr_size: half side / sigma.

    Returns:
        (1, N, 2, 3) float32 frames in pixel-centre coordinates; N = 0 gives (1, 0, 2, 3).

    Raises:
        DataError: another number of columns.
    """
    rows = torch.as_tensor(keypoints).detach().to("cpu", torch.float64)
    if rows.dim() != 2 or rows.shape[1] not in (2, 4, 6):
        raise DataError(f"COLMAP keypoints are (N, 2), (N, 4) or (N, 6), got {tuple(rows.shape)}")
    xy = rows[:, :2] - 0.5
    if rows.shape[1] == 6:
        return torch.cat([rows[:, 2:].reshape(-1, 2, 2) * mr_size, xy[:, :, None]], dim=2).float()[None]
    scale = rows[:, 2] if rows.shape[1] == 4 else torch.ones_like(xy[:, 0])
    angle = torch.rad2deg(rows[:, 3]) if rows.shape[1] == 4 else torch.zeros_like(xy[:, 0])
    return lafs_from_similarity(xy, scale * mr_size, angle).float()[None]


def colmap_from_lafs(lafs: Tensor, mr_size: float = DEFAULT_MR_SIZE) -> NDArray[np.float32]:
    """COLMAP's affine keypoints of frames: the inverse of :func:`lafs_from_colmap`.

    Args:
        lafs: (N, 2, 3) or (1, N, 2, 3) frames, pixel-centre coordinates.
        mr_size: half side / sigma.

    Returns:
        (N, 6) float32: x, y (shifted by +0.5), a11, a12, a21, a22, as ``pycolmap.Database.write_keypoints`` takes.
    """
    frames = _single(lafs).to("cpu", torch.float64)
    rows = torch.cat([frames[:, :, 2] + 0.5, frames[:, :, :2].flatten(1) / mr_size], dim=1)
    keypoints: NDArray[np.float32] = rows.float().numpy()
    return keypoints


def _single(lafs: Tensor) -> Tensor:
    """Frames (N, 2, 3), out of a batch of one where they are in one."""
    frames = lafs.detach()
    if frames.dim() == 4 and frames.shape[0] == 1:
        frames = frames[0]
    if frames.dim() != 3 or frames.shape[1:] != (2, 3):
        raise DataError(f"frames must be (N, 2, 3) or (1, N, 2, 3), got {tuple(lafs.shape)}")
    return frames
