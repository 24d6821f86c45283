"""The stereo task on one pair of images: from matches to the error of the relative pose."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import (
    as_matches,
    as_points,
    essential_from_fundamental,
    eval_essential,
    normalize_keypoints,
    select_essential,
)
from common.metrics import FAILED_POSE, evaluate_R_t, max_error_deg
from eval.core.essential import estimate_essential
from eval.core.estimators import EstimatorSettings, estimate_fundamental


class PairScore(NamedTuple):
    """How well the matches of one pair give its pose."""

    error_deg: float
    """Larger of both errors in degrees; infinite when there is no pose."""
    err_q: float
    """Rotation error in radians, pi without a pose."""
    err_t: float
    """Error of the direction of translation in radians, pi / 2 without a pose."""
    inliers: NDArray[np.bool_]
    """(M,) over the matches; all False without a model."""
    E: NDArray[np.float64] | None
    """Essential matrix (3, 3) that the pose comes from."""
    reason: str
    """Why there is no pose; empty on success."""


def score_pair(
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    matches: ArrayLike,
    K0: ArrayLike,
    K1: ArrayLike,
    dR: ArrayLike,
    dt: ArrayLike,
    settings: EstimatorSettings | None = None,
    seed: int = 0,
) -> PairScore:
    """Estimate the relative pose of two calibrated images from matches and compare it with the true one.

    F from the pixels, E = K1' F K0, pose by the inliers of F; or, by an estimator of E, the pose that it gives.

    Args:
        kpts0: keypoints of image 0 in pixels, (N0, >= 2); frames (N0, 6) for degensac with a LAF coefficient.
        kpts1: keypoints of image 1.
        matches: (M, 2) indices.
        K0: calibration of image 0.
        K1: calibration of image 1.
        dR: true rotation from camera 0 to camera 1 (:func:`common.geometry.relative_pose`).
        dt: true translation, of any length.
        settings: the estimator; default: the development protocol's.
        seed: of the estimator.

    Source: IMW benchmark.
    """
    settings = settings or EstimatorSettings()
    pairs = as_matches(matches)
    if settings.is_calibrated:
        x0, x1 = as_points(kpts0)[pairs[:, 0]], as_points(kpts1)[pairs[:, 1]]
        pose = estimate_essential(x0, x1, K0, K1, settings, seed)
        if pose.R is None or pose.t is None:
            return _failure(pose.inliers, pose.reason)
        err_q, err_t = evaluate_R_t(dR, dt, pose.R, pose.t)
        return PairScore(float(max_error_deg([err_q, err_t])[0]), err_q, err_t, pose.inliers, pose.E, "")
    width = 6 if settings.laf_coefficient > 0 else 2
    points0 = np.asarray(kpts0, dtype=np.float64)[pairs[:, 0], :width]
    points1 = np.asarray(kpts1, dtype=np.float64)[pairs[:, 1], :width]
    estimate = estimate_fundamental(points0, points1, settings, seed)
    if estimate.F is None:
        return _failure(estimate.inliers, estimate.reason)
    x0 = normalize_keypoints(points0[estimate.inliers], K0)
    x1 = normalize_keypoints(points1[estimate.inliers], K1)
    E = select_essential(essential_from_fundamental(estimate.F, K0, K1), x0, x1)
    err_q, err_t = eval_essential(x0, x1, E, dR, dt)
    if (err_q, err_t) == FAILED_POSE:
        return _failure(estimate.inliers, f"no pose from {int(estimate.inliers.sum())} inliers")
    return PairScore(float(max_error_deg([err_q, err_t])[0]), err_q, err_t, estimate.inliers, E, "")


def _failure(inliers: NDArray[np.bool_], reason: str) -> PairScore:
    return PairScore(math.inf, *FAILED_POSE, inliers, None, reason)
