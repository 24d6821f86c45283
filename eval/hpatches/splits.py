"""The sequences of HPatches that are there, and the official lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from common.hpatches import find_strips
from kornia_hardnet8.errors import DataError, UsageError, closest

SPLITS = ("a", "b", "c", "illum", "view", "full")


@dataclass(frozen=True)
class Split:
    """The sequences of one split that a data set holds, in the official order (random draws index into it).

    Attributes:
        name: a, b, c, illum, view or full.
        test: sequences to judge on.
        train: sequences to fit a normalisation on; empty for illum, view and full.
        missing: official test sequences that are not there.
        extra: sequences in ``test`` that the official set does not know.
    """

    name: str
    test: tuple[str, ...]
    train: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def is_official(self) -> bool:
        """All official sequences are there and no others."""
        return not self.missing and not self.extra


@cache
def _stored() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files("eval.hpatches") / "splits.json").read_text(encoding="utf-8"))
    return content


def official_test(split: str) -> list[str]:
    """The official test list of a split, in its order."""
    if split not in SPLITS:
        raise UsageError(f"HPatches has no split {split!r}{closest(split, SPLITS)} (one of {', '.join(SPLITS)})")
    names: list[str] = _stored()[split]["test"]
    return names


def find_sequences(root: str | Path) -> dict[str, Path]:
    """Folders of strips below ``root``, or below its ``hpatches-release``; see :func:`common.hpatches.find_strips`.

    Raises:
        MissingFileError: ``root`` is not a folder.
        DataError: no sequence in it.
    """
    sequences = find_strips(root)
    if sequences:
        return sequences
    root = Path(root)
    inner = root / "hpatches-release"
    if inner.is_dir():
        return find_sequences(inner)
    hint = next((closest(path.name, official_test("full")) for path in root.iterdir() if path.is_dir()), "")
    raise DataError(f"{root} holds no folder with strips (ref.png, e1.png … t5.png){hint}")


def choose(split: str, present: Iterable[str]) -> Split:
    """The part of a split that ``present`` sequences offer.

    ``full`` takes every sequence that is there, ``illum`` and ``view`` also unofficial ones with their prefix, each
    after the official ones, by name; a, b and c hold official sequences only.

    Raises:
        DataError: no sequence of the split is there.
    """
    official = official_test(split)
    there = set(present)
    test = [name for name in official if name in there]
    prefix = {"illum": "i_", "view": "v_", "full": ""}.get(split)
    extra = [] if prefix is None else sorted(n for n in there - set(official) if n.startswith(prefix))
    if not test and not extra:
        shown = ", ".join(sorted(there)[:5]) + (", …" if len(there) > 5 else "")
        raise DataError(f"no sequence of split {split} is there (found: {shown or 'none'})")
    train = [name for name in _stored()[split].get("train", []) if name in there]
    missing = [name for name in official if name not in there]
    return Split(split, tuple(test + extra), tuple(train), tuple(missing), tuple(extra))


def official_patch_count(sequence: str) -> tuple[int, int] | None:
    """(smallest, largest) number of patches that the released sequence may have; None for unknown sequences."""
    bounds = _stored()["patch_counts"].get(sequence)
    return None if bounds is None else (bounds[0], bounds[1])


def excluded_large() -> list[str]:
    """The 8 full-image sequences that the matching protocols leave out for their size."""
    names: list[str] = _stored()["d2net_excluded"]
    return names
