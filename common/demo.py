"""Data that the programs make for themselves when they are first asked for it."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kornia_hardnet8.errors import DataError

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
