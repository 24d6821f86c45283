from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.geometry import (
    as_matches,
    as_points,
    epipolar_squared,
    essential_from_fundamental,
    essential_from_pose,
    eval_essential,
    normalize_keypoints,
    recover_pose,
    relative_pose,
    select_essential,
    skew_matrix,
    unnormalize_keypoints,
)
from common.metrics import FAILED_POSE, quaternion_from_matrix
from tests.official import rotation_from_quaternion, symmetric_epipolar_squared

K = np.array([[800.0, 0.0, 320.0], [0.0, 750.0, 240.0], [0.0, 0.0, 1.0]])
finite = st.floats(-100, 100)


def two_cameras(seed: int = 0, n: int = 60):
    """Normalised points of two cameras that see the same 3-D points, with their poses."""
    rng = np.random.default_rng(seed)
    R0, R1 = (cv2.Rodrigues(rng.normal(0, 0.3, 3))[0] for _ in range(2))
    t0, t1 = rng.normal(0, 0.5, (2, 3))
    dR, dt = R1 @ R0.T, t1 - R1 @ R0.T @ t0
    in0 = rng.uniform([-2, -2, 4], [2, 2, 8], (n, 3))
    in1 = in0 @ dR.T + dt
    return in0[:, :2] / in0[:, 2:], in1[:, :2] / in1[:, 2:], (R0, t0), (R1, t1), dR, dt


@given(st.lists(st.tuples(finite, finite), max_size=5))
def test_normalisation_and_back(points):
    normalised = normalize_keypoints(points, K)
    assert normalised.shape == (len(points), 2)
    np.testing.assert_allclose(unnormalize_keypoints(normalised, K), as_points(points), atol=1e-9)


def test_normalisation_by_hand():
    assert normalize_keypoints([[1120.0, 990.0, 7.0]], K).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("seed", range(3))
def test_relative_pose_and_essential_matrix(seed):
    x0, x1, pose0, pose1, dR, dt = two_cameras(seed)
    got_R, got_t = relative_pose(*pose0, *pose1)
    np.testing.assert_allclose(got_R, dR, atol=1e-12)
    np.testing.assert_allclose(got_t, dt, atol=1e-12)
    assert symmetric_epipolar_squared(x0, x1, dR, dt).max() < 1e-24
    # in pixels, by F = K1^-T E K0^-1
    F = np.linalg.inv(K).T @ essential_from_pose(dR, dt) @ np.linalg.inv(K)
    p0, p1 = unnormalize_keypoints(x0, K), unnormalize_keypoints(x1, K)
    assert epipolar_squared(p0, p1, F).max() < 1e-18
    np.testing.assert_allclose(essential_from_fundamental(F, K, K)[0], essential_from_pose(dR, dt), atol=1e-12)
    assert essential_from_fundamental(np.vstack([F, 2 * F]), K, K).shape == (2, 3, 3)
    rotation, translation, votes = recover_pose(essential_from_pose(dR, dt), x0, x1)
    np.testing.assert_allclose(rotation, dR, atol=1e-6)
    np.testing.assert_allclose(translation, dt / np.linalg.norm(dt), atol=1e-6)
    assert votes == len(x0)


def test_epipolar_distance_by_hand():
    # a sideways baseline: epipolar lines are the rows, so both distances are the difference of y
    dR, dt = np.eye(3), [1.0, 0.0, 0.0]
    got = symmetric_epipolar_squared([[0.1, 0.2], [0.5, 0.5]], [[0.3, 0.2], [0.1, 0.8]], dR, dt)
    np.testing.assert_allclose(got, [0.0, 2 * 0.3**2], atol=1e-15)


@given(st.tuples(finite, finite, finite), st.tuples(finite, finite, finite))
def test_skew_is_the_cross_product(a, b):
    np.testing.assert_allclose(skew_matrix(a) @ b, np.cross(a, b), atol=1e-9)


@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_quaternion_and_back(vector):
    rotation = cv2.Rodrigues(np.array(vector, float))[0]
    np.testing.assert_allclose(rotation_from_quaternion(quaternion_from_matrix(rotation)), rotation, atol=1e-9)


def test_the_solution_with_most_points_in_front():
    x0, x1, *_, dR, dt = two_cameras()
    good, bad = essential_from_pose(dR, dt), essential_from_pose(np.eye(3), [0.0, 0.3, 1.0])
    for candidates in ([good, bad], [bad, good]):
        assert np.array_equal(select_essential(candidates, x0, x1), good)
    # of equals the later one
    assert np.array_equal(select_essential([good, 2 * good], x0, x1), 2 * good)


def test_failures_of_the_pose():
    x0, x1, *_, dR, dt = two_cameras()
    E = essential_from_pose(dR, dt)
    assert max(eval_essential(x0, x1, E, dR, dt)) < 1e-6
    assert eval_essential(x0[:4], x1[:4], E, dR, dt) == FAILED_POSE
    assert eval_essential(x0, x1, None, dR, dt) == FAILED_POSE
    assert eval_essential(x0, x1, [], dR, dt) == FAILED_POSE
    assert eval_essential(x0, x1, np.full((3, 3), math.nan), dR, dt) == FAILED_POSE
    assert eval_essential(x0, x1, np.ones((3, 2)), dR, dt) == FAILED_POSE
    with pytest.raises(ValueError, match="60 points in image 0 but 59"):
        eval_essential(x0, x1[1:], E, dR, dt)


def test_wrong_shapes():
    for call, message in (
        (lambda: normalize_keypoints([[1.0], [2.0]], K), r"points must be \(N, 2\)"),
        (lambda: normalize_keypoints([[1.0, 2.0]], K[:2]), r"K must be \(3, 3\)"),
        (lambda: relative_pose(np.eye(3), [0, 0], np.eye(3), [0, 0, 0]), "3 values"),
        (lambda: as_matches([[0, 1, 2], [0, 1, 2]]), r"matches must be \(M, 2\), got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert as_matches([]).shape == (0, 2)
