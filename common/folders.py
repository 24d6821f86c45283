"""Folders that one process at a time writes to, bit by bit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import naming, sha256_file

# What `atomic_path` and `atomic_dir` name their files until they are whole, and what SQLite lays beside those.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(-journal|-wal|-shm)?")

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, made where needed, until the block ends; temporary files that were left behind go.

    The lock is on the folder itself and ends with the process. File systems without locks are taken without one.

    Raises:
        DataError: another process holds it.
    """
    is_new = not folder.exists()
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    is_locked = False
    try:
        try:
            is_locked = handle is not None and _lock(handle, folder)
        except DataError:
            is_new = False  # who holds it was faster
            raise
        if is_locked:
            _sweep(folder)
        yield
    finally:
        if is_locked and folder.is_dir():  # else it has got its final name
            _sweep(folder)
        if handle is not None:
            os.close(handle)
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _lock(handle: int, folder: Path) -> bool:
    """Whether the folder is locked; its file system may know no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{folder} is being written by another process: choose another place") from None
    except OSError:
        return False
    return True


def _sweep(folder: Path) -> None:
    """Remove the temporary files and folders of ``kornia_hardnet8.files``, with what SQLite lays beside them."""
    for path in filter(lambda path: _TEMPORARY.fullmatch(path.name), folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fingerprint(paths: Iterable[Path]) -> str:
    """Hex SHA-256 over folder name, file name and content of each file; the order of ``paths`` has no part in it."""
    entries = sorted(f"{p.resolve().parent.name}/{p.name} {sha256_file(p)}" for p in paths)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()
