"""What messages say: names that are near, packages that are missing, pictures that are no tensors."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kornia_hardnet8 import HardNet8, HardNet8Feature, match_pair
from kornia_hardnet8.errors import HardNet8Error, InputTypeError, UsageError, choices, closest, need
from kornia_hardnet8.patches import extract_patches


def test_only_what_is_near_is_suggested() -> None:
    known = ["sift", "rootsift", "h8E512"]
    assert closest("superpoint", known) == ""
    assert closest("rootsfit", known) == "; did you mean rootsift?"
    assert closest("--hloc", ["--help"]) == ""  # the dashes are no likeness
    assert closest("--HELP", ["--help"]) == "; did you mean --help?"
    assert choices("superpoint", known) == "; known: sift, rootsift, h8E512"
    with pytest.raises(UsageError, match=r"unknown architecture 'zzz'; known: .*h7\b.*h8E512"):
        HardNet8(arch="zzz")


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_missing_is_named_as_an_index_has_it(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return ["onnx-x>=3; extra == 'x'", "no_such.module<2,>=1.16; extra == 'x'"]

    monkeypatch.setattr(metadata, "requires", requires)
    with pytest.raises(HardNet8Error) as caught:
        need("no_such", "onnx")
    assert "pip install 'no_such' (in a checkout, with all else that is needed: pip install -e '.[onnx]')" in str(
        caught.value
    )
    monkeypatch.setattr("kornia_hardnet8.errors._DISTRIBUTIONS", {"no_such": "onnx-x"})
    with pytest.raises(HardNet8Error, match="pip install 'onnx-x>=3'" if installed else "pip install 'onnx-x'"):
        need("no_such", "onnx")


@pytest.fixture(scope="module")
def feature() -> HardNet8Feature:
    return HardNet8Feature(10, descriptor=HardNet8(arch="h7"), select="response")


PICTURE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize("value", [PICTURE, "a.png", Path("a.png"), [PICTURE]], ids=["array", "str", "Path", "list"])
@pytest.mark.parametrize("what", ["network", "feature", "image", "patches", "frames"])
def test_what_is_no_tensor_is_answered_with_how_to_make_one(what: str, value: Any, feature: HardNet8Feature) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "network": lambda: feature.descriptor(value),
        "feature": lambda: feature(value),
        "image": lambda: feature.detect_and_describe(value),
        "patches": lambda: extract_patches(value, torch.zeros(1, 2, 3)),
        "frames": lambda: extract_patches(torch.zeros(9, 9), value),
    }
    with pytest.raises(InputTypeError, match=r"^expected .*tensor.*, got [\w.]+: kornia_hardnet8\.read_image\(path\)"):
        calls[what]()


def test_a_picture_of_a_pair_that_is_neither_path_nor_tensor(feature: HardNet8Feature) -> None:
    with pytest.raises(InputTypeError, match=r"got numpy\.ndarray"):
        match_pair(PICTURE, PICTURE, feature)  # type: ignore[arg-type]


def test_the_device_is_that_of_construction() -> None:
    network = HardNet8(arch="h7", device="meta")
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    feature = HardNet8Feature(10, descriptor=HardNet8(arch="h7"), device="meta")
    assert {tensor.device.type for tensor in feature.state_dict().values()} == {"meta"}
