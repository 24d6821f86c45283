"""Results of stages and data of the programs' own on disk, found again by all that influences them.

A result lies in ``<root>/<stage>/<key>.h5``; the key is a short hash of the canonical JSON of its configuration, which
is stored inside and compared when read. Files appear by renaming, so a killed process leaves no half result and
several processes may share one folder.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.h5files import Arrays, read_h5, write_h5
from kornia_hardnet8.errors import DataError

# Raised when the code of a stage changes what it stores.
FORMAT = "cache/2"
_KEY_LENGTH = 16
_CONFIGURATION, _DIGEST = "configuration", "sha256"


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _Entry(NamedTuple):
    """One result: its key, its file, and the text that the file must hold as its configuration."""

    key: str
    path: Path
    text: str


class Cache:
    """A folder of stage results.

    Args:
        root: the folder; made when the first result is stored. None: nothing is kept.
    """

    def __init__(self, root: Path | None) -> None:
        self._keeps = root is not None
        self.root = Path(root or os.devnull)

    def key(self, stage: str, configuration: Mapping[str, Any]) -> str:
        """Short hash of a stage and everything that influences its result."""
        return self._entry(stage, configuration).key

    def path(self, stage: str, configuration: Mapping[str, Any]) -> Path:
        """Where the result of a stage lies."""
        return self._entry(stage, configuration).path

    def get(self, stage: str, configuration: Mapping[str, Any]) -> Arrays | None:
        """The stored arrays, or None.

        Raises:
            DataError: a damaged file, or one made with another configuration.
        """
        return self._read(self._entry(stage, configuration))

    def put(self, stage: str, configuration: Mapping[str, Any], arrays: Arrays) -> None:
        """Store the arrays of a stage."""
        self._write(self._entry(stage, configuration), arrays)

    def compute(self, stage: str, configuration: Mapping[str, Any], make: Callable[[], Arrays]) -> tuple[str, Arrays]:
        """The key and the stored arrays; when there are none, those of ``make``, stored."""
        entry = self._entry(stage, configuration)
        arrays = self._read(entry)
        if arrays is None:
            arrays = make()
            self._write(entry, arrays)
        return entry.key, arrays

    def _entry(self, stage: str, configuration: Mapping[str, Any]) -> _Entry:
        text = canonical_json({"format": FORMAT, "stage": stage, **configuration})
        key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
        return _Entry(key, self.root / stage / f"{key}.h5", text)

    def _read(self, entry: _Entry) -> Arrays | None:
        if not self._keeps or not entry.path.is_file():
            return None
        try:
            arrays, attributes = read_h5(entry.path)
        except DataError as error:
            raise DataError(f"{error}; remove it and it is computed again") from None
        if attributes.get(_CONFIGURATION) != entry.text:
            raise DataError(f"{entry.path} was made with another configuration: remove it or choose another --cache")
        if attributes.get(_DIGEST) != _digest(arrays):
            raise DataError(f"{entry.path} is damaged; remove it and it is computed again")
        return arrays

    def _write(self, entry: _Entry, arrays: Arrays) -> None:
        if self._keeps:
            write_h5(entry.path, arrays, {_CONFIGURATION: entry.text, _DIGEST: _digest(arrays)})


def _digest(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


_ROOT = Path(__file__).parents[1]


def demo_folder(name: str, made_by: str, within: Sequence[str], build: Callable[[Path], object]) -> Path:
    """The folder of some data, built when it is missing; processes that need it at the same time share it.

    It lies in ``$XDG_CACHE_HOME`` (default ``~/.cache``), under a name that changes with the code that makes it.

    Args:
        name: of the data; what follows a ``/`` is a folder inside the one whose name changes.
        made_by: the module that makes it.
        within: packages whose modules count, as far as ``made_by`` imports them, see :func:`code_hash`.
        build: makes the folder, which is not there; whole or not at all.
    """
    first, _, inner = name.partition("/")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kornia-hardnet8"
    folder = root / f"{first}-{code_hash(made_by, within)}" / inner
    if folder.is_dir():
        return folder
    try:
        build(folder)
    except (DataError, OSError):
        if not folder.is_dir():  # else another process was faster
            raise
    return folder


def code_hash(module: str, within: Sequence[str]) -> str:
    """Short hash of the source of a module and of those that it imports, directly or not, out of some packages."""
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name in sources or not path.is_file():
            continue
        sources[name] = path.read_bytes()
        waiting += [other for other in _imports(sources[name]) if other.startswith(tuple(f"{p}." for p in within))]
    return hashlib.sha256(b"".join(sources[name] for name in sorted(sources))).hexdigest()[:12]


def _imports(source: bytes) -> Iterator[str]:
    """Dotted names that a source imports anywhere, modules and what is taken out of them alike."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
