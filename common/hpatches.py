"""HPatches: strips (a column of 65 x 65 patches a file, sixteen files a sequence), and the official lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images import folders_in, image_size, read_luma
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest, need
from kornia_hardnet8.files import atomic_path

_LISTS = Path(__file__).with_name("hpatches_splits.json")
SPLITS = ("a", "b", "c", "illum", "view", "full")
PATCH_SIDE = 65
LEVELS = ("e", "h", "t")
LEVEL_NAMES = {"e": "easy", "h": "hard", "t": "tough"}
NUM_TARGETS = 5
TYPES = ("ref", *(f"{level}{k}" for level in LEVELS for k in range(1, NUM_TARGETS + 1)))
LOW_CONTRAST_STD = 10.0  # grey levels; reference patches at or below are no retrieval queries or distractors


def type_index(level: str, image: int) -> int:
    """Row of ``TYPES`` for image 0 (the reference) … 5 of a noise level."""
    return 0 if image == 0 else 1 + LEVELS.index(level) * NUM_TARGETS + image - 1


def find_strips(root: str | Path) -> dict[str, Path]:
    """Folders that hold a strip, by name in order, below ``root`` or its ``hpatches-release``; ``root`` may be one.

    A folder with some strip but no ``ref.png`` is a damaged sequence: reading it will say so.

    Raises:
        MissingFileError: ``root`` is not a folder.
        DataError: no sequence in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of HPatches sequences")
    if (root / "ref.png").is_file():
        return {root.resolve().name: root}
    folders = folders_in(root)
    strips = {path.name: path for path in folders if any((path / f"{name}.png").is_file() for name in TYPES)}
    if strips:
        return strips
    if (root / "hpatches-release").is_dir():
        return find_strips(root / "hpatches-release")
    hint = next((closest(path.name, official_test("full")) for path in folders), "")
    raise DataError(f"{root} holds no folder with strips (ref.png, e1.png … t5.png){hint}")


def count_patches(folder: Path, types: Sequence[str] = TYPES) -> int:
    """Patches in each of the strips ``types`` of a sequence, by their headers.

    Raises:
        MissingFileError: a strip is not there.
        DataError: one is no column of 65 x 65 patches, or they differ in length.
    """
    counts: dict[str, int] = {}
    for name in types:
        path = folder / f"{name}.png"
        if not path.is_file():
            raise MissingFileError(f"{path} is not there: a sequence has the 16 strips ref, e1 … e5, h1 … h5, t1 … t5")
        counts[name] = _count(path)
        if counts[name] != counts[types[0]]:
            raise DataError(f"{path} holds {counts[name]} patches, {types[0]}.png {counts[types[0]]}: they must agree")
    return counts[types[0]]


def read_strip(path: str | Path) -> NDArray[np.uint8]:
    """The patches of one strip, gray (N, 65, 65); colour, alpha and 16 bits are converted.

    Raises:
        MissingFileError: it is not there.
        DataError: it does not decode, or is no column of 65 x 65 patches.
    """
    count = _count(Path(path))
    return read_luma(path).reshape(count, PATCH_SIDE, PATCH_SIDE)


def write_strip(path: str | Path, patches: NDArray[np.uint8]) -> None:
    """Write (N, 65, 65) patches as one column."""
    with atomic_path(path) as temporary:
        need("PIL.Image", "eval,train").fromarray(patches.reshape(-1, PATCH_SIDE)).save(temporary, format="PNG")


def patch_std(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Population standard deviation of each patch in grey levels, (N,)."""
    values: NDArray[np.float64] = patches.reshape(len(patches), -1).astype(np.float64).std(axis=1)
    return values


def _count(path: Path) -> int:
    width, height = image_size(path)
    if width != PATCH_SIDE or height == 0 or height % width:
        raise DataError(
            f"{path} is {width} x {height} pixels, expected a column of {PATCH_SIDE} x {PATCH_SIDE} patches"
        )
    return height // width


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
    content: dict[str, Any] = json.loads(_LISTS.read_text(encoding="utf-8"))
    return content


def official_test(split: str) -> list[str]:
    """The official test list of a split, in its order."""
    if split not in SPLITS:
        raise UsageError(f"HPatches has no split {split!r}{closest(split, SPLITS)} (one of {', '.join(SPLITS)})")
    names: list[str] = _stored()[split]["test"]
    return names


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
