from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.trajectory import (
    align,
    camera_centre,
    half_diagonal,
    mean_trajectory_error,
    trajectory_error,
)


def cameras(seed: int, n: int = 8):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (n, 3))
    R = cv2.Rodrigues(rng.normal(0, 1, 3))[0]
    return centres, R, rng.normal(0, 5, 3)


@given(st.integers(0, 1000), st.floats(0.05, 20))
def test_a_similarity_is_recovered(seed, scale):
    x, R, t = cameras(seed)
    y = scale * x @ R.T + t
    found = align(x, y)
    np.testing.assert_allclose(found.R, R, atol=1e-9)
    np.testing.assert_allclose(found.t, t, atol=1e-7)
    assert found.scale == pytest.approx(scale)
    np.testing.assert_allclose(found(x), y, atol=1e-7)
    assert mean_trajectory_error([(x, y)]) < 1e-7


def test_the_original_does_not_recover_the_scale():
    x, R, t = cameras(0)
    y = 3.0 * x @ R.T + t
    assert mean_trajectory_error([(x, y)], compat=True) > 0.1
    assert mean_trajectory_error([(x, x @ R.T + t)], compat=True) < 1e-9


def test_least_squares_beats_its_neighbours():
    x, R, t = cameras(1)
    y = 2.0 * x @ R.T + t + np.random.default_rng(0).normal(0, 0.3, x.shape)
    best = align(x, y)
    least = np.sum((best(x) - y) ** 2)
    for step in (1e-3, -1e-3):
        assert np.sum((best._replace(scale=best.scale + step)(x) - y) ** 2) > least
        assert np.sum((best._replace(t=best.t + step)(x) - y) ** 2) > least
        turn = cv2.Rodrigues(np.array([step, step, 0.0]))[0]
        assert np.sum((best._replace(R=turn @ best.R)(x) - y) ** 2) > least


def test_no_reflection():
    x, *_ = cameras(2)
    assert np.linalg.det(align(x, x * [1, 1, -1]).R) == pytest.approx(1.0)


def test_one_lost_camera_is_no_inlier():
    x, R, t = cameras(3, 10)
    y = 0.5 * x @ R.T + t
    x[4] += 30.0
    assert trajectory_error(x, y, np.random.RandomState(0)) == pytest.approx(0.0, abs=1e-9)


def test_a_useless_model_costs_half_the_box():
    rng = np.random.default_rng(0)
    y = rng.normal(0, 1, (12, 3))
    scattered = rng.normal(0, 1, (12, 3)) * np.logspace(0, 4, 12)[:, None]
    error = trajectory_error(scattered, y, np.random.RandomState(0))
    assert error is not None
    assert error <= half_diagonal(y)
    assert half_diagonal([[0, 0, 0], [2, 4, 4]]) == 3.0
    same = np.zeros((4, 3))  # all cameras at one place: the alignment is the identity
    assert trajectory_error(same, y[:4] + 100.0, np.random.RandomState(0)) == pytest.approx(half_diagonal(y[:4]))


def test_few_cameras_and_failed_bags():
    x, *_ = cameras(4)
    assert trajectory_error(x[:2], x[:2], np.random.RandomState(0)) is None
    assert math.isnan(mean_trajectory_error([None, (x[:2], x[:2])]))
    assert mean_trajectory_error([None, (x[:3], x[:3])]) < 1e-12
    with pytest.raises(ValueError, match="3 estimated camera centres but 2"):
        trajectory_error(x[:3], x[:2], np.random.RandomState(0))


def test_camera_centre():
    R = cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0]
    centre = np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(camera_centre(R, -R @ centre), centre)
