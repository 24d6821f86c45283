"""The patch strips of HPatches: one column of 65 x 65 patches a file, sixteen files a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.images import folders_in, image_size, read_luma
from kornia_hardnet8.errors import DataError, MissingFileError, need
from kornia_hardnet8.files import atomic_path

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
    """Folders below ``root`` that hold a strip, by name in order; ``root`` itself may be one.

    A folder with some strip but no ``ref.png`` is a damaged sequence: reading it will say so.

    Raises:
        MissingFileError: ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of HPatches sequences")
    if (root / "ref.png").is_file():
        return {root.resolve().name: root}
    return {path.name: path for path in folders_in(root) if any((path / f"{name}.png").is_file() for name in TYPES)}


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
