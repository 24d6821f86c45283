"""What all commands share."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from common import shell
from common.shell import dispatch, duration, output_file, positive_number, progress, run_module, seed_number
from kornia_hardnet8 import __version__
from kornia_hardnet8.command import run_command
from kornia_hardnet8.files import atomic_dir, atomic_path


@pytest.mark.parametrize("text", ["-1", "2147483648", "1.5", "x", ""])
def test_a_seed_that_generators_refuse_is_refused_by_the_parser(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"0 to 2\^31 - 1"):
        seed_number(text)
    assert seed_number("0") == 0
    assert seed_number("2147483647") == 2**31 - 1


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "x", "", "inf"])
def test_what_counts_nothing_is_refused_by_the_parser(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1 and more"):
        positive_number(text)
    assert positive_number("1") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kind", "--wigth", "3"], "there is no option --wigth; did you mean --width?"),
        (["--wigth=3"], "there is no option --wigth; did you mean --width?"),
        (["kind", "--hieght=3"], "there is no option --hieght; did you mean --height?"),
        (["kind", "--wider"], "there is no option --wider; did you mean --width?"),
        (["--xyz"], "there is no option --xyz"),
        (["--helq"], "there is no option --helq; did you mean --help?"),
        (["--hloc"], "there is no option --hloc"),  # a third of its letters are of --help
        (["--width", "x"], "argument --width: invalid int value: 'x'"),
        (["kind", "a", "b"], "unexpected argument 'b': values of one option must follow each other, after its name"),
        (["kin"], "argument KIND: invalid choice: 'kin' (choose from 'kind', 'other')"),
    ],
)
def test_wrong_usage_is_answered_in_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--width", type=int)
        parser.add_argument("--wigths", help=argparse.SUPPRESS)
        kinds = parser.add_subparsers(dest="kind", metavar="KIND")
        kind = kinds.add_parser("kind", allow_abbrev=False)
        kind.add_argument("--height", type=int)
        kind.add_argument("name", nargs="?")
        kinds.add_parser("other", allow_abbrev=False).add_argument("--hieghts")

    module = ModuleType("wrong_usage")
    module.configure, module.run = configure, lambda args: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wrong_usage", module)
    with pytest.raises(SystemExit) as stop:
        run_module("test it", "wrong_usage", "", words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: python -m test it: {message}\n"


def test_words_that_are_not_utf8_are_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module("test it", "no_such_module", "", ["--out", os.fsdecode(b"/d/Fa\xe7ade.png")]) == 2
    assert capsys.readouterr().err.startswith("error: the name /d/Fa\\xe7ade.png is not UTF-8: rename it")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "new"
    for make in (atomic_path, atomic_dir):
        with pytest.raises(OSError, match=rf"cannot write {place}: .*; choose another place"), make(place):
            pass

    def command() -> None:
        raise OSError(errno.EACCES, "Permission denied", "/some/place")

    assert run_command(command) == 1
    assert capsys.readouterr().err == "error: cannot read or write /some/place: Permission denied\n"


def test_times_are_told_in_their_two_largest_units() -> None:
    seconds = (0.4, 59.4, 59.6, 3569, 3570, 3600 * 3 + 60 * 20, 86340, 86400, 86400 * 4 + 3600 * 16 + 900)
    texts = ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "3 h 20 min", "23 h 59 min", "1 d 0 h", "4 d 16 h"]
    assert list(map(duration, seconds)) == texts


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch("test", "", {"it": ("no_such_module", "")}, {"": ["it"]}, ["--version"]) == 0
    module = ModuleType("versioned")
    module.configure, module.run = lambda parser: None, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "versioned", module)
    with pytest.raises(SystemExit) as stop:
        run_module("test it", "versioned", "", ["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"{__version__}\n{__version__}\n")


def test_progress_counts_on_from_what_was_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shell, "PLAIN_PROGRESS_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(progress(range(2), 5, "training", "step", done=3)) == [0, 1]
    assert [" ".join(line.split()[:3]) for line in caplog.messages] == ["training: 4/5 step,", "training: 5/5 step,"]


def test_progress_beyond_its_total_tells_no_total(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shell, "PLAIN_PROGRESS_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(progress(range(3), 2, "register", "image")) == [0, 1, 2]
    assert "left" in caplog.messages[1]
    assert caplog.messages[2].startswith("register: 3 image, ")
    assert "left" not in caplog.messages[2]


PROGRAM = """
import os, signal, sys, tempfile, time
from common.colmap import load_pycolmap
from kornia_hardnet8.command import run_command
from kornia_hardnet8.files import atomic_path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job begins without
def command():
    if sys.argv[2] == "colmap":
        load_pycolmap()
    with atomic_path(sys.argv[1]):
        try:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
            time.sleep(600)
        finally:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))  # the impatient send it again
sys.exit(run_command(command))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize(
    ("library", "number", "code", "line"),
    [
        ("none", "SIGTERM", 143, "error: stopped by SIGTERM\n"),
        ("colmap", "SIGTERM", 143, "error: stopped by SIGTERM\n"),  # which answers it itself otherwise
        ("none", "SIGINT", 130, "error: interrupted\n"),
    ],
)
def test_signals_end_a_command_in_one_line_and_leave_nothing(
    library: str, number: str, code: int, line: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "file"), library, number]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
def test_an_output_that_is_no_file_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(args: argparse.Namespace) -> None:
        raise AssertionError("the work was begun")

    module = ModuleType("with_output")
    module.configure = lambda parser: parser.add_argument("--out", type=output_file)  # type: ignore[attr-defined]
    module.run = work  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "with_output", module)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("link")
    for name, reason in (
        ("pipe", "is a device, pipe or socket, a file is needed: choose another place"),
        ("link", "is a link that leads back to itself: remove it or choose another place"),
        ("", "is a folder, a file is needed: choose another place"),
    ):
        place = tmp_path / name
        with pytest.raises(SystemExit) as stop:
            run_module("test it", "with_output", "", ["--out", str(place)])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: python -m test it: argument --out: {place} {reason}\n"
