from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import kornia.feature as KF
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.images import gray_from_bgr
from eval.features import Keypoints, Token, WholeFeature, load, load_method, registry
from eval.features.detect import DogSettings
from eval.features.extract import detector_of, extract, image_digest
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.feature import HardNet8Feature

pytestmark = pytest.mark.skipif(not hasattr(KF, "ALIKED"), reason="this kornia has no ALIKED and no XFeat")
FILES = {
    "aliked-n16": "aliked-n16.pth",
    "xfeat": "xfeat.pt",
    "disk": "depth-save.pth",
    "keynet-h8E512": "keynet_pytorch.pth",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of every network, in files as they are published."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    aliked = KF.ALIKED("aliked-n16").state_dict()
    torch.save({name: value for name, value in aliked.items() if name != "dkd.hw_grid"}, folder / FILES["aliked-n16"])
    torch.save(KF.XFeat().net.state_dict(), folder / FILES["xfeat"])
    torch.save({"extractor": KF.DISK().state_dict()}, folder / FILES["disk"])
    torch.save({"state_dict": KF.KeyNet(False).state_dict()}, folder / FILES["keynet-h8E512"])
    return folder


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """A colour image whose sides are no multiples of 32."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 18, 25)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (108, 150), mode="bicubic").clamp(0, 255)
    return smooth[0].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()


@pytest.mark.parametrize("name", FILES)
def test_the_strongest_come_first_and_repeat(
    name: str, weights: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(weights))
    feature = load_method(f"{name}:threshold=0" if name == "xfeat" else name)
    assert isinstance(feature, WholeFeature)
    keypoints, descs = feature.detect_and_describe(image, 40)
    assert 10 < len(keypoints) <= 40
    assert descs.shape == (len(keypoints), feature.dim)
    torch.testing.assert_close(descs.norm(dim=1), torch.ones(len(descs)))
    assert (np.diff(keypoints.response) <= 0).all()
    assert (keypoints.xy >= 0).all()
    assert (keypoints.xy <= [149, 107]).all()
    few, few_descs = feature.detect_and_describe(image, 7)
    np.testing.assert_allclose(few.xy, keypoints.xy[:7], atol=1e-4)
    torch.testing.assert_close(few_descs, descs[:7], atol=1e-4, rtol=1e-4)
    assert feature.weights == weights / FILES[name]
    assert feature.identity(40) != feature.identity(41)


def test_aliked_and_disk_are_kornias_modules_on_rgb(weights: Path, image: NDArray[np.uint8]) -> None:
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255.0
    aliked = KF.ALIKED("aliked-n16", 30, -1.0)
    aliked.load_state_dict(torch.load(weights / FILES["aliked-n16"]), strict=False)
    disk = KF.DISK()
    disk.load_state_dict(torch.load(weights / FILES["disk"])["extractor"])
    with torch.no_grad():
        (expected,) = aliked.eval()(rgb)
        (other,) = disk.eval()(rgb, n=30, pad_if_not_divisible=True)
    order = expected.keypoint_scores.argsort(descending=True)
    keypoints, descs = load_method(f"aliked-n16@{weights / FILES['aliked-n16']}").detect_and_describe(image, 30)
    np.testing.assert_allclose(keypoints.xy, expected.keypoints[order], atol=1e-3)
    torch.testing.assert_close(descs, expected.descriptors[order], atol=1e-4, rtol=1e-4)
    order = other.detection_scores.argsort(descending=True)
    keypoints, descs = load_method(f"disk@{weights / FILES['disk']}").detect_and_describe(image, 30)
    np.testing.assert_array_equal(keypoints.xy, other.keypoints[order])
    torch.testing.assert_close(descs, other.descriptors[order])


def test_a_threshold_keeps_fewer(weights: Path, image: NDArray[np.uint8]) -> None:
    path = weights / FILES["aliked-n16"]
    every, _ = load_method(f"aliked-n16@{path}").detect_and_describe(image, 500)
    middle = float(np.median(every.response))
    kept, _ = load_method(f"aliked-n16@{path}:threshold={middle}").detect_and_describe(image, 500)
    np.testing.assert_array_equal(kept.xy, every.xy[every.response > middle])


def test_xfeat_keypoints_are_scaled_about_the_corner_of_the_image(weights: Path, image: NDArray[np.uint8]) -> None:
    """Pixel i of the resized side s' lies at (i + 0.5) s / s' - 0.5."""
    keypoints, _ = load_method(f"xfeat@{weights / FILES['xfeat']}:threshold=0").detect_and_describe(image, 100)
    resized = (keypoints.xy + 0.5) * np.array([128 / 150, 96 / 108]) - 0.5
    np.testing.assert_allclose(resized, resized.round(), atol=1e-3)


def test_keynet_is_the_packages_feature_with_its_keypoints(weights: Path, image: NDArray[np.uint8]) -> None:
    gray = torch.from_numpy(gray_from_bgr(image))[None].float() / 255
    feature = HardNet8Feature(20, "keynet", "h8E512", weights_dir=weights, select="response")
    lafs, responses, descs = (part.detach() for part in feature.detect_and_describe(gray))
    found = load_method(f"keynet-h8E512@{weights / FILES['keynet-h8E512']}")
    keypoints, found_descs = found.detect_and_describe(image, 20)
    torch.testing.assert_close(keypoints.lafs(feature.mr_size), lafs, atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(keypoints.response, responses)
    torch.testing.assert_close(found_descs, descs)
    upright, _ = load_method(f"{found.name}:upright=true").detect_and_describe(image, 20)
    assert upright.angle.max() == 0.0
    assert keypoints.angle.max() > 0.0


def test_a_missing_file_is_named_with_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(MissingFileError) as found:
        load_method("disk")
    for text in (tmp_path / "own" / "depth-save.pth", tmp_path / "hub/checkpoints/depth-save.pth", "disk@PATH"):
        assert str(text) in str(found.value)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"extractor": KF.DISK().state_dict()}, tmp_path / "hub/checkpoints/depth-save.pth")
    assert load_method("disk").weights == tmp_path / "hub/checkpoints/depth-save.pth"
    with pytest.raises(DataError, match="lacks 'extractor'"):
        torch.save({}, tmp_path / "empty.pth")
        load_method(f"disk@{tmp_path / 'empty.pth'}")
    with pytest.raises(DataError, match="does not hold the weights of XFeat"):
        load_method(f"xfeat@{tmp_path / 'empty.pth'}")


def test_where_patches_are_given_whole_features_are_refused(weights: Path) -> None:
    with pytest.raises(UsageError, match="finds its own keypoints"):
        load(f"xfeat@{weights / FILES['xfeat']}")
    with pytest.raises(UsageError, match="has no option"):
        load_method(f"xfeat@{weights / FILES['xfeat']}:dim=3")


class _Corners(WholeFeature):
    """The four corners, described by their mean colours."""

    dim = 3

    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        h, w = image.shape[:2]
        xy = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]])
        count = 4 if "greedy" in self.token.options else min(num, 4)
        colour = np.broadcast_to(image[0, 0], (4, 3)) if image.ndim == 3 else np.zeros((4, 3))
        return Keypoints.from_points(xy[:count], np.arange(4, 0, -1)[:count]), torch.tensor(colour[:count].copy())


def test_other_packages_add_whole_features(
    tmp_path: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("corners", f"{__name__}:corners", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda token, weights: _Corners(token, weights))
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    feature, cache = load_method("corners"), Cache(tmp_path)
    found = extract(image, feature, DogSettings(num=3), cache)
    assert found.keypoints.xy.tolist() == [[0, 0], [149, 0], [0, 107]]
    assert found.descs.tolist() == [image[0, 0].tolist()] * 3
    assert found.image_shape == (108, 150)
    assert found.image_sha256 == image_digest(gray_from_bgr(image))
    again = extract(image, _Corners(Token("corners", "corners")), DogSettings(num=3), cache)
    assert again.seconds == found.seconds
    assert again.key == found.key != extract(image, feature, DogSettings(num=2), cache).key
    assert detector_of(feature, DogSettings(num=3)) == {"detector": "corners", "num": 3}
    with pytest.raises(DataError, match="4 keypoints, at most 3"):
        extract(image, load_method("corners:greedy=yes"), DogSettings(num=3), cache)
