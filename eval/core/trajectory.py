"""Average trajectory error (ATE): camera centres of a model against the true ones.

Source: IMW benchmark. The original applies a translation that does not fit its scale; ``compat=True``
reproduces it, else the alignment is the least-squares similarity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_CAMERAS = 3
MIN_INLIER_SHARE = 0.3
_SAMPLE_SHARE, _FAILURE_PROBABILITY = 0.5, 1e-4


class Alignment(NamedTuple):
    """A similarity x -> scale R x + t."""

    R: Floats
    t: Floats
    scale: float

    def __call__(self, points: Floats) -> Floats:
        """Map points (N, 3)."""
        return self.scale * points @ self.R.T + self.t


class RansacAlignment(NamedTuple):
    """The best of many 3-point alignments."""

    alignment: Alignment
    mean_inlier_error: float
    num_inliers: int


def camera_centre(R: ArrayLike, t: ArrayLike) -> Floats:
    """C = -R' t of a world-to-camera pose, (3,)."""
    centre: Floats = -np.asarray(R, dtype=np.float64).T @ np.asarray(t, dtype=np.float64).ravel()
    return centre


def align(model: ArrayLike, data: ArrayLike, compat: bool = False) -> Alignment:
    """The similarity that takes ``model`` (N, 3) to ``data`` (N, 3) with the least squared error (Umeyama 1991).

    Fewer than 3 points, or model points that coincide, give the identity (with scale 1).

    ``compat``: the scale is the median ratio of the distances to the centroids, and the whole of R x + t is scaled,
    with t found for scale 1.
    """
    x, y = _points(model), _points(data)
    identity = Alignment(np.eye(3), np.zeros(3), 1.0)
    if len(x) < MIN_CAMERAS:
        return identity
    x0, y0 = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = float(np.sum(x0**2))
    if spread == 0.0:
        return identity
    u, singular, vh = np.linalg.svd(y0.T @ x0)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vh)) or 1.0])
    rotation: Floats = (u * signs) @ vh
    if compat:
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = float(np.median(np.linalg.norm(y0, axis=1) / np.linalg.norm(x0, axis=1)))
        return Alignment(rotation, scale * (y.mean(axis=0) - rotation @ x.mean(axis=0)), scale)
    scale = float(np.sum(singular * signs) / spread)
    return Alignment(rotation, y.mean(axis=0) - scale * (rotation @ x.mean(axis=0)), scale)


def align_ransac(
    model: ArrayLike,
    data: ArrayLike,
    num_iters: int,
    threshold: float,
    rng: np.random.RandomState,
    compat: bool = False,
) -> RansacAlignment:
    """The alignment of three points with the most inliers, ties by the smaller mean inlier error.

    Without any inlier: the identity and the mean error of the points as they are.

    Args:
        model: (N, 3).
        data: (N, 3).
        num_iters: samples drawn.
        threshold: an inlier's error is below.
        rng: numpy's legacy generator, as the original uses it.
        compat: see :func:`align`.
    """
    x, y = _points(model), _points(data)
    best = RansacAlignment(Alignment(np.eye(3), np.zeros(3), 1.0), _mean_distance(x, y), 0)
    for _ in range(num_iters):
        order = np.arange(len(x))
        rng.shuffle(order)
        candidate = align(x[order[:3]], y[order[:3]], compat)
        errors = np.linalg.norm(candidate(x) - y, axis=1)
        inliers = errors < threshold
        count = int(inliers.sum())
        mean = float(errors[inliers].mean()) if count else math.inf
        if count > best.num_inliers or (count and count == best.num_inliers and mean < best.mean_inlier_error):
            best = RansacAlignment(candidate, mean, count)
    return best


def spread(points: ArrayLike) -> float:
    """Root mean square distance of points (N, 3) to their centroid."""
    x = _points(points)
    return float(np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))))


def half_diagonal(points: ArrayLike) -> float:
    """Half the diagonal of the bounding box of points (N, 3)."""
    x = _points(points)
    return float(np.linalg.norm(x.max(axis=0) - x.min(axis=0)) / 2.0)


def trajectory_error(
    estimated: ArrayLike,
    true: ArrayLike,
    rng: np.random.RandomState,
    compat: bool = False,
    num_iters: int | None = None,
) -> float | None:
    """ATE of one bag: mean inlier error after alignment, None for fewer than 3 cameras.

    Half the diagonal of the true centres when the error is larger than that or fewer than 30 % are inliers.

    Args:
        estimated: camera centres of the model, (N, 3).
        true: their true places, (N, 3).
        rng: of the samples.
        compat: see :func:`align`.
        num_iters: samples drawn; None: as many as find three inliers among half of them, but for one time in 10,000.
    """
    x, y = _points(estimated), _points(true)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} estimated camera centres but {len(y)} true ones")
    if len(x) < MIN_CAMERAS:
        return None
    share = max(3.0 / len(x), _SAMPLE_SHARE)
    if num_iters is None:
        num_iters = 1 if share == 1.0 else int(math.log(_FAILURE_PROBABILITY) / math.log(1.0 - share**3))
    alignment = align_ransac(x, y, num_iters, 0.5 * spread(y), rng, compat)
    worst = half_diagonal(y)
    if not alignment.mean_inlier_error <= worst or alignment.num_inliers < MIN_INLIER_SHARE * len(x):
        return worst
    return alignment.mean_inlier_error


def _points(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1, 3)


def _mean_distance(a: Floats, b: Floats) -> float:
    return float(np.linalg.norm(a - b, axis=1).mean()) if len(a) else math.inf
