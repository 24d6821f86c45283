"""One training run: from stores to a run folder with settings, metrics and checkpoints."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kornia_hardnet8 import HardNet8
from kornia_hardnet8._files import read_json, write_json
from kornia_hardnet8._shell import progress
from kornia_hardnet8.checkpoints import load_weights
from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError, UsageError
from train.augment import PRESETS, augment
from train.batches import Batch, BatchSource
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.datasets import open_mix
from train.environment import describe_environment
from train.losses import get_loss
from train.optim import SCHEDULES, build_optimizer, set_rate
from train.precision import autocast, resolve_precision
from train.validate import validate

log = logging.getLogger(__name__)
METRICS_EVERY = 10


class RunStoppedError(HardNet8Error):
    """SIGTERM or Ctrl-C: the run has saved its state."""

    exit_code = 130


class Run:
    """The state of a training run: network, optimiser, and how far it is."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device) -> None:
        self.config, self.out, self.device = config, out, device
        stores = open_mix(config.ds, config.data_root)
        self.source = BatchSource(stores, config)
        self.mr_size = _common_mr_size(stores)
        self.data = [{"path": str(s.path), "meta": s.meta, "weight": w} for s, w in stores]
        torch.manual_seed(config.seed)
        self.model = HardNet8(arch=config.arch, output_dim=None)
        if config.init is not None:
            weights = load_weights(config.init)
            if weights.arch != self.model.arch:
                raise UsageError(f"--init {config.init} is {weights.arch}, the run trains {self.model.arch}")
            self.model.features.load_state_dict(weights.features)
        self.model = self.model.to(device).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config.optimizer, self.model, config.lr, config.wd)
        self.precision = resolve_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.step = 0
        self.elapsed_s = 0.0
        self.best = math.inf

    @property
    def position(self) -> float:
        """How far the run is, 0 … 1: by steps, or by time where that is further."""
        by_time = self.elapsed_s / (60.0 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return max(self.step / self.config.num_steps, by_time)

    def advance(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns its figures."""
        config, start = self.config, time.monotonic()
        rate = SCHEDULES[config.schedule](self.position, config.lr)
        set_rate(self.optimizer, rate)
        # Dropout draws from the global generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(_mix_seed(config.seed, self.step))
        generator = torch.Generator(self.device).manual_seed(_mix_seed(config.seed + 1, self.step))
        patches = augment(
            batch.patches.to(self.device, non_blocking=True),
            config.npos,
            batch.crop,
            self.model.patch_size,
            PRESETS[config.aug],
            generator,
        )
        with autocast(self.precision, self.device):
            descs = self.model(patches)
        exclude = None if batch.exclude is None else batch.exclude.to(self.device)
        losses = get_loss(config.loss)(descs.float(), batch.labels.to(self.device), config.mpos, exclude)
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {loss.item()} at step {self.step} (lr {rate.lr:.3g}, {self.precision}); the last good "
                f"state is {self.out / 'last.ckpt'}: lower --lr or use --precision fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        seconds = time.monotonic() - start
        self.elapsed_s += seconds
        with torch.no_grad():
            d_pos = (descs[0::2] - descs[1::2]).float().norm(dim=1).mean()
        return {
            "loss": loss.item(),
            "active": (losses > 0).float().mean().item(),
            "d_pos": d_pos.item(),
            "lr": rate.lr,
            "patches_s": len(batch.patches) / seconds,
        }

    def save(self, name: str) -> None:
        """Write the state to ``out/name``."""
        save_checkpoint(
            self.out / name,
            {
                "arch": self.model.arch,
                "features": self.model.features.state_dict(),
                "projection": None,
                "metadata": {"mr_size": self.mr_size, "step": self.step, "ds": self.config.ds},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "best": self.best,
                "config": self.config.to_dict(),
            },
        )

    def restore(self, content: dict[str, Any]) -> None:
        """Take up the state that :meth:`save` wrote."""
        self.model.features.load_state_dict(content["features"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.elapsed_s, self.best = content["step"], content["elapsed_s"], content["best"]


def start_run(config: TrainConfig, out: Path, device: torch.device) -> Run:
    """A new run in the folder ``out``, which must not hold one.

    Raises:
        UsageError: there is a run already.
    """
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    run = Run(config, out, device)
    out.mkdir(parents=True, exist_ok=True)
    about = {"config": config.to_dict(), "precision": run.precision, "mr_size": run.mr_size, "data": run.data}
    write_json(out / "config.json", {**about, "environment": describe_environment()})
    return run


def resume_run(out: Path, device: torch.device) -> Run:
    """The run in the folder ``out``, at its last checkpoint.

    Raises:
        MissingFileError: there is none.
        DataError: its files are damaged.
    """
    if not (out / "config.json").is_file():
        raise MissingFileError(f"{out} holds no run (no config.json)")
    about = read_json(out / "config.json")
    run = Run(TrainConfig.from_dict(about.get("config", {})), out, device)
    run.precision = about["precision"]
    if (out / "last.ckpt").exists():  # else the run ended before its first checkpoint: start over
        run.restore(load_checkpoint(out / "last.ckpt"))
    _cut_metrics(out / "metrics.jsonl", run.step)
    return run


def run_to_end(run: Run) -> None:
    """Train until the last step or the end of the time budget; SIGTERM and Ctrl-C save and stop.

    Raises:
        RunStoppedError: the run was asked to stop; its state is saved.
    """
    config, source = run.config, run.source
    every = config.save_every or config.steps_per_epoch or config.num_steps
    held_out = source.validation()
    stop = threading.Event()
    previous = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    single = [index.num_single for index in source.indices]
    if any(single):
        log.info("labels with a single patch, left out: %s", ", ".join(map(str, single)))
    try:
        with (
            concurrent.futures.ThreadPoolExecutor(1) as pool,
            open(run.out / "metrics.jsonl", "a", encoding="utf-8") as metrics,
        ):
            ahead = pool.submit(source.batch, run.step)
            for _ in progress(_steps_left(run, stop), total=config.num_steps - run.step, what="training", unit="step"):
                batch = ahead.result()
                ahead = pool.submit(source.batch, run.step + 1)
                figures = run.advance(batch)
                saving = run.step % every == 0
                if run.step % METRICS_EVERY == 0 or saving or run.step == 1:
                    _write_line(metrics, {"step": run.step, "elapsed_s": round(run.elapsed_s, 2), **figures})
                if saving:
                    _save_and_validate(run, held_out, metrics)
            if run.step % every:
                _save_and_validate(run, held_out, metrics)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stop.is_set() and run.position < 1.0:
        raise RunStoppedError(f"stopped at step {run.step}; go on with --resume {run.out}")


def _steps_left(run: Run, stop: threading.Event) -> Iterator[int]:
    while run.position < 1.0 and not stop.is_set():
        yield run.step


def _save_and_validate(run: Run, held_out: list[Batch], metrics: Any) -> None:
    figures = validate(run.model, held_out, run.device)
    score = figures.get("val_fpr95", -run.step)  # nothing held out: the newest is the best
    is_best = score <= run.best
    run.best = min(run.best, score)
    run.save("last.ckpt")
    if is_best:
        run.save("best.ckpt")
    if figures:
        _write_line(metrics, {"step": run.step, **figures})
        log.info("step %d: %s", run.step, ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


def _write_line(file: Any, values: dict[str, float]) -> None:
    file.write(json.dumps(values, allow_nan=False) + "\n")
    file.flush()


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint: they are about to be written again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the line that a killed process was writing
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _common_mr_size(stores: list[Any]) -> float:
    sizes = {float(store.meta["mr_size"]) for store, _ in stores}
    if len(sizes) > 1:
        log.warning("the stores differ in mr_size (%s): the weights take the largest", sorted(sizes))
    return max(sizes)


def _mix_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7919 + 17) % 2**63
