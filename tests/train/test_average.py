"""The average of runs: its weights, its statistics, and what has none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import UsageError
from train.average import average_features
from train.checkpoint import load_checkpoint, save_checkpoint
from train.cli import main
from train.config import TrainConfig
from train.loop import run_to_end, start_run

CPU = torch.device("cpu")


@pytest.fixture
def two_runs(tiny_store: Path, tmp_path: Path) -> list[Path]:
    """Checkpoints of two short runs that differ in their seeds."""
    out = []
    for seed in (1, 2):
        config = TrainConfig(
            str(tiny_store),
            arch="h7nodrop",
            bs=12,
            lr=2e-3,
            precision="fp32",
            nested=16,
            steps=2,
            seed=seed,
            aug="none",
        )
        run_to_end(start_run(config, tmp_path / str(seed), CPU))
        out.append(tmp_path / str(seed) / "last.ckpt")
    return out


def test_weights_are_the_mean_and_statistics_those_of_the_new_network(two_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.ckpt"
    assert main(["average", *map(str, two_runs), "--batches", "3", "--out", str(out)]) == 0
    first, second, mean = (load_checkpoint(path) for path in (*two_runs, out))
    convolutions = [name for name, value in mean["features"].items() if value.dim() == 4]
    assert len(convolutions) == 7
    for name in convolutions:
        directions = [F.normalize(content["features"][name].flatten(1)) for content in (first, second)]
        expected = F.normalize(directions[0] + directions[1])
        torch.testing.assert_close(F.normalize(mean["features"][name].flatten(1)), expected)
    model = HardNet8(out, output_dim=None)
    run = start_run(TrainConfig.from_dict({**first["config"], "nested": None}), tmp_path / "drawn", CPU)
    patches = [run.source.batch(step) for step in range(3)]
    inputs = []
    for run.step, batch in enumerate(patches):
        inputs.append(model._normalize_input(run.augmented(batch)))
    layers = list(model.features)
    norm = next(k for k, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        reached = [nn.Sequential(*layers[:norm])(x) for x in inputs]
    means = torch.stack([x.mean((0, 2, 3)) for x in reached]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in reached]).mean(0)
    torch.testing.assert_close(layers[norm].running_mean, means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layers[norm].running_var, variances, atol=1e-5, rtol=1e-4)
    assert mean["metadata"]["averaged"] == 2
    assert mean["metadata"]["mr_size"] == 12.0


def test_weights_without_a_run_count_like_the_runs(two_runs: list[Path], tmp_path: Path) -> None:
    content = load_checkpoint(two_runs[0])
    longer = {name: 7.0 * value if value.dim() == 4 else value for name, value in content["features"].items()}
    bare = tmp_path / "bare.ckpt"
    save_checkpoint(bare, {"arch": content["arch"], "features": longer, "metadata": content["metadata"]})
    for k, first in enumerate((two_runs[0], bare)):
        assert (
            main(["average", str(first), str(two_runs[1]), "--batches", "1", "--out", str(tmp_path / f"{k}.ckpt")]) == 0
        )
    one, two = (load_checkpoint(tmp_path / f"{k}.ckpt")["features"] for k in range(2))
    for name, value in one.items():
        if value.dim() == 4:
            torch.testing.assert_close(F.normalize(value.flatten(1)), F.normalize(two[name].flatten(1)))


def test_average_leaves_the_networks_alone(two_runs: list[Path]) -> None:
    contents = [load_checkpoint(path) for path in two_runs]
    average_features(contents)
    again = [load_checkpoint(path) for path in two_runs]
    for one, two in zip(contents, again, strict=True):
        assert all(torch.equal(one["features"][name], two["features"][name]) for name in one["features"])


def test_what_has_no_average(two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = str(two_runs[0]), tmp_path / "mean.ckpt"
    bare = tmp_path / "bare.ckpt"
    content = load_checkpoint(two_runs[0])
    save_checkpoint(bare, {key: content[key] for key in ("arch", "features", "metadata")})
    other = tmp_path / "other.ckpt"
    save_checkpoint(other, {**content, "metadata": {"mr_size": 8.0}})
    for arguments, part in (
        ([one], "at least two"),
        ([one, one, "--batches", "0"], "--batches must be positive"),
        ([str(bare), str(bare)], "no checkpoint of a run"),
        ([one, str(other)], "differ in mr_size: ['12.0', '8.0']"),
        ([one, str(tmp_path / "none.ckpt")], "no weight file at"),
        ([one, one, "--ds", str(tmp_path / "gone")], "gone"),
    ):
        assert main(["average", *arguments, "--out", str(out)]) != 0
        assert part in capsys.readouterr().err
        assert not out.exists()
    with pytest.raises(UsageError, match="different architectures"):
        average_features([content, {**content, "arch": "h8"}])


def test_data_that_have_moved(two_runs: list[Path], tiny_store: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_store, moved)
    out = tmp_path / "mean.ckpt"
    contents = [load_checkpoint(path) for path in two_runs]
    for path, content in zip(two_runs, contents, strict=True):
        save_checkpoint(path, {**content, "config": {**content["config"], "ds": "no/such/store"}})
    assert main(["average", *map(str, two_runs), "--batches", "1", "--ds", str(moved), "--out", str(out)]) == 0
    assert HardNet8(out, output_dim=None).arch == "h7nodrop"


def test_tensors_that_are_no_weights_are_one_line(
    two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = load_checkpoint(two_runs[1])
    content["features"] = {name: value.to("meta") for name, value in content["features"].items()}
    save_checkpoint(two_runs[1], content)
    assert main(["average", *map(str, two_runs), "--out", str(tmp_path / "mean.ckpt")]) == 1
    assert "is no plain tensor of numbers" in capsys.readouterr().err
    assert not (tmp_path / "mean.ckpt").exists()
