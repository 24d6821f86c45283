"""Robust estimators of the essential matrix, from known calibrations, behind one guarded function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import MIN_POSE_POINTS, essential_from_pose, normalize_keypoints, pose_from_essential
from eval.core.estimators import (
    LIBRARY_ERRORS,
    Bools,
    EstimatorSettings,
    Floats,
    as_matched,
    finite_matrices,
    model_inliers,
    poselib_options,
    too_few_or_bad,
)
from kornia_hardnet8.errors import HardNet8Error, UsageError, need

# Translations of a homography, in distances to the plane, below which there is none.
_ONLY_TURNED = 1e-6


class PoseEstimate(NamedTuple):
    """A relative pose with its inliers, or a reason for not having one."""

    E: Floats | None
    """(3, 3) with x1_n' E x0_n = 0."""
    R: Floats | None
    """(3, 3) rotation of camera 0 to camera 1."""
    t: Floats | None
    """(3,) direction of its translation, of length 1."""
    inliers: Bools
    """(N,) over the given points; all False without a pose."""
    reason: str = ""
    """Why there is no pose; empty on success."""


def estimate_essential(
    points0: ArrayLike, points1: ArrayLike, K0: ArrayLike, K1: ArrayLike, settings: EstimatorSettings, seed: int = 0
) -> PoseEstimate:
    """Estimate the relative pose of two calibrated images from matched points.

    Of several matrices (five points have up to ten) and of the four poses of each, the one with the most matches in
    front of both cameras. OpenCV computes on points of one camera that has the mean of the focal lengths, so that a
    threshold means pixels; its inliers are as it marks them. Those of poselib, whose marks belong to an earlier model
    than the one it returns, are the matches whose Sampson distance is within the threshold.

    Args:
        points0: points of image 0 in pixels, (N, 2).
        points1: their matches in image 1.
        K0: calibration (3, 3) of image 0; skew is ignored.
        K1: calibration of image 1.
        settings: an estimator of E.
        seed: 0 to 2^31 - 1, for poselib. OpenCV's take none.

    Returns:
        a :class:`PoseEstimate`; never raises for bad points.

    Raises:
        ValueError: the point sets differ in shape, or the seed is out of range.
        MissingDependencyError: the library of the estimator is not installed.
        UsageError: it is a version that does not know one of our options, or the estimator is one of F.
    """
    if not settings.is_calibrated:
        raise UsageError(f"{settings.method} estimates F, here E is asked for")
    x0, x1 = as_matched(points0, points1, seed)
    if reason := too_few_or_bad(x0, x1, settings):
        return _failure(len(x0), reason)
    K0, K1 = np.asarray(K0, dtype=np.float64), np.asarray(K1, dtype=np.float64)
    n0, n1 = normalize_keypoints(x0, K0), normalize_keypoints(x1, K1)
    try:
        if settings.method == "poselib-e":
            model = _poselib(x0, x1, K0, K1, settings, seed)
            mask: NDArray[Any] | None = np.ones(len(x0), dtype=bool)
        else:
            model, mask = _opencv(n0, n1, _mean_focal(K0, K1), settings)
    except HardNet8Error:
        raise
    except LIBRARY_ERRORS as error:
        return _failure(len(x0), f"{settings.method} failed: {' '.join(str(error).split())}")
    candidates, reason = finite_matrices(model, mask, settings.method)
    if candidates is None:
        return _failure(len(x0), reason)
    if settings.method == "poselib-e":
        inliers = model_inliers(x0, x1, np.linalg.inv(K1).T @ candidates[0] @ np.linalg.inv(K0), settings)
    else:
        inliers = np.asarray(mask).ravel().astype(bool)
    if inliers.sum() < MIN_POSE_POINTS:
        return _failure(len(x0), f"{settings.method}: {int(inliers.sum())} inliers, {MIN_POSE_POINTS} needed")
    R, t, _ = pose_from_essential(candidates, n0[inliers], n1[inliers])
    return PoseEstimate(essential_from_pose(R, t), R, t, inliers)


def pose_of_a_plane(
    H: ArrayLike, R: ArrayLike, t: ArrayLike, points0_n: ArrayLike, points1_n: ArrayLike
) -> tuple[Floats, Floats]:
    """The pose with the most points in front of both cameras, of those that a plane allows and the one that was found.

    Matches on a plane agree with the essential matrices of two poses, of which an estimator returns any. Where the
    plane's points are in front of both cameras by either, the pose that was found stays.

    Args:
        H: homography (3, 3) between normalised points.
        R: (3, 3) of the pose that was found.
        t: its (3,) translation.
        points0_n: normalised points of the plane, (N, 2).
        points1_n: normalised points of the plane, (N, 2).

    Returns:
        R (3, 3), unit t (3,).
    """
    import cv2

    _, rotations, translations, _ = cv2.decomposeHomographyMat(np.asarray(H, dtype=np.float64), np.eye(3))
    candidates = [essential_from_pose(R, t)]
    candidates += [
        essential_from_pose(other, to.ravel())
        for other, to in zip(rotations, translations, strict=True)
        if np.linalg.norm(to) > _ONLY_TURNED
    ]
    best_R, best_t, _ = pose_from_essential(np.stack(candidates), points0_n, points1_n)
    return best_R, best_t


def _failure(count: int, reason: str) -> PoseEstimate:
    return PoseEstimate(None, None, None, np.zeros(count, dtype=bool), reason)


def _mean_focal(K0: Floats, K1: Floats) -> float:
    return float(np.mean([K0[0, 0], K0[1, 1], K1[0, 0], K1[1, 1]]))


def _poselib(x0: Floats, x1: Floats, K0: Floats, K1: Floats, settings: EstimatorSettings, seed: int) -> Floats | None:
    """E of poselib's LO-RANSAC with its bundle adjustment, or None."""
    poselib = need("poselib", "poselib")
    # The name in capitals: in small letters it is another model, without a word.
    cameras = [
        {"model": "PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]} for K in (K0, K1)
    ]
    pose, info = poselib.estimate_relative_pose(x0, x1, *cameras, poselib_options(settings, seed), {})
    # Without a model it returns uninitialised memory.
    return essential_from_pose(pose.R, pose.t) if info["num_inliers"] >= MIN_POSE_POINTS else None


def _opencv(n0: Floats, n1: Floats, focal: float, settings: EstimatorSettings) -> tuple[Any, Any]:
    """Matrices (3k, 3) and the mask, of normalised points."""
    import cv2

    flags = {
        "ransac-e": cv2.RANSAC,
        "lmeds-e": cv2.LMEDS,
        "usac-default-e": cv2.USAC_DEFAULT,
        "usac-magsac-e": cv2.USAC_MAGSAC,
        "usac-fast-e": cv2.USAC_FAST,
        "usac-accurate-e": cv2.USAC_ACCURATE,
    }
    threshold_px = settings.threshold_px if settings.threshold_n is None else settings.threshold_n * focal
    try:
        return cv2.findEssentialMat(
            n0 * focal,
            n1 * focal,
            np.diag([focal, focal, 1.0]),
            method=flags[settings.method],
            prob=settings.confidence,
            threshold=threshold_px,
            maxIters=settings.max_iters,
        )
    except cv2.error as error:
        raise ValueError(str(error)) from None
