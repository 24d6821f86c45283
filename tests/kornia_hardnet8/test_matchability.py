"""The choice of keypoints: its network against its formula, its files, and what a feature keeps by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from kornia_hardnet8 import HardNet8, HardNet8Feature
from kornia_hardnet8.checkpoints import bundled_names
from kornia_hardnet8.detectors import Detector
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.lafs import lafs_from_similarity
from kornia_hardnet8.matchability import BUNDLED, FORMAT, Matchability, cut_upright, save_matchability
from kornia_hardnet8.patches import extract_patches

from .conftest import fill_module
from .test_feature import picture


@pytest.fixture(scope="module")
def network() -> Matchability:
    module = Matchability()
    fill_module(module, 5)
    return module


@pytest.fixture(scope="module")
def descriptor() -> HardNet8:
    module = HardNet8(arch="h7", output_dim=16)
    fill_module(module, 8)
    return module


def test_the_formula(network: Matchability) -> None:
    generator = torch.Generator().manual_seed(0)
    patches, sigma = torch.rand(5, 2, 16, 16, generator=generator), torch.rand(5, generator=generator) * 8 + 0.5
    state = {key: value.double() for key, value in network.state_dict().items()}
    flat = patches.double().flatten(2)
    contrast = flat.std(dim=2, unbiased=True) + 1 / 255
    x = ((flat - flat.mean(dim=2, keepdim=True)) / contrast[:, :, None]).view(5, 2, 16, 16)
    for layer, stride, padding in ((0, 2, 1), (2, 2, 1), (4, 1, 0)):
        x = F.conv2d(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], stride, padding).relu()
    rows = torch.cat([x.flatten(1), (contrast / 0.08).log(), (sigma.double() / 2).log()[:, None]], dim=1)
    hidden = (rows @ state["head.0.weight"].T + state["head.0.bias"]).relu()
    expected = (hidden @ state["head.2.weight"].T + state["head.2.bias"])[:, 0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(patches, sigma).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(patches + 0.2, sigma), network(patches, sigma), atol=1e-4, rtol=1e-4)
    assert network(patches[:0], sigma[:0]).shape == (0,)


def test_scores_of_an_image(network: Matchability) -> None:
    """Neither the orientation of a frame nor how its size is told matters; a frame without area scores 0."""
    image = picture(seed=2)[0]
    xy, sigma = torch.tensor([[40.0, 50.0], [90.0, 60.0], [90.0, 60.0]]), torch.tensor([2.0, 3.0, 3.0])
    frames = lafs_from_similarity(xy, 6 * sigma, torch.tensor([0.0, 0.0, 77.0]))
    shares = network.score(image, frames, 6.0)
    assert ((shares > 0) & (shares < 1)).all()
    torch.testing.assert_close(shares[1], shares[2])
    twice = torch.cat([2 * frames[:, :, :2], frames[:, :, 2:]], dim=2)
    torch.testing.assert_close(network.score(image, twice, 12.0), shares)
    cut_sigma, patches = cut_upright(image, frames, 6.0)
    torch.testing.assert_close(cut_sigma, sigma)
    torch.testing.assert_close(torch.sigmoid(network(patches, sigma)), shares)
    for channel, size in enumerate((12.0, 4.0)):
        upright = lafs_from_similarity(xy, size * sigma, torch.zeros(3))
        torch.testing.assert_close(patches[:, channel], extract_patches(image, upright, 16)[:, 0])
    odd = frames.clone()
    odd[0, :, :2], odd[1, 0, 2] = 0.0, float("nan")
    assert network.score(image, odd, 6.0)[:2].tolist() == [0.0, 0.0]
    assert network.score(image.double(), frames.double(), 6.0).dtype == torch.float64
    assert network.score(image, frames[:0], 6.0, sigma[:0]).shape == (0,)


def test_the_response_counts_whatever_its_unit(network: Matchability) -> None:
    image = picture(seed=2)[0]
    frames = lafs_from_similarity(
        torch.tensor([[40.0, 50.0], [90.0, 60.0], [60.0, 70.0]]), torch.full((3,), 12.0), torch.zeros(3)
    )
    responses = torch.tensor([0.1, 0.4, 0.2])
    shares = network.score(image, frames, 6.0, responses)
    expected = torch.logit(network.score(image, frames, 6.0)) + 0.6 * torch.tensor([0.5, 2.0, 1.0]).log()
    torch.testing.assert_close(torch.logit(shares), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.score(image, frames, 6.0, 700 * responses), shares)
    assert torch.isfinite(network.score(image, frames, 6.0, torch.tensor([0.0, 0.4, 0.2]))).all()


def test_files(network: Matchability, tmp_path: Path) -> None:
    path = tmp_path / "score.safetensors"
    network.metadata = {"seed": 3}
    save_matchability(path, network)
    again = Matchability(path)
    assert again.metadata == {"seed": 3}
    assert all(torch.equal(again.state_dict()[key], value) for key, value in network.state_dict().items())
    state = load_file(path)

    def written(tensors: dict[str, Tensor], kind: str = FORMAT) -> Path:
        save_file(tensors, tmp_path / "odd.safetensors", metadata={"format": kind})
        return tmp_path / "odd.safetensors"

    nan = {**state, "head.2.bias": torch.tensor([float("nan")])}
    for tensors in ({}, {**state, "more": torch.zeros(1)}, {**state, "head.2.bias": torch.zeros(2)}, nan):
        with pytest.raises(DataError, match="odd"):
            Matchability(written(tensors))
    with pytest.raises(DataError, match="is not a"):
        Matchability(written(state, "kornia-hardnet8/1"))
    (tmp_path / "odd.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        Matchability(tmp_path / "odd.safetensors")
    with pytest.raises(MissingFileError, match=r"none\.safetensors"):
        Matchability(tmp_path / "none.safetensors")


def test_what_is_bundled() -> None:
    assert BUNDLED.is_file()
    assert BUNDLED.with_suffix(".md").is_file()
    assert BUNDLED.stem not in bundled_names()
    network = Matchability(pretrained=True)
    image = picture(seed=1)[0]
    frames = lafs_from_similarity(torch.tensor([[80.0, 60.0]] * 2), torch.tensor([18.0, 18.0]), torch.zeros(2))
    faint = network.score(0.5 + 0.01 * (image - 0.5), frames, 6.0)
    assert (network.score(image, frames, 6.0) > faint).all()


@pytest.mark.parametrize("detector", ["dog", "hessian", "sift-opencv"])
def test_a_feature_keeps_the_best_of_its_candidates(detector: Any, network: Matchability, descriptor: HardNet8) -> None:
    image = picture(seed=4)
    chosen = HardNet8Feature(20, detector, descriptor, select=network, candidates=60, upright=True)
    every = HardNet8Feature(60, detector, descriptor, select="response", upright=True)
    with torch.no_grad():
        lafs, shares, descs = chosen.detect_and_describe(image)
        candidates, responses, their_descs = every.detect_and_describe(image)
    scores = network.score(image[0], candidates, every.mr_size, responses)
    best = torch.sort(scores, descending=True, stable=True)
    assert len(candidates) > 40
    torch.testing.assert_close(shares, best.values[:20])
    torch.testing.assert_close(lafs, candidates[best.indices[:20]])
    torch.testing.assert_close(descs, their_descs[best.indices[:20]], atol=1e-5, rtol=0)


def test_candidates_masks_and_large_images(network: Matchability, descriptor: HardNet8) -> None:
    image = picture(seed=4)
    few = HardNet8Feature(30, "dog", descriptor, select=network, candidates=10)
    assert few.candidates == 30
    plain = HardNet8Feature(30, "dog", descriptor, select="response")
    with torch.no_grad():
        one, other = (set(map(tuple, f.detect_and_describe(image)[0][:, :, 2].tolist())) for f in (few, plain))
        assert one == other
        mask = torch.zeros(1, 120, 160)
        mask[:, :, :70] = 1
        feature = HardNet8Feature(15, "dog", descriptor, select=network, candidates=1000)
        lafs, shares, _ = feature([image, image], [mask, torch.ones_like(mask)])
        assert lafs[0, :, 0, 2].max() <= 70
        assert shares[0].sum() < shares[1].sum()
        small = HardNet8Feature(15, "dog", descriptor, select=network, max_side=80)
        lafs, shares, _ = small.detect_and_describe(image)
    assert 0 < len(lafs) <= 15
    assert (shares.diff() <= 0).all()


def test_a_detector_of_ones_own(network: Matchability, descriptor: HardNet8) -> None:
    class Corners(Detector):
        def find(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            xy = torch.tensor([[30.0, 30.0], [60.0, 40.0], [90.0, 80.0]])
            return lafs_from_similarity(xy, torch.full((3,), 12.0), torch.zeros(3)), torch.tensor([3.0, 2.0, 1.0])

    image = picture(seed=4)
    with torch.no_grad():
        lafs, responses, _ = HardNet8Feature(2, Corners(), descriptor, select="response").detect_and_describe(image)
        assert lafs[:, :, 2].tolist() == [[30.0, 30.0], [60.0, 40.0]]
        assert responses.tolist() == [3.0, 2.0]
        _, shares, _ = HardNet8Feature(2, Corners(), descriptor, select=network).detect_and_describe(image)
        every = network.score(image[0], *Corners().find(image[0], None)[:1], 6.0, torch.tensor([3.0, 2.0, 1.0]))
        torch.testing.assert_close(shares, every.sort(descending=True).values[:2])
        named = HardNet8Feature(9, "hessian", descriptor)
        given = HardNet8Feature(9, named.detector.detector, descriptor)  # type: ignore[arg-type]  # kornia's module
        assert torch.equal(given.detect_and_describe(image)[0], named.detect_and_describe(image)[0])


def test_what_is_refused(descriptor: HardNet8) -> None:
    with pytest.raises(UsageError, match="matchability, response"):
        HardNet8Feature(5, "dog", descriptor, select="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="candidates"):
        HardNet8Feature(5, "dog", descriptor, candidates=0)


def test_onnx(network: Matchability, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from kornia_hardnet8.export import export

    export(network, tmp_path / "score.onnx")
    session = runtime.InferenceSession(tmp_path / "score.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 7):
        patches, sigma = torch.rand(count, 2, 16, 16), torch.rand(count) * 5 + 0.5
        (shares,) = session.run(None, {"patches": patches.numpy(), "sigma": sigma.numpy()})
        expected = torch.sigmoid(network(patches, sigma)).detach().numpy()
        np.testing.assert_allclose(shares, expected, atol=1e-5)
    patches[2, 1, 3, 4] = float("nan")
    (shares,) = session.run(None, {"patches": patches.numpy(), "sigma": sigma.numpy()})
    assert np.isnan(shares).tolist() == [row == 2 for row in range(7)]
    for arguments in ({"format": "torchscript"}, {"precision": "int8"}):
        with pytest.raises(UsageError, match="fp32"):
            export(network, tmp_path / "score.jitpt", **arguments)  # type: ignore[arg-type]
