"""What the documents show works as shown."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from kornia.io import ImageLoadType, load_image

import eval.cli
import kornia_hardnet8
import train.cli
from common.shell import command_parser, split_command
from kornia_hardnet8.cli import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (".", "docs", "examples", "kornia_hardnet8/weights", "third_party")
DOCUMENTS = [path for folder in DOCUMENTED for path in sorted((ROOT / folder).glob("*.md"))]
FOLDERS = ("benchmarks", "common", "docs", "eval", "examples", "kornia_hardnet8", "rendered", "tests", "train")
COMMANDS = {"train": train.cli.COMMANDS, "eval": eval.cli.COMMANDS}


def code_blocks(document: Path, language: str = "") -> list[str]:
    """What stands in the fenced blocks of a language."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in blocks if name == language]


def shown_commands() -> list[str]:
    """The command lines in the code blocks of all documents, without comments and the brackets of what is optional."""
    lines = [
        re.sub(r"\s+(#|\(hloc\)).*|[\[\]]|\.\.\.| OPTIONS$", "", line)
        for document in DOCUMENTS
        for block in code_blocks(document)
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.startswith("python -m")
    ]
    return list(dict.fromkeys(lines))


def test_the_ten_lines_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = code_blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    matches, inliers = map(int, re.findall(r"\d+", capsys.readouterr().out))
    assert (
        abs(matches - 210) <= 15 and abs(inliers - 179) <= 15
    )  # the numbers of the picture; bf16 and int8 differ a little
    assert load_image(tmp_path / "matches.jpg", ImageLoadType.RGB8).shape == (3, 540, 1360)


@pytest.mark.parametrize("page", ["docs/index.md", "docs/package-index.md"])
def test_the_ten_lines_are_the_same_everywhere(page: str) -> None:
    assert code_blocks(ROOT / page, "python") == code_blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("line", shown_commands())
def test_command_lines_are_understood(line: str) -> None:
    _, _, program, *words = shlex.split(line)
    if program == "kornia_hardnet8":
        make_parser().parse_args(words)
        return
    commands = COMMANDS[program]
    name, words = ("run", words) if words[0].startswith("-") else split_command(commands, words)
    _, parser = command_parser(f"{program} {name}", *commands[name])
    parser.parse_args(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for name in re.findall(
        r"`((?:kornia_hardnet8|common|train|eval|benchmarks|rendered|examples|docs|tests)/[\w./]+)`", text
    ):
        if not name.isupper() and not re.search(r"[A-Z]{2}", Path(name).stem):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.walk_packages(kornia_hardnet8.__path__, "kornia_hardnet8.")]
)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_is_an_example_to_check() -> None:
    assert doctest.testmod(importlib.import_module("kornia_hardnet8.hardnet8")).attempted > 0
