from __future__ import annotations

from typing import Any

import pytest
import torch

from kornia_hardnet8.errors import UsageError
from tests.training_vectors import decode
from train.optim import Rate, build_optimizer, cosine, linear, one_cycle, set_rate


@pytest.mark.parametrize("name", ["e2_i10_lr3.0", "e1_i8_lr1.0", "e5_i3_lr3.0"])
def test_one_cycle(cases: dict[str, dict[str, Any]], name: str) -> None:
    case = cases[f"one_cycle.{name}"]
    steps = case["inputs"]["epochs"] * case["inputs"]["batches_per_epoch"]
    rates = [one_cycle(step / steps, case["inputs"]["lr_max"]) for step in range(steps)]
    assert [r.lr for r in rates] == pytest.approx(case["expected"]["lr"], rel=2e-5, abs=1e-7)
    assert [r.momentum for r in rates] == pytest.approx(case["expected"]["mom"], rel=2e-5, abs=1e-7)


def test_one_cycle_of_the_published_run(cases: dict[str, dict[str, Any]]) -> None:
    case = cases["one_cycle.published_univ"]
    rates = [one_cycle(step / (20 * 1627), 3.0) for step in case["inputs"]["steps"]]
    assert [r.lr for r in rates] == pytest.approx(case["expected"]["lr"], rel=5e-4, abs=2e-6)
    assert [r.momentum for r in rates] == pytest.approx(case["expected"]["mom"], rel=5e-4, abs=2e-6)


def test_cosine_warms_up_and_ends_at_nothing() -> None:
    assert cosine(0.0, 1.0).lr < 0.05
    assert cosine(0.03, 1.0).lr == pytest.approx(1.0)
    assert cosine(0.515, 1.0).lr == pytest.approx(0.5)
    assert cosine(1.0, 1.0).lr == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["const", "onecycle_lr3", "no_wd"])
def test_adamw_is_that_of_the_2020_code(cases: dict[str, dict[str, Any]], name: str) -> None:
    case = cases[f"fastai_adamw.{name}"]
    inputs = case["inputs"]
    module = torch.nn.Linear(4, 1, bias=False)
    module.weight.data = decode(inputs["start"])[None].clone()
    optimizer = build_optimizer("adamw", module, 1.0, inputs["wd"])
    for lr, momentum, gradient, expected in zip(
        inputs["lr"], inputs["mom"], inputs["grads"], case["expected"]["params_after_step"], strict=True
    ):
        set_rate(optimizer, Rate(lr, momentum))
        module.weight.grad = torch.tensor([gradient])
        optimizer.step()
        assert module.weight.detach()[0].tolist() == pytest.approx(expected, rel=2e-5, abs=2e-6)


def test_sgd_is_that_of_the_2017_code(cases: dict[str, dict[str, Any]]) -> None:
    case = cases["hardnet2017_sgd"]
    inputs = case["inputs"]
    module = torch.nn.Linear(4, 1, bias=False)
    module.weight.data = decode(inputs["start"])[None].clone()
    optimizer = build_optimizer("sgd2017", module, inputs["lr"], inputs["wd"])
    steps = inputs["n_triplets"] * inputs["epochs"] // inputs["batch_size"]
    for step, (lr, gradient, expected) in enumerate(
        zip(case["expected"]["lr_used"], inputs["grads"], case["expected"]["params_after_step"], strict=True)
    ):
        rate = linear(step / steps, inputs["lr"], 1 / steps)
        assert rate.lr == pytest.approx(lr)
        set_rate(optimizer, rate)
        module.weight.grad = torch.tensor([gradient])
        optimizer.step()
        assert module.weight.detach()[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match="adamw"):
        build_optimizer("adagrad", torch.nn.Linear(1, 1), 1.0, 0.0)


def test_eps_decides_how_far_a_tiny_gradient_moves() -> None:
    """The first step of Adam is lr * g / (|g| + eps)."""
    for eps, expected in ((1e-5, 0.5), (1e-8, 1.0 / 1.001)):
        module = torch.nn.Linear(1, 1, bias=False)
        module.weight.data.zero_()
        optimizer = build_optimizer("adamw", module, 1.0, 0.0, eps)
        set_rate(optimizer, Rate(1.0, 0.9))
        module.weight.grad = torch.full((1, 1), 1e-5)
        optimizer.step()
        assert module.weight.item() == pytest.approx(-expected, rel=1e-4)
