"""Two-view geometry of calibrated cameras: pure functions.

Poses are world to camera, x_cam = R X + t. Points are (N, 2) x, y: in pixels, or normalised (``*_n``) by K.
Fundamental and essential matrices take image 0 to image 1: x1' F x0 = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.metrics import FAILED_POSE, evaluate_R_t

Floats = NDArray[np.float64]

MIN_POSE_POINTS = 5
_QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def normalize_keypoints(kpts: ArrayLike, K: ArrayLike) -> Floats:
    """Pixels to the plane z = 1: ((x - cx) / fx, (y - cy) / fy). Skew is ignored, further columns are dropped.

    Args:
        kpts: (N, >= 2) pixels; one flat point is taken as (1, 2).
        K: calibration (3, 3).

    Returns:
        (N, 2); N = 0 gives (0, 2).

    Source: IMW benchmark.
    """
    points, k = as_points(kpts), _matrix(K, "K")
    return (points - k[:2, 2]) / np.array([k[0, 0], k[1, 1]])


def unnormalize_keypoints(kpts_n: ArrayLike, K: ArrayLike) -> Floats:
    """The inverse of :func:`normalize_keypoints`."""
    points, k = as_points(kpts_n), _matrix(K, "K")
    return points * np.array([k[0, 0], k[1, 1]]) + k[:2, 2]


def relative_pose(R0: ArrayLike, t0: ArrayLike, R1: ArrayLike, t1: ArrayLike) -> tuple[Floats, Floats]:
    """Pose of camera 1 in the frame of camera 0: dR = R1 R0', dt = t1 - dR t0; (3, 3) and (3,)."""
    rotation: Floats = _matrix(R1, "R") @ _matrix(R0, "R").T
    translation: Floats = _vector(t1) - rotation @ _vector(t0)
    return rotation, translation


def skew_matrix(t: ArrayLike) -> Floats:
    """The matrix whose product with a vector is the cross product with ``t``, (3, 3)."""
    x, y, z = _vector(t)
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def essential_from_fundamental(F: ArrayLike, K0: ArrayLike, K1: ArrayLike) -> Floats:
    """E = K1' F K0 of one fundamental matrix (3, 3), or of several: (k, 3, 3) or stacked (3k, 3).

    Returns:
        (k, 3, 3), k = 1 for one matrix.
    """
    stacked = np.asarray(F, dtype=np.float64).reshape(-1, 3, 3)
    result: Floats = _matrix(K1, "K").T @ stacked @ _matrix(K0, "K")
    return result


def essential_from_pose(dR: ArrayLike, dt: ArrayLike) -> Floats:
    """E = [dt]x dR, (3, 3)."""
    result: Floats = skew_matrix(dt) @ _matrix(dR, "R")
    return result


def epipolar_squared(points0: ArrayLike, points1: ArrayLike, F: ArrayLike) -> Floats:
    """Squared distances to the epipolar lines of F in both images, summed, (N,), in the units of the points."""
    result: Floats = np.sum(epipolar_distances(points0, points1, F) ** 2, axis=0)
    return result


def epipolar_distances(points0: ArrayLike, points1: ArrayLike, F: ArrayLike) -> Floats:
    """Distances of the points to the epipolar lines of F in image 0 and in image 1, (2, N), in their units.

    NaN or infinite for a point on the epipole.
    """
    x0, x1, f = _homogeneous(points0), _homogeneous(points1), _matrix(F, "F")
    lines1, lines0 = x0 @ f.T, x1 @ f
    residuals = np.abs(np.sum(x1 * lines1, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([residuals / np.hypot(line[:, 0], line[:, 1]) for line in (lines0, lines1)])


def sampson_distances(points0: ArrayLike, points1: ArrayLike, F: ArrayLike) -> Floats:
    """First-order distances of matched points to the nearest pair that satisfies x1' F x0 = 0, (N,), in their units.

    NaN or infinite where both points lie on their epipoles.

    Source: Hartley and Zisserman 2004, eq. 11.9.
    """
    x0, x1, f = _homogeneous(points0), _homogeneous(points1), _matrix(F, "F")
    lines1, lines0 = x0 @ f.T, x1 @ f
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.abs(np.sum(x1 * lines1, axis=1)) / np.linalg.norm(
            np.column_stack([lines0[:, :2], lines1[:, :2]]), axis=1
        )
    return result


def pose_from_essential(
    candidates: ArrayLike, points0_n: ArrayLike, points1_n: ArrayLike
) -> tuple[Floats, Floats, int]:
    """Of the poses of essential matrices (k, 3, 3) the one with the most points in front of both cameras.

    Points at any distance vote, so that a camera that hardly moves keeps its rotation; :func:`recover_pose` hears those
    within 50 baselines alone. The first one of equals.

    Args:
        candidates: k >= 1 finite matrices, also stacked (3k, 3).
        points0_n: normalised points, (N, 2).
        points1_n: normalised points, (N, 2).

    Returns:
        R (3, 3), unit t (3,), number of points in front.
    """
    x0, x1 = _homogeneous(points0_n), _homogeneous(points1_n)
    best: tuple[Floats, Floats, int] | None = None
    for E in np.asarray(candidates, dtype=np.float64).reshape(-1, 3, 3):
        u, _, vh = np.linalg.svd(E)
        u, vh = u * np.sign(np.linalg.det(u)), vh * np.sign(np.linalg.det(vh))
        for W in (_QUARTER_TURN, _QUARTER_TURN.T):
            R = u @ W @ vh
            turned = x0 @ R.T
            normals = np.cross(x1, turned)
            for t in (u[:, 2], -u[:, 2]):
                # lambda1 x1 = lambda0 R x0 + t, crossed with x1 and with R x0: the signs of both depths
                depth0, depth1 = -np.sum(normals * np.cross(x1, t), 1), -np.sum(normals * np.cross(turned, t), 1)
                votes = int(np.sum((depth0 > 0) & (depth1 > 0)))
                if best is None or votes > best[2]:
                    best = R, t, votes
    assert best is not None
    return best


def recover_pose(E: ArrayLike, points0_n: ArrayLike, points1_n: ArrayLike) -> tuple[Floats, Floats, int]:
    """Of the four poses of an essential matrix the one with the most points in front of both cameras.

    Points farther than 50 baselines do not vote; without votes the first decomposition is returned.

    Args:
        E: (3, 3).
        points0_n: normalised points, (N, 2).
        points1_n: normalised points, (N, 2).

    Returns:
        R (3, 3), unit t (3,), number of votes.

    Raises:
        ValueError: the points differ in number, or E is not a finite 3x3 matrix.
    """
    x0, x1, e = as_points(points0_n), as_points(points1_n), _matrix(E, "E")
    if len(x0) != len(x1):
        raise ValueError(f"{len(x0)} points in image 0 but {len(x1)} in image 1")
    if not np.isfinite(e).all() or len(x0) == 0:
        raise ValueError("the pose needs a finite essential matrix and at least one point")
    import cv2

    votes, rotation, translation, _ = cv2.recoverPose(e, x0, x1)
    return np.asarray(rotation, np.float64), np.asarray(translation, np.float64).ravel(), int(votes)


def parallax_deg(points0_n: ArrayLike, points1_n: ArrayLike, dR: ArrayLike) -> Floats:
    """Angles between the rays of matched normalised points (N, 2), the first ones turned by dR, in degrees, (N,)."""
    rays0, rays1 = _homogeneous(points0_n) @ _matrix(dR, "R").T, _homogeneous(points1_n)
    crossed = np.linalg.norm(np.cross(rays0, rays1), axis=1)
    result: Floats = np.degrees(np.arctan2(crossed, np.sum(rays0 * rays1, axis=1)))
    return result


def select_essential(candidates: ArrayLike, points0_n: ArrayLike, points1_n: ArrayLike) -> Floats:
    """Of several essential matrices (k, 3, 3) the one whose pose has the most points in front; the last one of equals.

    Source: IMW benchmark.
    """
    stacked = np.asarray(candidates, dtype=np.float64).reshape(-1, 3, 3)
    if len(stacked) == 1:
        return stacked[0]
    votes = [recover_pose(e, points0_n, points1_n)[2] for e in stacked]
    return stacked[len(votes) - 1 - int(np.argmax(votes[::-1]))]


def eval_essential(
    points0_n: ArrayLike, points1_n: ArrayLike, E: ArrayLike | None, dR: ArrayLike, dt: ArrayLike
) -> tuple[float, float]:
    """Pose error (rotation, translation) in radians of an essential matrix, by its inliers.

    :data:`common.metrics.FAILED_POSE` for fewer than 5 points, for no matrix (None or size 0), and when no pose can be
    had from it.

    Args:
        points0_n: normalised inliers of image 0, (N, 2).
        points1_n: normalised inliers of image 1, (N, 2).
        E: (3, 3) or None.
        dR: true relative rotation (3, 3).
        dt: true relative translation (3,).

    Raises:
        ValueError: the points differ in number.

    Source: IMW benchmark.
    """
    x0, x1 = as_points(points0_n), as_points(points1_n)
    if len(x0) != len(x1):
        raise ValueError(f"{len(x0)} points in image 0 but {len(x1)} in image 1")
    if E is None or np.size(E) == 0 or len(x0) < MIN_POSE_POINTS or not np.isfinite(np.asarray(E, np.float64)).all():
        return FAILED_POSE
    import cv2

    try:
        rotation, translation, _ = recover_pose(E, x0, x1)
    except (cv2.error, ValueError, np.linalg.LinAlgError):
        return FAILED_POSE
    return evaluate_R_t(dR, dt, rotation, translation)


def as_points(kpts: ArrayLike) -> Floats:
    """The x, y columns of keypoints (N, >= 2), or of one flat point, as (N, 2) float64; (0, 2) when empty."""
    points = np.asarray(kpts, dtype=np.float64)
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim == 1:
        points = points[None]
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"points must be (N, 2) or wider, got {points.shape}")
    return np.ascontiguousarray(points[:, :2])


def as_matches(matches: ArrayLike) -> NDArray[np.int64]:
    """Matches (M, 2) as int64; (0, 2) when empty. Raises ``ValueError`` for another shape, (2, M) among them."""
    pairs = np.asarray(matches)
    if pairs.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"matches must be (M, 2), got {pairs.shape}")
    return pairs.astype(np.int64)


def _homogeneous(points: ArrayLike) -> Floats:
    x = as_points(points)
    return np.column_stack([x, np.ones(len(x))])


def _matrix(value: ArrayLike, name: str) -> Floats:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.shape != (3, 3):
        raise ValueError(f"{name} must be (3, 3), got {matrix.shape}")
    return matrix


def _vector(value: ArrayLike) -> Floats:
    vector = np.asarray(value, dtype=np.float64).ravel()
    if vector.shape != (3,):
        raise ValueError(f"a translation has 3 values, got {vector.size}")
    return vector
