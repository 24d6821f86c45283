from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.cli import main
from eval.features import Descriptor, Keypoints, Token, WholeFeature, load, registry
from eval.features.registry import BUILT_IN
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.patches import extract_patches


def _hardtfeat_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"features.0": (32, 1, 7, 7), "features.3": (64, 32, 6, 6), "classifier.1": (128, 64, 8, 8)}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = 0.05 * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = 0.05 * torch.randn(shape[0], generator=generator)
    return state


def test_hardtfeat_is_its_layers_applied_one_by_one(tmp_path: Path) -> None:
    state = _hardtfeat_state()
    path = tmp_path / "HardTFeat.pth"
    torch.save({"epoch": 3, "state_dict": {**state, "SIFT.gx.0.weight": torch.zeros(1)}}, path)
    descriptor = load(f"hardtfeat@{path}")
    patches = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = (patches - patches.mean((1, 2, 3), keepdim=True)) / (patches.std((1, 2, 3), keepdim=True) + 1e-7)
    x = F.max_pool2d(torch.tanh(F.conv2d(x, state["features.0.weight"], state["features.0.bias"])), 2)
    x = torch.tanh(F.conv2d(x, state["features.3.weight"], state["features.3.bias"]))
    x = torch.tanh(F.conv2d(x, state["classifier.1.weight"], state["classifier.1.bias"])).flatten(1)
    torch.testing.assert_close(descriptor.describe(patches), x / x.norm(dim=1, keepdim=True))
    assert descriptor.dim == 128
    assert descriptor.weights_sha256 is not None
    assert descriptor.identity(12.0)["weights_sha256"] == descriptor.weights_sha256


def test_the_weights_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KORNIA_HARDNET8_WEIGHTS", raising=False)
    with pytest.raises(MissingFileError, match=r"hardtfeat@PATH.*HardTFeat\.pth.*KORNIA_HARDNET8_WEIGHTS"):
        load("hardtfeat")
    monkeypatch.setenv("KORNIA_HARDNET8_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"HardTFeat\.pth is not there"):
        load("hardtfeat")
    torch.save({"state_dict": _hardtfeat_state()}, tmp_path / "HardTFeat.pth")
    assert load("hardtfeat").weights == tmp_path / "HardTFeat.pth"


def test_untrained_networks_are_the_modules_and_repeat() -> None:
    patches = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    descriptor = load("h7:untrained=true,dim=64")
    assert torch.equal(torch.get_rng_state(), before)
    descs = descriptor.describe(patches)
    assert descs.shape == (5, 64)
    torch.manual_seed(0)
    torch.testing.assert_close(descs, HardNet8(arch="h7", output_dim=64)(patches).detach())
    assert torch.equal(load("h7:untrained=true,dim=64").describe(patches), descs)
    torch.testing.assert_close(load("kornia-hardnet8:untrained=true").describe(patches).norm(dim=1), torch.ones(5))


def test_a_checkpoint_is_described_by_its_own_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = HardNet8(arch="h7")
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {k: v for k, v in module.state_dict().items() if k.startswith("features.")}}, path)
    patches = torch.rand(4, 1, 32, 32)
    torch.testing.assert_close(load(f"h7@{path}").describe(patches), module(patches).detach())
    with pytest.raises(UsageError, match="h8E512"):
        load(f"h8E512@{path}")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"weights\.pth"):
        load(f"h7@{path}")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("h8E521", "did you mean h8E512"),
        ("rootsfit", "did you mean rootsift"),
        ("???", "is not name"),
        ("rootsift@x", "x is not there"),
        ("rootsift:dim=3", "no option 'dim'"),
        ("h9:dim=4", "h9:untrained=true"),
        ("h8E512:untrained=true,dim=900", "output_dim"),
    ],
)
def test_wrong_tokens_say_what_is_right(token: str, message: str) -> None:
    with pytest.raises((UsageError, MissingFileError), match=message):
        load(token)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": _hardtfeat_state()}, path)
    with pytest.raises(DataError, match=r"w\.pth does not hold the weights of TFeat"):
        load(f"tfeat@{path}")
    with pytest.raises(DataError, match="lacks 'liberty'"):
        load(f"mkd@{path}")
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="holds a list"):
        load(f"hardtfeat@{path}")
    path.write_text("no weights")
    with pytest.raises(DataError, match="is damaged or no file of torch"):
        load(f"hardtfeat@{path}")


class _MeanGray(Descriptor):
    dim = 1

    def describe(self, patches: Tensor) -> Tensor:
        return patches.mean(dim=(1, 2, 3))[:, None]


def mean_gray(token: Token, weights: Path | None) -> Descriptor:
    token.typed_options({})
    return _MeanGray(token, weights)


def test_other_packages_add_descriptors_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    good = EntryPoint("mean-gray", f"{__name__}:mean_gray", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: {"mean-gray": mean_gray}.get(self.name, lambda *_: None))
    broken = EntryPoint("broken", "somewhere:nothing", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [good, broken])
    assert "mean-gray" in registry.known_names()
    image = np.random.default_rng(0).integers(0, 256, (60, 70)).astype(np.uint8)
    keypoints = _keypoints([[20, 30], [40, 25]])
    descs = load("mean-gray").describe_image(image, keypoints, 6.0)
    expected = extract_patches(torch.from_numpy(image), keypoints.lafs(6.0), 32).mean(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(descs[:, 0], expected)
    with pytest.raises(DataError, match="not a Descriptor"):
        load("broken")
    with pytest.raises(UsageError, match="no option"):
        load("mean-gray:dim=2")


def test_the_support_belongs_to_the_identity_of_patch_descriptors_alone() -> None:
    network, sift = load("h7:untrained=true"), load("sift")
    assert network.identity(6.0) != network.identity(12.0)
    assert network.identity(12.0) != load("h7:untrained=true,dim=64").identity(12.0)
    assert sift.identity(6.0) == sift.identity(12.0) != load("rootsift").identity(12.0)


def test_describing_nothing_gives_no_rows() -> None:
    image = np.zeros((40, 40), np.uint8)
    for token in ("rootsift", "h7:untrained=true"):
        descriptor = load(token)
        assert descriptor.describe_image(image, _keypoints([]), 12.0).shape == (0, 128)
        assert descriptor.describe(torch.zeros(0, 1, 32, 32)).shape == (0, 128)


def _keypoints(xy: list[list[float]]) -> Keypoints:
    count = len(xy)
    return Keypoints(
        np.array(xy, np.float32).reshape(-1, 2),
        np.full(count, 4, np.float32),
        np.linspace(0, 90, count, dtype=np.float32),
        np.ones(count, np.float32),
        np.zeros(count, np.int32),
    )


def test_help_lists_tokens_by_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    whole = {"aliked-n16", "xfeat", "disk", "imported@FILE.h5", "keynet-h8E512"}
    for command, has_whole in (("hpatches", False), ("brown", False), ("webcam", False), ("imw", True)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        listed = capsys.readouterr().out.partition("What --desc takes")[2]
        paragraphs = [" ".join(part.split()).partition(": ")[2].split(", ") for part in listed.split("\n\n")]
        assert paragraphs[0] == ["h8E512", "h8small", "rootsift", "sift"]
        assert {"tfeat", "hardtfeat", "mkd"} <= set(paragraphs[1])
        assert {"h7", "kornia-hardnet8"} <= set(paragraphs[2]) and not {"h8E512", "h8small"} & set(paragraphs[2])
        assert whole & {name for part in paragraphs for name in part} == (whole if has_whole else set())


def test_the_registry_knows_which_are_whole() -> None:
    for name, entry in BUILT_IN.items():
        module, _, attribute = entry.factory.partition(":")
        made = get_type_hints(getattr(importlib.import_module(module), attribute))["return"]
        assert issubclass(made, WholeFeature) == entry.whole, name


def test_kornias_network_says_where_its_weights_come_from(tmp_path: Path) -> None:
    for text in ("kornia-hardnet8", "kornia-hardnet8:untrained=false"):
        with pytest.raises(UsageError, match="kornia-hardnet8:untrained=true for random ones"):
            load(text)
    assert load("kornia-hardnet8:untrained=true").name == "kornia-hardnet8:untrained=true"
