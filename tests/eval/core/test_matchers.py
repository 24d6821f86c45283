from __future__ import annotations

from pathlib import Path
from typing import Any

import kornia.feature as KF
import numpy as np
import pytest
import torch
from torch import Tensor

from eval.core.matchers import (
    LIGHTGLUE,
    AdalamSettings,
    LightGlueSettings,
    lightglue_settings,
    match_images,
)
from eval.core.matching import MatcherSettings, official_match
from eval.core.options import any_matcher_from
from eval.features import Token, WholeFeature, load
from eval.features.extract import Features
from eval.features.keypoints import Keypoints
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError

SHAPE = (400, 500)


class _Named(WholeFeature):
    """A whole local feature by name alone."""

    dim = 128

    def detect_and_describe(self, image: Any, num: int) -> tuple[Keypoints, Tensor]:
        raise AssertionError("not called here")


def features(xy: np.ndarray, descs: Tensor, method: str = "rootsift") -> Features:
    keypoints = Keypoints.from_points(xy, np.arange(len(xy), 0, -1), 4.0)
    keypoints.angle[:] = np.linspace(0, 300, len(xy))
    return Features(keypoints, descs, "", 0.0, SHAPE, "", method)


@pytest.fixture(scope="module")
def pair() -> tuple[Features, Features, int]:
    """150 points moved by 20 px with nearly the same descriptors, and 50 that have nothing in common."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(50, 350, (200, 2)).astype(np.float32)
    descs = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 128)).astype(np.float32)))
    moved = xy + np.array([20, 0], np.float32)
    noise = torch.from_numpy(rng.normal(size=(200, 128)).astype(np.float32))
    other = torch.nn.functional.normalize(descs + 0.03 * noise)
    other[150:] = torch.nn.functional.normalize(noise[150:])
    moved[150:] = rng.uniform(50, 350, (50, 2))
    return features(xy, descs), features(moved, other), 150


def test_the_benchmarks_matcher_is_the_same_function(pair: Any) -> None:
    one, two, _ = pair
    settings = MatcherSettings(threshold=0.85)
    kpts = [torch.from_numpy(image.keypoints.xy) for image in (one, two)]
    expected = official_match(one.descs, two.descs, kpts[0], kpts[1], settings)
    assert torch.equal(match_images(one, two, settings), expected)


def test_adalam_keeps_the_neighbours_that_move_together_and_repeats(pair: Any) -> None:
    one, two, same = pair
    torch.manual_seed(11)
    state = torch.get_rng_state()
    found = match_images(one, two, AdalamSettings())
    assert torch.equal(torch.get_rng_state(), state)
    right = found[:, 0] == found[:, 1]
    assert right.sum() > 0.8 * same
    assert right.float().mean() > 0.95
    assert torch.equal(found, match_images(one, two, AdalamSettings()))
    order = one.keypoints.xy[found[:, 0].numpy(), 0]
    assert (np.diff(order) >= 0).all()


def test_rows_that_are_not_finite_never_match(pair: Any) -> None:
    one, two, _ = pair
    descs = one.descs.clone()
    descs[3] = float("nan")
    found = match_images(one._replace(descs=descs), two, AdalamSettings())
    assert len(found) > 50
    assert 3 not in found[:, 0].tolist()
    assert (found[:, 0] == found[:, 1]).float().mean() > 0.95


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_keypoints_give_no_match(count: int, pair: Any) -> None:
    one, two, _ = pair
    few = one._replace(keypoints=one.keypoints[:count], descs=one.descs[:count])
    assert match_images(few, two, AdalamSettings()).shape == (0, 2)
    assert match_images(two, few, AdalamSettings()).shape == (0, 2)


def lightglue_file(feature: str, path: Path, **renamed: str) -> Any:
    """Random weights in a file, under the names of the published ones; and the network."""
    torch.manual_seed(0)
    options = {k: v for k, v in KF.LightGlue.features[feature].items() if k != "weights"}
    network = KF.LightGlue(None, **options).eval()
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith("transformers."):
            _, layer, part, rest = key.split(".", 3)
            key = f"{part}.{layer}.{rest}"
        state[renamed.get("prefix", "") + key] = value
    torch.save(state, path)
    return network


@pytest.mark.skipif(not hasattr(KF, "ALIKED"), reason="this kornia has no ALIKED")
@pytest.mark.parametrize(("name", "prefix"), [("aliked-n16", ""), ("rootsift", "matcher.")])
def test_lightglue_is_kornias_network_with_the_files_weights(
    name: str, prefix: str, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature, file = LIGHTGLUE[name]
    network = lightglue_file(feature, tmp_path / file, prefix=prefix)
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(tmp_path))
    method = load("rootsift") if name == "rootsift" else _Named(Token(name, name))
    settings = lightglue_settings([method])
    one, two = (image._replace(method=name) for image in pair[:2])
    data = {}
    for key, image in (("image0", one), ("image1", two)):
        angle = torch.deg2rad(torch.from_numpy(image.keypoints.angle))
        data[key] = {
            "keypoints": torch.from_numpy(image.keypoints.xy)[None],
            "descriptors": image.descs[None],
            "image_size": torch.tensor([[500.0, 400.0]]),
            "scales": torch.full((1, 200), 2.0),
            "oris": torch.remainder(angle + np.pi, 2 * np.pi)[None] - np.pi,
        }
    with torch.no_grad():
        expected = network(data)["matches"][0]
    found = match_images(one, two, settings)
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in expected.tolist()}
    assert settings.to_dict()["weights_sha256"].keys() == {name}


def test_lightglue_is_refused_for_descriptors_that_it_does_not_know(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UsageError, match="was not trained on the descriptors of h8E512"):
        lightglue_settings([load("h8E512")])
    with pytest.raises(MissingFileError, match=r"sift_lightglue\.pth"):
        lightglue_settings([load("rootsift")])
    with pytest.raises(UsageError, match="was not trained"):
        match_images(pair[0], pair[1], LightGlueSettings(()))
    torch.save({"x": torch.zeros(1)}, tmp_path / "sift_lightglue.pth")
    with pytest.raises(DataError, match="it lacks"):
        match_images(pair[0], pair[1], lightglue_settings([load("rootsift")]))


def test_names_of_matchers(tmp_path: Path) -> None:
    assert any_matcher_from("adalam", None, "stereo") == AdalamSettings()
    assert any_matcher_from("smnn", 0.8, "stereo") == MatcherSettings(threshold=0.8)
    assert any_matcher_from("smnn", None, "multiview", default_ratio=0.7) == MatcherSettings(threshold=0.7)
    for name in ("mnn", "nn", "adalam", "lightglue", "imported"):
        with pytest.raises(UsageError, match=f"--ratio has no effect with --matcher {name}"):
            any_matcher_from(name, 0.8, "stereo")
    with pytest.raises(UsageError, match="brings no stereo matches"):
        any_matcher_from("imported", None, "stereo", [load("rootsift")])
