from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.core.multiview_metrics import (
    UNREGISTERED,
    BagCounts,
    bag_pose_errors,
    bag_statistics,
    best_model,
    covisible_pairs,
    pair_pose_error,
)


def poses(seed: int, names: str = "cab"):
    rng = np.random.default_rng(seed)
    return {name: (cv2.Rodrigues(rng.normal(0, 0.5, 3))[0], rng.normal(0, 1, 3)) for name in names}


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_a_similarity_of_the_model_changes_nothing(seed, scale):
    true = poses(seed)
    rng = np.random.default_rng(seed + 1)
    Q, c = cv2.Rodrigues(rng.normal(0, 1, 3))[0], rng.normal(0, 3, 3)
    # X' = scale Q X + c, so x_cam = R Q' (X' - c) / scale + t, up to scale
    moved = {name: (R @ Q.T, scale * t - R @ Q.T @ c) for name, (R, t) in true.items()}
    for pair in bag_pose_errors("cab", moved, true).values():
        assert max(pair) < 1e-5


def test_pairs_of_a_bag_in_its_order():
    true = poses(0)
    estimated = {name: pose for name, pose in true.items() if name != "b"}
    errors = bag_pose_errors("cab", estimated, true)
    assert list(errors) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert max(errors["c", "a"]) < 1e-6
    assert errors["c", "b"] == errors["a", "b"] == UNREGISTERED
    assert set(bag_pose_errors("cab", {}, true).values()) == {UNREGISTERED}


def test_a_pose_that_is_not_finite_is_none():
    true = poses(0)
    R, t = true["a"]
    assert pair_pose_error((R, t * math.nan), true["b"], true["a"], true["b"]) == UNREGISTERED
    assert best_model([[(R, t)], [(R, t), (R, t * math.inf)]]) == 0
    assert best_model([[(R, t)], [(R, t)]]) == 0
    assert best_model([]) == -1


def test_statistics():
    found = bag_statistics([BagCounts(5, [2, 4]), None, BagCounts(3, [])])
    assert found["avg_track_length"] == 1.5
    assert found["avg_num_cameras"] == 4.0
    assert found["avg_num_3d_points"] == 1.0
    assert found["success_rate"] == pytest.approx(2 / 3)
    assert bag_statistics([])["success_rate"] == 0.0


def test_covisible_pairs():
    assert covisible_pairs([[500, 101], [100, 500]]) == [(0, 1)]
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        covisible_pairs([[1, 2, 3]])
