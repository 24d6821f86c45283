from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.cache import Cache
from eval.features import load
from eval.features.detect import DogSettings, add_selection_flags, detect_dog, select, selection_from
from eval.features.extract import detect
from eval.features.keypoints import Keypoints, Places
from eval.features.sift import Sift, root_normalise
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import sha256_file
from kornia_hardnet8.matchability import BUNDLED, Matchability


def _image(seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (160, 200)).astype(np.float32)
    return np.clip(128 + 250 * cv2.GaussianBlur(noise, (0, 0), 2.5), 0, 255).astype(np.uint8)


def test_the_strongest_come_first_and_fill_the_budget() -> None:
    image = _image()
    every = cv2.SIFT.create(contrastThreshold=-10000, edgeThreshold=-10000, enable_precise_upscale=True).detect(
        image, None
    )
    found = detect_dog(image, DogSettings(num=100))
    assert len(found) == 100 < len(every)
    expected = sorted((k.response for k in every), reverse=True)[:100]
    np.testing.assert_allclose(found.response, np.array(expected, np.float32))
    strict = detect_dog(image, DogSettings(num=100_000, contrast=0.04, edge=10))
    assert len(strict) == len(cv2.SIFT.create(enable_precise_upscale=True).detect(image, None))


@pytest.mark.parametrize(("places", "offset"), [("exact", 0.0), ("imw2020", 0.25)])
@pytest.mark.parametrize("sigma", [1.2, 2.0, 5.0, 9.0])
def test_a_blob_is_found_at_its_centre(places: Places, offset: float, sigma: float) -> None:
    y, x = np.mgrid[:201, :221]
    # OpenCV misses a blob whose centre lies right on a sample or between two: both then have one value
    blob = 40 + 180 * np.exp(-((x - 100.4) ** 2 + (y - 90.3) ** 2) / (2 * sigma**2))
    keypoints = detect_dog(blob.round().astype(np.uint8), DogSettings(num=1, contrast=0.02, edge=10, places=places))
    np.testing.assert_allclose(keypoints.xy, [[100.4 + offset, 90.3 + offset]], atol=0.06)


def test_a_half_turn_of_the_image_turns_the_keypoints() -> None:
    image = _image()
    turned = np.ascontiguousarray(image[::-1, ::-1])

    def share_at_home(places: Places) -> float:
        settings = DogSettings(num=300, contrast=0.01, edge=10, places=places)
        one, two = detect_dog(image, settings).xy, detect_dog(turned, settings).xy
        back = np.array([image.shape[1] - 1, image.shape[0] - 1]) - two
        return float(np.mean(np.linalg.norm(one[:, None] - back[None], axis=2).min(axis=1) < 0.1))

    assert share_at_home("exact") > 0.9
    assert share_at_home("imw2020") < 0.05


def test_the_places_are_part_of_what_is_stored() -> None:
    assert DogSettings().to_dict()["places"] == "exact"
    assert DogSettings(places="imw2020").to_dict()["places"] == "imw2020"
    with pytest.raises(UsageError, match="exact or imw2020"):
        DogSettings(places="2020")  # type: ignore[arg-type]


def test_matchability_chooses_among_the_strongest(tmp_path: Path) -> None:
    image = _image()
    every = detect_dog(image, DogSettings(num=150))
    settings = DogSettings(num=40, select="matchability", candidates=150)
    kept = detect_dog(image, settings)
    responses = torch.from_numpy(every.response)
    shares = Matchability(pretrained=True).score(torch.from_numpy(image) / 255.0, every.lafs(12.0), 12.0, responses)
    shares = shares.numpy()
    order = np.argsort(-shares, kind="stable")[:40]
    np.testing.assert_allclose(kept.response, shares[order], atol=1e-6)
    np.testing.assert_array_equal(kept.xy, every.xy[order])
    np.testing.assert_array_equal(kept.angle, every.angle[order])
    assert len(detect_dog(image, DogSettings(num=40, select="matchability", candidates=5))) == 40
    assert len(detect_dog(np.full((50, 60), 7, np.uint8), settings)) == 0


def test_the_choice_is_part_of_what_is_stored_and_of_the_cache(tmp_path: Path) -> None:
    plain, chosen = DogSettings(num=40).to_dict(), DogSettings(num=40, select="matchability").to_dict()
    # What was stored without a choice stays what it was.
    assert not {"select", "candidates"} & set(plain)
    assert {"select": "matchability", "candidates": 8000}.items() <= chosen.items()
    assert chosen["matchability_sha256"] == sha256_file(BUNDLED)
    cache = Cache(tmp_path)
    keys = {
        detect(_image(), settings, cache)[1]
        for settings in (
            DogSettings(num=40),
            DogSettings(num=40, select="matchability"),
            DogSettings(num=40, select="matchability", candidates=100),
        )
    }
    assert len(keys) == 3
    for wrong in ({"select": "best"}, {"select": "matchability", "candidates": 0}):
        with pytest.raises(UsageError):
            DogSettings(**wrong)  # type: ignore[arg-type]


def test_flags_of_the_choice() -> None:
    def parsed(*flags: str) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        add_selection_flags(parser.add_argument_group("keypoints"))
        return selection_from(parser.parse_args(flags))

    assert parsed() == {"select": "response", "candidates": 8000}
    assert parsed("--select", "matchability", "--candidates", "50") == {"select": "matchability", "candidates": 50}
    with pytest.raises(UsageError, match="--candidates changes nothing"):
        parsed("--candidates", "50")


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


@pytest.mark.parametrize("places", ["exact", "imw2020"])
def test_sift_is_opencvs_in_the_order_of_the_keypoints(places: Places) -> None:
    image = _image(3)
    keypoints, expected = cv2.SIFT.create(enable_precise_upscale=places == "exact").detectAndCompute(image, None)
    order = np.random.default_rng(0).permutation(len(keypoints))
    shuffled = Keypoints.from_opencv([keypoints[i] for i in order])
    sift, rootsift = load("sift"), load("rootsift")
    assert isinstance(sift, Sift) and isinstance(rootsift, Sift)
    sift.places = rootsift.places = places
    descs = sift.describe_image(image, shuffled).numpy()
    # octave -1 is among them, so the pyramid is the same as in detection
    assert np.mean(np.abs(descs - expected[order]).max(axis=1) <= 1) > 0.99
    root = rootsift.describe_image(image, shuffled).numpy()
    np.testing.assert_allclose(root, np.sqrt(descs / descs.sum(1, keepdims=True)), atol=1e-5)
    assert sift.identity(12.0)["places"] == places


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
