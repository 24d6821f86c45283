from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from common.geometry import eval_essential, normalize_keypoints
from common.metrics import FAILED_POSE
from eval.core.estimators import METHODS, EstimatorSettings
from eval.core.poses import score_pair

K0 = np.array([[800.0, 0.0, 510.0], [0.0, 820.0, 390.0], [0.0, 0.0, 1.0]])
K1 = np.array([[2000.0, 0.0, 7000.0], [0.0, 2000.0, -6000.0], [0.0, 0.0, 1.0]])


def pair(num: int = 200, num_outliers: int = 40, noise: float = 0.1):
    """Keypoints with scores in a third column, shuffled matches, and the true relative pose."""
    rng = np.random.default_rng(0)
    dR, dt = cv2.Rodrigues(np.array([0.05, 0.25, -0.1]))[0], np.array([-1.5, 0.1, 0.3])
    x0 = rng.uniform([-2, -2, 4], [2, 2, 9], (num, 3))
    x1 = x0 @ dR.T + dt
    kpts0, kpts1 = (
        np.column_stack([(x @ K.T)[:, :2] / x[:, 2:] + rng.normal(0, noise, (num, 2)), rng.random(num)])
        for x, K in ((x0, K0), (x1, K1))
    )
    order = rng.permutation(num)
    matches = np.column_stack([np.argsort(order), np.arange(num)])
    matches[:num_outliers, 1] = rng.permutation(matches[:num_outliers, 1])
    return kpts0[order], kpts1, matches, K0, K1, dR, dt


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("8pt", "7pt")])
def test_pose_of_a_pair(method):
    score = score_pair(*pair(), EstimatorSettings(method, threshold_px=1.0))
    assert score.error_deg < 2.0
    assert score.error_deg == pytest.approx(math.degrees(max(score.err_q, score.err_t)))
    assert score.inliers.shape == (200,)
    assert score.inliers[40:].mean() > 0.8
    assert score.reason == ""


def test_the_seven_point_algorithm_chooses_its_solution():
    kpts0, kpts1, matches, *cameras = pair(7, 0, 0.0)
    score = score_pair(kpts0, kpts1, matches, *cameras, EstimatorSettings("7pt"))
    assert score.E is not None
    assert score.error_deg < 0.1


def test_the_error_is_against_the_given_pose():
    *rest, dR, dt = pair(noise=0.0)
    turned = cv2.Rodrigues(np.array([0.0, 0.0, math.radians(5.0)]))[0] @ dR
    assert score_pair(*rest, turned, dt).err_q == pytest.approx(math.radians(5.0), abs=1e-3)
    assert score_pair(*rest, dR, -7.0 * dt).error_deg < 0.1  # sign and length do not count


def test_every_image_has_its_own_calibration(monkeypatch):
    # by the call: the sign of a translation does not count, and a wrong calibration rarely changes more than that
    calls = []

    def record(*args):
        calls.append(args)
        return eval_essential(*args)

    monkeypatch.setattr("eval.core.poses.eval_essential", record)
    kpts0, kpts1, matches, *cameras = pair()
    score = score_pair(kpts0, kpts1, matches, *cameras)
    x0, x1, E, dR, dt = calls.pop()
    good = matches[score.inliers]
    assert np.array_equal(x0, normalize_keypoints(kpts0[good[:, 0]], K0))
    assert np.array_equal(x1, normalize_keypoints(kpts1[good[:, 1]], K1))
    assert E is score.E
    assert dR is cameras[2]
    assert dt is cameras[3]


def test_one_seed_one_result():
    settings = EstimatorSettings(max_iters=300)
    scores = [score_pair(*pair(noise=1.0), settings, seed=seed).err_q for seed in (3, 3, 4, 5, 6, 7)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


def test_failures_are_infinite():
    kpts0, kpts1, matches, *cameras = pair()
    for few in (np.zeros((0, 2), int), matches[:1], matches[:7]):
        score = score_pair(kpts0, kpts1, few, *cameras)
        assert score.error_deg == math.inf
        assert (score.err_q, score.err_t) == FAILED_POSE
        assert score.E is None
        assert "8 needed" in score.reason
        assert score.inliers.shape == (len(few),)
    assert score_pair(np.zeros((0, 2)), np.zeros((0, 2)), [], *cameras).error_deg == math.inf


def test_transposed_matches_are_refused():
    kpts0, kpts1, matches, *cameras = pair()
    with pytest.raises(ValueError, match=r"\(M, 2\)"):
        score_pair(kpts0, kpts1, matches.T, *cameras)
