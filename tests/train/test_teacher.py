"""A small network learns the descriptors of another: its targets, its projection, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kornia_hardnet8 import HardNet8
from train.checkpoint import load_checkpoint
from train.cli import main
from train.losses import Criterion, Described, LossOptions
from train.teacher import Teacher

CPU = torch.device("cpu")


def _patches(count: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(32, 32), mode="bicubic").clamp(0, 1)


def test_a_perfect_student_gives_the_teachers_descriptors() -> None:
    teacher = Teacher("h8E512", 128, 32, CPU)
    patches = _patches(64)
    targets = teacher.targets(patches)
    projection = teacher.projection
    described = F.normalize((targets - projection.mean) @ projection.components, dim=1)
    torch.testing.assert_close(described, teacher.network(patches), rtol=0, atol=1e-5)
    exact = HardNet8(pretrained=True)(patches).detach()
    assert (described * exact).sum(1).min() > 0.999
    # every feature of a student varies alike, which the teacher's axes do not
    spread = described.var(0).max() / described.var(0).mean()
    assert targets.var(0).max() / targets.var(0).mean() < 0.7 * spread


def test_the_loss_is_one_less_the_cosine() -> None:
    unit, targets = (F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(k)), dim=1) for k in (0, 1))
    tuples = torch.arange(6) // 2
    loss, items, _ = Criterion("distill", LossOptions())(
        Described(unit, torch.ones(6), tuples, tuples, targets=targets)
    )
    torch.testing.assert_close(items, 1.0 - F.cosine_similarity(unit, targets))
    torch.testing.assert_close(loss, items.mean())


def test_a_run_comes_nearer_to_its_teacher_and_can_be_used(
    tiny_store: Path, tiny_checkpoint: Path, fast: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--ds", str(tiny_store), *fast, "--loss", "distill", "--teacher", str(tiny_checkpoint)]
    assert main([*line, "--steps", "6", "--out", str(tmp_path / "run")]) == 0
    student = load_checkpoint(tmp_path / "run" / "last.ckpt")
    model = HardNet8.from_checkpoint(tmp_path / "run" / "last.ckpt")
    assert model.output_dim == 128
    patches = _patches(32)
    likeness = (model.eval()(patches) * HardNet8.from_checkpoint(tiny_checkpoint)(patches)).sum(1).mean()
    untaught = HardNet8(arch="h7nodrop").eval()
    assert likeness > (untaught(patches) * HardNet8.from_checkpoint(tiny_checkpoint)(patches)).sum(1).mean() + 0.02
    assert student["projection"]["components"].shape == (128, 128)

    # `train pca` measures the ranges for int8 and leaves the teacher's axes
    final = tmp_path / "final.ckpt"
    line = ["pca", str(tmp_path / "run" / "last.ckpt"), "--ds", str(tiny_store), "--out", str(final)]
    assert main([*line, "--whiten", "0.5"]) == 2
    assert "keeps the axes of its teacher" in capsys.readouterr().err
    assert main(line) == 0
    assert torch.equal(HardNet8.from_checkpoint(final)(patches), model(patches))
    assert len(load_checkpoint(final)["metadata"]["int8_ranges"]["outputs"]) == 6


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--loss", "distill"], "--teacher and the loss distill need each other"),
        (["--teacher", "h8E512"], "--teacher and the loss distill need each other"),
        (["--loss", "distill", "--teacher", "h8E512", "--nested", "32"], "--nested has no effect"),
        (["--loss", "distill", "--teacher", "h8E512", "--arch", "h7p48"], "takes patches of 32 pixels"),
    ],
)
def test_what_does_not_go_together_is_said(
    tiny_store: Path, tmp_path: Path, flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--ds", str(tiny_store), "--out", str(tmp_path / "run"), "--bs", "12", *flags]) == 2
    assert problem in capsys.readouterr().err
