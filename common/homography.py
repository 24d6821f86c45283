"""Judging matches between images of a plane: pure functions of points and 3x3 homographies, no files.

Points are (N, 2) x, y in pixels; ``H_0to1`` maps homogeneous points of image 0 to image 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kornia_hardnet8.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def warp_points(points: ArrayLike, H_0to1: ArrayLike) -> Floats:
    """Map (N, 2) points by a homography; a point on the horizon becomes infinite or NaN. N = 0 gives (0, 2)."""
    x = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    h = np.asarray(H_0to1, dtype=np.float64)
    mapped = x @ h[:, :2].T + h[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = mapped[:, :2] / mapped[:, 2:]
    return result


def check_homography(H: ArrayLike, where: str) -> Floats:
    """A finite, invertible 3x3 matrix as float64; raises :class:`DataError` naming ``where`` otherwise."""
    matrix = np.asarray(H, dtype=np.float64)
    if matrix.shape != (3, 3):
        raise DataError(f"{where}: a homography is 3 lines of 3 numbers, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: the homography holds NaN or infinity")
    # Column scaling takes pixel units out, so that only a truly rank-deficient matrix is refused.
    scaled = matrix / np.maximum(np.linalg.norm(matrix, axis=0, keepdims=True), 1e-300)
    if abs(np.linalg.det(scaled)) < 1e-12:
        raise DataError(f"{where}: the homography is singular (determinant {np.linalg.det(matrix):.3g})")
    return matrix


def reprojection_errors(points0: ArrayLike, points1: ArrayLike, H_0to1: ArrayLike) -> Floats:
    """Distance in image 1 between the mapped point of image 0 and its partner, (N,); infinite on the horizon."""
    gaps = warp_points(points0, H_0to1) - np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    errors = np.linalg.norm(gaps, axis=1)
    result: Floats = np.where(np.isnan(errors), np.inf, errors)
    return result


def symmetric_errors(points0: ArrayLike, points1: ArrayLike, H_0to1: ArrayLike) -> Floats:
    """Mean of the reprojection errors of both directions, (N,). Source: glue-factory."""
    backward = reprojection_errors(points1, points0, np.linalg.inv(np.asarray(H_0to1, dtype=np.float64)))
    result: Floats = (reprojection_errors(points0, points1, H_0to1) + backward) / 2.0
    return result


def corner_error(
    H_estimated: ArrayLike | None,
    H_true: ArrayLike,
    width: int,
    height: int,
    convention: Literal["superpoint", "glue-factory"] = "superpoint",
) -> float:
    """Mean distance in pixels between the four corners mapped by both homographies; infinite for a failed estimate.

    Args:
        H_estimated: (3, 3), or None for a failure.
        H_true: (3, 3).
        width: of image 0.
        height: of image 0.
        convention: ``"superpoint"``: the corners are the outer pixel centres (0, 0) … (w - 1, h - 1);
            ``"glue-factory"``: (0, 0) … (w, h).

    Source: DeTone et al. 2018 (SuperPoint); glue-factory.
    """
    if H_estimated is None or not np.isfinite(np.asarray(H_estimated, dtype=np.float64)).all():
        return float("inf")
    right, bottom = (width - 1, height - 1) if convention == "superpoint" else (width, height)
    corners = np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=np.float64)
    error = float(np.linalg.norm(warp_points(corners, H_estimated) - warp_points(corners, H_true), axis=1).mean())
    return error if np.isfinite(error) else float("inf")


def inside(points: ArrayLike, width: int, height: int) -> Bools:
    """Which points satisfy 0 <= x < width and 0 <= y < height, (N,); never NaN ones."""
    x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    result: Bools = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return result


def shared_points(
    points0: ArrayLike,
    points1: ArrayLike,
    H_0to1: ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    scores0: ArrayLike | None = None,
    scores1: ArrayLike | None = None,
    keep: int | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the points that both images see: those whose mapped position lies inside the other image.

    Args:
        points0: (N0, 2).
        points1: (N1, 2).
        H_0to1: (3, 3).
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        scores0: detector strengths (N0,); needed with ``keep``.
        scores1: detector strengths (N1,).
        keep: of what is left, the ``keep`` strongest on each side, in ascending order of strength (ties: input order).

    Source: SuperPoint evaluation (repeatability and homography estimation).
    """
    backward = np.linalg.inv(np.asarray(H_0to1, dtype=np.float64))
    seen0 = np.flatnonzero(inside(warp_points(points0, H_0to1), *size1))
    seen1 = np.flatnonzero(inside(warp_points(points1, backward), *size0))
    if keep is not None:
        seen0 = _strongest(seen0, scores0, keep)
        seen1 = _strongest(seen1, scores1, keep)
    return seen0, seen1


def top_k(scores: ArrayLike, k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest scores, ascending by score; equal scores keep the input order. k = 0 gives none."""
    order = np.argsort(np.asarray(scores), kind="stable")
    return order[max(len(order) - k, 0) :]


def _strongest(index: NDArray[np.intp], scores: ArrayLike | None, keep: int) -> NDArray[np.intp]:
    if scores is None:
        raise ValueError("shared_points: keep needs the scores of both images")
    return index[top_k(np.asarray(scores)[index], keep)]


def repeatability(points0: ArrayLike, points1: ArrayLike, H_0to1: ArrayLike, radius_px: float = 3.0) -> float | None:
    """Share of points that have a partner within ``radius_px`` (<=) in image 1, counted from both sides.

    Both sets hold only shared points (:func:`shared_points`). None when both are empty.

    Source: SuperPoint evaluation.
    """
    from scipy.spatial import cKDTree

    mapped = warp_points(points0, H_0to1)
    partners = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    total = len(mapped) + len(partners)
    if total == 0:
        return None
    if len(mapped) == 0 or len(partners) == 0:
        return 0.0
    reach = np.nextafter(radius_px, np.inf)
    forward = np.isfinite(cKDTree(partners).query(mapped, distance_upper_bound=reach)[0]).sum()
    backward = np.isfinite(cKDTree(mapped).query(partners, distance_upper_bound=reach)[0]).sum()
    return float(forward + backward) / total


def correct_nearest(
    points0: ArrayLike, points1: ArrayLike, nearest: ArrayLike, H_0to1: ArrayLike, radius_px: float = 3.0
) -> tuple[int, int]:
    """Count nearest descriptors that lie at the right place.

    Args:
        points0: (N0, 2).
        points1: (N1, 2).
        nearest: (N0,) index of the descriptor of image 1 nearest to each of image 0.
        H_0to1: (3, 3).
        radius_px: how near a counterpart has to be (<=).

    Returns:
        (correct, total): total = points of image 0 that have some point of image 1 within the radius; correct = those
        of them whose nearest descriptor lies within it. (0, 0) when either image has no point.
    """
    from scipy.spatial import cKDTree

    partners = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    mapped = warp_points(points0, H_0to1)
    finite = np.isfinite(mapped).all(axis=1)
    if len(partners) == 0 or not finite.any():
        return 0, 0
    reach = np.nextafter(radius_px, np.inf)
    has_partner = np.isfinite(cKDTree(partners).query(mapped[finite], distance_upper_bound=reach)[0])
    error = np.linalg.norm(mapped[finite] - partners[np.asarray(nearest)[finite]], axis=1)
    return int((has_partner & (error <= radius_px)).sum()), int(has_partner.sum())


# --- resized images --------------------------------------------------------------------------------------------------


def short_side_size(width: int, height: int, side: int = 480) -> tuple[int, int]:
    """(width, height) after a resize of the short side to ``side``; the long side is rounded down.

    Source: glue-factory (``resize=480, side="short"``).
    """
    if height < width:
        return int(side * width / height), side
    return side, int(side * height / width)


def scale_homography(H_0to1: ArrayLike, scale0: Sequence[float], scale1: Sequence[float]) -> Floats:
    """The homography between images resized by (sx, sy) each, for pixel coordinates that start at the image corner."""
    first = np.diag([1.0 / scale0[0], 1.0 / scale0[1], 1.0])
    result: Floats = np.diag([scale1[0], scale1[1], 1.0]) @ np.asarray(H_0to1, dtype=np.float64) @ first
    return result


def crop_geometry(width: int, height: int, target_width: int, target_height: int) -> tuple[float, int, int]:
    """Ratio-preserving resize and central crop to a target size: (scale, left, top); the crop starts at left, top.

    Source: SuperPoint evaluation: the scale covers the target, offsets are rounded towards zero.
    """
    scale = max(target_width / width, target_height / height)
    return scale, int((width * scale - target_width) / 2), int((height * scale - target_height) / 2)


def crop_homography(
    H_0to1: ArrayLike, size0: tuple[int, int], size1: tuple[int, int], target: tuple[int, int]
) -> Floats:
    """The homography between two images after :func:`crop_geometry`; sizes are (width, height).

    Source: SuperPoint evaluation (``adapt_homography_to_preprocessing``).
    """
    scale0, left0, top0 = crop_geometry(*size0, *target)
    scale1, left1, top1 = crop_geometry(*size1, *target)
    to_original = np.diag([1 / scale0, 1 / scale0, 1.0]) @ np.array([[1, 0, left0], [0, 1, top0], [0, 0, 1.0]])
    to_crop = np.array([[1, 0, -left1], [0, 1, -top1], [0, 0, 1.0]]) @ np.diag([scale1, scale1, 1.0])
    result: Floats = to_crop @ np.asarray(H_0to1, dtype=np.float64) @ to_original
    return result
