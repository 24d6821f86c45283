"""Writing patch stores: whole or not at all, in bounded memory, and going on where an interrupted build ended."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.folders import claimed
from common.patchstore import FORMAT, ROW_ARRAYS
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import (
    atomic_dir,
    atomic_path,
    check_text,
    full_disk_names,
    parse_json,
    refuse_filled,
    resolved,
    sha256_file,
    write_json,
)

log = logging.getLogger(__name__)
_JOURNAL = "journal.jsonl"
_Line = dict[str, Any]  # of the journal: patches so far, names of the row arrays, record of the item


@dataclass(frozen=True)
class Built:
    """Counts of a finished build: patches, labels, and what its source consists of by name (``{"images": 3}``)."""

    patches: int
    labels: int
    source: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = {"patches": self.patches, "labels": self.labels, **self.source}
        return ", ".join(f"{count} {name}" for name, count in counts.items())


class StoreWriter:
    """Appends rows to a store under construction; use it through :func:`create_store`.

    Attributes:
        meta: to be set before the end: ``crop``, ``mr_size``, and what else ``meta.json`` shall tell.
        records: what :meth:`commit` was given so far, by this process or by an interrupted one before it.
        count: patches so far.
    """

    def __init__(
        self, folder: Path, patch_size: int, channels: int = 1, key: str | None = None, lines: Sequence[_Line] = ()
    ) -> None:
        """Of a build without a ``key``, or of one with a journal, to go on after ``lines`` of it."""
        self.meta: dict[str, Any] = {}
        self.records: list[dict[str, Any]] = [line["record"] for line in lines]
        self.count: int = lines[-1]["count"] if lines else 0
        self._folder = folder
        self._trailing = (patch_size, patch_size) if channels == 1 else (patch_size, patch_size, channels)
        self._patches = _GrowingArray(folder / "patches.npy", "uint8", self._trailing, self.count)
        self._rows: dict[str, _GrowingArray] = {}
        for name in lines[-1]["rows"] if lines else ():
            self._row_array(name)
        self._extra: dict[str, Any] = {}
        self._journal: IO[str] | None = None
        if key is not None:
            text = "".join(json.dumps(line) + "\n" for line in ({"key": key}, *lines))
            with atomic_path(folder / _JOURNAL) as temporary:
                temporary.write_text(text, encoding="utf-8")
            self._journal = open(folder / _JOURNAL, "a", encoding="utf-8")  # noqa: SIM115  (closed by _close)

    def append(self, patches: np.ndarray, **rows: np.ndarray) -> None:
        """Add n patches uint8 (n, S, S[, 3]) with their ``labels``, ``image_ids``, ``cam_ids``, ``frames``, ... ."""
        count = len(patches)
        if patches.dtype != np.uint8 or patches.shape[1:] != self._trailing:
            raise DataError(f"store: patches must be uint8 (n, {self._trailing}), got {patches.dtype} {patches.shape}")
        if self.count and set(rows) != set(self._rows):
            raise DataError(f"store: rows {sorted(rows)} differ from the first ones {sorted(self._rows)}")
        for name, values in rows.items():
            _, trailing, _ = ROW_ARRAYS[name]
            if np.shape(values) != (count, *trailing):
                raise DataError(f"store: {name} must have shape {(count, *trailing)}, got {np.shape(values)}")
        for name, values in rows.items():
            self._row_array(name).append(np.asarray(values))
        self._patches.append(patches)
        self.count += count

    def commit(self, record: dict[str, Any]) -> None:
        """Tell that an item is complete: an interrupted build goes on after the last one. ``record`` is JSON."""
        self.records.append(record)
        if self._journal is None:
            return
        for array in (self._patches, *self._rows.values()):
            array.flush()
        line = {"count": self.count, "rows": sorted(self._rows), "record": record}
        self._journal.write(json.dumps(line, allow_nan=False) + "\n")
        self._journal.flush()

    def set_pairs(self, pairs: np.ndarray) -> None:
        """Set the test pairs, int64 (M, 3)."""
        self._extra["pairs"] = np.asarray(pairs, dtype=np.int64).reshape(-1, 3)

    def set_collisions(self, starts: np.ndarray, items: np.ndarray) -> None:
        """Set the labels that must not be negatives of each label (see :class:`PatchStore`)."""
        self._extra["collisions"] = (np.asarray(starts, dtype=np.int64), np.asarray(items, dtype=np.int64))

    def _row_array(self, name: str) -> _GrowingArray:
        if name not in self._rows:
            dtype, trailing, _ = ROW_ARRAYS[name]
            self._rows[name] = _GrowingArray(self._folder / f"{name}.npy", dtype, trailing, self.count)
        return self._rows[name]

    def _close(self) -> None:
        for file in (self._patches, *self._rows.values(), self._journal):
            if file is not None:
                file.close()

    def _finish(self) -> None:
        for name, (_, _, needed) in ROW_ARRAYS.items():
            if needed:
                self._row_array(name)
        self._close()
        (self._folder / _JOURNAL).unlink(missing_ok=True)
        arrays = {"patches": {"dtype": "uint8", "shape": [self.count, *self._trailing]}}
        for name in (name for name in ROW_ARRAYS if name in self._rows):
            dtype, trailing, _ = ROW_ARRAYS[name]
            arrays[name] = {"dtype": dtype, "shape": [self.count, *trailing]}
        if "pairs" in self._extra:
            np.save(self._folder / "pairs.npy", self._extra["pairs"])
            arrays["pairs"] = {"dtype": "int64", "shape": list(self._extra["pairs"].shape)}
        if "collisions" in self._extra:
            starts, items = self._extra["collisions"]
            np.savez(self._folder / "collisions.npz", starts=starts, items=items)
            arrays["collisions"] = {"dtype": "int64", "shape": [len(starts), len(items)]}
        meta = {
            "format": FORMAT,
            "kind": "tuples",
            "count": self.count,
            "num_labels": len(np.unique(np.load(self._folder / "labels.npy"))),
            "patch_size": self._trailing[0],
            **self.meta,
            "version": _version(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "arrays": arrays,
        }
        write_json(self._folder / "meta.json", meta)


@contextlib.contextmanager
def create_store(path: str | Path, patch_size: int, channels: int = 1, key: Any = None) -> Iterator[StoreWriter]:
    """Build a store at ``path``: it appears when the block ends without an error, and not at all otherwise.

    ``writer.meta`` needs ``crop`` and ``mr_size``; ``kind`` is ``"tuples"`` unless set.

    Args:
        path: the store.
        patch_size: side of a stored patch in pixels.
        channels: 1 or 3.
        key: JSON value of everything that decides the content (settings; names, sizes and times of the sources). With
            one, a build that is interrupted (Ctrl-C, a kill) leaves the folder ``.<name>.building`` beside ``path``.
            The next one of the same key finds its ``writer.records`` there and goes on after them, one of another key
            starts over. Any other error removes the folder.

    Raises:
        DataError: something is at ``path`` already, or another process is building it.
    """
    path = Path(path)
    if key is None:
        with atomic_dir(path) as folder:
            writer = StoreWriter(folder, patch_size, channels)
            try:
                yield writer
            finally:
                writer._close()
            writer._finish()
        return
    refuse_filled(path)
    target = resolved(path)  # a link stays a link
    folder = target.with_name(f".{target.name}.building")
    with claimed(folder), full_disk_names(path, folder):
        text = json.dumps([_version(), patch_size, channels, key], sort_keys=True)
        lines = _read_journal(folder, text)
        writer = StoreWriter(folder, patch_size, channels, text, lines)
        if lines:
            log.info("%s: going on after %d of the items, which an interrupted build left", path, len(lines))
        try:
            yield writer
            writer._finish()
            refuse_filled(path)
            if target.is_dir():
                target.rmdir()
            folder.replace(target)
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk: what is in memory stays there
                writer._close()
            if isinstance(error, Exception):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                log.warning("%s: interrupted; the same command goes on from here", path)
            raise


def source_hashes(paths: Iterable[Path], root: Path) -> list[dict[str, str]]:
    """Names below ``root`` and SHA-256 of files, for ``meta["sources"]``."""
    return [{"name": path.relative_to(root).as_posix(), "sha256": sha256_file(path)} for path in paths]


def source_key(paths: Iterable[Path]) -> list[list[Any]]:
    """Names, sizes and times of files, for the ``key`` of :func:`create_store`."""
    files = []
    for path in paths:
        about = path.stat()
        files.append([str(path), about.st_size, about.st_mtime_ns])
    return files


def _read_journal(folder: Path, key: str) -> list[_Line]:
    """Lines of the journal of an interrupted build of this key."""
    try:
        check_text(folder / _JOURNAL)
        text = (folder / _JOURNAL).read_text(encoding="utf-8", errors="replace")
    except (OSError, DataError):
        return []
    lines: list[_Line] = []
    for number, line in enumerate(text.splitlines()):
        try:
            content = parse_json(line)
        except DataError:
            break  # the line that a killed process was writing
        if number == 0 and content != {"key": key}:
            return []
        if number and not _is_line(content):
            return []
        if number:
            lines.append(content)
    return lines


def _is_line(content: Any) -> bool:
    """Whether a line of a journal is one that :meth:`StoreWriter.commit` writes."""
    return (
        isinstance(content, dict)
        and content.keys() == {"count", "rows", "record"}
        and isinstance(content["count"], int)
        and content["count"] >= 0
        and isinstance(content["rows"], list)
        and set(map(str, content["rows"])) <= ROW_ARRAYS.keys()
    )


class _GrowingArray:
    """An ``.npy`` file that grows along its first axis: the header is written again, in place, at the end.

    ``count`` rows that the file holds already are kept.
    """

    def __init__(self, path: Path, dtype: str, trailing: tuple[int, ...], count: int = 0) -> None:
        self._file: IO[bytes] = open(path, "r+b" if count else "w+b")  # noqa: SIM115  (closed by close())
        self._dtype, self._trailing, self._count = np.dtype(dtype), trailing, count
        there = path.stat().st_size
        self._write_header()
        end = self._file.tell() + count * int(np.prod(trailing)) * self._dtype.itemsize
        if count and there < end:
            raise DataError(f"{path} is shorter than the journal beside it says: remove {path.parent} to start over")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._count += len(rows)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._trailing),
        }
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for any first axis


def _version() -> str:
    try:
        return importlib.metadata.version("kornia-hardnet8")
    except importlib.metadata.PackageNotFoundError:
        return "source"
