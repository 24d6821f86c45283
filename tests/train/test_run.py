"""The training command: what it writes, and that it goes on exactly after whatever stopped it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.patchstore import PatchStore
from kornia_hardnet8 import HardNet8
from train.batches import BatchSource
from train.checkpoint import load_checkpoint, save_checkpoint
from train.cli import main
from train.config import TrainConfig
from train.loop import resume_run, run_to_end, start_run
from train.optim import cosine
from train.run import Run

ROOT = Path(__file__).parents[2]


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert a == b


def _state(path: Path) -> dict[str, Any]:
    content = load_checkpoint(path)
    return {key: content[key] for key in ("features", "optimizer", "step")}


def _start(arguments: list[str], until_step: int, out: Path) -> subprocess.Popen[str]:
    """Train in a process of its own, and return it when ``metrics.jsonl`` tells of that step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        file = out / "metrics.jsonl"
        if file.is_file() and any(f'"step": {step},' in file.read_text() for step in range(until_step, until_step + 9)):
            return process
        time.sleep(0.01)
    raise AssertionError(f"never came to step {until_step}: {process.stderr.read() if process.stderr else ''}")


def test_a_run_learns_and_tells_everything(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--ds", f"{tiny_store}*2", "--steps", "12", "--save-every", "6", "--holdout", "0.2", "--seed", "3"]
    assert main([*arguments, *fast, "--out", str(out)]) == 0
    assert {f.name for f in out.iterdir()} == {"config.json", "metrics.jsonl", "last.ckpt", "best.ckpt"}
    about = json.loads((out / "config.json").read_text())
    assert about["config"]["bs"] == 12
    assert about["config"]["seed"] == 3
    assert about["data"][0]["weight"] == 2.0
    assert about["environment"]["torch"] == torch.__version__
    assert about["environment"]["command"] == sys.argv
    assert about["environment"]["git_commit"] is None or len(about["environment"]["git_commit"].rstrip("+")) == 40
    assert about["data"][0]["fingerprint"] == PatchStore.open(tiny_store).fingerprint()
    lines = _metrics(out)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    validations = [line for line in lines if "val_map" in line]
    assert [line["step"] for line in validations] == [6, 12]
    # the checkpoint is a weight file too
    model = HardNet8(out / "last.ckpt", output_dim=None)
    assert model.arch == "h7nodrop"
    assert torch.equal(
        model.features.state_dict()["0.weight"], load_checkpoint(out / "last.ckpt")["features"]["0.weight"]
    )


def test_the_fingerprint_of_data_tells_stores_apart(store_factory: Any, tmp_path: Path) -> None:
    first, again, other = (
        PatchStore.open(store_factory(tmp_path / name, num_labels=8, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    relabelled = dataclasses.replace(first, labels=np.asarray(first.labels) + 1)
    assert relabelled.fingerprint() != first.fingerprint()


def test_stores_of_fixed_windows_train(store_factory: Any, tmp_path: Path) -> None:
    """They have no support in units of a keypoint's scale: the weights take the usual one."""
    store = store_factory(tmp_path / "store", num_labels=20)
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "mr_size": None}))
    run = Run(TrainConfig(str(store), arch="h7nodrop", bs=8), tmp_path, torch.device("cpu"))
    assert run.mr_size == 12.0


def test_stores_of_an_odd_side_train_and_get_a_projection(store_factory: Any, tmp_path: Path, fast: list[str]) -> None:
    """HPatches stores hold 65-pixel patches without any margin."""
    store = store_factory(tmp_path / "store", num_labels=30, side=65)
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "crop": 1.0}))
    out = tmp_path / "run"
    assert main(["--ds", str(store), "--out", str(out), *fast, "--steps", "2", "--holdout", "0.3"]) == 0
    lines = _metrics(out)
    assert 0.0 < lines[0]["loss"] < 2.0
    assert 0.0 <= lines[-1]["val_map"] <= 1.0
    assert main(["pca", str(out / "last.ckpt"), "--ds", str(store), "--out", str(tmp_path / "pca.ckpt")]) == 0
    assert len(HardNet8(tmp_path / "pca.ckpt", output_dim=16)(torch.rand(2, 1, 32, 32))[0]) == 16


def test_tensorboard_gets_the_figures_where_it_is_installed(
    tiny_store: Path, tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder stands for the package."""
    seen: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def close(self) -> None:
            seen.append(("closed", 0.0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    arguments = ["--ds", str(tiny_store), *fast, "--steps", "2", "--holdout", "0.2", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    written = {(name, line["step"]): line[name] for line in _metrics(tmp_path / "run") for name in line}
    assert {(name, step): value for name, value, step in seen[:-1]} == {
        key: value for key, value in written.items() if key[0] != "step"
    }
    assert ("loss", 1) in written
    assert any(name == "val_map" for name, _, _ in seen)
    assert seen[-1][0] == "closed"


def test_a_killed_run_goes_on_bit_by_bit(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """Epochs of 4 steps, so that the kill and the checkpoints fall on either side of their boundaries."""
    common = ["--ds", f"{tiny_store}+{tiny_store}*2", *fast, "--arch", "h7", "--aug", "mild", "--tuples", "48"]
    common += ["--steps", "23", "--save-every", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*common, "--out", str(whole)]) == 0
    step = random.SystemRandom().randrange(4, 19)
    print(f"killed after step {step}")
    process = _start([*common, "--out", str(killed)], step // 3 * 3, killed)
    time.sleep(random.SystemRandom().random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["--resume", str(killed), "--threads", "1", "-q"]) == 0
    _assert_same(_state(whole / "last.ckpt"), _state(killed / "last.ckpt"))
    assert _timeless(whole) == _timeless(killed)


def _timeless(run: Path) -> list[dict[str, Any]]:
    """The figures of a run that do not depend on the clock."""
    names = ("step", "loss", "lr", "d_pos", "d_neg", "active", "val_map")
    return [{name: line[name] for name in names if name in line} for line in _metrics(run)]


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
@pytest.mark.parametrize("written", [False, True])
def test_a_run_killed_around_a_save_goes_on_with_every_line(
    tiny_store: Path, tmp_path: Path, fast: list[str], name: str, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--ds", str(tiny_store), *fast, "--steps", "4", "--save-every", "2", "--holdout", "0.2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*common, "--out", str(whole)]) == 0

    def save(path: Path, content: dict[str, Any]) -> None:
        if path.name != name or written:
            save_checkpoint(path, content)
        if path.name == name:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr("train.run.save_checkpoint", save)
        with pytest.raises(_Killed):
            main([*common, "--out", str(killed)])
    assert main(["--resume", str(killed), "--threads", "1", "-q"]) == 0
    assert _timeless(whole) == _timeless(killed)
    for checkpoint in ("best.ckpt", "last.ckpt"):
        _assert_same(_state(whole / checkpoint), _state(killed / checkpoint))


def test_resume_takes_no_settings_and_shows_those_of_its_run(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_checkpoint.parent
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    # --seed 0 is the default and still one that was given
    assert (
        main(["--resume", str(run), "--ds", "lib", "--bs", "24", "--seed", "0", "--no_fliprot", "--out", "x", "-q"])
        == 2
    )
    error = capsys.readouterr().err
    assert "leave out --out, --seed, --ds, --bs, --no_fliprot" in error
    assert len(error.strip().splitlines()) == 1
    assert main(["--resume", str(run), "--print-config", "--threads", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["bs"], shown["arch"], shown["num_steps"]) == (12, "h7nodrop", 3)
    assert shown["network"]["dim"] == 128
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_sigterm_saves_and_says_how_to_go_on(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """In a process of its own: libraries of other tests take signals for themselves."""
    out = tmp_path / "run"
    words = [sys.executable, "-m", "train", "--ds", str(tiny_store), *fast, "--steps", "100000", "--out", str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (out / "metrics.jsonl").is_file() or '"step": 1,' not in (out / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 143
    assert f"go on with --resume {out}" in error
    assert load_checkpoint(out / "last.ckpt")["step"] >= 1


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that the rate has blown up, finite or not, do not replace those of the last save."""
    out = tmp_path / "run"
    assert main(["--ds", str(tiny_store), *fast, "--steps", "2", "--out", str(out)]) == 0
    good = (out / "last.ckpt").read_bytes()
    about = json.loads((out / "config.json").read_text())
    about["config"] |= {"steps": 40, "lr": 1e30}
    (out / "config.json").write_text(json.dumps(about))
    assert main(["--resume", str(out), "-q"]) == 1
    error = capsys.readouterr().err
    assert "lower --lr" in error
    assert f"the last good state is {out / 'last.ckpt'}" in error
    assert len(error.strip().splitlines()) == 1
    assert (out / "last.ckpt").read_bytes() == good


def test_a_gradient_that_is_no_number_stops_with_the_state_before_it(
    tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    monkeypatch.setattr(Run, "_gradient_norm", lambda run: torch.nan if run.step == 3 else 1.0)
    assert main(["--ds", str(tiny_store), *fast, "--steps", "9", "--save-every", "2", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "its gradient nan at step 3" in error
    assert f"the state before this step is {out / 'last.ckpt'}" in error
    assert load_checkpoint(out / "last.ckpt")["step"] == 3


def _all_finite(path: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in load_checkpoint(path)["features"].values())


def test_weights_that_are_no_numbers_are_never_saved(
    tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    apply = Run._apply_gradient

    def overflow(run: Run) -> None:
        apply(run)
        if run.step == 3:  # the running statistics of batch norm overflow before any gradient tells
            next(run.model.buffers()).fill_(torch.inf)

    monkeypatch.setattr(Run, "_apply_gradient", overflow)
    assert main(["--ds", str(tiny_store), *fast, "--steps", "9", "--save-every", "2", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "1.running_mean is not finite after step 4" in error
    assert f"the last good state is {out / 'last.ckpt'}" in error
    assert len(error.strip().splitlines()) == 1
    for name in ("last.ckpt", "best.ckpt"):
        assert load_checkpoint(out / name)["step"] == 2
        assert _all_finite(out / name)


LONG_VALIDATION = """
import os, signal, sys, time
import train.loop
from train.cli import main
def validate(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
train.loop.validate = validate
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_during_validation_is_heard(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """In a process of its own, as above."""
    out = tmp_path / "run"
    words = [*fast, "--steps", "9", "--save-every", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", LONG_VALIDATION, "--ds", str(tiny_store), *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 143
    assert "step 2 is saved without a validation" in done.stderr
    assert f"stopped at step 2; go on with --resume {out}" in done.stderr
    assert load_checkpoint(out / "last.ckpt")["step"] == 2


def test_a_run_does_not_go_on_with_other_data(
    store_factory: Any, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = store_factory(tmp_path / "store", num_labels=20), tmp_path / "run"
    assert main(["--ds", str(store), *fast, "--steps", "1", "--out", str(out)]) == 0
    before = (out / "last.ckpt").read_bytes()
    shutil.rmtree(store)
    store_factory(store, num_labels=20, seed=1)
    assert main(["--resume", str(out), "-q"]) == 1
    error = capsys.readouterr().err
    assert f"{store} has changed" in error
    assert len(error.strip().splitlines()) == 1
    assert (out / "last.ckpt").read_bytes() == before


def test_weights_alone_are_no_run_to_go_on_with(
    tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--ds", str(tiny_store), *fast, "--steps", "1", "--out", str(out)]) == 0
    content = load_checkpoint(out / "last.ckpt")
    save_checkpoint(out / "last.ckpt", {k: v for k, v in content.items() if k != "optimizer"})
    assert main(["--resume", str(out), "-q"]) == 1
    assert "holds no optimizer" in capsys.readouterr().err


def test_one_label_is_refused_and_few_are_told(
    store_factory: Any, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, few = store_factory(tmp_path / "one", num_labels=1), store_factory(tmp_path / "few", num_labels=5)
    assert main(["--ds", str(one), *fast, "--steps", "1", "--out", str(tmp_path / "a")]) == 1
    assert "one label gives no negatives" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main(["--ds", str(few), *fast, "--steps", "1", "--out", str(tmp_path / "b")]) == 0
    assert f"{few} has 5 labels to train on: its batches are smaller than --bs 12" in capsys.readouterr().err


def test_a_run_validates_on_sets_of_its_own(
    tiny_store: Path, store_factory: Any, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of what is trained on is held out then, and every label of the other set counts."""
    other, out = store_factory(tmp_path / "other", num_labels=30, seed=7), tmp_path / "run"
    assert main(["--ds", str(tiny_store), "--val", str(other), *fast, "--steps", "2", "--out", str(out)]) == 0
    assert {"val_nn", "val_map"} <= _metrics(out)[-1].keys()
    data = json.loads((out / "config.json").read_text())["data"]
    assert [(entry["path"], entry["weight"]) for entry in data] == [(str(tiny_store), 1.0), (str(other), 0.0)]
    run = resume_run(out, torch.device("cpu"))
    assert [len(part.patches) for part in run.source.validation()] == [2 * 30]
    assert len(run.source.indices[0].labels) == 60
    assert main(["--ds", "a", "--val", "b", "--holdout", "0.1"]) == 2
    assert "--holdout has no effect with --val b" in capsys.readouterr().err


def test_a_run_is_not_overwritten(
    tiny_checkpoint: Path, tiny_store: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--ds", str(tiny_store), *fast, "--out", str(tiny_checkpoint.parent)]) == 2
    assert f"--resume {tiny_checkpoint.parent}" in capsys.readouterr().err


def test_init_takes_weights_of_the_same_architecture_alone(
    tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--ds", str(tiny_store), *fast, "--init", str(tiny_checkpoint), "--steps", "1", "--lr", "1e-30"]
    assert main([*common, "--wd", "0", "--out", str(tmp_path / "same")]) == 0
    before, after = load_checkpoint(tiny_checkpoint), load_checkpoint(tmp_path / "same" / "last.ckpt")
    assert torch.equal(before["features"]["3.weight"], after["features"]["3.weight"])
    assert after["step"] == 1
    assert main([*common, "--arch", "h8", "--out", str(tmp_path / "other")]) == 2
    assert "is h7nodrop, the run trains h8" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    damage: str, tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path, fast: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "weights.ckpt"
    content = {"cut": tiny_checkpoint.read_bytes()[:100_000], "empty": b"", "text": b"hello", "missing": None}[damage]
    if content is not None:
        path.write_bytes(content)
    arguments = ["--ds", str(tiny_store), *fast, "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--init", str(path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(tmp_path / "nowhere")]) == 1
    assert "holds no run" in capsys.readouterr().err
    for config, part in (
        ({"colour": 3}, "unknown colour"), ({"bs": "64"}, "bs is '64'"), ({"fewcams": 1}, "fewcams is 1"),
        ({"epochs": 2.5}, "epochs is 2.5"), ({"lr": None}, "lr is None"), ({"bs": True}, "bs is True"),
        ({"wd": -1}, "wd must be"), ({"ds": None}, "ds is None"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({"config": {"ds": "x", **config}}))
        assert main(["--resume", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / 'config.json'}: not the settings of a training run: {part}" in error
        assert len(error.strip().splitlines()) == 1
    (tmp_path / "config.json").write_text('{"config": 5}')
    assert main(["--resume", str(tmp_path)]) == 1
    assert "no ds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "h8E521"], "did you mean h8E512"),
        (["--loss", "tripletmargin"], "did you mean tripletMargin"),
        (["--schedule", "onecycl"], "onecycle"),
        (["--combine", "inbatchs"], "inbatch"),
        (["--micro-batch", "5"], "--micro-batch must hold whole tuples"),
        (["--ema", "1"], "--ema must be"),
        (["--lr", "-1"], "--lr must be positive"),
        (["--lr", "inf"], "--lr must be positive"),
        (["--eps", "nan"], "--eps must be positive"),
        (["--max-minutes", "inf"], "--max-minutes must be positive"),
        (["--wd", "-1"], "--wd must be a number of 0 and more"),
        (["--mpos", "nan"], "--mpos must be a number of 0 and more"),
        (["--mpos", "-5"], "--mpos must be a number of 0 and more"),
        (["--aug", "mile"], "mild"),
        (["--bs", "0"], "--bs must be at least 2 tuples, got 0"),
        (["--Npos", "1"], "--Npos must be at least 2 patches"),
        (["--fewcams", "--cams-in-batch", "-1"], "--cams-in-batch must not be negative"),
        (["--holdout", "0.7"], "--holdout must be"),
        (["--dropout", "1"], "--dropout must be"),
        (["--arch", "h7nodrop", "--dropout", "0.1"], "h7nodrop has no dropout layer"),
        (["--device", "cuda:7"], "--device cuda:7 cannot be used"),
    ],
)
def test_wrong_usage_is_answered_in_one_line(
    arguments: list[str], message: str, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["--ds", str(tiny_store), "--steps", "1", "--out", str(tmp_path / "run"), *arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_sets_are_named_with_the_close_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mountains").mkdir()
    arguments = ["--data-root", str(tmp_path), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["--ds", "montains", *arguments]) != 0
    error = capsys.readouterr().err
    assert "did you mean mountains" in error
    assert str(tmp_path) in error
    assert main(["--ds", "mountains*0", *arguments]) == 2
    assert main(["--ds", "a+*2", *arguments]) == 2
    assert main(arguments) == 2
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_no_half_checkpoint(
    tiny_store: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for the disk."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        code = main(["--ds", str(tiny_store), *fast, "--steps", "1", "--out", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "best.ckpt" in capsys.readouterr().err  # the first to be written
    assert {f.name for f in out.iterdir()} == {"config.json", "metrics.jsonl"}


def test_pca_and_bundle(
    tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The projection is that of the descriptors in eval mode; the bundle holds it and its support."""
    from kornia_hardnet8.checkpoints import load_weights
    from kornia_hardnet8.inference import calibrate
    from train.augment import center_crop
    from train.validate import describe_batch

    monkeypatch.setattr("train.models.BUNDLED_DIR", tmp_path)
    assert main(["bundle", str(tiny_checkpoint), "--name", "tiny"]) == 1
    assert "train pca" in capsys.readouterr().err
    out = tmp_path / "pca.ckpt"
    assert main(["pca", str(tiny_checkpoint), "--ds", str(tiny_store), "--out", str(out)]) == 0
    weights = load_weights(out)
    assert weights.projection is not None
    store = PatchStore.open(tiny_store)
    model = HardNet8(tiny_checkpoint, output_dim=None)
    descs = describe_batch(model, torch.tensor(store.patches), 1.5, torch.device("cpu")).double()
    centred = descs - descs.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / (len(descs) - 1)).flip(0)
    torch.testing.assert_close(weights.projection.eigenvalues[:20].double(), values[:20], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(weights.projection.mean.double(), descs.mean(0), atol=1e-5, rtol=0)
    assert main(["bundle", str(out), "--name", "tiny"]) == 0
    bundled = load_weights(tmp_path / "tiny.safetensors")
    assert bundled.arch == "h7nodrop"
    assert bundled.metadata["mr_size"] == 12.0
    ranges = bundled.metadata["int8_ranges"]
    plain = torch.tensor(store.patches)
    measured = calibrate(model, center_crop(plain, 1.5, 32))
    assert ranges["input"] == pytest.approx(measured["input"])
    assert ranges["outputs"] == pytest.approx(measured["outputs"])
    assert len(ranges["outputs"]) == 6  # one after the ReLU of each convolution but the last
    assert main(["bundle", str(out), "--name", "../tiny"]) == 2


def test_pca_whitens(tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path) -> None:
    from kornia_hardnet8.checkpoints import load_weights

    plain, white = tmp_path / "plain.ckpt", tmp_path / "white.ckpt"
    command = ["pca", str(tiny_checkpoint), "--ds", str(tiny_store), "--out"]
    assert main([*command, str(plain)]) == 0
    assert main([*command, str(white), "--whiten", "0.5"]) == 0
    first, second = load_weights(plain), load_weights(white)
    assert first.projection is not None and second.projection is not None
    torch.testing.assert_close(second.projection.components, first.projection.whitened(0.5).components)
    assert (first.metadata["pca_whiten"], second.metadata["pca_whiten"]) == (0.0, 0.5)
    assert main([*command, str(tmp_path / "no.ckpt"), "--whiten", "2"]) == 2
    assert not (tmp_path / "no.ckpt").exists()


def test_pca_takes_fixed_windows(tiny_checkpoint: Path, store_factory: Any, tmp_path: Path) -> None:
    """They have no support in units of a keypoint's scale."""
    store = store_factory(tmp_path / "store", num_labels=10)
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "mr_size": None}))
    out = tmp_path / "pca.ckpt"
    assert main(["pca", str(tiny_checkpoint), "--ds", str(store), "--out", str(out)]) == 0
    assert load_checkpoint(out)["metadata"]["mr_size"] == 12.0


def test_pca_warns_of_patches_of_another_support(
    tiny_checkpoint: Path, store_factory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = store_factory(tmp_path / "store", num_labels=10), tmp_path / "pca.ckpt"
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "mr_size": 6.0}))
    assert main(["pca", str(tiny_checkpoint), "--ds", str(store), "--out", str(out)]) == 0
    assert "differ in mr_size ([6.0, 12.0]): the weights keep theirs" in capsys.readouterr().err
    assert load_checkpoint(out)["metadata"]["mr_size"] == 12.0


def test_micro_batches_give_the_gradients_of_the_whole(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """With a network without batch statistics they are the same; running statistics are counted once."""
    runs = []
    for micro in (0, 8):
        config = TrainConfig(
            str(tiny_store), arch="h8Ins", bs=12, precision="fp32", micro_batch=micro, seed=1, aug="mild",
            schedule="cosine", lr=1e-3,
        )  # fmt: skip
        run = Run(config, tmp_path, torch.device("cpu"))
        run.model.features[-1] = torch.nn.Identity()  # it alone has batch statistics
        for layer in run.model.modules():
            if isinstance(layer, torch.nn.Dropout):  # each part has its own draws
                layer.p = 0.0
        figures = run.advance(run.source.batch(0))
        runs.append((figures, [p.detach().clone() for p in run.model.parameters()]))
    assert runs[0][0]["loss"] == pytest.approx(runs[1][0]["loss"], rel=1e-5)
    assert runs[0][0]["grad_norm"] == pytest.approx(runs[1][0]["grad_norm"], rel=1e-4)
    run = Run(TrainConfig(str(tiny_store), arch="h7", bs=12, precision="fp32", micro_batch=8), tmp_path, run.device)
    run.advance(run.source.batch(0))
    assert int(run.model.features[1].num_batches_tracked) == 3


def test_sets_are_combined_as_asked(tiny_store: Path, store_factory: Any, tmp_path: Path) -> None:
    other = store_factory(tmp_path / "other", num_labels=40, seed=5)
    stores = [(PatchStore.open(tiny_store), 1.0), (PatchStore.open(other), 3.0)]

    def source(**more: Any) -> BatchSource:
        return BatchSource(stores, TrainConfig("x", bs=10, tuples=400, epochs=2, **more))

    assert [source(combine="epoch").sets(step)[0] for step in (0, 19, 20, 39, 40, 79)] == [0, 0, 1, 1, 0, 1]
    drawn = [source().sets(step)[0] for step in range(80)]
    assert 45 < sum(drawn) < 73  # three quarters of 80
    batch = source(combine="inbatch").batch(3)
    assert len(batch.labels) == 40
    assert [len(part.patches) for part in batch.parts] == [20, 20]
    first, second = batch.labels[:20].tolist(), batch.labels[20:].tolist()
    assert max(first) < min(second)  # offsets keep labels of different sets apart
    assert torch.equal(batch.labels[0::2], batch.labels[1::2])
    halves = [BatchSource(stores, source(combine="inbatch").config, (rank, 2)).batch(3) for rank in (0, 1)]
    assert torch.equal(halves[0].labels, halves[1].labels)
    assert sorted(halves[0].labels.tolist()) == sorted(batch.labels.tolist())
    for number in (0, 1):
        joined = torch.cat([half.parts[number].patches for half in halves])
        assert torch.equal(joined, batch.parts[number].patches)
        assert [half.parts[number].rows for half in halves] == [(0, 20), (10, 20)]


def test_a_running_mean_of_the_weights_is_kept_over_a_pause(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """So is the state of the loss: two halves give what the whole gives."""
    torch.set_num_threads(1)
    config = TrainConfig(
        str(tiny_store), arch="h7nodrop", bs=12, lr=2e-3, schedule="cosine", precision="fp32", ema=0.9,
        loss="softMargin", steps=8, save_every=4,
    )  # fmt: skip
    whole = start_run(config, tmp_path / "whole", torch.device("cpu"))
    run_to_end(whole)
    content = load_checkpoint(tmp_path / "whole" / "last.ckpt")
    assert not torch.equal(content["features"]["0.weight"], content["live"]["0.weight"])
    half = start_run(config, tmp_path / "half", torch.device("cpu"))
    for step in range(4):
        half.advance(half.source.batch(step))
    half.save("last.ckpt")
    again = resume_run(tmp_path / "half", torch.device("cpu"))
    assert again.step == 4
    run_to_end(again)
    keys = ("features", "live", "optimizer", "criterion", "step")
    resumed = load_checkpoint(tmp_path / "half" / "last.ckpt")
    _assert_same({k: content[k] for k in keys}, {k: resumed[k] for k in keys})


def test_a_time_budget_counts_everything_and_the_rate_ends_low(
    tiny_store: Path, tmp_path: Path, fast: list[str]
) -> None:
    out = tmp_path / "run"
    start = time.monotonic()
    arguments = ["--ds", str(tiny_store), *fast, "--steps", "1000000", "--save-every", "7", "--max-minutes", "0.1"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert time.monotonic() - start < 12
    lines = _metrics(out)
    assert lines[0]["step"] == 0  # before the first step: how long saving takes
    assert lines[-1]["elapsed_s"] < 9
    told = [line for line in lines if "lr" in line]
    for line in told:  # the rate is that of the time when the step began, or of a later one: the save is kept free
        began = line["elapsed_s"] - 24 / line["patches_s"] - 0.3
        if began > 0.5:
            assert line["lr"] <= cosine(began / 6.0, 2e-3).lr
    assert told[-1]["lr"] < 1e-3


def test_the_rate_of_dropout_is_that_asked_for(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = {}
    for rate in (None, 0.0, 0.1):
        config = TrainConfig(str(tiny_store), arch="h7", dropout=rate, bs=12, steps=2, precision="fp32")
        run = start_run(config, tmp_path / str(rate), torch.device("cpu"))
        patches = run.augmented(run.source.batch(0))
        share[rate] = (run._describe(patches, 0) - run._describe(patches, 1)).abs().mean().item()  # other draws
        run_to_end(run)
        assert resume_run(run.out, torch.device("cpu")).model.features[18].p == (0.3 if rate is None else rate)
        assert main(["--resume", str(run.out), "--print-config"]) == 0
        assert json.loads(capsys.readouterr().out)["dropout"] == (0.3 if rate is None else rate)
    assert share[0.0] == 0
    assert 0 < share[0.1] < share[None]
    about = json.loads((tmp_path / "None" / "config.json").read_text())
    del about["config"]["dropout"]  # a run begun before there was the option
    (tmp_path / "None" / "config.json").write_text(json.dumps(about))
    assert resume_run(tmp_path / "None", torch.device("cpu")).step == 2
