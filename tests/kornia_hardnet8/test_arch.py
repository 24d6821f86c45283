from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.arch import ALIASES, ARCHS, LEFT_OUT, build_features, get_arch
from kornia_hardnet8.errors import UsageError
from tests.training_vectors import decode

from .conftest import fill_module

WORDS = {"AdaptiveAvgPool2d((1, 1))": "AVG", "MaxPool2d(8,s1,p0)": "MAX8", "Tanh": "T", "Flatten": "F"}

OWN = {"h8small"}  # of this project alone


def _notation(layers: str) -> str:
    for word, short in WORDS.items():
        layers = layers.replace(word, short)
    return layers


def test_table(vectors: dict[str, dict[str, Any]]) -> None:
    table = vectors["architectures.table"]["expected"]
    plain = {name: row for name, row in table.items() if "pca" not in name}
    assert set(plain) - set(LEFT_OUT) == set(ARCHS) - OWN
    for name in set(ARCHS) - OWN:
        arch, row = ARCHS[name], plain[name]
        assert (arch.num_params, arch.macs, arch.dim) == (row["class_params"], row["macs"], row["output_dim"]), name
        assert [1, arch.patch_size, arch.patch_size] == row["input_chw"], name
        assert arch.layers == _notation(row["layers"]), name


@pytest.mark.parametrize("name", sorted(ARCHS))
def test_the_built_network_is_what_the_line_says(name: str) -> None:
    """Parameters, output width and multiply-adds counted on the modules, not on the notation."""
    arch = get_arch(name)
    with torch.device("meta"):
        features = build_features(name).eval()
    assert sum(p.numel() for p in features.parameters()) == arch.num_params
    macs = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d)
        macs += module.weight.numel() * output.shape[-1] * output.shape[-2]

    for module in features:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        out = features(torch.zeros(1, 1, arch.patch_size, arch.patch_size, device="meta")).flatten(1)
    assert out.shape == (1, arch.dim)
    assert macs == arch.macs


@pytest.mark.parametrize("name", ["h7", "h8", "h8E512"])
def test_state_dict(name: str, vectors: dict[str, dict[str, Any]]) -> None:
    state = HardNet8(arch=name, output_dim=None).state_dict()
    found = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()]
    assert found == vectors[f"architectures.state_dict_{name}"]["expected"]


@pytest.mark.parametrize("name", ["h7", "h8", "h8E512"])
def test_forward(name: str, vectors: dict[str, dict[str, Any]], patches: Tensor) -> None:
    case = vectors[f"architectures.forward_{name}"]
    model = fill_module(HardNet8(arch=name, output_dim=None), case["inputs"]["seed"])
    with torch.no_grad():
        descs = model(patches)
        norms = model.features(model._normalize_input(patches)).flatten(1).norm(dim=1)
    torch.testing.assert_close(descs, decode(case["expected"]["descriptors"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(norms, decode(case["expected"]["raw_feature_norms"]), atol=2e-5, rtol=1e-5)


def test_training_mode(vectors: dict[str, dict[str, Any]], patches: Tensor) -> None:
    case = vectors["architectures.train_mode_h7nodrop"]
    model = fill_module(HardNet8(arch="h7nodrop", output_dim=None), case["inputs"]["seed"]).train()
    with torch.no_grad():
        descs = model(patches)
    state, expected = model.state_dict(), case["expected"]
    torch.testing.assert_close(descs[:, :8], decode(expected["descriptors_first8"]), atol=2e-4, rtol=0)
    for part, key in (("first", "features.1"), ("last", "features.19")):
        for statistic in ("mean", "var"):
            value = expected.get(f"running_{statistic}_{part}")
            if value is not None:
                torch.testing.assert_close(
                    state[f"{key}.running_{statistic}"][: len(value)], decode(value), atol=2e-4, rtol=0
                )


@pytest.mark.parametrize("name", ["h8", "h8x2pre"])
def test_initialisation_is_orthogonal_with_gain(name: str) -> None:
    for module in build_features(name):
        if isinstance(module, nn.Conv2d):
            matrix = module.weight.detach().flatten(1)
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            torch.testing.assert_close(gram, 0.36 * torch.eye(len(gram)), atol=1e-4, rtol=0)


def test_layers_without_parameters_are_the_named_ones() -> None:
    assert any(isinstance(m, nn.LeakyReLU) and m.negative_slope == 0.01 for m in build_features("h7Le"))
    dropouts = [m.p for m in build_features("h7d01") if isinstance(m, nn.Dropout)]
    assert dropouts == [0.1]
    batch_norm = next(m for m in build_features("h8") if isinstance(m, nn.BatchNorm2d))
    assert (batch_norm.eps, batch_norm.momentum, batch_norm.affine) == (1e-5, 0.1, False)


def test_old_names() -> None:
    assert {old: get_arch(old).name for old in ALIASES} == {"h1": "h7", "h3": "h8"}


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("h8E51", ("unknown architecture", "h8E512")),
        ("", ("unknown architecture",)),
        ("h8sa", ("left out", "self-attention")),
        ("h8mb", ("left out", "max-blur")),
        ("De16s", ("left out", "downloads")),
        ("h8E512pca128", ("arch=h8E512", "output_dim=128")),
        ("h8-3", ("one input channel",)),
        ("h8_3", ("one input channel",)),
    ],
)
def test_unknown_and_left_out_tokens(token: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        get_arch(token)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
