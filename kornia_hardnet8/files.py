"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kornia_hardnet8.errors import DataError, MissingFileError, UsageError

# What a full disk, a quota and a limit of the size of files answer.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The umask is read by setting it, and threads share it.
_LOOKING = threading.Lock()

# What to do about a name in another encoding.
RENAME = "rename it, as by `convmv -f latin1 -t utf8 -r --notest FOLDER`"


def is_utf8(name: str) -> bool:
    """Whether a name as Python gives it stands for UTF-8: other bytes become lone surrogates, which no file holds."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_name(name: str) -> str:
    """A name to print: in place of bytes that are not UTF-8 their numbers (``x`` and two digits after a backslash)."""
    return os.fsencode(name).decode(errors="backslashreplace")


def check_words(words: Iterable[str]) -> None:
    """Refuse words of a command line that are not UTF-8 before the work: results could not be written of them.

    Raises:
        UsageError: the first one, and what to do.
    """
    for word in words:
        if not is_utf8(word):
            raise UsageError(f"the name {shown_name(word)} is not UTF-8: {RENAME}")


def check_output(path: str | Path, is_folder: bool) -> None:
    """Refuse a place where a file, or a folder, cannot be written: to be asked before the work, not after it.

    Raises:
        DataError: a link that leads back to itself.
        UsageError: something else is there, something above it is no folder, or it may not be written.
    """
    target = resolved(path)
    if target.exists() and not (target.is_dir() if is_folder else target.is_file()):
        there = "folder" if target.is_dir() else "file" if target.is_file() else "device, pipe or socket"
        raise UsageError(f"{path} is a {there}, a {'folder' if is_folder else 'file'} is needed: choose another place")
    above = next(parent for parent in (target, *target.parents) if parent.exists())
    if not os.access(above, os.W_OK) or (above != target and not above.is_dir()):
        reason = f"{above} may not be written to" if above.is_dir() or above == target else f"{above} is no folder"
        raise UsageError(f"cannot write {path}: {reason}; choose another place")


def resolved(path: str | Path) -> Path:
    """What a path stands for when links are followed."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise DataError(f"{path} is a link that leads back to itself: remove it or choose another place")
    return target


_MOST_TEXT_BYTES = 1 << 30
_MOST_DIGITS = 100  # of a whole number in it: all that are computed with fit into a float


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

    On any exception, a full disk included, the temporary file is removed and ``path`` is left as it was. A link stays
    a link: the file that it leads to is written.

    Raises:
        DataError: something that is no file is there, or the disk is full.
    """
    target = resolved(path)
    if target.exists() and not target.is_file():
        raise DataError(f"{path} is there and is not a file: choose another place")
    with naming(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _final_names(path, temporary):
            yield temporary
            _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it is renamed to ``path``, else it is removed.

    Raises:
        DataError: ``path`` is there already, or at the end, and is not an empty folder; or the disk is full.
    """
    target = resolved(path)
    refuse_filled(path)
    with naming(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        with _final_names(path, temporary):
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(Path(folder, name))
                _flush(Path(folder))
        temporary.chmod(0o777 & ~_umask())
        refuse_filled(path)  # another process may have been faster
        if target.is_dir():
            target.rmdir()
        temporary.replace(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_filled(path: str | Path) -> None:
    """Raise a DataError where a folder would go if something is there."""
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{path} exists already: choose another place or remove it")


@contextlib.contextmanager
def _final_names(path: str | Path, temporary: Path) -> Iterator[None]:
    """Errors name what is being made, not what stands for it, which will be gone."""
    try:
        with full_disk_names(path, temporary):
            yield
    except DataError as error:
        if str(temporary) not in str(error):
            raise
        raise DataError(str(error).replace(str(temporary), str(path))) from None


@contextlib.contextmanager
def full_disk_names(path: str | Path, temporary: Path) -> Iterator[None]:
    """An error for want of space names the file that is being made, not what stands for it, nor none."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]  # of a copy, both
        if error.errno not in _FULL or not (not names or any(Path(name).is_relative_to(temporary) for name in names)):
            raise
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _flush(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk; not links, nor folders of Windows."""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(handle)


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


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
    try:
        return parse_json(_text_bytes(path))
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
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_real)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except ValueError as error:  # of the text, its encoding, or a number of thousands of digits
        raise DataError(" ".join(str(error).split())) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is no count")
    return int(digits)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def read_text(path: str | Path) -> str:
    """The content of a text file.

    Raises:
        MissingFileError: it is not there.
        DataError: it is not UTF-8, or larger than 1 GiB.
    """
    path = Path(path)
    try:
        text = _text_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def check_text(path: Path) -> None:
    """To be asked before a text file is read.

    Raises:
        MissingFileError: it is not there.
        DataError: it is larger than 1 GiB.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    if path.stat().st_size > _MOST_TEXT_BYTES:
        raise DataError(f"{path} is larger than any text file of this program: at most 1 GiB is read")


def _text_bytes(path: Path) -> bytes:
    check_text(path)
    return path.read_bytes()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    with _LOOKING:
        mask = os.umask(0)
        os.umask(mask)
    return mask
