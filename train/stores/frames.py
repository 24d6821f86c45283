"""Similarity frames of keypoints, and cutting stored patches in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.images import load_cv2
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.lafs import lafs_from_similarity
from kornia_hardnet8.patches import extract_patches

MIN_INSIDE = 0.6  # share of the plain support that must lie inside the image


@dataclass(frozen=True)
class Cut:
    """How patches are cut in the frames of keypoints.

    Attributes:
        crop: side of the stored patch / side of the plain patch.
        mr_size: half side of the plain patch / sigma.
        patch_size: side of the stored patch in pixels.
    """

    crop: float = 1.5
    mr_size: float = 12.0
    patch_size: int = 64

    def __post_init__(self) -> None:
        if not self.mr_size > 0 or self.patch_size < 8:
            raise UsageError("--mr-size must be positive and --patch-size at least 8")


def similarity_frames(xy: np.ndarray, sigma: np.ndarray, angle: np.ndarray, mr_size: float) -> np.ndarray:
    """Frames (N, 2, 3) with half side ``mr_size * sigma``, turned by ``angle``.

    Args:
        xy: (N, 2) pixels, pixel centres at integers.
        sigma: (N,) detection scale in pixels.
        angle: (N,) radians from the x axis towards the y axis (clockwise on screen), as OpenCV and COLMAP have it.
        mr_size: half side of the patch / sigma.
    """
    centres, half_sides, degrees = (
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for a in (xy, mr_size * sigma, np.rad2deg(angle))
    )
    return lafs_from_similarity(centres, half_sides, degrees).numpy()


def frame_scale(frames: np.ndarray) -> np.ndarray:
    """Half side (N,) of frames (N, 2, 3): sqrt |det A|."""
    a = frames[:, :, :2]
    return np.sqrt(np.abs(a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0]))


def frame_angle(frames: np.ndarray) -> np.ndarray:
    """Direction (N,) of the patch's x axis in the image: radians from x towards y."""
    return np.arctan2(frames[:, 1, 0], frames[:, 0, 0])


def enlarge(frames: np.ndarray, factor: float) -> np.ndarray:
    """The same centres with ``factor`` times the half side."""
    out = np.array(frames, dtype=np.float64)
    out[:, :, :2] *= factor
    return out


def inside_share(frames: np.ndarray, width: int, height: int, homography: np.ndarray | None = None) -> np.ndarray:
    """Share (N,) of each frame's square that lies inside a width x height image; 0 where the centre is outside.

    With ``homography`` (3, 3) the square is mapped by it into that image first.
    """
    unit = (np.arange(8) + 0.5) / 4 - 1
    u, v = np.meshgrid(unit, unit)
    cells = np.stack([np.append(u.ravel(), 0.0), np.append(v.ravel(), 0.0)])  # the last one is the centre
    frames = np.asarray(frames, dtype=np.float64)
    points = frames[:, :, :2] @ cells + frames[:, :, 2:]
    x, y = points[:, 0], points[:, 1]
    if homography is not None:
        x, y, w = np.einsum("ij,jnk->ink", homography, np.stack([x, y, np.ones_like(x)]))
        w = np.where(w > 1e-9, w, np.nan)
        x, y = x / w, y / w
    inside = (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)
    return inside[:, :-1].mean(axis=1) * inside[:, -1]


def cut(image: np.ndarray, frames: np.ndarray, patch_size: int, crop: float) -> np.ndarray:
    """Cut uint8 patches (N, S, S) that cover ``crop`` times the side of the plain ``frames`` of a gray image."""
    return cut_alike(image[None], frames, patch_size, crop)[0]


def cut_alike(images: np.ndarray, frames: np.ndarray, patch_size: int, crop: float) -> np.ndarray:
    """:func:`cut` in each of several images (C, H, W), in the same frames: (C, N, S, S)."""
    lafs = torch.from_numpy(enlarge(frames, crop))
    patches = extract_patches(torch.from_numpy(images).float(), lafs, patch_size, level="nearest")
    return patches.transpose(0, 1).round_().clamp_(0, 255).to(torch.uint8).numpy()


def detect_sift(
    image: np.ndarray, contrast: float = 0.04, max_keypoints: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detect SIFT keypoints in a uint8 gray image.

    Args:
        image: (H, W).
        contrast: OpenCV's contrast threshold.
        max_keypoints: keep those of the largest response; 0 keeps all.

    Returns:
        xy (n, 2) with pixel centres at integers, sigma (n,) in pixels, angle (n,) in radians from x towards y.
    """
    cv2 = load_cv2()
    sift = cv2.SIFT_create(contrastThreshold=contrast, enable_precise_upscale=True)
    keypoints = sift.detect(image, None)
    rows = np.array([(*k.pt, k.size / 2, np.deg2rad(k.angle), k.response) for k in keypoints], dtype=np.float64)
    rows = rows.reshape(-1, 5)
    order = np.lexsort((rows[:, 3], rows[:, 2], rows[:, 1], rows[:, 0], -rows[:, 4]))
    rows = rows[order[: max_keypoints or None]]
    return rows[:, :2], rows[:, 2], rows[:, 3]
