from __future__ import annotations

import math
from pathlib import Path

import kornia.feature as KF
import numpy as np
import pytest
import torch

from common.cache import Cache
from eval.features import load
from eval.features.detect import DogSettings, affine_shapes, affine_weights, detect_dog, first_orientations
from eval.features.extract import detect, extract
from eval.features.keypoints import Keypoints
from kornia_hardnet8.errors import MissingFileError, UsageError
from kornia_hardnet8.patches import extract_patches


def affnet(path: Path, answer: tuple[float, float, float]) -> Path:
    """AffNet that gives every patch the frame [[1 + a, 0], [b, 1 + c]]."""
    module = KF.LAFAffNetShapeEstimator(False)
    last = [layer for layer in module.features if isinstance(layer, torch.nn.Conv2d)][-1]
    torch.nn.init.zeros_(last.weight)
    assert last.bias is not None
    last.bias.data = torch.tensor([math.atanh(value) for value in answer])
    torch.save({"state_dict": module.state_dict()}, path)
    return path


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 1, 20, 24)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (160, 192), mode="bicubic").clamp(0, 255)
    return smooth[0, 0].to(torch.uint8).numpy()


def test_the_shape_is_the_networks_with_unit_determinant(tmp_path: Path, image: np.ndarray) -> None:
    answer = (0.5, 0.2, -0.2)
    weights = affnet(tmp_path / "AffNet.pth", answer)
    found = detect_dog(image, DogSettings(num=30, upright=True))
    shaped = affine_shapes(image, found, weights)
    linear = np.array([[1 + answer[0], 0], [answer[1], 1 + answer[2]]])
    expected = linear / math.sqrt(np.linalg.det(linear))
    assert shaped.shape is not None
    np.testing.assert_allclose(shaped.shape, np.broadcast_to(expected, (30, 2, 2)), atol=1e-4)
    for name in ("xy", "size", "angle", "response"):
        np.testing.assert_array_equal(getattr(shaped, name), getattr(found, name))
    frames = shaped.lafs(12.0)
    torch.testing.assert_close(torch.linalg.det(frames[:, :, :2]), torch.linalg.det(found.lafs(12.0)[:, :, :2]))
    torch.testing.assert_close(frames[:, :, 2], torch.from_numpy(found.xy))


def test_no_deformation_leaves_oriented_frames_as_they_are(tmp_path: Path, image: np.ndarray) -> None:
    weights = affnet(tmp_path / "AffNet.pth", (0.0, 0.0, 0.0))
    found = detect_dog(image, DogSettings(num=40))
    assert found.angle.max() > 0
    torch.testing.assert_close(affine_shapes(image, found, weights).lafs(12.0), found.lafs(12.0), atol=1e-3, rtol=1e-4)
    empty = affine_shapes(image, found[:0], weights)
    assert empty.lafs(12.0).shape == (0, 2, 3)


def test_shapes_reach_descriptors_and_survive_the_cache(tmp_path: Path, image: np.ndarray) -> None:
    weights = affnet(tmp_path / "AffNet.pth", (0.4, 0.0, -0.3))
    cache, descriptor = Cache(tmp_path / "cache"), load("h7:untrained=true")
    settings = DogSettings(num=12, affine_weights=weights)
    features = [extract(image, descriptor, settings, cache) for _ in range(2)]
    assert features[0].keypoints.shape is not None
    np.testing.assert_array_equal(features[0].keypoints.shape, features[1].keypoints.shape)
    patches = extract_patches(torch.from_numpy(image), features[1].keypoints.lafs(12.0), 32)
    torch.testing.assert_close(features[1].descs, descriptor.describe(patches / 255))
    plain = extract(image, descriptor, DogSettings(num=12), cache)
    assert plain.keypoints.shape is None
    assert not torch.allclose(plain.descs, features[0].descs, atol=1e-2)
    with pytest.raises(UsageError, match="circles"):
        extract(image, load("rootsift"), settings, cache)


def test_settings_name_the_file_by_its_content(tmp_path: Path, image: np.ndarray) -> None:
    plain = DogSettings(num=5).to_dict()
    thresholds = {"contrast": -10000.0, "edge": -10000.0}
    assert plain == {"detector": "dog-opencv", "num": 5, **thresholds, "upright": False, "places": "exact"}
    one = DogSettings(num=5, affine_weights=affnet(tmp_path / "a.pth", (0.1, 0, 0))).to_dict()
    two = DogSettings(num=5, affine_weights=affnet(tmp_path / "b.pth", (0.2, 0, 0))).to_dict()
    assert one != two
    assert str(tmp_path) not in str(one)
    assert "same_place" in DogSettings(upright=True, same_place="response").to_dict()
    with pytest.raises(UsageError, match="position or response"):
        DogSettings(same_place="size")  # type: ignore[arg-type]


def test_weights_are_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(tmp_path))
    assert affine_weights("none") is None
    with pytest.raises(MissingFileError, match=r"AffNet\.pth"):
        affine_weights("affnet")
    path = affnet(tmp_path / "AffNet.pth", (0, 0, 0))
    assert affine_weights("affnet") == path
    assert affine_weights(f"affnet@{path}") == path
    for wrong in ("affine", "affnet@"):
        with pytest.raises(UsageError, match="affnet@PATH"):
            affine_weights(wrong)


def test_further_orientations_follow_the_first_with_its_response(tmp_path: Path, image: np.ndarray) -> None:
    response = np.array([0.5, 0.5, 0.5, 0.2, 0.5, 0.2, 0.2], np.float32)
    assert first_orientations(response).tolist() == [0, 3, 4, 5]
    assert first_orientations(np.zeros(0, np.float32)).tolist() == []
    every = detect_dog(image, DogSettings(num=10_000))
    upright = detect_dog(image, DogSettings(num=10_000, upright=True, same_place="response"))
    places = {tuple(xy) for xy in every.xy.tolist()}
    assert {tuple(xy) for xy in upright.xy.tolist()} == places
    assert len(places) <= len(upright) < len(every)
    assert upright.angle.max() == 0
    assert (np.diff(upright.response) <= 0).all()
    few, _ = detect(image, DogSettings(num=9, upright=True, same_place="response"), Cache(tmp_path))
    np.testing.assert_array_equal(few.xy, upright.xy[:9])


def test_rows_of_keypoints_take_their_shapes_along() -> None:
    keypoints = Keypoints.from_points(np.arange(6).reshape(3, 2), np.array([3, 2, 1]), 4.0)
    shape = np.tile(np.eye(2, dtype=np.float32), (3, 1, 1)) * np.array([1, 2, 3], np.float32)[:, None, None]
    shaped = Keypoints.from_arrays({**keypoints.to_arrays(), "shape": shape})
    assert shaped[1:].shape is not None
    assert shaped[1:].shape.tolist() == shape[1:].tolist()
    assert Keypoints.from_arrays(keypoints[:2].to_arrays()).shape is None
