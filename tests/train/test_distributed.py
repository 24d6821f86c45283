"""Two processes do what one does: the same loss and gradients, and a checkpoint that one process goes on with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing

import train.run
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.distributed import World, end_process, join_world, leave_world
from train.loop import resume_run, run_to_end, start_run
from train.run import Run

CPU = torch.device("cpu")


def _config(store: Path, steps: int, micro: int = 0) -> TrainConfig:
    return TrainConfig(
        str(store), arch="h7nodrop", bs=12, lr=1e-3, schedule="cosine", precision="fp32", aug="mild", steps=steps,
        save_every=1,
        loss="tripletMargin++,sos", micro_batch=micro,
    )  # fmt: skip


def _one_step(run: Run) -> dict[str, torch.Tensor]:
    """The figures of the first step, its gradients and the running statistics after it.

    In double precision: with single, a few ReLUs fall on either side of zero by the order of summation alone.
    """
    run.model.double()
    describe = train.run.raw_descriptors
    gradients: dict[str, torch.Tensor] = {}
    original = run.optimizer.step

    def step() -> None:
        gradients.update({name: p.grad.clone() for name, p in run.model.named_parameters()})
        original()

    run.optimizer.step = step
    with patch.object(
        train.run, "raw_descriptors", lambda model, patches, world: describe(model, patches.double(), world)
    ):
        figures = run.advance(run.source.batch(0))
    state = {name: value.clone() for name, value in run.model.named_buffers() if "running" in name}
    return {**gradients, **state, "loss": torch.tensor(figures["loss"])}


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _process(rank: int, port: int, store: Path, out: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    world = join_world("cpu")
    for micro in (0, 8):
        values = _one_step(Run(_config(store, 3, micro), out, CPU, world))
        torch.save(values, out / f"step_{micro}_{rank}.pt")
    run_to_end(start_run(_config(store, 3), out / "run", CPU, world))
    leave_world(world)
    end_process(0)  # an error before this line reaches the test: spawn raises it there


def test_torchrun_as_typed(tiny_store: Path, tmp_path: Path, fast: list[str]) -> None:
    """The command under torchrun, and its run gone on with by one process."""
    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    arguments = ["--ds", str(tiny_store), *fast, "--device", "cpu", "--steps", "2", "--out", str(out)]
    done = subprocess.run(
        [*torchrun, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / "last.ckpt")]  # said once, not by each process
    assert load_checkpoint(out / "last.ckpt")["step"] == 2
    run = resume_run(out, CPU, World())
    assert run.step == 2
    run.advance(run.source.batch(2))


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over processes")
def test_two_processes(tiny_store: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, tiny_store, tmp_path), nprocs=2)
    alone = _one_step(Run(_config(tiny_store, 3), tmp_path, CPU))
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"step_0_{rank}.pt")
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, atol=1e-5, rtol=1e-5, msg=name)
    # micro-batches of 4 patches a process: the same in both
    first, second = (torch.load(tmp_path / f"step_8_{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name])
    # the run of two goes on as a run of one
    whole = start_run(_config(tiny_store, 3), tmp_path / "alone", CPU)
    run_to_end(whole)
    together = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert together["step"] == 3
    losses = [_losses(tmp_path / name) for name in ("run", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    run = resume_run(tmp_path / "run", CPU, World())
    assert run.step == 3
    run.advance(run.source.batch(3))
