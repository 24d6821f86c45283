"""Flags, loading and printing that the benchmark commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.machine import choose_device
from common.shell import seed_number
from eval.core.results import Result, Score, write_results
from eval.features import Descriptor, Method, WholeFeature, known_names, load_method
from kornia_hardnet8.errors import UsageError


def add_descriptor_flags(parser: argparse.ArgumentParser, required: bool = False, whole: bool = True) -> None:
    """Add ``--desc`` and ``--device``; without ``whole`` the help names no whole local features."""
    parser.epilog = f"descriptors (name[@weights][:option=value,…]): {', '.join(known_names(whole))}"
    group = parser.add_argument_group("descriptors")
    group.add_argument(
        "--desc",
        nargs="+",
        metavar="TOKEN",
        default=None if required else ["h8E512", "rootsift"],
        help="descriptors, listed below",
    )
    group.add_argument("--device", default="auto", help="of networks: cpu, cuda, or auto")


def add_run_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--out``, ``--seed`` and ``--json``."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, metavar="RUN", help=f"folder of the results (default: runs/<date>-{what})")
    group.add_argument("--seed", type=seed_number, default=0, help="of sampling and of the intervals")
    group.add_argument("--json", action="store_true", help="print the results file instead of the table")


def load_descriptors(args: argparse.Namespace) -> list[Descriptor]:
    """The descriptors that ``--desc`` names, on the device of ``--device``.

    Raises:
        UsageError: a descriptor named twice, a whole local feature, or see :func:`eval.features.load`.
    """
    methods = load_methods(args)
    descriptors = [method for method in methods if not isinstance(method, WholeFeature)]
    if len(descriptors) < len(methods):
        whole = next(method.name for method in methods if isinstance(method, WholeFeature))
        raise UsageError(f"{whole} finds its own keypoints: here the patches or keypoints are given")
    return descriptors


def load_methods(args: argparse.Namespace) -> list[Method]:
    """The descriptors and whole local features that ``--desc`` names, on the device of ``--device``.

    Raises:
        UsageError: one named twice, or see :func:`eval.features.load`.
    """
    if len(set(args.desc)) < len(args.desc):
        raise UsageError(f"--desc names a descriptor twice: {' '.join(args.desc)}")
    device = choose_device(args.device)
    return [load_method(token).to(device) for token in args.desc]


def finish(out: Path, results: Sequence[Result], as_json: bool, lines: str) -> None:
    """Write ``out/results.json`` and print either it or ``lines``."""
    path = out / "results.json"
    write_results(path, results)
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        print(lines)
        print(f"results: {path}")


def format_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; the first is set left, the others right; None is a dash, fractions get 3 decimals."""
    cells = [[str(c) for c in head], *([_text(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def safe_name(token: str) -> str:
    """A token as one name of a file or folder."""
    return token.replace("/", "_").replace("\\", "_")


def with_interval(score: Score) -> str:
    """``0.412 [0.380, 0.444]``; a dash for nothing measured."""
    if score.value is None:
        return "–"
    if score.ci95 is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.ci95[0]:.3f}, {score.ci95[1]:.3f}]"


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Score):
        return with_interval(cell)
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
