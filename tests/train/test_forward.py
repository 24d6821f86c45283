"""The network in training mode: the same as its layers, whatever kernels compute them."""

from __future__ import annotations

import math

import pytest
import torch

from common.devices import autocast
from kornia_hardnet8 import HardNet8
from train.forward import dropout, raw_descriptors

CPU = torch.device("cpu")


def test_the_fast_forward_pass_is_that_of_the_network() -> None:
    """Channels-last, the last convolution as a product."""
    torch.manual_seed(0)
    model = HardNet8(arch="h7nodrop", output_dim=None).train()
    patches = torch.rand(16, 1, 32, 32) * 255
    expected = torch.nn.functional.normalize(model.features(model._normalize_input(patches)).flatten(1), dim=1)
    model.to(memory_format=torch.channels_last)
    raw = raw_descriptors(model, patches)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), expected, atol=1e-5, rtol=0)


def test_dropout_has_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 32, 8, 8).to(memory_format=torch.channels_last)
    out = dropout(x, 0.3)
    dropped = (out == 0).float()
    assert dropped.mean().item() == pytest.approx(0.3, abs=0.005)
    assert out.max().item() == pytest.approx(1 / 0.7)
    assert dropped.mean((0, 2, 3)).std() < 0.02  # every channel alike
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.3), out)
    assert dropout(x.to(torch.bfloat16), 0.3).dtype == torch.bfloat16


def test_relu_of_bf16_and_its_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    results = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = HardNet8(arch="h7nodrop", output_dim=None).train().to(memory_format=torch.channels_last)
        if plain:
            monkeypatch.setattr("train.forward._ReluOfBf16.apply", torch.relu)
        with autocast("bf16", CPU):
            raw = raw_descriptors(model, patches)
        assert raw.dtype == torch.bfloat16
        (raw.float() ** 3).sum().backward()
        results.append([raw, *(p.grad for p in model.parameters())])
    for ours, plain_one in zip(*results, strict=True):
        assert torch.equal(ours, plain_one)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_what_is_not_finite_in_the_middle_of_the_network_shows_in_the_gradient(value: float) -> None:
    """In bf16 as in fp32, since a step is taken back by its loss and its gradient."""
    for precision in ("bf16", "fp32"):
        torch.manual_seed(0)
        model = HardNet8(arch="h7nodrop", output_dim=None).train()
        weight = list(model.parameters())[2]
        with torch.no_grad():
            weight[0, 0, 0, 0] = value
        assert torch.signbit(weight[0, 0, 0, 0]) == (math.copysign(1.0, value) < 0)
        with autocast(precision, CPU):
            raw = raw_descriptors(model, torch.rand(8, 1, 32, 32) * 255)
        raw.float().sum().backward()
        assert not all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
