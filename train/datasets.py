"""From a data set string to opened patch stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kornia_hardnet8.errors import MissingFileError, UsageError, closest
from train.stores.store import PatchStore


@dataclass(frozen=True)
class MixItem:
    """One term of a data set string."""

    token: str
    weight: float


def parse_mix(text: str) -> list[MixItem]:
    """Parse ``token[*weight][+token[*weight]…]``.

    Raises:
        UsageError: an empty term or a weight that is no positive number.
    """
    items = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*([^*]+?)\s*(?:\*\s*([0-9.]+)\s*)?", term)
        if match is None:
            raise UsageError(f"data set string {text!r}: {term!r} is not of the form token or token*weight")
        try:
            weight = float(match.group(2) or 1.0)
        except ValueError:
            weight = 0.0
        if weight <= 0.0:
            raise UsageError(f"data set string {text!r}: the weight of {match.group(1)} must be a positive number")
        items.append(MixItem(match.group(1), weight))
    return items


def open_mix(text: str, data_root: str | Path) -> list[tuple[PatchStore, float]]:
    """Open every store of a data set string, with its weight.

    Raises:
        MissingFileError: a token that is neither a path nor a folder below ``data_root``.
    """
    return [(PatchStore.open(find_store(item.token, Path(data_root))), item.weight) for item in parse_mix(text)]


def find_store(token: str, data_root: Path) -> Path:
    """The folder of a token: a path as it is, else a folder below ``data_root``."""
    for folder in (Path(token), data_root / token):
        if folder.is_dir():
            return folder
    known = [path.name for path in data_root.iterdir() if path.is_dir()] if data_root.is_dir() else []
    raise MissingFileError(
        f"data set {token!r}: no patch store at {token} or {data_root / token}{closest(token, known)}"
    )
