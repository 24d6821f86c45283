"""One training run from its first step to its last: a folder with settings, metrics and checkpoints."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.machine import describe_environment
from common.shell import duration, progress
from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError, UsageError
from kornia_hardnet8.files import atomic_path, check_output, check_text, naming, parse_json, read_json, write_json
from train.batches import Batch, Part
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.distributed import World, wait_for_all
from train.run import NotFiniteError, Run
from train.validate import rates_left_out, validate

log = logging.getLogger(__name__)
METRICS_EVERY = 10
_ESTIMATED_AFTER = 3  # steps: the first ones are slower
T = TypeVar("T")


class RunStoppedError(HardNet8Error):
    """SIGTERM or Ctrl-C: the run has saved its state."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class _StopNow(BaseException):
    """A signal came while a step was being computed: leave it."""


class _Signals:
    """Turns SIGTERM and Ctrl-C into an orderly end: at once where a step can be dropped, else when asked."""

    def __init__(self) -> None:
        self.asked = self.interruptible = False
        self.number: int = signal.SIGINT

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Handle the signals."""
        previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, or None: a signal came before or while it worked."""
        try:
            self.interruptible = True
            return None if self.asked else work()
        except _StopNow:
            return None
        finally:
            self.interruptible = False

    def _handle(self, number: int, _: object) -> None:
        self.asked, self.number = True, number
        if self.interruptible:
            self.interruptible = False
            raise _StopNow


def start_run(config: TrainConfig, out: Path, device: torch.device, world: World | None = None) -> Run:
    """A new run in the folder ``out``, which must not hold one.

    Raises:
        UsageError: there is a run already.
    """
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    run = Run(config, out, device, world)
    wait_for_all(run.world)
    if run.world.is_first:
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)
        about = {"config": config.to_dict(), "precision": run.precision, "mr_size": run.mr_size, "data": run.data}
        write_json(out / "config.json", {**about, "folder": str(Path.cwd()), "environment": describe_environment()})
    return run


def read_config(out: Path) -> TrainConfig:
    """The settings of the run in the folder ``out``.

    Raises:
        MissingFileError: there is none.
        UsageError: a file of weights instead of a folder.
        DataError: ``config.json`` is damaged.
    """
    settings = _read_about(out).get("config", {})
    try:
        return TrainConfig.from_dict(settings)
    except DataError as error:
        raise DataError(f"{out / 'config.json'}: {error}") from None


def resume_run(out: Path, device: torch.device, world: World | None = None) -> Run:
    """The run in the folder ``out``, at its last checkpoint; its data are looked for from where it was started.

    Raises:
        MissingFileError: there is none, or its data are not there.
        UsageError: a file of weights instead of a folder.
        DataError: its files are damaged, or its data are no longer the same.
    """
    about, config = _read_about(out), read_config(out)
    checkpoint = out / "last.ckpt"
    content = (
        load_checkpoint(checkpoint) if checkpoint.exists() else None
    )  # None: it ended before the first: start over
    run = _open_run(config, out, device, world, about.get("folder"), content is not None)
    _check_data(run.data, about.get("data"), out)
    run.precision = about.get("precision", run.precision)
    if content is not None:
        run.restore(content)
    if run.world.is_first:
        check_output(out / "metrics.jsonl", is_folder=False)
        _cut_metrics(out / "metrics.jsonl", run.step)
        _warn_of_threads(about, device)
    return run


def _open_run(
    config: TrainConfig, out: Path, device: torch.device, world: World | None, folder: Any, resumed: bool
) -> Run:
    if isinstance(folder, str) and Path(folder) != Path.cwd():
        with contextlib.suppress(MissingFileError):  # moved since: looked for from here
            return Run(config, out, device, world, Path(folder), resumed)
    return Run(config, out, device, world, resumed=resumed)


def _warn_of_threads(about: dict[str, Any], device: torch.device) -> None:
    environment = about.get("environment")
    before = environment.get("threads") if isinstance(environment, dict) else None
    now = torch.get_num_threads()
    if device.type == "cpu" and before not in (None, now):
        log.warning(
            "the run began with %s threads and goes on with %d: sums are rounded otherwise; with --threads %s it would "
            "be the same bit by bit", before, now, before,
        )  # fmt: skip


def _check_data(now: list[dict[str, Any]], before: Any, out: Path) -> None:
    known = [entry if isinstance(entry, dict) else {} for entry in before] if isinstance(before, list) else []
    fingerprints = [entry.get("fingerprint") for entry in known]
    for entry, fingerprint in zip(now, fingerprints, strict=False):
        if entry["fingerprint"] != fingerprint:
            raise DataError(
                f"{entry['path']} has changed since {out} was trained on it, so the run cannot go on: "
                f"bring the data back, or start a new run with --init {out / 'last.ckpt'}"
            )


def _read_about(out: Path) -> dict[str, Any]:
    if out.is_file():
        raise UsageError(
            f"--resume goes on with the run in a folder, {out} is a file: to start from its weights use --init {out}"
        )
    if not (out / "config.json").is_file():
        raise MissingFileError(f"{out} holds no run (no config.json); to start from weights use --init FILE")
    about = read_json(out / "config.json")
    if not isinstance(about, dict):
        raise DataError(f"{out / 'config.json'} holds no settings of a run")
    return about


def run_to_end(run: Run) -> None:
    """Train until the last step or the end of the time budget; SIGTERM and Ctrl-C save and stop.

    Raises:
        RunStoppedError: the run was asked to stop; its state is saved.
        DataError: the loss is no number; the state before that step is saved where it is sound.
    """
    config = run.config
    every = config.save_every or config.steps_per_epoch or config.num_steps
    held_out = _held_out(run) if run.world.is_first else []
    signals = _Signals()
    with (
        signals.heard(),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        contextlib.closing(_Metrics(run)) as metrics,
    ):
        if config.max_minutes and run.step == 0:  # how long it takes is kept free at the end
            _save_and_validate(run, held_out, metrics, signals)
        ahead = pool.submit(run.source.batch, run.step)
        first, stopped = run.step, False
        figures: dict[str, float] = {}
        total = None if config.max_minutes else config.num_steps
        steps = progress(run.steps_left(), total, "training", "step", lambda: _status(run, figures), done=run.step)
        for elapsed in steps:
            batch = ahead.result()
            ahead = pool.submit(run.source.batch, run.step + 1)
            figures, stopped = _advance(run, batch, elapsed, signals)
            if stopped:
                break
            if run.step == first + _ESTIMATED_AFTER and run.world.is_first:
                _warn_of_days(run, len(batch.labels) / figures["patches_s"])
            saving = run.step % every == 0
            if run.step % METRICS_EVERY == 0 or saving or run.step == 1:
                metrics.write(figures)
            if saving:
                _save_and_validate(run, held_out, metrics, signals)
        if stopped:
            _save_first(run)
        elif run.step % every:
            _save_and_validate(run, held_out, metrics, signals)
        if not (run.step or stopped):
            log.warning("the time of --max-minutes was over before the first step: the weights are the first ones")
    if stopped:
        raise RunStoppedError(f"stopped at step {run.step}; go on with --resume {run.out}", signals.number)


def _held_out(run: Run) -> list[Part]:
    """What is validated on; what there is to say of the data is said."""
    held_out = run.source.validation()
    if missing := rates_left_out(held_out):
        log.info("too few held-out labels for %s: left out; --holdout or --val gives more", " and ".join(missing))
    run.source.log_notes()
    return held_out


def _status(run: Run, figures: dict[str, float]) -> str:
    """What stands behind the bar of progress."""
    time_over = f"{100 * run.position():.0f} % of the time, " if run.config.max_minutes else ""
    return time_over + ("loss {loss:.4f}, lr {lr:.3g}, {patches_s:.0f} patches/s".format(**figures) if figures else "")


def _warn_of_days(run: Run, step_s: float) -> None:
    """Say so where a run without a time budget is going to take more than a day."""
    left_s = (run.config.num_steps - run.step) * step_s
    if left_s > 86400 and not run.config.max_minutes:
        log.warning(
            "at %.3g s a step the %d steps take about %s: --max-minutes N fits the run to N minutes, "
            "--recipe short is made for less", step_s, run.config.num_steps, duration(left_s),
        )  # fmt: skip


def _advance(run: Run, batch: Batch, elapsed: float, signals: _Signals) -> tuple[dict[str, float], bool]:
    """One step, and whether to stop; a step that a signal interrupts has not happened."""
    alone = run.world.size == 1  # a process that drops its step would leave the others waiting
    try:
        signals.interruptible = alone
        if alone and signals.asked:
            return {}, True
        figures = run.advance(batch, elapsed, on_commit=lambda: setattr(signals, "interruptible", False))
    except _StopNow:
        return {}, True
    except NotFiniteError as error:
        if error.sound:
            _save_first(run)
        raise
    finally:
        signals.interruptible = False
    return figures, run.agreed(signals.asked)[1]


def _save_first(run: Run) -> None:
    if run.world.is_first:
        run.save("last.ckpt")
    wait_for_all(run.world)


def _save_and_validate(run: Run, held_out: list[Part], metrics: _Metrics, signals: _Signals) -> None:
    start = time.monotonic()
    if broken := run.broken_weights():
        raise DataError(f"{broken} is not finite after step {run.step}: {run.advice(saved=False)}")
    if run.world.is_first:
        try:
            figures = signals.unless_asked(lambda: validate(run.useful_model, held_out, run.device))
        except DataError as error:
            raise DataError(f"{error} after step {run.step}: {run.advice(saved=False)}") from None
        if figures is None:
            log.warning("asked to stop: step %d is saved without a validation", run.step)
        else:
            score = figures.get("val_fpr95", -run.step)  # nothing held out: the newest is the best
            is_best = score <= run.best
            run.best = min(run.best, score)
            metrics.write(figures)
            if is_best:
                run.save("best.ckpt")
        run.save("last.ckpt")  # last: what a kill leaves behind without it is done again
        if figures:
            log.info("step %d: %s", run.step, ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    wait_for_all(run.world)
    run.reserve_s = time.monotonic() - start


class _Metrics:
    """``metrics.jsonl``, and TensorBoard's file where that is installed; nothing in all processes but the first."""

    def __init__(self, run: Run) -> None:
        self._run, self._file, self._board = run, None, None
        if not run.world.is_first:
            return
        self._file = open(run.out / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.out / "tensorboard"))

    def write(self, figures: dict[str, float]) -> None:
        """A line of the run's step, flushed."""
        values = {"step": self._run.step, "elapsed_s": round(self._run.elapsed_s, 2), **figures}
        if self._file is not None:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()
        if self._board is not None:
            for name in values.keys() - {"step"}:
                self._board.add_scalar(name, values[name], values["step"])

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint: they are about to be written again."""
    if not path.is_file():
        return
    check_text(path)
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line + "\n")
        except (DataError, KeyError, TypeError):
            continue  # the line that a killed process was writing
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
