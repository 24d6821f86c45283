"""``python -m train plot RUN…``: the curves of runs as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.shell import output_file
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, need
from kornia_hardnet8.files import atomic_path, check_text, parse_json

# title of a panel, whether its axis is logarithmic, and the figures in it
PANELS = (
    ("loss", False, ("loss",)),
    ("mean distances, share of active triplets", False, ("d_pos", "d_neg", "active")),
    ("false positives at 95 % and 99 % recall", True, ("val_fpr95", "val_fpr99")),
    ("held-out nearest neighbours, mAP", False, ("val_nn", "val_map")),
    ("learning rate", True, ("lr",)),
    ("length of the gradient", True, ("grad_norm",)),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=output_file, default="training.png", metavar="FILE", help="picture to write")


def run(args: argparse.Namespace) -> None:
    """Draw and say where."""
    plot_runs(args.runs, args.out)
    print(args.out)


def read_metrics(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The figures of a run: name -> steps and values.

    Raises:
        MissingFileError: no ``metrics.jsonl`` in the folder.
        DataError: a line of it that is no JSON, apart from a last one that is being written, or no figure at all.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise MissingFileError(f"{run} holds no run: {path} is not there")
    check_text(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line)
            if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
                raise DataError("no figures of a step")
            step = values.pop("step")
        except (DataError, KeyError):
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} is no JSON of figures and their step") from None
        for name, value in values.items():
            steps, column = curves.setdefault(name, ([], []))
            steps.append(step)
            column.append(value)
    if not curves:
        raise DataError(f"{path} holds no figures yet")
    return curves


def plot_runs(runs: list[Path], out: Path) -> None:
    """Draw the curves of runs into one picture (PNG, or what the name of ``out`` says).

    Raises:
        UsageError: no picture can be written under that name.
        MissingFileError, DataError: see :func:`read_metrics`.
    """
    figure = need("matplotlib.figure", "train").Figure(figsize=(12, 9), layout="constrained")
    kind, kinds = out.suffix.removeprefix(".").lower() or "png", sorted(figure.canvas.get_supported_filetypes())
    if kind not in kinds:
        raise UsageError(f"--out {out}: no picture is called .{kind} (there are: {', '.join(kinds)})")
    all_curves = [read_metrics(run) for run in runs]
    axes = figure.subplots(3, 2).ravel()
    for axis, (title, is_log, names) in zip(axes, PANELS, strict=True):
        for number, (run, curves) in enumerate(zip(runs, all_curves, strict=True)):
            for style, name in zip(("-", ":", "--"), names, strict=False):
                if name not in curves:
                    continue
                steps, values = curves[name]
                if is_log:  # nothing is at home below: a rate of 0 is drawn where one error in 10000 would be
                    values = [max(value, 1e-4) if name.startswith("val") else value for value in values]
                marker = "o" if name.startswith("val") or len(steps) == 1 else None
                label = run.name if len(names) == 1 else f"{run.name}: {name}"
                axis.plot(steps, values, style, color=f"C{number}", marker=marker, markersize=3, label=label)
        axis.set_title(title)
        axis.set_xlabel("step")
        if is_log:
            axis.set_yscale("log")
        else:
            keep_readable(axis)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
        else:
            axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=100)


def keep_readable(axis: Any) -> None:
    """Show values as they are: no number to be added to all of them, and a curve that hardly moves as a flat one."""
    axis.ticklabel_format(axis="y", useOffset=False)
    low, high = axis.get_ylim()
    least = 1e-3 * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axis.set_ylim(middle - least / 2, middle + least / 2)
