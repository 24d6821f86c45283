"""`make weights` asks for what the commands take, leaves out what it must, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train.cli
from common.shell import command_parser, split_command

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("british_museum", "fox", "reichstag", "statue_of_liberty_a", "statue_of_liberty_b")
# Stands for python: notes what it is asked for, and makes what --out names (a run holds its settings).
STUB = """#!{python}
import json, pathlib, sys
words = sys.argv[3:]
with open({calls!r}, "a") as file:
    print(json.dumps(words), file=file)
if "--out" in words:
    out = pathlib.Path(words[words.index("--out") + 1])
    if "--arch" in words:
        out.mkdir(parents=True)
        out = out / "config.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()
"""


@pytest.fixture
def calls(tmp_path: Path) -> list[list[list[str]]]:
    """The commands of a first call and of a second one."""
    for name in MODELS:
        (tmp_path / "data" / "multiview" / name).mkdir(parents=True)
    noted, stub = tmp_path / "calls", tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, calls=str(noted)))
    stub.chmod(0o755)
    found = []
    for _ in range(2):
        noted.write_text("")
        subprocess.run(
            ["bash", ROOT / "docs" / "make_weights.sh", "data", "out"],
            cwd=tmp_path, env={**os.environ, "PYTHON": str(stub)}, check=True, capture_output=True,
        )  # fmt: skip
        found.append([json.loads(line) for line in noted.read_text().splitlines()])
    return found


def test_the_way_to_the_weights(calls: list[list[list[str]]]) -> None:
    first, second = calls
    parsed = []
    for words in first + second:
        name, rest = ("run", words) if words[0].startswith("-") else split_command(train.cli.COMMANDS, words)
        parsed.append((name, command_parser(f"train {name}", *train.cli.COMMANDS[name])[1].parse_args(rest)))
    names = [name for name, _ in parsed]
    once = [*["build colmap"] * 3, "merge"] * 2 + ["build photos", "build amos"]
    large = ["run", "pca", "run", "run", "average", "pca", "bundle"]
    again = [*large, "run", "pca", "bundle", "matchability"]
    assert names == [*once, *again, *again]
    assert not any(left_out in " ".join(words) for words in first for left_out in ("british_museum", "reichstag"))
    for _, args in (parsed[3], parsed[7]):
        assert [[path.name[-1] for path in group] for group in args.same_place] == [["a", "b"]]
    assert [args.dense for name, args in parsed if name == "build colmap"] == [False] * 3 + [True] * 3
    resumed = [args.resume for name, args in parsed[len(first) :] if name == "run"]
    assert resumed == [Path("out") / name for name in ("first", "mild", "light", "h8small")]
    later = [args for name, args in parsed[: len(first)] if name == "run"][1:3]
    assert [(args.init, args.aug, args.steps) for args in later] == [
        ("out/first.ckpt", "mild", 7888), ("out/first.ckpt", "light", 6608)
    ]  # fmt: skip
