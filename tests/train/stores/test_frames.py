"""Frames: rendered images with known geometry decide signs, sizes and centres."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from train.stores.frames import cut, detect_sift, enlarge, frame_angle, frame_scale, inside_share, similarity_frames


def _ramp(height: int = 200, width: int = 240) -> np.ndarray:
    """Gray value 0.4 x + 0.2 y."""
    y, x = np.mgrid[0:height, 0:width]
    return (0.4 * x + 0.2 * y).astype(np.float32)


def test_frame_covers_what_it_says() -> None:
    frames = similarity_frames(np.array([[100.0, 90.0]]), np.array([2.0]), np.array([np.pi / 2]), mr_size=12.0)
    np.testing.assert_allclose(frames[0], [[0, -24, 100], [24, 0, 90]], atol=1e-9)
    assert frame_scale(frames)[0] == pytest.approx(24)
    assert frame_angle(frames)[0] == pytest.approx(np.pi / 2)


def test_cut_reads_a_ramp_at_the_right_places() -> None:
    """At a quarter turn clockwise the patch's x runs down the image and its y runs to the left."""
    angle, sigma, crop, side = np.pi / 2, 2.0, 1.5, 16
    frames = similarity_frames(np.array([[120.0, 100.0]]), np.array([sigma]), np.array([angle]), 12.0)
    patch = cut(_ramp(), frames, side, crop)[0].astype(float)
    unit = ((2 * np.arange(side) + 1) / side - 1) * 12 * sigma * crop
    u, v = np.meshgrid(unit, unit)
    expected = 0.4 * (120 - v) + 0.2 * (100 + u)
    np.testing.assert_allclose(patch, expected, atol=0.6)


def test_opencv_frames_follow_the_image(scene, correlate) -> None:
    """SIFT found on its own in two views of a plane: the cut patches show the same thing, upright and in scale."""
    first = cv2.imread(str(scene.images / scene.names[0]), cv2.IMREAD_GRAYSCALE)
    second = cv2.imread(str(scene.images / scene.names[1]), cv2.IMREAD_GRAYSCALE)
    xy1, sigma1, angle1 = detect_sift(first)
    xy2, sigma2, angle2 = detect_sift(second)
    between = scene.similarities[1] @ np.linalg.inv(scene.similarities[0])
    there = xy1 @ between[:2, :2].T + between[:2, 2]
    distance = np.linalg.norm(there[:, None] - xy2[None], axis=2)
    distance += 100 * (np.abs(np.log(1.3 * sigma1[:, None] / sigma2[None])) > 0.2)
    rows = np.flatnonzero((distance.min(axis=1) < 1.0) & (sigma1 > 1.5) & (sigma1 < 4))
    columns = distance[rows].argmin(axis=1)
    assert len(rows) >= 20
    # one orientation at a time: a keypoint may have several
    turned = angle1[rows] + np.deg2rad(70)
    same = np.abs((turned - angle2[columns] + np.pi) % (2 * np.pi) - np.pi) < 0.35
    assert same.mean() > 0.6
    rows, columns = rows[same], columns[same]
    a = cut(first, similarity_frames(xy1[rows], sigma1[rows], angle1[rows], 6.0), 32, 1.0)
    b = cut(second, similarity_frames(xy2[columns], sigma2[columns], angle2[columns], 6.0), 32, 1.0)
    assert np.median(correlate(a, b)) > 0.95
    mirrored = cut(second, similarity_frames(xy2[columns], sigma2[columns], -angle2[columns], 6.0), 32, 1.0)
    assert np.median(correlate(a, mirrored)) < 0.6


def test_inside_share_counts_the_square() -> None:
    xy = np.array([[50.0, 50.0], [-0.5, 50.0], [99.4, 50.0], [120.0, 50.0], [50.0, -0.4]])
    frames = similarity_frames(xy, np.full(5, 1.0), np.zeros(5), mr_size=20.0)
    share = inside_share(frames, width=100, height=100)
    np.testing.assert_allclose(share, [1.0, 0.5, 0.5, 0.0, 0.5])


def test_inside_share_through_a_homography() -> None:
    frames = similarity_frames(np.array([[50.0, 50.0]]), np.array([1.0]), np.zeros(1), mr_size=20.0)
    shift = np.array([[1, 0, 49.0], [0, 1, 0], [0, 0, 1]])
    assert inside_share(frames, 100, 100, shift)[0] == pytest.approx(0.5)
    behind = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    assert inside_share(frames, 100, 100, behind)[0] == 0


def test_enlarge_keeps_the_centre() -> None:
    frames = similarity_frames(np.array([[3.0, 4.0]]), np.array([2.0]), np.array([0.3]), 12.0)
    larger = enlarge(frames, 1.5)
    np.testing.assert_array_equal(larger[:, :, 2], frames[:, :, 2])
    assert frame_scale(larger)[0] == pytest.approx(36)


def test_no_frames() -> None:
    none = similarity_frames(np.empty((0, 2)), np.empty(0), np.empty(0), 12.0)
    assert none.shape == (0, 2, 3)
    assert inside_share(none, 10, 10).shape == (0,)
    assert cut(np.zeros((40, 40), np.uint8), none, 32, 1.5).shape == (0, 32, 32)
