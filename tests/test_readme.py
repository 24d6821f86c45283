"""What the documents show works as shown."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval.cli
import kornia_hardnet8
import train.cli
from common.shell import command_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (".", "docs", "eval/imw", "kornia_hardnet8/weights", "third_party", "train")
DOCUMENTS = [path for folder in DOCUMENTED for path in sorted((ROOT / folder).glob("*.md"))]
COMMANDS = {"train": train.cli.COMMANDS, "eval": eval.cli.COMMANDS}


def shown_commands() -> list[str]:
    """The command lines in the code blocks of all documents, without comments and the brackets of what is optional."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if line.startswith("python -m"):
                    found.append(re.sub(r"\s+(#|\(hloc\)).*|[\[\]]|\.\.\.| OPTIONS$", "", line))
    return list(dict.fromkeys(found))


def test_readme_example_finds_the_shift_between_two_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.random((60, 80), dtype=np.float32), (0, 0), 1.5)
    image = cv2.resize(cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8), (240, 180))
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "b.png"), np.roll(image, (4, 7), axis=(0, 1)))
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(example.replace(".jpg", ".png"), "README.md", "exec"), scope)
    assert capsys.readouterr().out
    found = scope["found"]
    shift = (found["keypoints1"] - found["keypoints0"]).numpy()  # type: ignore[index]
    assert len(shift) >= 20
    right = np.abs(shift - (7, 4)).max(axis=1) < 0.5
    assert right.mean() > 0.8


@pytest.mark.parametrize("line", shown_commands())
def test_command_lines_are_understood(line: str) -> None:
    _, _, program, *words = shlex.split(line)
    commands = COMMANDS[program]
    name = "run" if words[0].startswith("-") else words.pop(0)
    _, parser = command_parser(f"{program} {name}", *commands[name])
    parser.parse_args(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for name in re.findall(r"`((?:kornia_hardnet8|train|eval|tests)/[\w./]+)`", text):
        if not name.isupper() and not re.search(r"[A-Z]{2}", Path(name).stem):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.walk_packages(kornia_hardnet8.__path__, "kornia_hardnet8.")]
)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_is_an_example_to_check() -> None:
    assert doctest.testmod(importlib.import_module("kornia_hardnet8.hardnet8")).attempted > 0
