"""Patches as the baselines of the IMW benchmark cut them: half a cell off kornia's grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.features.keypoints import Keypoints
from kornia_hardnet8.errors import UsageError


def patch_matrices(
    keypoints: Keypoints, patch_size: int, mr_size: float, *, top: int | None = None, compat: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where the cells of a patch lie: cell (u, v) reads pyramid level l at ``M (u, v, 1)``.

    Args:
        keypoints: N keypoints.
        patch_size: side S of a patch in cells; cell S / 2 lies on the keypoint.
        mr_size: half side of a patch / sigma, which is its side / ``size``.
        top: coarsest level that there is; None: as many as needed.
        compat: let the level of small keypoints be negative, as the original does; else it is at least 0.

    Returns:
        M (N, 2, 3) and levels (N,).
    """
    scale = mr_size * keypoints.size.astype(np.float64) / patch_size
    level = np.trunc(np.log2(scale)).astype(np.int64)
    if not compat:
        level = level.clip(0, top)
    step = 2.0**level
    scale = scale / step
    angle = np.deg2rad(keypoints.angle.astype(np.float64))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    x, y = keypoints.xy.astype(np.float64).T / step
    half = patch_size / 2
    rows = [[cos, -sin, (-cos + sin) * half + x], [sin, cos, (-sin - cos) * half + y]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1), level


def extract_baseline_patches(image: NDArray[np.uint8], keypoints: Keypoints, patch_size: int, mr_size: float) -> Tensor:
    """Cut patches of a gray image (H, W): OpenCV's pyramid, bilinear, border repeated.

    Returns:
        (N, 1, S, S) float32 in 0 … 255; N = 0 gives (0, 1, S, S).

    Raises:
        UsageError: keypoints with affine shapes, which the baselines do not have.
    """
    import cv2

    if keypoints.shape is not None:
        raise UsageError("the baselines' patches are similarities: --patches baseline does not go with --affine")
    pyramid = [image]
    while min(pyramid[-1].shape) > patch_size / 2:
        pyramid.append(np.asarray(cv2.pyrDown(pyramid[-1]), np.uint8))
    matrices, levels = patch_matrices(keypoints, patch_size, mr_size, top=len(pyramid) - 1)
    patches = np.empty((len(keypoints), 1, patch_size, patch_size), np.float32)
    for row, (matrix, level) in enumerate(zip(matrices, levels.tolist(), strict=True)):
        patches[row, 0] = cv2.warpAffine(
            pyramid[level],
            matrix,
            (patch_size, patch_size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return torch.from_numpy(patches)
