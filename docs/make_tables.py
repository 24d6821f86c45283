"""Remake the numbers of README, pages and model cards: ``make tables DATA=DIR WEIGHTS=DIR``.

The folder of the data is one that ``eval dev`` takes: poses/, oxford/ (homography sequences), webcam/ and hpatches/
(strips), each with a folder a scene; that of the weights holds the files of third_party/README.md. Below ``--out`` lie
what the commands made and their cache, a markdown file a table with the commands above it, and README.md, which says
what could not be made and why. A run that the same command has made is taken as it is, so that a call which was stopped
goes on; remove OUT/runs/NAME to have it made again, and OUT/cache where the code has changed. ``--write`` puts the
tables into the pages. Which runs and tables there are is said in docs/page_tables.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from page_tables import FILES, NOT_MADE, RUNS, TABLES, Entries, Run

from eval.core.results import read_results
from eval.features.weights import WEIGHTS_VARIABLE
from kornia_hardnet8.errors import HardNet8Error
from kornia_hardnet8.files import write_bytes

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="poses/, oxford/, webcam/ and hpatches/ below it")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="files of third_party/README.md")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="default: runs/tables")
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", help=f"some of: {', '.join(TABLES)}")
    parser.add_argument("--write", action="store_true", help="also put the tables that could be made into the pages")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    return parser.parse_args(argv)


def descriptors(run: Run, weights: Path | None) -> tuple[list[str], list[str]]:
    """Those of a run whose weights are there, and why the others are left out."""
    usable, missing = [], []
    for token in run.desc.split():
        file = FILES.get(token)
        if file is None or (weights is not None and (weights / file).is_file()):
            usable.append(token)
        else:
            missing.append(f"{token}: {file} is not there")
    return usable, missing


def words_of(name: str, weights: Path | None) -> list[str]:
    """The words of a run after ``python -m``, with {data} and {out} in them."""
    run = RUNS[name]
    cache = ["--cache", "{out}/cache"] if run.has_cache else []
    return [*run.command.split(), "--desc", *descriptors(run, weights)[0], *cache, "--out", f"{{out}}/runs/{name}"]


def preparations(name: str, scenes: Sequence[str] = ("NAME",)) -> list[tuple[str, list[str]]]:
    """What a run needs to be made before, and the command that makes it: once a scene where NAME stands in it."""
    return [
        (made.replace("NAME", scene), command.replace("NAME", scene).split())
        for made, command in RUNS[name].first
        for scene in (scenes if "NAME" in made else ("",))
    ]


def commands_of(name: str, weights: Path | None) -> list[list[str]]:
    """All commands of a run in order."""
    return [*(command for _, command in preparations(name)), words_of(name, weights)]


def shown(command: Sequence[str]) -> str:
    """A command for people."""
    return "python -m " + shlex.join(command).replace("'", "").format(data="DATA", out="OUT")


def call(command: Sequence[str], places: Mapping[str, Path], weights: Path | None) -> None:
    """Run one command.

    Raises:
        HardNet8Error: it failed.
    """
    words = [word.format(**places) for word in command]
    print(f"python -m {shlex.join(words)}", file=sys.stderr, flush=True)
    environment = os.environ if weights is None else {**os.environ, WEIGHTS_VARIABLE: str(weights.resolve())}
    done = subprocess.run([sys.executable, "-m", *words], env=dict(environment), stdout=sys.stderr)
    if done.returncode != 0:
        raise HardNet8Error(f"{shown(command)} ended with {done.returncode}")


def entries_of(name: str, args: argparse.Namespace) -> Entries:
    """The results of a run, which is made unless the same command has made it already.

    Raises:
        HardNet8Error: data is not there, or a command failed.
    """
    run, places = RUNS[name], {"data": args.data, "out": args.out}
    if run.needs and args.data is None:
        raise HardNet8Error(f"{name} needs DATA")
    missing = [folder for folder in run.needs if not (args.data / folder).is_dir()]
    if missing:
        raise HardNet8Error(f"{args.data} has no {' and no '.join(missing)}")
    if not descriptors(run, args.weights)[0]:
        raise HardNet8Error(f"no weights: {'; '.join(descriptors(run, args.weights)[1])}")
    scenes = sorted(p.name for p in (args.data / "poses").iterdir() if p.is_dir()) if "poses" in run.needs else ()
    command = words_of(name, args.weights)
    results = args.out / "runs" / name / "results.json"
    words = [word.format(**places) for word in command]
    if not results.is_file() or read_results(results)[0]["environment"]["command"][1:] != words[1:]:
        for made, making in preparations(name, scenes):
            if not (args.out / made).exists():
                call(making, places, args.weights)
        call(command, places, args.weights)
    return {entry["method"]["descriptor"]: entry for entry in read_results(results)}


def put(page: str, name: str, lines: Sequence[str]) -> str:
    """The text of a page with the table of a name between its marks; unchanged where it has none."""
    block = "\n".join(lines)
    return re.sub(
        rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{block}\n{m[2]}", page, flags=re.S
    )


def pages() -> list[Path]:
    """The documents that may hold tables."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "kornia_hardnet8").rglob("*.md")),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables; 1 when one of them could not be made."""
    args = parse(argv)
    chosen = args.only or list(TABLES)
    names = list(dict.fromkeys(run for table in chosen for run in TABLES[table].runs))
    if args.list:
        usable = [name for name in names if descriptors(RUNS[name], args.weights)[0]]
        print("\n".join(dict.fromkeys(shown(words) for name in usable for words in commands_of(name, args.weights))))
        return 0
    made: dict[str, Entries] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            made[name] = entries_of(name, args)
        except HardNet8Error as error:
            failed[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
    index = ["# Tables", ""]
    for table in chosen:
        runs = TABLES[table].runs
        if reasons := [failed[run] for run in runs if run in failed]:
            index.append(f"* {table}: not made: {reasons[0]}")
            continue
        lines = TABLES[table].make(*(made[run] for run in runs))
        commands = dict.fromkeys(shown(command) for run in runs for command in commands_of(run, args.weights))
        left_out = sorted({why for run in runs for why in descriptors(RUNS[run], args.weights)[1]})
        text = ["```", *commands, "```", "", *lines, "", *(f"Left out: {why}" for why in left_out)]
        write_bytes(args.out / f"{table}.md", ("\n".join(text).rstrip() + "\n").encode())
        index.append(f"* [{table}]({table}.md)" + "".join(f"; without {why}" for why in left_out))
        for page in pages() if args.write else ():
            if (text_now := put(old := page.read_text(encoding="utf-8"), table, lines)) != old:
                write_bytes(page, text_now.encode())
    index += ["", "Not made by this:", "", *(f"* {what}: {why}" for what, why in NOT_MADE.items())]
    write_bytes(args.out / "README.md", ("\n".join(index) + "\n").encode())
    print("\n".join(index))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
