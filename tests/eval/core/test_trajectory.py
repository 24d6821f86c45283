from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.core.trajectory import (
    Alignment,
    RansacAlignment,
    align,
    align_ransac,
    camera_centre,
    half_diagonal,
    trajectory_error,
)
from tests.official import mean_trajectory_error


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
    y = x * [1, 1, -1]
    best = align(x, y)
    assert np.linalg.det(best.R) == pytest.approx(1.0)
    least = np.sum((best(x) - y) ** 2)
    for scale in (0.99 * best.scale, 1.01 * best.scale):
        t = y.mean(axis=0) - scale * best.R @ x.mean(axis=0)
        assert np.sum((Alignment(best.R, t, scale)(x) - y) ** 2) > least


def test_one_lost_camera_is_no_inlier():
    x, R, t = cameras(3, 10)
    y = 0.5 * x @ R.T + t
    x[4] += 30.0
    assert trajectory_error(x, y, np.random.RandomState(0)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("mean_error", "num_inliers", "expected"),
    [(0.1, 3, 3.0), (0.1, 4, 0.1), (2.9, 12, 2.9), (3.1, 12, 3.0), (math.nan, 12, 3.0)],
)
def test_a_useless_model_costs_half_the_box(monkeypatch, mean_error, num_inliers, expected):
    true = np.zeros((12, 3))
    true[0] = [2.0, 4.0, 4.0]  # the box has a diagonal of 6
    assert half_diagonal(true) == 3.0
    found = RansacAlignment(align(true, true), mean_error, num_inliers)
    monkeypatch.setattr("eval.core.trajectory.align_ransac", lambda *args: found)
    assert trajectory_error(true, true, np.random.RandomState(0)) == expected


@pytest.mark.parametrize(("asked", "drawn"), [(None, 68), (5, 5)])
def test_samples_of_the_alignment_are_an_option(monkeypatch, asked, drawn):
    true = np.random.default_rng(0).normal(0, 1, (12, 3))
    numbers = []

    def counted(x, y, num_iters, *rest):
        numbers.append(num_iters)
        return align_ransac(x, y, num_iters, *rest)

    monkeypatch.setattr("eval.core.trajectory.align_ransac", counted)
    assert trajectory_error(true, true, np.random.RandomState(0), num_iters=asked) == pytest.approx(0.0, abs=1e-9)
    assert numbers == [drawn]  # log(1e-4) / log(1 - 0.5^3) = 68.97


def test_cameras_at_one_place():
    y = np.random.default_rng(0).normal(0, 1, (4, 3))
    assert align(np.zeros((4, 3)), y).scale == 1.0
    error = trajectory_error(np.zeros((4, 3)), y + 100.0, np.random.RandomState(0))
    assert error == pytest.approx(half_diagonal(y))


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
