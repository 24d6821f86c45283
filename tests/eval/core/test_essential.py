"""Estimators of the essential matrix on scenes whose pose is known."""

from __future__ import annotations

import math
import sys

import cv2
import numpy as np
import poselib
import pytest

from common.geometry import epipolar_squared, parallax_deg, pose_from_essential, recover_pose, sampson_distances
from common.metrics import evaluate_R_t
from eval.core.essential import estimate_essential, pose_of_a_plane
from eval.core.estimators import METHODS, UNCALIBRATED_METHODS, EstimatorSettings, estimate_fundamental
from eval.core.poses import score_pair
from kornia_hardnet8.errors import MissingDependencyError, UsageError

CALIBRATED = [m for m in METHODS if m not in UNCALIBRATED_METHODS]
K0 = np.array([[800.0, 0, 500], [0, 780.0, 400], [0, 0, 1]])
K1 = np.array([[1200.0, 0, 640], [0, 1230.0, 500], [0, 0, 1]])
R = cv2.Rodrigues(np.array([0.05, 0.2, -0.1]))[0]
T = np.array([-0.8, 0.1, 0.2])


def scene(num=150, num_outliers=50, noise=0.2, t=T, flat=False, seed=0):
    """Matched pixels of two cameras of different focal lengths; the first ``num_outliers`` are wrong."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform([-2, -2, 4], [2, 2, 9], (num, 3))
    if flat:
        x0[:, 2] = 6 + 0.3 * x0[:, 0]
    x1 = x0 @ R.T + t
    p0, p1 = ((x[:, :2] / x[:, 2:]) @ K[:2, :2] + K[:2, 2] for x, K in ((x0, K0), (x1, K1)))
    p0, p1 = p0 + rng.normal(0, noise, p0.shape), p1 + rng.normal(0, noise, p1.shape)
    p1[:num_outliers] = rng.uniform(0, 1000, (num_outliers, 2))
    return p0, p1


def error_deg(estimate, t=T):
    return math.degrees(max(evaluate_R_t(R, t, estimate.R, estimate.t)))


@pytest.mark.parametrize("method", CALIBRATED)
def test_finds_pose_and_inliers_among_outliers(method):
    p0, p1 = scene()
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, threshold_px=1.0))
    assert estimate.reason == ""
    assert error_deg(estimate) < 1.0
    assert np.linalg.norm(estimate.t) == pytest.approx(1)
    np.testing.assert_allclose(estimate.R @ estimate.R.T, np.eye(3), atol=1e-9)
    assert estimate.inliers[50:].mean() > 0.8
    assert estimate.inliers[:50].mean() < 0.15
    F = np.linalg.inv(K1).T @ estimate.E @ np.linalg.inv(K0)
    assert np.median(epipolar_squared(p0[50:], p1[50:], F)) < 1.0  # x1' F x0 = 0, not the other way round
    # the other way round
    back = estimate_essential(p1, p0, K1, K0, EstimatorSettings(method, threshold_px=1.0))
    assert math.degrees(max(evaluate_R_t(R.T, -R.T @ T, back.R, back.t))) < 1.0


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_plane_has_one_of_its_two_poses(method):
    """All points of a plane lie in front of both cameras in two poses, and both matrices fit them."""
    p0, p1 = scene(flat=True, num_outliers=30)
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, threshold_px=1.0))
    H = R + np.outer(T, [-0.3, 0, 1]) / 6  # z = 6 + 0.3 x
    _, rotations, translations, _ = cv2.decomposeHomographyMat(H, np.eye(3))
    poses = zip(rotations, translations, strict=True)
    assert min(math.degrees(max(evaluate_R_t(r, t.ravel(), estimate.R, estimate.t))) for r, t in poses) < 4.0
    assert estimate.inliers[30:].mean() > 0.8


def test_of_the_poses_of_a_plane_the_one_with_all_points_in_front():
    # Seen from 4 units, turned by 36 degrees around it: half the plane is behind the cameras of the other pose.
    R = cv2.Rodrigues(np.array([0.0, np.deg2rad(36), 0.0]))[0]
    normal, t = np.array([0.3, 0.1, -1.0]) / 4, np.array([-2.3, 0.1, 0.8])
    rng = np.random.default_rng(0)
    x0 = rng.uniform([-0.5, -0.4], [0.5, 0.4], (200, 2))
    H = R - np.outer(t, normal)
    mapped = np.column_stack([x0, np.ones(200)]) @ H.T
    x1 = mapped[:, :2] / mapped[:, 2:]
    _, rotations, translations, _ = cv2.decomposeHomographyMat(H, np.eye(3))
    poses = [(other, to.ravel() / np.linalg.norm(to)) for other, to in zip(rotations, translations, strict=True)]
    assert max(max(evaluate_R_t(R, t, *pose)) for pose in poses) > math.radians(20)
    for pose in poses:
        found = pose_of_a_plane(H, *pose, x0, x1)
        assert max(evaluate_R_t(R, t, *found)) < 1e-6
    # a camera that only turns has no other pose
    turned = np.column_stack([x0, np.ones(200)]) @ R.T
    found = pose_of_a_plane(R, R, [1.0, 0, 0], x0, turned[:, :2] / turned[:, 2:])
    np.testing.assert_allclose(found[0], R, atol=1e-9)


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_camera_that_only_turns_keeps_its_rotation(method):
    p0, p1 = scene(t=np.zeros(3), num_outliers=0, noise=0.3)
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, threshold_px=1.0))
    assert math.degrees(evaluate_R_t(R, T, estimate.R, estimate.t)[0]) < 0.5
    n0, n1 = ((p - K[:2, 2]) / K[[0, 1], [0, 1]] for p, K in ((p0, K0), (p1, K1)))
    assert np.median(parallax_deg(n0, n1, estimate.R)) < 0.2
    # OpenCV's limit of 50 baselines leaves hardly a vote, and with none its rotation is that of the first candidate
    assert recover_pose(estimate.E, n0, n1)[2] < 0.1 * len(n0) < 0.4 * pose_from_essential(estimate.E, n0, n1)[2]


@pytest.mark.parametrize("method", CALIBRATED)
def test_five_points_choose_among_their_solutions(method):
    p0, p1 = scene(5, 0, 0.0, seed=3)
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, threshold_px=1.0))
    assert estimate.E.shape == (3, 3)
    assert estimate.inliers.all()
    n0, n1 = ((p - K[:2, 2]) / K[[0, 1], [0, 1]] for p, K in ((p0, K0), (p1, K1)))
    assert sampson_distances(n0, n1, estimate.E).max() < 1e-6
    assert pose_from_essential(estimate.E, n0, n1)[2] == 5  # all in front of both cameras


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("points", ["none", "one", "four", "nan"])
def test_every_failure_has_a_reason(method, points):
    p0, p1 = scene(20, 0)
    if points == "nan":
        p1[3, 0] = math.nan
    else:
        count = {"none": 0, "one": 1, "four": 4}[points]
        p0, p1 = p0[:count], p1[:count]
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, max_iters=1000))
    assert (estimate.E, estimate.R, estimate.t) == (None, None, None)
    assert estimate.inliers.tolist() == [False] * len(p0)
    assert ("5 needed" if points != "nan" else "NaN") in estimate.reason


@pytest.mark.parametrize("method", CALIBRATED)
def test_points_at_one_place_are_no_crash(method):
    p0, p1 = np.full((20, 2), 5.0), np.full((20, 2), 7.0)
    estimate = estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, max_iters=100))
    assert estimate.reason or np.isfinite(estimate.R).all()


def test_poselib_is_given_what_it_understands(monkeypatch):
    """By the call: a camera model in small letters, or a misspelt option, is ignored without a word."""
    calls = []
    real = poselib.estimate_relative_pose

    def record(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(poselib, "estimate_relative_pose", record)
    p0, p1 = scene(40, 0)
    estimate_essential(p0, p1, K0, K1, EstimatorSettings("poselib-e", 0.7, 0.97, 321), seed=5)
    (_, _, camera0, camera1, options, _) = calls[0]
    assert (camera0["model"], camera0["params"]) == ("PINHOLE", [800, 780, 500, 400])
    assert camera1["params"] == [1200, 1230, 640, 500]
    assert options == {
        "max_epipolar_error": 0.7, "success_prob": 0.97, "max_iterations": 321, "min_iterations": 321, "seed": 5,
    }  # fmt: skip


def test_thresholds_are_pixels_or_normalised():
    p0, p1 = scene(noise=1.0)
    focal = (800 + 780 + 1200 + 1230) / 4
    for method in [m for m in CALIBRATED if m != "lmeds-e"]:
        counts = [
            estimate_essential(p0, p1, K0, K1, EstimatorSettings(method, threshold_px=px)).inliers.sum()
            for px in (0.3, 3.0)
        ]
        assert counts[0] < 0.9 * counts[1], method
    one = estimate_essential(p0, p1, K0, K1, EstimatorSettings("ransac-e", threshold_n=1.2 / focal))
    two = estimate_essential(p0, p1, K0, K1, EstimatorSettings("ransac-e", threshold_px=1.2))
    assert np.array_equal(one.inliers, two.inliers)
    np.testing.assert_allclose(one.E, two.E)


def test_f_and_e_are_not_mixed_up():
    p0, p1 = scene()
    with pytest.raises(UsageError, match="degensac estimates F"):
        estimate_essential(p0, p1, K0, K1, EstimatorSettings())
    with pytest.raises(UsageError, match="ransac-e estimates E"):
        estimate_fundamental(p0, p1, EstimatorSettings("ransac-e"))


@pytest.mark.parametrize("method", CALIBRATED)
def test_scored_as_a_pair(method):
    p0, p1 = scene()
    matches = np.stack([np.arange(len(p0))] * 2, axis=1)
    score = score_pair(p0, p1, matches, K0, K1, R, 3 * T, EstimatorSettings(method, threshold_px=1.0))
    assert score.error_deg < 1.0
    assert score.inliers.sum() > 80
    failed = score_pair(p0, p1, matches[:4], K0, K1, R, T, EstimatorSettings(method))
    assert (failed.error_deg, failed.E) == (math.inf, None)
    assert failed.reason == "4 matches, 5 needed"


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    p0, p1 = scene(20, 0)
    with pytest.raises(MissingDependencyError, match="pip install"):
        estimate_essential(p0, p1, K0, K1, EstimatorSettings("poselib-e"))
