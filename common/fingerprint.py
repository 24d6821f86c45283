"""One hash for a set of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kornia_hardnet8.files import sha256_file


def fingerprint(paths: Iterable[Path]) -> str:
    """Hex SHA-256 over folder name, file name and content of each file; the order of ``paths`` has no part in it."""
    entries = sorted(f"{p.resolve().parent.name}/{p.name} {sha256_file(p)}" for p in paths)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()
