from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import (
    atomic_dir,
    atomic_path,
    check_output,
    parse_json,
    read_json,
    read_text,
    write_bytes,
    write_json,
)


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text("old")
    (tmp_path / "file").symlink_to(tmp_path / "real" / "a.json")
    (tmp_path / "ahead").symlink_to(tmp_path / "real" / "b.json")
    (tmp_path / "folder").symlink_to(tmp_path / "real" / "empty")
    (tmp_path / "real" / "empty").mkdir()
    write_json(tmp_path / "file", 1)
    write_json(tmp_path / "ahead", 2)
    with atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("3")
    assert all((tmp_path / name).is_symlink() for name in ("file", "ahead", "folder"))
    assert (tmp_path / "real" / "a.json").read_text() == "1\n"
    assert (tmp_path / "real" / "b.json").read_text() == "2\n"
    assert (tmp_path / "real" / "empty" / "x").read_text() == "3"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.json", "ahead", "b.json", "empty", "file", "folder", "real", "x",
    ]  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of Unix")
def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull), tmp_path):
        with pytest.raises(DataError, match=f"{path} is there and is not a file"), atomic_path(path):
            pytest.fail("the work was begun")
    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        for is_folder in (False, True):
            with pytest.raises(UsageError, match=f"{path} is a device, pipe or socket, a .* is needed"):
                check_output(path, is_folder)
        with pytest.raises(DataError, match="exists already"), atomic_dir(path):
            pytest.fail("the work was begun")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"cannot write .*: {tmp_path / 'file'} is no folder"):
        check_output(tmp_path / "file" / "a" / "b", is_folder=True)
    with pytest.raises(UsageError, match="file is a file, a folder is needed"):
        check_output(tmp_path / "file", is_folder=True)
    with pytest.raises(UsageError, match=f"{tmp_path} is a folder, a file is needed"):
        check_output(tmp_path, is_folder=False)
    for path, is_folder in ((tmp_path, True), (tmp_path / "file", False), (tmp_path / "new" / "deep", True)):
        check_output(path, is_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_an_error_of_a_file_in_a_folder_names_the_folder_that_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised, atomic_dir(tmp_path / "a") as temporary:
        raise DataError(f"cannot write {temporary / 'b.png'}: No space left on device")
    assert str(raised.value) == f"cannot write {tmp_path / 'a' / 'b.png'}: No space left on device"


def test_a_folder_that_another_process_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"), atomic_dir(tmp_path / "a") as temporary:
        (temporary / "mine").touch()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "theirs"]


FULL = """
import resource, shutil, sys
from pathlib import Path
from kornia_hardnet8.command import run_command
from kornia_hardnet8.files import atomic_dir, atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
def file():
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes(2000))
def folder():
    with atomic_dir(sys.argv[1]) as temporary:
        (temporary / "deep").write_bytes(bytes(2000))
def copy():
    with atomic_dir(sys.argv[1]) as temporary:
        shutil.copy2(sys.executable, temporary / "deep")
sys.exit(run_command({"file": file, "folder": folder, "copy": copy}[sys.argv[2]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("kind", ["file", "folder", "copy"])
def test_when_there_is_no_room_the_path_is_named_and_nothing_stays(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "weights"
    done = subprocess.run([sys.executable, "-c", FULL, str(place), kind], capture_output=True, text=True, check=False)
    assert done.stderr == f"error: cannot write {place}: File too large\n"
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_itself_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for ask in (
        lambda path: check_output(path, True),
        lambda path: write_json(path, 1),
        lambda path: atomic_dir(path).__enter__(),
    ):
        with pytest.raises(DataError, match="a link that leads back to itself"):
            ask(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_threads_that_write_leave_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.umask

    def slow(mask: int) -> int:
        before = real(mask)
        time.sleep(0.005)
        return before

    before = real(0o027)
    try:
        with monkeypatch.context() as patched, ThreadPoolExecutor(8) as pool:
            patched.setattr(os, "umask", slow)
            list(pool.map(lambda k: write_bytes(tmp_path / f"{k}", b""), range(40)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert real(0o027) == 0o027
    finally:
        real(before)


def test_text_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffä\n".encode())
    assert read_text(path) == "ä\n"
    path.write_bytes(b"\xe4\n")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text"):
        read_text(path)
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"
    os.truncate(path, (1 << 30) + 1)
    for read in (read_text, read_json):
        with pytest.raises(DataError, match=r"a\.txt is larger than any text file"):
            read(path)
    with pytest.raises(MissingFileError, match="nowhere is not there"):
        read_text(tmp_path / "nowhere")


def test_numbers_of_json_are_those_that_can_be_computed_with() -> None:
    assert parse_json('{"a": 18446744073709551615, "b": -1e300}') == {"a": 2**64 - 1, "b": -1e300}
    for text in ("1" * 400, "-1e999", "NaN", "[" * 100_000):
        with pytest.raises(DataError):
            parse_json(text)
