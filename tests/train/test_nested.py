"""The loss of the shortened descriptor: its value, what it teaches, and that it goes on exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.projection import PCAFitter, Projection
from train.checkpoint import load_checkpoint, save_checkpoint
from train.cli import main
from train.config import TrainConfig
from train.loop import resume_run, run_to_end, start_run
from train.losses import Criterion, Described, LossOptions, NestedLoss

CPU = torch.device("cpu")


def _described(unit: torch.Tensor) -> Described:
    tuples = torch.arange(len(unit)) // 2
    return Described(unit, torch.ones(len(unit)), tuples, tuples)


def _projection(width: int) -> Projection:
    fitter = PCAFitter(width)
    fitter.update(torch.randn(200, width, generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.1, width))
    return fitter.finish()


def _criterion(text: str = "tripletMargin") -> Criterion:
    return Criterion(text, LossOptions())


def test_value_is_the_loss_of_the_projected_cut_and_renormalised_descriptors() -> None:
    unit = F.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    projection = _projection(16)
    loss, terms = NestedLoss(projection, 16, 4, _criterion("tripletMargin,sos"))(_described(unit))
    short = F.normalize((unit - projection.mean) @ projection.components[:, :4], dim=1)
    expected, _, expected_terms = _criterion("tripletMargin,sos")(_described(short))
    torch.testing.assert_close(loss, expected)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {name: value.item() for name, value in expected_terms.items()}
    )


def test_without_projection_it_is_the_first_features() -> None:
    unit = F.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    loss, _ = NestedLoss(None, 16, 4, _criterion())(_described(unit))
    torch.testing.assert_close(loss, _criterion()(_described(F.normalize(unit[:, :4], dim=1)))[0])


@pytest.mark.parametrize("dim", [0, 128, 129])
def test_a_width_that_is_no_cut_is_refused(dim: int) -> None:
    with pytest.raises(UsageError, match="nested must be 1 … 127"):
        TrainConfig("demo", arch="h7", nested=dim)


def test_run_starts_from_weights_with_their_projection_and_goes_on_exactly(tiny_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = HardNet8(arch="h7nodrop", output_dim=None)
    start = tmp_path / "start.ckpt"
    projection = _projection(128)
    save_checkpoint(
        start,
        {"arch": "h7nodrop", "features": model.features.state_dict(), "projection": vars(projection), "metadata": {}},
    )
    config = TrainConfig(
        str(tiny_store), arch="h7nodrop", bs=12, lr=2e-3, precision="fp32", loss="softMargin", nested=16,
        init=str(start), steps=6, save_every=3,
    )  # fmt: skip
    whole = start_run(config, tmp_path / "whole", CPU)
    assert whole.nested is not None
    torch.testing.assert_close(whole.nested.basis, projection.components[:, :16].float())
    run_to_end(whole)
    half = start_run(config, tmp_path / "half", CPU)
    for step in range(3):
        figures = half.advance(half.source.batch(step))
        expected = figures["loss_softMargin"] / 3 + figures["loss_nested_softMargin"] * 2 / 3
        assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    half.save("last.ckpt")
    run_to_end(resume_run(tmp_path / "half", CPU))
    first, second = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "half"))
    for part in ("features", "nested", "criterion"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][key], second[part][key]) for key in first[part])


def test_command_line(tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ds", str(tiny_store), "--arch", "h7nodrop", "--bs", "12", "--steps", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--nested", "128"]) == 2
    assert "--nested must be 1 … 127 for a network of 128 dimensions, got 128" in capsys.readouterr().err
    assert main([*arguments, "--nested", "32", "--threads", "1", "-q"]) == 0
    assert load_checkpoint(tmp_path / "last.ckpt")["nested"]["basis"].shape == (128, 32)
