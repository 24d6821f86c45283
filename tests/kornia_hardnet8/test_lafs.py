from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import kornia.feature as KF
import numpy as np
import pytest
import torch

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import lafs_from_opencv, lafs_from_similarity
from kornia_hardnet8.patches import extract_patches


def _keypoint(x: float, y: float, size: float, angle: float) -> SimpleNamespace:
    return SimpleNamespace(pt=(x, y), size=size, angle=angle)


def test_a_quarter_turn_has_the_axes_of_the_image() -> None:
    # sigma 2, mr_size 12: half side 24; angle 90 is y down, so the frame's first axis points down
    laf = lafs_from_opencv([_keypoint(10, 20, 4, 90)], 12.0)
    torch.testing.assert_close(laf, torch.tensor([[[[0.0, -24, 10], [24, 0, 20]]]]), atol=1e-5, rtol=0)


def test_it_is_kornias_frame_at_minus_the_angle() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform([0, 0, 1, 0], [100, 100, 20, 360], (50, 4)).astype(np.float32)
    lafs = lafs_from_opencv([_keypoint(*row) for row in rows.tolist()], 6.0)
    xy, size, angle = torch.from_numpy(rows[:, :2]), torch.from_numpy(rows[:, 2]), torch.from_numpy(rows[:, 3])
    expected = KF.laf_from_center_scale_ori(xy[None], (3 * size).view(1, -1, 1, 1), -angle.view(1, -1, 1))
    torch.testing.assert_close(lafs, expected, atol=1e-4, rtol=1e-5)


def test_no_angle_counts_as_zero_and_no_keypoints_give_no_frames() -> None:
    laf = lafs_from_opencv([_keypoint(1, 2, 2, -1)], 1.0)
    torch.testing.assert_close(laf[0, 0], torch.tensor([[1.0, 0, 1], [0, 1, 2]]))
    assert lafs_from_opencv([]).shape == (1, 0, 2, 3)


def test_misfitting_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"\(3, 2\), \(2,\) and \(3,\)"):
        lafs_from_similarity(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("turn", [30.0, 90.0, 200.0])
def test_patches_at_opencvs_keypoints_turn_with_the_image(turn: float) -> None:
    rng = np.random.default_rng(1)
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (301, 301)).astype(np.float32), (0, 0), 3)
    image = np.clip(128 + 400 * blobs, 0, 255).astype(np.uint8)
    center = 150.0
    matrix = cv2.getRotationMatrix2D((center, center), -turn, 1.0)  # OpenCV's positive angle is counter-clockwise
    turned = cv2.warpAffine(image, matrix, (301, 301), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    angle = math.radians(turn)
    offset = np.array([20.0, -12.0])
    moved = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ offset
    one = lafs_from_opencv([_keypoint(center + offset[0], center + offset[1], 6, 15.0)], 12.0)[0]
    two = lafs_from_opencv([_keypoint(center + moved[0], center + moved[1], 6, 15.0 + turn)], 12.0)[0]
    wrong = lafs_from_opencv([_keypoint(center + moved[0], center + moved[1], 6, 15.0 - turn)], 12.0)[0]
    patches = [
        extract_patches(torch.from_numpy(source), laf, 32).flatten()
        for source, laf in ((image, one), (turned, two), (turned, wrong))
    ]
    assert float(torch.corrcoef(torch.stack(patches[:2]))[0, 1]) > 0.98
    assert float(torch.corrcoef(torch.stack(patches[::2]))[0, 1]) < 0.6
    # the detector itself says so: the angle of a blob's keypoint grows by the turn
    first, second = (_strongest(source) for source in (image, turned))
    assert abs((second - first - turn + 180) % 360 - 180) < 8


def _strongest(image: np.ndarray) -> float:
    """Circular mean turn is read from the strongest keypoint near the middle, the same in both images."""
    mask = np.zeros_like(image)
    cv2.circle(mask, (150, 150), 60, 255, -1)
    keypoints = cv2.SIFT.create().detect(image, mask)
    return max(keypoints, key=lambda k: k.response).angle
