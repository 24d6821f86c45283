"""A run goes on from another folder, without its first weights, and not from a checkpoint that was tampered with."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kornia_hardnet8.errors import DataError
from train.checkpoint import load_checkpoint, save_checkpoint
from train.cli import main
from train.config import TrainConfig
from train.loop import _cut_metrics, _warn_of_days
from train.run import Run


def _lengthen(run: Path, steps: int, **about: Any) -> None:
    content = json.loads((run / "config.json").read_text())
    content["config"]["steps"] = steps
    content["environment"] |= about
    (run / "config.json").write_text(json.dumps(content))


def test_resume_needs_neither_the_folder_nor_the_first_weights(
    tiny_store: Path, tiny_checkpoint: Path, tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, other = tmp_path / "start", tmp_path / "other"
    for folder in (start, other):
        folder.mkdir()
    shutil.copytree(tiny_store, start / "sets" / "mine")
    shutil.copy(tiny_checkpoint, start / "first.ckpt")
    monkeypatch.chdir(start)
    line = ["--ds", "mine", "--data-root", "sets", "--init", "first.ckpt", "--nested", "32", *fast, "--steps", "2"]
    assert main([*line, "--out", "run"]) == 0
    before = load_checkpoint("run/last.ckpt")
    (start / "first.ckpt").unlink()
    _lengthen(start / "run", 4)
    monkeypatch.chdir(other)
    assert main(["--resume", "../start/run", "--threads", "1", "-q"]) == 0
    after = load_checkpoint(start / "run" / "last.ckpt")
    assert after["step"] == 4
    assert torch.equal(before["nested"]["basis"], after["nested"]["basis"])
    # moved as a whole, it is looked for from where it is resumed
    shutil.move(start, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    _lengthen(Path("run"), 5)
    assert main(["--resume", "run", "--threads", "1", "-q"]) == 0
    assert load_checkpoint("run/last.ckpt")["step"] == 5


def test_resume_says_when_the_threads_differ(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint.parent, run)
    assert main(["--resume", str(run), "--threads", "1", "-q"]) == 0
    assert capsys.readouterr().err == ""
    _lengthen(run, 3, threads=7)
    assert main(["--resume", str(run), "--threads", "1", "-q"]) == 0
    assert "began with 7 threads and goes on with 1" in capsys.readouterr().err


def _of_features(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        content["features"]["3.weight"] = change(content["features"]["3.weight"])

    return damage


def _of_optimizer(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        content["optimizer"]["state"][1]["exp_avg"] = change(content["optimizer"]["state"][1]["exp_avg"])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_of_features(torch.Tensor.double), "features.3.weight is a strided tensor of float64"),
        (_of_features(lambda value: value[:2]), "features.3.weight is a strided tensor of float32 (2, 32, 3, 3)"),
        (_of_features(torch.Tensor.to_sparse), "features.3.weight is a sparse_coo tensor"),
        (_of_features(lambda _: "weights"), "features.3.weight is weights (str), expected a strided tensor"),
        (lambda content: content["features"].pop("3.weight"), "features is entries"),
        (lambda content: content.update(features=[]), "features is [] (list)"),
        (_of_optimizer(lambda value: value[:2]), "optimizer.state.1.exp_avg is a strided tensor"),
        (_of_optimizer(lambda value: torch.full_like(value, torch.inf)), "optimizer.state.1.exp_avg holds NaN or inf"),
        (
            _of_optimizer(lambda value: torch.nested.nested_tensor([value], layout=torch.strided)),
            "optimizer.state.1.exp_avg is a nested",
        ),
        (_of_optimizer(lambda _: 3.0), "optimizer.state.1.exp_avg is 3.0 (float)"),
        (lambda content: content["optimizer"].update(state=[]), "optimizer.state is [] (list)"),
        (lambda content: content["optimizer"].update(state={99: {}}), "optimizer.state is entries 99"),
        (lambda content: content["optimizer"].update(param_groups=[]), "optimizer is of other parameters"),
        (lambda content: content.update(optimizer=None), "optimizer is of other parameters"),
        (lambda content: content.update(step="3"), "step is 3 (str)"),
        (lambda content: content.update(step=-1), "is of step -1"),
        (lambda content: content.update(best=None), "best is None (NoneType)"),
        (lambda content: content.update(elapsed_s=float("nan")), "after nan s"),
        (lambda content: content.update(scaler=[1]), "scaler is [1] (list)"),
        (lambda content: content.update(criterion={"histogram": torch.ones(3)}), "criterion is entries histogram"),
        (lambda content: content.update(live={}), "live is empty, expected None"),
    ],
)
def test_parts_of_a_checkpoint_are_checked(
    damage: Callable[[dict[str, Any]], None], message: str, tiny_checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint.parent, run)
    content = load_checkpoint(run / "last.ckpt")
    damage(content)
    save_checkpoint(run / "last.ckpt", content)
    before = (run / "last.ckpt").read_bytes()
    assert main(["--resume", str(run), "--threads", "1", "-q"]) == 1
    error = capsys.readouterr().err
    assert f"the checkpoint of {run}" in error
    assert message in error
    assert len(error.splitlines()) == 1
    assert (run / "last.ckpt").read_bytes() == before


def test_days_are_told_of_with_what_to_do(tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for steps, minutes, warned in ((100_000, None, True), (100_000, 30.0, False), (10_000, None, False)):
        config = TrainConfig(str(tiny_store), arch="h7nodrop", bs=12, steps=steps, max_minutes=minutes)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            _warn_of_days(Run(config, tmp_path, torch.device("cpu")), 2.0)
        assert ("take about 2 d 8 h: --max-minutes N" in caplog.text) == warned


def test_recipes_are_defaults_that_flags_replace(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def settings(*flags: str) -> dict[str, Any]:
        assert main(["--ds", "lib", *flags, "--print-config"]) == 0
        shown: dict[str, Any] = json.loads(capsys.readouterr().out)
        return shown

    assert settings("--recipe", "2020") == settings()
    short = settings("--recipe", "short", "--lr", "3e-3")
    expected = {
        "arch": "h7nodrop",
        "loss": "tripletMargin,sos",
        "bs": 128,
        "max_minutes": 20.0,
        "lr": 3e-3,
        "eps": 1e-8,
    }
    assert {name: short[name] for name in expected} == expected
    assert settings("--recipe", "short", "--optimizer", "sgd2017")["eps"] is None  # of the recipe, not of the user
    assert main(["--resume", str(tiny_checkpoint.parent), "--recipe", "short"]) == 2
    assert "leave out --recipe" in capsys.readouterr().err


def test_damaged_lines_of_metrics_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \xff}\n{"step": 2}\n{"step": 3}\n')
    _cut_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(DataError, match="seed must be 0"):
        TrainConfig.from_dict({"ds": "lib", "seed": 1 << 64})


def test_metrics_that_are_no_file_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint.parent, run)
    (run / "metrics.jsonl").unlink(missing_ok=True)
    os.mkfifo(run / "metrics.jsonl")
    assert main(["--resume", str(run), "--threads", "1", "-q"]) == 2
    assert "metrics.jsonl is a device, pipe or socket, a file is needed" in capsys.readouterr().err
