"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kornia_hardnet8.errors import DataError, MissingFileError

_MOST_JSON_BYTES = 1 << 30


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of making room for ``path`` name it, not what stands for it."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; choose another place") from None


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it is flushed and renamed to ``path``.

    On any exception, a full disk included, the temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it is renamed to ``path``, else it is removed.

    Raises:
        DataError: ``path`` is there already and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists already: choose another place or remove it")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all.

    Raises:
        DataError: it cannot be written (a full disk); nothing is left behind.
    """
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write strict JSON (no NaN) to ``path``, whole or not at all."""
    text = json.dumps(value, indent=indent, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        MissingFileError: it is not there.
        DataError: malformed, nested too deeply, larger than 1 GiB, or with numbers that are none or endless.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise DataError(f"{path} is larger than any JSON file of this program")
    try:
        return parse_json(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; see :func:`read_json`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; NaN and infinity, which JSON has not, are refused like any other fault.

    Raises:
        DataError: what is wrong, without the name of a file.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except ValueError as error:  # of the text, its encoding, or a number of thousands of digits
        raise DataError(" ".join(str(error).split())) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
