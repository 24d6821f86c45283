"""Keypoints and matches judged by depth: repeatability and matching score of the stereo task, pure functions.

Pixel centres lie at integers; depth maps are (height, width), 0 where there is no depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import as_matches, as_points, normalize_keypoints, unnormalize_keypoints

Floats = NDArray[np.float64]

THRESHOLDS_PX = tuple(range(1, 11))


class DepthScores(NamedTuple):
    """What the depth maps say about one pair."""

    repeatability: Floats
    """(10,): share of projected keypoints with a keypoint nearer than 1 … 10 px, mean of both directions."""
    projected_1to0: Floats
    """(N1, 2): keypoints of image 1 in pixels of image 0; meaningless without depth."""
    has_depth0: NDArray[np.bool_]
    """(N0,)"""
    has_depth1: NDArray[np.bool_]
    """(N1,)"""


def depth_at(depth: ArrayLike, kpts: ArrayLike) -> Floats:
    """Depth of the pixel nearest to each keypoint (halves to even), (N,); 0 outside the map and for NaN.

    Source: IMW benchmark.
    """
    values, points = np.asarray(depth, dtype=np.float64), as_points(kpts)
    limits = [-1, -1], values.shape[::-1]  # anything outside, infinite or NaN, is one place outside
    columns, rows = np.rint(np.clip(np.nan_to_num(points, nan=-1.0), *limits)).astype(np.int64).T
    inside = (rows >= 0) & (columns >= 0) & (rows < values.shape[0]) & (columns < values.shape[1])
    depths = np.zeros(len(points))
    depths[inside] = values[rows[inside], columns[inside]]
    return np.where(np.isfinite(depths), depths, 0.0)


def project_with_depth(kpts_n: ArrayLike, depth: ArrayLike, R: ArrayLike, t: ArrayLike) -> tuple[Floats, Floats]:
    """Normalised keypoints of one camera in another, with R, t from the first to the second.

    Returns:
        normalised points (N, 2) and their depth (N,) in the second camera; a point without depth lands on the image of
        the first camera's centre.
    """
    points = as_points(kpts_n)
    rays = np.column_stack([points, np.ones(len(points))]) * np.asarray(depth, dtype=np.float64).reshape(-1, 1)
    moved = rays @ np.asarray(R, dtype=np.float64).T + np.asarray(t, dtype=np.float64).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        return moved[:, :2] / moved[:, 2:], moved[:, 2]


def score_depth(
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    depth0: ArrayLike,
    depth1: ArrayLike,
    K0: ArrayLike,
    K1: ArrayLike,
    dR: ArrayLike,
    dt: ArrayLike,
    compat: bool = False,
) -> DepthScores:
    """Repeatability of the keypoints of a pair, and what :func:`matching_distances` needs.

    Args:
        kpts0: keypoints of image 0 in pixels, (N0, >= 2).
        kpts1: keypoints of image 1.
        depth0: depth map of image 0.
        depth1: depth map of image 1.
        K0: calibration of image 0.
        K1: calibration of image 1.
        dR: rotation from camera 0 to camera 1.
        dt: translation from camera 0 to camera 1, in the units of the depths.
        compat: as the original, which takes projections left of and above the image, and behind the camera, as valid.

    Source: IMW benchmark.
    """
    points0, points1 = as_points(kpts0), as_points(kpts1)
    rotation, translation = np.asarray(dR, dtype=np.float64), np.asarray(dt, dtype=np.float64).ravel()
    d0, d1 = depth_at(depth0, points0), depth_at(depth1, points1)
    x0to1, z0to1 = project_with_depth(normalize_keypoints(points0, K0), d0, rotation, translation)
    x1to0, z1to0 = project_with_depth(normalize_keypoints(points1, K1), d1, rotation.T, -rotation.T @ translation)
    projected_0to1, projected_1to0 = unnormalize_keypoints(x0to1, K1), unnormalize_keypoints(x1to0, K0)
    valid0 = (d0 != 0) & _in_view(projected_0to1, z0to1, np.shape(depth1), compat)
    valid1 = (d1 != 0) & _in_view(projected_1to0, z1to0, np.shape(depth0), compat)
    repeatability = (
        repeatability_curve(projected_0to1[valid0], points1) + repeatability_curve(projected_1to0[valid1], points0)
    ) / 2.0
    return DepthScores(repeatability, projected_1to0, d0 != 0, d1 != 0)


def repeatability_curve(
    projected: ArrayLike, kpts: ArrayLike, thresholds_px: Sequence[float] = THRESHOLDS_PX
) -> Floats:
    """Share of projected keypoints (N, 2) whose nearest keypoint (M, 2) is strictly nearer than each threshold.

    Several may share one keypoint. Zeros when either is empty.
    """
    points, targets = as_points(projected), as_points(kpts)
    if len(points) == 0 or len(targets) == 0:
        return np.zeros(len(thresholds_px))
    from scipy.spatial import cKDTree

    _, index = cKDTree(targets).query(points)
    squared = np.sum((points - targets[index]) ** 2, axis=1)
    shares: Floats = (squared[:, None] < np.asarray(thresholds_px, dtype=np.float64) ** 2).mean(axis=0)
    return shares


def matching_distances(matches: ArrayLike, kpts0: ArrayLike, scores: DepthScores) -> Floats:
    """Reprojection distance in image 0, in pixels, of the matches that have depth in both images, (M',).

    Source: IMW benchmark: the distance in the second image does not enter.
    """
    pairs = as_matches(matches)
    pairs = pairs[scores.has_depth0[pairs[:, 0]] & scores.has_depth1[pairs[:, 1]]]
    points = as_points(kpts0)[pairs[:, 0]]
    distances: Floats = np.linalg.norm(points - scores.projected_1to0[pairs[:, 1]], axis=1)
    return distances


def matching_score(distances: Sequence[ArrayLike], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> Floats:
    """Mean over pairs of the share of distances strictly below each threshold; a pair without any counts as 0.

    Source: IMW benchmark (packing).
    """
    limits = np.asarray(thresholds_px, dtype=np.float64)
    shares = [
        (values[:, None] < limits).mean(axis=0) if values.size else np.zeros(len(limits))
        for values in (np.asarray(d, dtype=np.float64).ravel() for d in distances)
    ]
    return np.mean(shares, axis=0) if shares else np.zeros(len(limits))


def mean_repeatability(curves: Sequence[ArrayLike]) -> Floats | None:
    """Mean over pairs of their repeatability; pairs without one (empty) are left out, None when all are."""
    filled = [np.asarray(curve, dtype=np.float64) for curve in curves if np.size(curve)]
    return np.mean(filled, axis=0) if filled else None


def _in_view(points: Floats, z: Floats, shape: tuple[int, ...], compat: bool) -> NDArray[np.bool_]:
    height, width = shape
    inside: NDArray[np.bool_] = (points[:, 0] < width) & (points[:, 1] < height)
    if not compat:
        inside = inside & (points[:, 0] >= 0) & (points[:, 1] >= 0) & (z > 0)
    return inside
