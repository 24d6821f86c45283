"""Opening a zip that a stranger made: nothing leaves its folder, nothing fills the disk."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from kornia_hardnet8.errors import DataError, MissingFileError

MAX_TOTAL_BYTES = 64 << 30
MAX_ENTRIES = 10_000
# A file beyond this size that is packed this tightly is a bomb: descriptors of real images hardly shrink.
_BOMB_BYTES = 64 << 20
_BOMB_RATIO = 200
_COPY_BYTES = 1 << 20
# What packers of file managers leave behind; nobody reads it.
_IGNORED = ("__MACOSX/", ".DS_Store", "Thumbs.db")


@contextmanager
def open_submission(path: Path, max_total_bytes: int = MAX_TOTAL_BYTES) -> Iterator[Path]:
    """The folder of a submission: itself, or the unpacked zip, which is removed afterwards.

    Raises:
        MissingFileError: no such file.
        DataError: not a zip, damaged, encrypted, too large, tightly packed as bombs are, or with a path that leaves
            its folder, a link, a special file or one name twice. Nothing has been unpacked then.
    """
    path = Path(path)
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    with tempfile.TemporaryDirectory(prefix="imw-submission-") as folder:
        unpack(path, Path(folder), max_total_bytes)
        yield Path(folder)


def unpack(path: Path, folder: Path, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
    """Unpack a zip into a folder; see :func:`open_submission`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = checked_entries(path, archive, max_total_bytes)
            needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
            if needed > free:
                raise DataError(f"{path} unpacks to {_gb(needed)}, {folder} has {_gb(free)} free: set TMPDIR")
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as file:
                    _copy(source, file, entry.file_size, f"{path}: {entry.filename}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or no zip file: {' '.join(str(error).split())}") from None


def checked_entries(path: Path, archive: zipfile.ZipFile, max_total_bytes: int) -> list[zipfile.ZipInfo]:
    """The files of a zip that may be unpacked."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise DataError(f"{path} holds {len(infos)} entries, at most {MAX_ENTRIES} are taken")
    seen: set[str] = set()
    entries = []
    for info in infos:
        name = info.filename
        where = f"{path}: {name!r}"
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or not pure.parts:
            raise DataError(f"{where} is no path inside the zip's folder")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{where} is a link or a special file")
        if info.is_dir() or any(ignored in name for ignored in _IGNORED):
            continue
        if info.flag_bits & 1:
            raise DataError(f"{where} is encrypted")
        if name.lower() in seen:
            raise DataError(f"{where} stands twice in it (upper and lower case count as one)")
        if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * max(info.compress_size, 1):
            raise DataError(f"{where} unpacks {info.compress_size} bytes to {_gb(info.file_size)}: refused as a bomb")
        seen.add(name.lower())
        entries.append(info)
    total = sum(info.file_size for info in entries)
    if total > max_total_bytes:
        raise DataError(f"{path} unpacks to {_gb(total)}, at most {_gb(max_total_bytes)} are taken")
    return entries


def _copy(source: IO[bytes], target: IO[bytes], declared: int, where: str) -> None:
    """Copy, and never more than the size that the directory of the zip declares."""
    done = 0
    while block := source.read(_COPY_BYTES):
        done += len(block)
        if done > declared:
            raise DataError(f"{where} unpacks to more than the {declared} bytes that it declares")
        target.write(block)


def _gb(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
