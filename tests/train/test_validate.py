"""Figures on held-out pairs of known descriptors."""

from __future__ import annotations

import math

import pytest
import torch

from kornia_hardnet8 import HardNet8
from train.batches import Part
from train.validate import rates_left_out, validate


def part(num: int, seed: int = 0) -> Part:
    """``num`` pairs of noise whose second patch is the first one with a little noise more."""
    torch.manual_seed(seed)
    patches = torch.randint(30, 220, (num, 1, 32, 32)).repeat(1, 2, 1, 1) + torch.randint(-25, 26, (num, 2, 32, 32))
    return Part(patches.clamp(0, 255).to(torch.uint8).flatten(0, 1), (0, 2 * num), 1.0, "tuples")


@pytest.fixture(scope="module")
def model() -> HardNet8:
    return HardNet8(arch="h7nodrop")


@pytest.mark.parametrize(("num", "rates"), [(1, []), (2, []), (19, []), (20, ["val_fpr95"]), (99, ["val_fpr95"])])
def test_rates_are_left_out_where_one_pair_would_decide(num: int, rates: list[str], model: HardNet8) -> None:
    figures = validate(model, [part(num)], torch.device("cpu"))
    assert [name for name in figures if "fpr" in name] == rates
    assert {"val_nn", "val_map"} <= figures.keys()
    assert all(math.isfinite(value) for value in figures.values())
    assert rates_left_out([part(num)]) == [name for name in ("val_fpr95", "val_fpr99") if name not in rates]


def test_a_small_store_has_no_part_in_the_mean(model: HardNet8) -> None:
    device = torch.device("cpu")
    large, small = part(100), part(3, seed=1)
    both, alone = validate(model, [large, small], device), validate(model, [large], device)
    assert both["val_fpr95"] == alone["val_fpr95"]
    assert both["val_fpr99"] == alone["val_fpr99"]
    assert list(both) == ["val_fpr95", "val_fpr99", "val_nn", "val_map"]
    assert both["val_nn"] == pytest.approx((alone["val_nn"] + validate(model, [small], device)["val_nn"]) / 2)
    assert validate(model, [], device) == {}
    assert rates_left_out([large, small]) == rates_left_out([]) == []
