"""Image in, local features out: as kornia's modules expect them, and on awkward images."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import kornia.feature as KF
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8 import HardNet8, HardNet8Feature
from kornia_hardnet8.detectors import MIN_SIDE
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.patches import extract_patches

from .conftest import fill_module


def picture(height: int = 120, width: int = 160, seed: int = 0, channels: int = 1) -> Tensor:
    noise = torch.rand(channels, height + 12, width + 12, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(F.avg_pool2d(noise, 5, 1), 3, 1)[:, 3 : height + 3, 3 : width + 3]
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-6)).contiguous()


@pytest.fixture(scope="module")
def network() -> HardNet8:
    module = HardNet8(arch="h7", output_dim=64)
    fill_module(module, 8)
    return module


@pytest.fixture(scope="module")
def feature(network: HardNet8) -> HardNet8Feature:
    return HardNet8Feature(50, "sift-opencv", network)


@pytest.mark.parametrize("detector", ["dog", "hessian", "sift-opencv"])
def test_what_comes_out(detector: Any, network: HardNet8) -> None:
    feature = HardNet8Feature(40, detector, network)
    image = picture()
    with torch.no_grad():
        lafs, responses, descs = feature(image[None])
        count = lafs.shape[1]
        assert 10 <= count <= 40
        assert (lafs.shape, responses.shape, descs.shape) == ((1, count, 2, 3), (1, count), (1, count, 64))
        assert (responses[0].diff() <= 0).all()
        torch.testing.assert_close(descs[0].norm(dim=1), torch.ones(count))
        torch.testing.assert_close(descs[0], network(extract_patches(image[0], lafs[0], 32)), atol=1e-5, rtol=0)
        again = feature(image[None])
        assert torch.equal(again[0], lafs)


def test_the_frames_of_dog_are_kornias_at_twice_their_size(network: HardNet8) -> None:
    """``KF.DoGHardNet`` doubles its frames of 6 sigma, that is mr_size 12."""
    image = picture(seed=3)[None]
    ours = HardNet8Feature(30, "dog", network, upright=True, select="response")
    with torch.no_grad():
        lafs, responses, _ = ours(image)
        expected, strengths = ours.detector.find(image[0, 0], None)
    torch.testing.assert_close(lafs[0, :, :, 2], expected[:, :, 2])
    torch.testing.assert_close(lafs[0, :, :, :2], 2 * expected[:, :, :2])
    assert torch.equal(responses[0], strengths)
    assert HardNet8Feature(30, "dog", network, mr_size=6.0).mr_size == 6.0


@pytest.mark.parametrize("detector", ["dog", "sift-opencv"])
@pytest.mark.parametrize("sigma", [2.0, 6.0])
def test_a_blob_is_found_at_its_centre(detector: Any, sigma: float, network: HardNet8) -> None:
    y, x = torch.meshgrid(torch.arange(121.0), torch.arange(151.0), indexing="ij")
    blob = 0.1 + 0.8 * torch.exp(-((x - 70.4) ** 2 + (y - 60.3) ** 2) / (2 * sigma**2))
    lafs, _, _ = HardNet8Feature(1, detector, network, select="response")(blob[None, None])
    assert lafs[0, 0, :, 2].tolist() == pytest.approx([70.4, 60.3], abs=0.06)


def test_mr_size_of_the_weights_is_taken(network: HardNet8) -> None:
    trained = copy.deepcopy(network)
    trained.metadata = {"mr_size": 9.0}
    assert HardNet8Feature(1, "sift-opencv", trained).mr_size == 9.0
    assert HardNet8Feature(1, "sift-opencv", trained, mr_size=7).mr_size == 7.0
    assert HardNet8Feature(1, "sift-opencv", network).mr_size == 12.0


@pytest.mark.parametrize("detector", ["dog", "sift-opencv"])
def test_upright(detector: Any, network: HardNet8) -> None:
    image = picture()[None]
    turned = HardNet8Feature(40, detector, network)(image)[0]
    for feature in (
        HardNet8Feature(40, detector, network, upright=True),
        HardNet8Feature(40, detector, network, orientation="none"),
    ):
        lafs = feature(image)[0]
        assert torch.allclose(lafs[..., 0, 1], torch.zeros(lafs.shape[:2]), atol=1e-5)
        assert (lafs[..., 0, 0] > 0).all()
        assert lafs[0, :, :, 2].unique(dim=0).shape[0] == lafs.shape[1]
    assert turned[..., 0, 1].abs().max() > 0.1


def test_lists_batches_and_masks(feature: HardNet8Feature) -> None:
    images = [picture(), picture(90, 200, seed=1), torch.full((1, 64, 64), 0.5)]
    with torch.no_grad():
        single = [feature.detect_and_describe(image) for image in images]
        lafs, responses, descs = feature(images)
    counts = [len(r) for _, r, _ in single]
    assert counts[2] == 0
    assert lafs.shape[1] == responses.shape[1] == descs.shape[1] == max(counts)
    for index, (laf, response, desc) in enumerate(single):
        count = counts[index]
        assert torch.equal(lafs[index, :count], laf)
        assert torch.equal(responses[index, :count], response)
        torch.testing.assert_close(descs[index, :count], desc, atol=1e-6, rtol=0)
        for part in (lafs, responses, descs):
            assert part[index, count:].abs().sum() == 0
    batch = torch.stack([picture(seed=4), picture(seed=5)])
    mask = torch.zeros(2, 1, 120, 160)
    mask[:, :, :, :80] = 1
    with torch.no_grad():
        masked = feature(batch, mask)[0]
        dog = HardNet8Feature(20, "dog", feature.descriptor)(batch, mask.bool())[0]
    for found in (masked, dog):
        assert found.shape[1] > 0
        assert found[..., 0, 2].max() <= 80


@pytest.mark.parametrize("detector", ["dog", "hessian", "sift-opencv"])
@pytest.mark.parametrize(
    "image",
    [
        torch.full((1, 40, 60), 0.5),
        torch.zeros(1, 40, 60),
        *(picture(h, w) for h, w in ((1, 1), (3, 50), (17, 18), (20, 33))),
    ],
    ids=["gray", "black", "1x1", "3x50", "17x18", "20x33"],
)
def test_small_and_flat_images(detector: Any, image: Tensor, network: HardNet8) -> None:
    lafs, responses, descs = HardNet8Feature(30, detector, network)(image[None])
    assert lafs.shape[1] == responses.shape[1] == descs.shape[1]
    assert descs.shape[2] == 64
    assert torch.isfinite(descs).all()
    if image.std() == 0:
        assert (responses.abs() < 1e-6).all()  # kornia 0.8 finds some of no strength
    if min(image.shape[1:]) < MIN_SIDE and detector != "sift-opencv":
        assert lafs.shape[1] == 0


def test_one_keypoint(network: HardNet8) -> None:
    lafs, responses, descs = HardNet8Feature(1, "sift-opencv", network)(picture()[None])
    assert (lafs.shape, responses.shape, descs.shape) == ((1, 1, 2, 3), (1, 1), (1, 1, 64))


def test_no_images(feature: HardNet8Feature) -> None:
    for images in (torch.zeros(0, 1, 50, 50), []):
        lafs, responses, descs = feature(images)
        assert (lafs.shape, responses.shape, descs.shape) == ((0, 0, 2, 3), (0, 0), (0, 0, 64))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.full((1, 1, 40, 40), float("nan")), "NaN"),
        (torch.full((1, 1, 40, 40), float("inf")), "NaN or infinity"),
        (torch.zeros(1, 2, 40, 40), "1 or 3"),
        (torch.zeros(1, 40, 40), "1 or 3"),
        (torch.zeros(1, 1, 0, 40), "H, W"),
        (torch.zeros(1, 1, 40, 40, dtype=torch.uint8), "255"),
    ],
)
def test_bad_images(image: Tensor, words: str, feature: HardNet8Feature) -> None:
    with pytest.raises(DataError, match=words):
        feature(image)


def test_an_image_in_another_range(feature: HardNet8Feature) -> None:
    """OpenCV gets 8 bits, where all of such an image would be white."""
    with pytest.raises(DataError, match="divide by 255"):
        feature(255.0 * picture()[None])


def test_bad_masks(feature: HardNet8Feature) -> None:
    with pytest.raises(DataError, match="masks"):
        feature(picture()[None], torch.ones(2, 1, 120, 160))
    with pytest.raises(DataError, match="mask is"):
        feature(picture()[None], torch.ones(1, 1, 12, 16))


def test_colour_images_and_other_types(feature: HardNet8Feature) -> None:
    colour = picture(channels=3)[None]
    gray = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    with torch.no_grad():
        found, expected = feature(colour), feature(gray)
        assert found[0].shape == expected[0].shape
        # equal responses may come in either order: the gray values differ in their last digits
        rows = [lafs[0].flatten(1) for lafs, _, _ in (found, expected)]
        distances = torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.min(dim=0).values.max() < 0.02 and distances.min(dim=1).values.max() < 0.02
        double = feature(gray.double())
        assert all(part.dtype == torch.float64 for part in double)
        half = feature(gray.half())
        assert all(part.dtype == torch.float16 for part in half)
        assert torch.isfinite(half[2]).all()


@pytest.mark.parametrize("side", [None, 300, 213])
def test_shrunk_images_give_frames_of_the_given_image(
    side: int | None, network: HardNet8, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame found on the middle of the small image is the middle of the given one, and covers as much of it."""
    feature = HardNet8Feature(1, "dog", network, max_side=side)
    seen: list[tuple[int, ...]] = []

    def find(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.append(tuple(image.shape))
        middle = [(image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2]
        size = image.shape[1] / 20
        return torch.tensor([[[size, 0.0, middle[0]], [0.0, size, middle[1]]]]), torch.ones(1)

    monkeypatch.setattr(feature.detector, "find", find)
    monkeypatch.setattr(feature, "orienter", None)
    lafs = feature(torch.rand(1, 1, 400, 600))[0]
    assert max(seen[0]) == (side or 600)
    torch.testing.assert_close(lafs[0, 0, :, 2], torch.tensor([299.5, 199.5]))
    torch.testing.assert_close(lafs[0, 0, :, :2], 60 * torch.eye(2), atol=0.2, rtol=0)


def test_gradients_reach_the_image(network: HardNet8) -> None:
    image = picture()[None].requires_grad_()
    HardNet8Feature(10, "dog", network)(image)[2][..., 0].sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


def test_inference_mode_copies_and_precision(feature: HardNet8Feature) -> None:
    image = picture()[None]
    with torch.inference_mode():
        expected = feature(image)
        for other in (copy.deepcopy(feature), pickle.loads(pickle.dumps(feature))):
            assert torch.equal(other(image)[2], expected[2])
    fast = HardNet8Feature(50, "sift-opencv", feature.descriptor, precision="auto")
    assert (fast(image)[2] * expected[2]).sum(dim=2).min() > 0.95
    assert feature.descriptor.precision == "fp32"


# -- kornia's matchers -------------------------------------------------------------------------------------------------


def test_in_kornias_matchers(network: HardNet8) -> None:
    """A picture and its shift by 7 pixels: nearly all matches lie 7 pixels apart."""
    wide = picture(140, 220, seed=6)
    first, second = wide[None, :, :, :200], wide[None, :, :, 7:207]
    feature = HardNet8Feature(200, "dog", network, upright=True)
    with torch.no_grad():
        for matcher in (KF.DescriptorMatcher("smnn", 0.9), KF.DescriptorMatcher("mnn")):
            found = KF.LocalFeatureMatcher(feature, matcher)({"image0": first, "image1": second})
            shift = found["keypoints0"] - found["keypoints1"]
            good = (shift - torch.tensor([7.0, 0.0])).norm(dim=1) < 1.0
            assert len(good) > 20
            assert good.float().mean() > 0.8
        lafs0, _, descs0 = feature(first)
        lafs1, _, descs1 = feature(second)
        _, pairs = KF.match_smnn(descs0[0], descs1[0], 0.9)
        shift = lafs0[0, pairs[:, 0], :, 2] - lafs1[0, pairs[:, 1], :, 2]
        assert ((shift - torch.tensor([7.0, 0.0])).norm(dim=1) < 1.0).float().mean() > 0.8
        matchers = [KF.GeometryAwareDescriptorMatcher("fginn")]
        if hasattr(KF, "DoGHardNet"):  # before 0.9, AdaLAM finds nothing where all frames are upright
            matchers += [KF.match_adalam, KF.GeometryAwareDescriptorMatcher("adalam")]
        for matcher in matchers:
            _, pairs = matcher(descs0[0], descs1[0], lafs0, lafs1)
            assert len(pairs) > 20


def lightglue_by_descriptors(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``KF.LightGlueMatcher`` with weights by which it is a dual softmax over the products of the descriptors."""
    from kornia.feature import lightglue

    for place in (lightglue, torch.hub):
        monkeypatch.setattr(place, "load_state_dict_from_url", lambda *_, **__: {}, raising=False)
    matcher = KF.LightGlueMatcher(name).eval()
    network = matcher.matcher
    width = network.conf.descriptor_dim
    with torch.no_grad():
        if isinstance(network.input_proj, torch.nn.Linear):
            network.input_proj.weight.copy_(torch.eye(width, network.conf.input_dim))
            network.input_proj.bias.zero_()
        for layer in network.transformers:
            for block in (layer.self_attn, layer.cross_attn):  # what they add to the descriptors
                block.ffn[-1].weight.zero_()
                block.ffn[-1].bias.zero_()
        for assignment in network.log_assignment:
            assignment.final_proj.weight.copy_(40.0 * torch.eye(width))
            assignment.final_proj.bias.zero_()
            assignment.matchability.weight.zero_()
            assignment.matchability.bias.fill_(10.0)
    return matcher


def test_in_kornias_lightglue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 12 sigma and 128 numbers are what its matcher for HardNet on DoG takes."""
    network = HardNet8(arch="h7", output_dim=128)
    fill_module(network, 8)
    feature = HardNet8Feature(200, "dog", network)
    wide = picture(140, 220, seed=6)
    first, second = wide[None, :, :, :200], wide[None, :, :, 7:207]
    matcher = lightglue_by_descriptors("doghardnet", monkeypatch)
    size = (140, 200)
    with torch.inference_mode():
        (lafs0, _, descs0), (lafs1, _, descs1) = feature(first), feature(second)
        scores, pairs = matcher(descs0[0], descs1[0], lafs0, lafs1, hw1=size, hw2=size)
        expected = KF.match_mnn(descs0[0], descs1[0])[1]
    assert scores.shape == (len(pairs), 1)
    assert len(pairs) > 20
    assert {tuple(pair) for pair in pairs.tolist()} <= {tuple(pair) for pair in expected.tolist()}
    shift = lafs0[0, pairs[:, 0], :, 2] - lafs1[0, pairs[:, 1], :, 2]
    assert ((shift - torch.tensor([7.0, 0.0])).norm(dim=1) < 1.0).float().mean() > 0.8
    with pytest.raises(Exception, match="input dim"):
        matcher(descs0[0, :, :64], descs1[0, :, :64], lafs0, lafs1, hw1=size, hw2=size)


# -- settings and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_features": 0}, "at least 1"),
        ({"detector": "sift"}, "sift-opencv"),
        ({"affine_shape": "affine"}, "affnet"),
        ({"orientation": "gravity"}, "dominant"),
        ({"upright": True, "orientation": "orinet"}, "contradicts"),
        ({"mr_size": 0}, "positive"),
        ({"max_side": 0}, "at least 1"),
        ({"precision": "int3"}, "int8"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], words: str, network: HardNet8) -> None:
    with pytest.raises(UsageError, match=words):
        HardNet8Feature(**({"num_features": 5, "descriptor": network} | arguments))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"detector": "keynet"}, "keynet_pytorch.pth"),
        ({"affine_shape": "affnet"}, "AffNet.pth"),
        ({"orientation": "orinet"}, "OriNet.pth"),
    ],
)
def test_missing_and_foreign_weights(
    arguments: dict[str, Any], name: str, network: HardNet8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(MissingFileError) as caught:
        HardNet8Feature(5, descriptor=network, **arguments)
    assert name in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)
    with pytest.raises(MissingFileError, match=str(tmp_path)):
        HardNet8Feature(5, descriptor=network, weights_dir=tmp_path, **arguments)
    torch.save({"state_dict": {"features.0.weight": torch.zeros(1)}}, tmp_path / name)
    with pytest.raises(DataError, match=name):
        HardNet8Feature(5, descriptor=network, weights_dir=tmp_path, **arguments)


def test_kornias_weights_are_found_in_its_cache(
    network: HardNet8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    samples = {
        "AffNet.pth": KF.LAFAffNetShapeEstimator(False),
        "OriNet.pth": KF.OriNet(False),
        "keynet_pytorch.pth": KF.KeyNet(False),
    }
    for name, module in samples.items():
        torch.save({"state_dict": module.state_dict()}, cache / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    feature = HardNet8Feature(20, "dog", network, affine_shape="affnet", orientation="orinet")
    with torch.no_grad():
        lafs, _, descs = feature(picture()[None])
    assert descs.shape == (1, lafs.shape[1], 64)
    shape = lafs[0, :, :, :2] @ lafs[0, :, :, :2].mT
    assert (shape[:, 0, 0] / shape[:, 1, 1] - 1).abs().max() > 0.01  # frames are affine now
    keynet = HardNet8Feature(20, "keynet", network)
    assert keynet(picture()[None])[0].shape[0] == 1
