from __future__ import annotations

import math

import numpy as np

from eval.core.reprojection import (
    depth_at,
    matching_distances,
    matching_score,
    mean_repeatability,
    project_with_depth,
    repeatability_curve,
    score_depth,
)

K = np.array([[100.0, 0.0, 20.0], [0.0, 100.0, 15.0], [0.0, 0.0, 1.0]])
SHAPE = (31, 41)


def test_depth_of_the_nearest_pixel():
    depth = np.arange(12.0).reshape(3, 4)
    depth[2, 3] = math.nan
    kpts = [
        [1.0, 2.0],
        [1.4, 0.6],
        [0.5, 1.5],
        [-0.5, 0.0],
        [-0.6, 0.0],
        [3.5, 0.0],
        [3.0, 2.0],
        [1e30, 0],
        [math.nan, 0],
    ]
    # halves go to even: (0.5, 1.5) reads row 2, column 0
    assert depth_at(depth, kpts).tolist() == [9.0, 5.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert depth_at(depth, []).shape == (0,)


def test_projection_by_hand():
    points, z = project_with_depth([[0.1, 0.2]], [10.0], np.eye(3), [1.0, 0.0, 10.0])
    assert points.tolist() == [[2.0 / 20.0, 2.0 / 20.0]]
    assert z.tolist() == [20.0]


def fronto_parallel(shift_px: float, kpts0, kpts1, compat: bool = False):
    """Two cameras before a wall, the second moved sideways so that the image shifts by ``shift_px``."""
    depth = np.full(SHAPE, 5.0)
    return score_depth(kpts0, kpts1, depth, depth, K, K, np.eye(3), [shift_px * 5.0 / 100.0, 0, 0], compat)


def test_repeatability_and_matching_distance_of_a_wall():
    kpts0 = np.array([[5.0, 5.0], [10.0, 20.0], [12.0, 8.0]])
    kpts1 = np.array([[15.0, 5.0], [20.0, 22.5], [35.0, 25.0]])  # shifted by 10, the second off by 2.5, another place
    scores = fronto_parallel(10.0, kpts0, kpts1)
    np.testing.assert_allclose(scores.projected_1to0, kpts1 - [10.0, 0.0])
    # (12, 8) lands at (22, 8), 7.6 px from (15, 5)
    np.testing.assert_allclose(scores.repeatability, [1 / 3] * 2 + [2 / 3] * 5 + [5 / 6] * 3)
    np.testing.assert_allclose(matching_distances([[0, 0], [1, 1]], kpts0, scores), [0.0, 2.5])


def test_only_points_in_view_and_in_front_count():
    # the shift takes the first point out on the left: only the original takes that for valid
    kpts0, kpts1 = np.array([[5.0, 5.0], [30.0, 5.0]]), np.array([[20.0, 5.0]])
    assert fronto_parallel(-10.0, kpts0, kpts1).repeatability.tolist() == [1.0] * 10
    assert fronto_parallel(-10.0, kpts0, kpts1, compat=True).repeatability.tolist() == [0.75] * 10
    # the second camera has passed the wall
    kpts, depth = np.array([[20.0, 15.0]]), np.full(SHAPE, 5.0)
    for compat, share in ((False, 0.0), (True, 0.5)):
        behind = score_depth(kpts, kpts, depth, 0 * depth, K, K, np.eye(3), [0, 0, -8.0], compat)
        assert behind.repeatability.tolist() == [share] * 10


def test_empty():
    nothing = fronto_parallel(3.0, np.zeros((0, 2)), np.zeros((0, 2)))
    assert nothing.repeatability.tolist() == [0.0] * 10
    assert matching_distances([], np.zeros((0, 2)), nothing).shape == (0,)
    assert matching_score([]).tolist() == [0.0] * 10
    assert mean_repeatability([[], []]) is None
    assert repeatability_curve([], [[1.0, 1.0]]).tolist() == [0.0] * 10


def test_matches_without_depth_are_left_out():
    kpts = np.array([[5.0, 5.0], [10.0, 20.0]])
    depth = np.full(SHAPE, 5.0)
    depth[5, 5] = 0.0
    scores = score_depth(kpts, kpts, depth, depth, K, K, np.eye(3), np.zeros(3))
    assert matching_distances([[0, 1], [1, 0], [1, 1]], kpts, scores).tolist() == [0.0]
