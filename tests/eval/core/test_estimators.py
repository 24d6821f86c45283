from __future__ import annotations

import math
import sys

import cv2
import numpy as np
import poselib
import pydegensac
import pytest

from common.geometry import epipolar_squared, sampson_distances
from eval.core.estimators import (
    METHODS,
    OFFICIAL_METHODS,
    UNCALIBRATED_METHODS,
    EstimatorSettings,
    estimate_fundamental,
)
from kornia_hardnet8.errors import MissingDependencyError, UsageError
from tests.official import matched_points

ROBUST = [m for m in UNCALIBRATED_METHODS if m not in ("8pt", "7pt")]


def scene(num: int = 150, num_outliers: int = 50, noise: float = 0.2, seed: int = 0):
    """Matched pixels of two views of a cloud of points; the first ``num_outliers`` are wrong."""
    rng = np.random.default_rng(seed)
    R = cv2.Rodrigues(np.array([0.05, 0.2, -0.1]))[0]
    x0 = rng.uniform([-2, -2, 3], [2, 2, 9], (num, 3))
    x1 = x0 @ R.T + [-0.8, 0.1, 0.2]
    p0, p1 = (800.0 * x[:, :2] / x[:, 2:] + 500.0 for x in (x0, x1))
    p0, p1 = p0 + rng.normal(0, noise, p0.shape), p1 + rng.normal(0, noise, p1.shape)
    p1[:num_outliers] = rng.uniform(0, 1000, (num_outliers, 2))
    true = np.array([[0, -0.2, 0.1], [0.2, 0, 0.8], [-0.1, -0.8, 0]]) @ R
    A = np.diag([1 / 800, 1 / 800, 1.0])
    A[:2, 2] = -500 / 800
    return p0, p1, A.T @ true @ A


@pytest.mark.parametrize("method", ROBUST)
def test_finds_the_inliers_among_outliers(method):
    p0, p1, true = scene()
    found = estimate_fundamental(p0, p1, EstimatorSettings(method, threshold_px=1.0))
    assert found.F is not None
    assert found.F.shape == (1, 3, 3)
    assert found.reason == ""
    assert found.inliers[50:].mean() > 0.8
    assert found.inliers[:50].mean() < 0.15
    # x1' F x0 = 0, not the other way round
    assert np.median(epipolar_squared(p0[50:], p1[50:], found.F[0])) < 2.0
    assert np.median(epipolar_squared(p0[50:], p1[50:], true)) < 0.5


@pytest.mark.parametrize("method", ["8pt", "7pt"])
def test_minimal_and_linear(method):
    p0, p1, _ = scene(7 if method == "7pt" else 40, 0, 0.0)
    found = estimate_fundamental(p0, p1, EstimatorSettings(method))
    assert found.F is not None
    assert found.inliers.all()
    assert len(found.F) in ((1, 2, 3) if method == "7pt" else (1,))
    assert min(epipolar_squared(p0, p1, F).max() for F in found.F) < 1e-6


@pytest.mark.parametrize("method", UNCALIBRATED_METHODS)
@pytest.mark.parametrize("points", ["none", "one", "six", "coincident", "nan"])
def test_every_failure_has_a_reason(method, points):
    p0, p1, _ = scene(20, 0)
    if points == "coincident":
        p0, p1 = np.full((20, 2), 5.0), np.full((20, 2), 7.0)
    elif points == "nan":
        p1[3, 0] = math.nan
    else:
        count = {"none": 0, "one": 1, "six": 6}[points]
        p0, p1 = p0[:count], p1[:count]
    found = estimate_fundamental(p0, p1, EstimatorSettings(method, max_iters=1000))
    assert found.F is None
    assert found.inliers.shape == (len(p0),)
    assert not found.inliers.any()
    assert found.reason


@pytest.mark.parametrize("method", ["degensac", "poselib"])
def test_seeds(method):
    p0, p1, _ = scene(noise=0.6)
    settings = EstimatorSettings(method, max_iters=300)
    same = [estimate_fundamental(p0, p1, settings, seed=3).F for _ in range(3)]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])
    others = [estimate_fundamental(p0, p1, settings, seed=seed).F for seed in range(4, 12)]
    assert any(not np.array_equal(same[0], other) for other in others)
    for seed in (-1, 2**31):
        with pytest.raises(UsageError, match="seed"):
            estimate_fundamental(p0, p1, settings, seed=seed)


@pytest.mark.parametrize("method", [m for m in UNCALIBRATED_METHODS if m not in ("degensac", "poselib")])
def test_opencv_repeats_itself_whatever_its_generator_did(method):
    p0, p1, _ = scene(noise=0.6)
    found = []
    for state in (1, 2, 3):
        cv2.setRNGSeed(state)
        found.append(estimate_fundamental(p0, p1, EstimatorSettings(method, max_iters=300)).F)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_thresholds_reach_the_libraries():
    p0, p1, _ = scene(noise=1.0)
    for method in [m for m in ROBUST if m != "lmeds"]:
        counts = [
            estimate_fundamental(p0, p1, EstimatorSettings(method, threshold_px=t)).inliers.sum() for t in (0.3, 3.0)
        ]
        assert counts[0] < 0.9 * counts[1], method


def test_every_option_reaches_its_library(monkeypatch):
    """By the call: most options hardly move the result of one scene."""
    p0, p1, _ = scene(20, 0)
    options = {"threshold_px": 0.7, "confidence": 0.97, "max_iters": 321}
    calls = []

    def record(result):
        def call(*args, **kwargs):
            calls.append((args, kwargs))
            return result

        return call

    monkeypatch.setattr(pydegensac, "findFundamentalMatrix", record((np.zeros((3, 3)), np.zeros(20, bool))))
    degensac = EstimatorSettings(error_type="symm_epipolar", degeneracy_check=False, **options)
    estimate_fundamental(p0, p1, degensac, seed=5)
    assert calls.pop()[1] == {
        "px_th": 0.7,
        "conf": 0.97,
        "max_iters": 321,
        "laf_consistensy_coef": 0.0,
        "error_type": "symm_epipolar",
        "symmetric_error_check": True,
        "enable_degeneracy_check": False,
        "seed": 5,
    }
    monkeypatch.setattr(poselib, "estimate_fundamental", record((np.zeros((3, 3)), {"inliers": [False] * 20})))
    estimate_fundamental(p0, p1, EstimatorSettings("poselib", **options), seed=5)
    assert calls.pop()[0][2] == {
        "max_epipolar_error": 0.7,
        "success_prob": 0.97,
        "max_iterations": 321,
        "min_iterations": 321,
        "seed": 5,
    }
    monkeypatch.setattr(cv2, "findFundamentalMat", record((None, None)))
    estimate_fundamental(p0, p1, EstimatorSettings("usac-magsac", **options))
    args, kwargs = calls.pop()
    assert args[2] == cv2.USAC_MAGSAC
    assert kwargs == {"ransacReprojThreshold": 0.7, "confidence": 0.97, "maxIters": 321}


def test_degensac_options():
    p0, p1, _ = scene(noise=1.0)
    sampson, symmetric = (
        estimate_fundamental(p0, p1, EstimatorSettings(threshold_px=1.5, error_type=kind))
        for kind in ("sampson", "symm_epipolar")
    )
    assert not np.array_equal(sampson.inliers, symmetric.inliers)
    assert symmetric.F is not None
    # d0^2 + d1^2 <= threshold^2
    assert epipolar_squared(p0, p1, symmetric.F[0])[symmetric.inliers].max() <= 1.5**2 * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["sampson", "symm_epipolar"])
def test_the_inliers_of_degensac_are_those_of_its_matrix_in_any_order(kind):
    p0, p1, _ = scene(noise=1.0)
    settings = EstimatorSettings(threshold_px=1.5, error_type=kind)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(p0))
        estimate = estimate_fundamental(p0[order], p1[order], settings, seed)
        F = estimate.F[0]
        if kind == "sampson":
            inside = sampson_distances(p0[order], p1[order], F) <= 1.5
        else:
            inside = epipolar_squared(p0[order], p1[order], F) <= 1.5**2
        assert np.array_equal(estimate.inliers, inside)


def test_the_published_inliers_of_degensac_are_an_option():
    p0, p1, _ = scene(noise=1.0)
    settings = EstimatorSettings(threshold_px=1.5, inliers="published")
    published = estimate_fundamental(p0, p1, settings, seed=3)
    _, mask = pydegensac.findFundamentalMatrix(p0, p1, 1.5, 0.9999, 10_000, 0.0, "sampson", True, True, 3)
    assert np.array_equal(published.inliers, mask)
    assert settings.to_dict()["inliers"] == "published"


def test_degensac_with_frames_chooses_inliers_by_their_places():
    p0, p1, _ = scene(noise=0.1)
    frames0, frames1 = (np.column_stack([p, np.tile([10.0, 0.0, 0.0, 10.0], (len(p), 1))]) for p in (p0, p1))
    frames1[50:70, 2:] = [0.0, 10.0, -10.0, 0.0]  # true matches whose frames are turned by 90 degrees
    estimate = estimate_fundamental(frames0, frames1, EstimatorSettings(laf_coefficient=2.0))
    assert estimate.inliers[50:70].mean() > 0.5
    frames1[50:, 2:] = [0.0, 10.0, -10.0, 0.0]  # all of them: no matrix agrees with the frames
    assert estimate_fundamental(frames0, frames1, EstimatorSettings(laf_coefficient=2.0)).inliers.sum() < 50
    with pytest.raises(ValueError, match=r"must be \(N, 6\), got \(150, 2\)"):
        estimate_fundamental(p0, p1, EstimatorSettings(laf_coefficient=2.0))


def test_the_inliers_of_poselib_are_those_of_the_matrix_that_it_returns():
    p0, p1, _ = scene(noise=1.0)
    estimate = estimate_fundamental(p0, p1, EstimatorSettings("poselib", threshold_px=1.5))
    assert np.array_equal(estimate.inliers, sampson_distances(p0, p1, estimate.F[0]) <= 1.5)


def test_sampson_distances():
    F = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0.0]])  # y0 = y1: a shift along x
    p0, p1 = np.array([[0, 0], [5, 3], [1, 1.0]]), np.array([[9, 0], [2, 7], [1, 1.5]])
    np.testing.assert_allclose(sampson_distances(p0, p1, F), np.array([0, 4, 0.5]) / np.sqrt(2))


def test_seven_points_and_more():
    assert EstimatorSettings("7pt").describe(7) == "7pt"
    assert "least median of squares" in EstimatorSettings("7pt").describe(8)
    p0, p1, _ = scene(noise=0.3)
    assert np.array_equal(
        estimate_fundamental(p0, p1, EstimatorSettings("7pt", confidence=0.99)).F,
        estimate_fundamental(p0, p1, EstimatorSettings("lmeds", confidence=0.99)).F,
    )
    assert EstimatorSettings("lmeds").describe(90) == "lmeds"
    assert EstimatorSettings(threshold_px=0.5).describe(90) == "degensac, 0.5 px"


def test_degensac_needs_eight_inliers():
    rng = np.random.default_rng(0)
    p0 = rng.uniform(0, 1000, (8, 2))  # unrelated points: seven of them always fit some matrix
    found = estimate_fundamental(p0, rng.uniform(0, 1000, (8, 2)))
    assert found.F is None
    assert found.reason == "degensac: 7 inliers, 8 needed"
    assert not found.inliers.any()


def test_matched_points():
    kpts = np.arange(12.0).reshape(4, 3)
    found = matched_points([[0, 3], [2, 1]], kpts, kpts, 2)
    assert found is not None
    assert found[0].tolist() == [[0.0, 1.0], [6.0, 7.0]]
    assert found[1].tolist() == [[9.0, 10.0], [3.0, 4.0]]
    assert matched_points([], kpts, kpts, 0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "degensack"}, "unknown estimator 'degensack'.*did you mean degensac"),
        ({"threshold_px": 0.0}, "positive pixels"),
        ({"threshold_px": math.nan}, "positive pixels"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_iters": 0}, "max_iters"),
        ({"error_type": "algebraic"}, "unknown error type"),
        ({"method": "ransac", "laf_coefficient": 2.0}, "laf_coefficient has no effect with the estimator ransac"),
        ({"method": "poselib", "inliers": "published"}, "inliers has no effect"),
        ({"method": "lmeds", "error_type": "symm_epipolar"}, "error_type has no effect"),
        ({"method": "poselib-e", "threshold_n": 0.001}, "threshold_n has no effect"),
        ({"inliers": "all"}, "model or published"),
        ({"method": "ransac-e", "threshold_n": 0.0}, "must be positive"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(UsageError, match=message):
        EstimatorSettings(**options)


def test_from_official():
    geom = {"method": "cmp-degensac-f", "threshold": 0.5, "confidence": 0.999999, "max_iter": 100000}
    geom |= {"error_type": "symm_epipolar", "degeneracy_check": False}
    expected = EstimatorSettings("degensac", 0.5, 0.999999, 100000, "symm_epipolar", False)
    assert EstimatorSettings.from_official(geom) == expected
    assert EstimatorSettings.from_official({**geom, "method": "cmp-degensac-f-laf"}).laf_coefficient == 2.0
    assert EstimatorSettings(**expected.to_dict()) == expected
    assert set(OFFICIAL_METHODS.values()) == {
        m for m in METHODS if "poselib" not in m and not (m[:4] == "usac" and m[-2:] == "-e")
    }
    calibrated = EstimatorSettings.from_official({"method": "cv2-ransac-e", "threshold": 0.001, "confidence": 0.999999})
    assert calibrated == EstimatorSettings("ransac-e", confidence=0.999999, max_iters=1000, threshold_n=0.001)
    assert EstimatorSettings(**calibrated.to_dict()) == calibrated
    with pytest.raises(UsageError, match="'cmp-magsac-f' is not available"):
        EstimatorSettings.from_official({"method": "cmp-magsac-f"})


def test_unequal_points():
    with pytest.raises(ValueError, match="one shape"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((8, 2)))


@pytest.mark.parametrize(("method", "package"), [("degensac", "pydegensac"), ("poselib", "poselib")])
def test_missing_library(method, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    p0, p1, _ = scene(20, 0)
    with pytest.raises(MissingDependencyError, match="pip install"):
        estimate_fundamental(p0, p1, EstimatorSettings(method))


def test_unknown_option_of_poselib_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(poselib, "RansacOptions", lambda: {"max_iterations": 1})
    p0, p1, _ = scene(20, 0)
    with pytest.raises(UsageError, match="max_epipolar_error"):
        estimate_fundamental(p0, p1, EstimatorSettings("poselib"))
