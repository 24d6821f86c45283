"""``python -m eval report``: one static page from the results of any benchmarks."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from eval.core.results import read_results
from eval.pages.render import command_line, write_page
from eval.report.page import build_sections, render
from kornia_hardnet8.errors import DataError, MissingFileError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("results", nargs="+", type=Path, metavar="RUN", help="run folders, or results.json files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of index.html")
    parser.add_argument("--title", default="Local features: results", help="heading of the page")


def run(args: argparse.Namespace) -> None:
    """Read every results file and write ``DIR/index.html``."""
    runs = []
    for path in args.results:
        file = path / "results.json" if path.is_dir() else path
        if not file.is_file():
            raise MissingFileError(f"{file} is not there: a run folder has one when its command has ended")
        entries = read_results(file)
        for entry in entries:
            missing = [k for k in ("benchmark", "protocol", "method", "scores") if k not in entry]
            if missing or "descriptor" not in entry["method"]:
                raise DataError(f"{file}: an entry lacks {', '.join(missing) or 'method.descriptor'}")
        runs.append((file.resolve(), entries))
    made = f"Made on {datetime.date.today().isoformat()} by: {command_line(sys.argv)}"
    target = args.out / "index.html"
    write_page(target, render(build_sections(runs), args.title, made))
    print(f"results: {sum(len(entries) for _, entries in runs)}")
    print(f"page to open: {target}")
