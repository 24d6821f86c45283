from __future__ import annotations

import numpy as np
import pytest

from common.homography import warp_points
from common.hpatches import LEVELS, TYPES
from eval.hpatches.build import (
    CALIBRATED_OVERLAP,
    JITTER,
    BuildSettings,
    build_sequence,
    circle_iou,
    circle_overlaps,
    cut,
    detect_frames,
    draw_fitting,
    draw_jitter,
    jittered,
    pyramid,
    radii,
    squares_inside,
    thin_circles,
)
from kornia_hardnet8.errors import DataError, UsageError

RAMP_X = np.tile(np.arange(200, dtype=np.uint8), (160, 1))


def frame(radius, x, y, turn=0.0):
    cos, sin = radius * np.cos(turn), radius * np.sin(turn)
    return np.array([[cos, sin, x], [-sin, cos, y]])


def test_circle_iou_closed_forms():
    assert circle_iou(np.array([0.0]), np.array([1.0]), 2.0)[0] == pytest.approx(0.25)
    assert circle_iou(np.array([5.0]), np.array([1.0]), 2.0)[0] == 0.0
    lens = 2 * np.pi / 3 - np.sqrt(3) / 2  # unit circles at distance 1
    assert circle_iou(np.array([1.0]), np.array([1.0]), 1.0)[0] == pytest.approx(lens / (2 * np.pi - lens))


@pytest.mark.parametrize("level", LEVELS)
def test_jitter_overlaps_are_the_calibrated_ones(level):
    jitter = draw_jitter(4000, level, np.random.default_rng(0))
    assert np.median(circle_overlaps(jitter)) == pytest.approx(CALIBRATED_OVERLAP[level], abs=0.012)
    x, degrees = JITTER[level]
    assert np.abs(jitter.rotation_deg).max() <= degrees
    assert np.abs(jitter.shift).max() <= x
    determinant = np.linalg.det(jitter.linear)
    np.testing.assert_allclose(determinant, jitter.scale**2)
    assert np.abs(np.log2(jitter.scale)).max() <= x


def test_overlap_of_no_jitter_is_one_and_of_a_shift_the_lens():
    jitter = draw_jitter(3, "e", np.random.default_rng(0))
    plain = jitter._replace(linear=np.tile(np.eye(2), (3, 1, 1)), shift=np.array([[0, 0], [1.0, 0], [0.3, 0.4]]))
    want = circle_iou(np.array([0.0, 1.0, 0.5]), np.ones(3), 1.0)
    np.testing.assert_allclose(circle_overlaps(plain), want, atol=5e-3)


def test_cut_reads_the_exact_place():
    patch = cut(pyramid(RAMP_X), frame(20.0, 100.0, 80.0)[None], np.eye(3))[0]
    u = (2 * np.arange(65) + 1) / 65 - 1
    np.testing.assert_allclose(patch[32], 100 + 20 * u, atol=0.6)
    assert np.ptp(patch[:, 10]) <= 1


def test_cut_follows_the_homography_cell_by_cell():
    H = np.array([[0.9, 0.1, 5.0], [-0.05, 0.8, 10.0], [5e-4, 2e-4, 1.0]])
    at = frame(15.0, 90.0, 70.0, 0.3)
    patch = cut(pyramid(RAMP_X), at[None], H)[0]
    u = (2 * np.arange(65) + 1) / 65 - 1
    cells = np.stack(np.meshgrid(u, u), -1).reshape(-1, 2)
    want = warp_points(cells @ at[:, :2].T + at[:, 2], H)[:, 0].reshape(65, 65)
    np.testing.assert_allclose(patch, want, atol=0.6)


def test_large_regions_come_from_a_coarser_level():
    stripes = np.tile(np.array([0, 255] * 400, np.uint8), (800, 1))
    patch = cut(pyramid(stripes), frame(260.0, 400.0, 400.0)[None], np.eye(3))[0]
    assert patch.std() < 12  # one-pixel stripes are averaged, not sampled
    assert abs(patch.mean() - 127.5) < 5


def test_squares_inside_and_horizon():
    frames = np.stack([frame(10, 20, 20), frame(10, 9, 20), frame(10, 20, 20, np.pi / 4)])
    assert squares_inside(frames, np.eye(3), (100, 100)).tolist() == [True, False, True]
    assert not squares_inside(frames, np.array([[1, 0, 0], [0, 1, 0], [0.05, 0, -1.0]]), (10**6, 10**6))[0]


def test_thinning_keeps_the_first_of_each_cluster():
    frames = np.stack([frame(10, 50, 50), frame(10, 52, 50), frame(10, 90, 50), frame(25, 50, 50)])
    assert thin_circles(frames, 0.5).tolist() == [0, 2, 3]


def test_jitter_is_redrawn_until_it_fits():
    frames = np.tile(frame(10, 14, 14), (200, 1, 1))
    jitter, inside = draw_fitting(frames, "t", np.eye(3), (100, 100), np.random.default_rng(0))
    assert inside.mean() > 0.9
    moved = jittered(frames[inside], jitter._replace(**{k: v[inside] for k, v in jitter._asdict().items()}))
    assert squares_inside(moved, np.eye(3), (100, 100)).all()


@pytest.mark.parametrize("detector", ["hessian", "harris", "dog"])
def test_detectors_find_a_blob_where_it_is(detector):
    y, x = np.mgrid[0:120, 0:160]
    blob = 40 + 180 * np.exp(-((x - 90) ** 2 + (y - 60) ** 2) / (2 * 6.0**2))
    if detector == "harris":
        blob = np.where((x > 90) & (y > 60), 220, 40)
    frames = detect_frames(blob.astype(np.uint8), detector, 20, 5.0)
    nearest = np.linalg.norm(frames[:, :, 2] - [90, 60], axis=1).min()
    assert nearest < 4.0
    if detector != "harris":
        best = frames[np.linalg.norm(frames[:, :, 2] - [90, 60], axis=1).argmin()]
        assert radii(best[None])[0] == pytest.approx(30.0, rel=0.25)  # 5 sigma


def test_built_patches_show_the_same_places():
    rng = np.random.default_rng(1)
    import cv2

    image = cv2.GaussianBlur(rng.integers(0, 256, (240, 320), dtype=np.uint8), (0, 0), 2.5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    H = np.array([[0.95, 0.05, 4.0], [-0.04, 0.97, 6.0], [1e-4, -5e-5, 1.0]])
    images = [image, *(cv2.warpPerspective(image, H, (320, 240), borderMode=cv2.BORDER_REFLECT) for _ in range(5))]
    settings = BuildSettings(detections=200, max_patches=30, seed=3)
    built = build_sequence(images, [H] * 5, settings)
    assert set(built.strips) == set(TYPES)
    assert len({len(s) for s in built.strips.values()}) == 1
    reference = built.strips["ref"].reshape(len(built.frames), -1).astype(float)
    easy = built.strips["e1"].reshape(len(built.frames), -1).astype(float)
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(reference, easy, strict=True)]
    other = [np.corrcoef(a, b)[0, 1] for a, b in zip(reference, np.roll(easy, 1, axis=0), strict=True)]
    assert np.median(own) > 0.5 > np.median(other) + 0.3
    again = build_sequence(images, [H] * 5, settings)
    np.testing.assert_array_equal(again.strips["t5"], built.strips["t5"])


def test_build_faults():
    with pytest.raises(DataError, match=r"has 3 images, HPatches strips need 1 \+ 5"):
        build_sequence([RAMP_X] * 3, [np.eye(3)] * 2, BuildSettings(), "the wall")
    with pytest.raises(DataError, match="0 patches are left"):
        build_sequence([np.zeros((100, 100), np.uint8)] * 6, [np.eye(3)] * 5, BuildSettings(detections=50), "blank")
    with pytest.raises(UsageError):
        BuildSettings(max_patches=0)
