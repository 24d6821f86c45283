from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from train.cli import main
from train.plots import keep_readable, read_metrics


def test_curves_of_runs_become_a_picture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run, out = tiny_checkpoint.parent, tmp_path / "curves.png"
    assert main(["plot", str(run), str(run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    curves = read_metrics(run)
    assert curves["loss"][0] == [1]  # of three steps; every tenth is told
    assert curves["val_nn"][0] == [3]
    assert {"lr", "grad_norm", "d_pos", "d_neg", "val_map"} <= curves.keys()


def test_a_curve_that_hardly_moves_has_plain_numbers() -> None:
    figure = Figure()
    axes = figure.subplots(1, 2)
    for axis, end in zip(axes, (0.958 + 1e-8, 1.3), strict=True):
        axis.plot([1, 2], [0.958, end])
        keep_readable(axis)
    figure.canvas.draw()
    for axis in axes:
        assert axis.yaxis.get_offset_text().get_text() == ""
        assert all(len(label.get_text()) <= 6 for label in axis.get_yticklabels())
    assert axes[0].get_ylim() == pytest.approx((0.958 * 0.9995, 0.958 * 1.0005))
    assert axes[1].get_ylim()[1] > 1.3


def test_a_name_of_no_picture_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(tiny_checkpoint.parent), "--out", str(tmp_path / "x.xyz")]) == 2
    error = capsys.readouterr().err
    assert ".xyz (there are: " in error
    assert len(error.splitlines()) == 1
    assert main(["plot", str(tiny_checkpoint.parent), "--out", str(tmp_path / "x.PNG")]) == 0


def test_folders_without_curves_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 1
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "los\n{"step": 2, "loss": 3.0}\n')
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 1
    assert "line 1" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path)["loss"] == ([1], [3.0])
    assert not (tmp_path / "x.png").exists()


def test_the_bench_measures_shares_that_sum_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", "--arch", "h7nodrop", "--bs", "8", "--steps", "1", "--precision", "fp32", "--threads", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    row = json.loads(out.read_text())["training"][0]
    assert sum(row["shares"].values()) == pytest.approx(1.0)
    assert min(row["shares"].values()) > 0
    assert row["speedup"] == pytest.approx(row["patches_s"] / row["plain_patches_s"])
    assert row["clock"] == "processor"
    shown = capsys.readouterr().out
    assert "threads: 1 (processor time)" in shown
    for stage in ("data", "augmentation", "forward", "mining and loss", "backward", "optimiser"):
        assert f"{stage:16} {100 * row['shares'][stage]:5.1f} %" in shown
