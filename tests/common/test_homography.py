from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.homography import (
    check_homography,
    corner_error,
    correct_nearest,
    crop_geometry,
    crop_homography,
    inside,
    repeatability,
    reprojection_errors,
    scale_homography,
    shared_points,
    symmetric_errors,
    top_k,
    warp_points,
)
from eval.core.homography_estimators import METHODS, HomographySettings, estimate_homography
from kornia_hardnet8.errors import DataError, UsageError

H = np.array([[1.05, 0.04, -3.0], [-0.03, 1.02, 2.0], [3e-4, 1e-4, 1.0]])
POINTS = np.array([[0, 0], [100, 0], [50, 80], [12.5, 33.0], [90, 71]])


def test_warp_is_the_projective_map_and_invertible():
    np.testing.assert_allclose(warp_points([[100, 50]], H), [[(105 + 2 - 3) / 1.035, (-3 + 51 + 2) / 1.035]])
    np.testing.assert_allclose(warp_points(warp_points(POINTS, H), np.linalg.inv(H)), POINTS, atol=1e-9)
    assert warp_points(np.empty((0, 2)), H).shape == (0, 2)
    assert not np.isfinite(warp_points([[1, 0]], np.array([[1, 0, 0], [0, 1, 0], [1, 0, -1.0]]))).all()


def test_errors_of_exact_and_shifted_points():
    mapped = warp_points(POINTS, H)
    np.testing.assert_allclose(reprojection_errors(POINTS, mapped + np.array([3, 4]), H), 5.0)
    np.testing.assert_allclose(symmetric_errors(POINTS, mapped, H), 0.0, atol=1e-9)
    shift = np.array([[1, 0, 7.0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(symmetric_errors(POINTS, POINTS, shift), 7.0)
    assert reprojection_errors([[1, 0]], [[0, 0]], np.array([[1, 0, 0], [0, 1, 0], [1, 0, -1.0]]))[0] == np.inf


def test_corner_error_conventions_and_failures():
    scale = np.diag([1.1, 1.0, 1.0])
    # the right corners move by a tenth of their x
    assert corner_error(scale, np.eye(3), 101, 51) == pytest.approx(5.0)
    assert corner_error(scale, np.eye(3), 101, 51, "glue-factory") == pytest.approx(5.05)
    assert corner_error(None, H, 10, 10) == np.inf
    assert corner_error(np.full((3, 3), np.nan), H, 10, 10) == np.inf


def test_inside_is_half_open():
    assert inside([[0, 0], [9.99, 4], [10, 4], [5, -0.01], [np.nan, 1]], 10, 5).tolist() == [True, True, *[False] * 3]


def test_shared_points_keep_the_strongest():
    first, second = shared_points(
        [[1, 1], [5, 5], [99, 5]],
        [[11, 1], [2, 2], [15, 5]],
        np.array([[1, 0, 10.0], [0, 1, 0], [0, 0, 1]]),
        (100, 100),
        (100, 100),
    )
    assert first.tolist() == [0, 1]  # the third leaves image 1
    assert second.tolist() == [0, 2]  # the second comes from left of image 0
    kept, _ = shared_points(POINTS, POINTS, np.eye(3), (200, 200), (200, 200), [5, 1, 4, 2, 3], [1] * 5, 2)
    assert kept.tolist() == [2, 0]
    assert top_k([3, 1, 2], 0).tolist() == []
    assert top_k([1, 1, 1], 2).tolist() == [1, 2]


@given(seed=st.integers(0, 1000))
def test_repeatability_is_brute_force(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 12, (9, 2)), rng.integers(0, 12, (6, 2))
    gaps = np.linalg.norm(first[:, None] - second[None], axis=2) <= 3
    want = (gaps.any(1).sum() + gaps.any(0).sum()) / 15
    assert repeatability(first, second, np.eye(3), 3.0) == pytest.approx(want)


def test_repeatability_of_nothing():
    assert repeatability([], [], np.eye(3)) is None
    assert repeatability([], [[1, 1]], np.eye(3)) == 0.0


def test_correct_nearest_counts_only_points_with_a_counterpart():
    first, second = [[0, 0], [10, 0], [50, 50]], [[0, 3], [10, 1]]
    assert correct_nearest(first, second, [0, 0, 1], np.eye(3)) == (1, 2)
    assert correct_nearest(first, second, [0, 1, 1], np.eye(3)) == (2, 2)
    assert correct_nearest(first, np.empty((0, 2)), [], np.eye(3)) == (0, 0)


def test_homography_after_resizing_and_cropping_follows_the_pixels():
    sizes, target = ((800, 640), (900, 700)), (640, 480)
    adapted = crop_homography(H, *sizes, target)
    scales = [crop_geometry(*size, *target) for size in sizes]
    point = np.array([[300.0, 200.0]])
    for_crop = point * scales[0][0] - scales[0][1:]
    want = warp_points(point, H) * scales[1][0] - scales[1][1:]
    np.testing.assert_allclose(warp_points(for_crop, adapted), want, atol=1e-9)
    scaled = scale_homography(H, (0.5, 0.25), (2.0, 3.0))
    np.testing.assert_allclose(warp_points(point * [0.5, 0.25], scaled), warp_points(point, H) * [2, 3])


def test_only_real_homographies_pass():
    np.testing.assert_array_equal(check_homography(H, "file"), H)
    check_homography(np.diag([1e-3, 1e-3, 1.0]), "small scale is fine")
    for bad in (np.zeros((3, 3)), np.ones((3, 3)), np.eye(2), np.full((3, 3), np.inf)):
        with pytest.raises(DataError, match=r"^there: "):
            check_homography(bad, "there")


@pytest.mark.parametrize("method", METHODS)
def test_estimators_find_a_clean_homography_and_fail_with_a_reason(method):
    if method == "poselib":
        pytest.importorskip("poselib")
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 400, (60, 2))
    settings = HomographySettings(method, 2.0)
    found = estimate_homography(points, warp_points(points, H), settings)
    np.testing.assert_allclose(found.H / found.H[2, 2], H, atol=1e-3)
    assert found.inliers.all()
    few = estimate_homography(points[:3], points[:3], settings)
    assert few.H is None
    assert few.reason == "3 matches, 4 needed"
    same = estimate_homography(np.ones((8, 2)), np.ones((8, 2)), settings)
    assert same.H is None
    assert "found no homography" in same.reason


def test_robust_estimators_survive_outliers():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 400, (100, 2))
    target = warp_points(points, H)
    target[:40] = rng.uniform(0, 400, (40, 2))
    for method in ("opencv", "poselib"):
        if method == "poselib":
            pytest.importorskip("poselib")
        found = estimate_homography(points, target, HomographySettings(method, 2.0))
        assert corner_error(found.H, H, 400, 400) < 0.1


def test_settings_are_checked():
    with pytest.raises(UsageError, match="unknown homography estimator 'opencvv'"):
        HomographySettings("opencvv")
    with pytest.raises(UsageError, match="positive"):
        HomographySettings("opencv", 0.0)
