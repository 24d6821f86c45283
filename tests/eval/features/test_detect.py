from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from eval.features import load
from eval.features.detect import DogSettings, detect_dog, select
from eval.features.keypoints import Keypoints
from eval.features.sift import root_normalise
from kornia_hardnet8.errors import DataError, UsageError


def _image(seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (160, 200)).astype(np.float32)
    return np.clip(128 + 250 * cv2.GaussianBlur(noise, (0, 0), 2.5), 0, 255).astype(np.uint8)


def test_the_strongest_come_first_and_fill_the_budget() -> None:
    image = _image()
    every = cv2.SIFT.create(contrastThreshold=-10000, edgeThreshold=-10000).detect(image, None)
    found = detect_dog(image, DogSettings(num=100))
    assert len(found) == 100 < len(every)
    expected = sorted((k.response for k in every), reverse=True)[:100]
    np.testing.assert_allclose(found.response, np.array(expected, np.float32))
    strict = detect_dog(image, DogSettings(num=100_000, contrast=0.04, edge=10))
    assert len(strict) == len(cv2.SIFT.create().detect(image, None))


def test_equal_responses_come_in_reversed_order() -> None:
    keypoints = Keypoints.from_opencv([cv2.KeyPoint(i, i, 2, 0, r, 0) for i, r in enumerate([0.2, 0.9, 0.2, 0.5])])
    np.testing.assert_array_equal(select(keypoints, 4, False).xy[:, 0], [1, 3, 2, 0])
    np.testing.assert_array_equal(select(keypoints, 3, False).xy[:, 0], [1, 3, 2])


def test_upright_keeps_each_position_once_with_angle_zero_and_fills_up() -> None:
    rows = [(5, 5, 30, 0.9), (5, 5, 200, 0.9), (5, 6, 10, 0.8), (7, 5, 10, 0.7), (9, 9, 3, 0.1)]
    keypoints = Keypoints.from_opencv([cv2.KeyPoint(x, y, 2, angle, r, 0) for x, y, angle, r in rows])
    found = select(keypoints, 3, True)
    np.testing.assert_array_equal(found.xy, [[5, 5], [5, 6], [7, 5]])
    assert not found.angle.any()
    assert keypoints.angle.any()
    image = _image()
    upright = detect_dog(image, DogSettings(num=50, upright=True))
    assert len(np.unique(upright.xy, axis=0)) == len(upright) == 50


def test_a_blank_image_has_no_keypoints() -> None:
    found = detect_dog(np.full((50, 60), 7, np.uint8), DogSettings())
    assert (len(found), found.xy.shape, found.lafs(12.0).shape) == (0, (0, 2), (0, 2, 3))


def test_wrong_images_and_budgets_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(H, W\) uint8"):
        detect_dog(np.zeros((4, 4, 3), np.uint8), DogSettings())
    with pytest.raises(UsageError, match="at least 1"):
        DogSettings(num=0)


def test_keypoints_survive_opencv() -> None:
    found = detect_dog(_image(), DogSettings(num=40))
    again = Keypoints.from_opencv(found.to_opencv())
    for name in ("xy", "size", "angle", "response", "octave"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    np.testing.assert_allclose(np.linalg.det(found.lafs(12.0)[:, :, :2].numpy()) ** 0.5, 6 * found.size, rtol=1e-5)


def test_sift_is_opencvs_in_the_order_of_the_keypoints() -> None:
    image = _image(3)
    keypoints, expected = cv2.SIFT.create().detectAndCompute(image, None)
    order = np.random.default_rng(0).permutation(len(keypoints))
    shuffled = Keypoints.from_opencv([keypoints[i] for i in order])
    descs = load("sift").describe_image(image, shuffled).numpy()
    # octave -1 is among them, so the pyramid is the same as in detection
    assert np.mean(np.abs(descs - expected[order]).max(axis=1) <= 1) > 0.99
    root = load("rootsift").describe_image(image, shuffled).numpy()
    np.testing.assert_allclose(root, np.sqrt(descs / descs.sum(1, keepdims=True)), atol=1e-5)


def test_rootsift_values() -> None:
    rows = root_normalise(np.array([[1, 2, 0, 5], [0, 0, 0, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.3535534, 0.5, 0, 0.7905694], [0, 0, 0, 0]], atol=1e-6)


def test_sift_of_patches_tells_them_apart() -> None:
    import torch

    image = torch.from_numpy(_image(5)).float() / 255
    patches = torch.stack([image[None, y : y + 64, x : x + 64] for y, x in ((10, 10), (60, 100))])
    brighter = 0.5 * patches + 0.2
    descriptor = load("rootsift")
    one, two = descriptor.describe(patches), descriptor.describe(brighter)
    distances = torch.cdist(one, two)
    assert float(distances.diagonal().max()) < 0.2 < float(distances[0, 1])
