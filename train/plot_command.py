"""``python -m train plot RUN…``: the curves of runs as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("training.png"), metavar="FILE", help="picture to write")


def run(args: argparse.Namespace) -> None:
    """Draw and say where."""
    from train.plots import plot_runs

    plot_runs(args.runs, args.out)
    print(args.out)
