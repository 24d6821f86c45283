"""Reading and writing the patch strips of HPatches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.hpatches.splits import official_test
from kornia_hardnet8.errors import DataError, MissingFileError, closest
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


def find_sequences(root: str | Path) -> dict[str, Path]:
    """Folders below ``root`` that hold a ``ref.png``, by name; ``root`` itself may be one sequence.

    Raises:
        MissingFileError: ``root`` is not a folder.
        DataError: no sequence in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of HPatches sequences")
    if (root / "ref.png").is_file():
        return {root.resolve().name: root}
    # A folder with some strip but no ref.png is a damaged sequence: reading it will say so.
    found = {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and any((folder / f"{t}.png").is_file() for t in TYPES)
    }
    if not found:
        inner = root / "hpatches-release"
        if inner.is_dir():
            return find_sequences(inner)
        names = [folder.name for folder in root.iterdir() if folder.is_dir()]
        hint = next((closest(name, official_test("full")) for name in names), "")
        raise DataError(f"{root} holds no folder with strips (ref.png, e1.png … t5.png){hint}")
    return found


def count_patches(folder: Path) -> int:
    """Number of patches of a sequence from the headers of its 16 strips, which must agree.

    Raises:
        MissingFileError: a strip is missing.
        DataError: strips of unequal length, or one that is not a column of 65 x 65 gray patches.
    """
    counts = {name: _check_header(folder / f"{name}.png") for name in TYPES}
    for name, count in counts.items():
        if count != counts["ref"]:
            raise DataError(f"{folder / name}.png holds {count} patches, ref.png {counts['ref']}: they must agree")
    return counts["ref"]


def read_strip(path: str | Path) -> NDArray[np.uint8]:
    """The patches of one strip, (N, 65, 65)."""
    path = Path(path)
    count = _check_header(path)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(f"{path} cannot be decoded: {error}") from None
    return pixels.reshape(count, PATCH_SIDE, PATCH_SIDE)


def write_strip(path: str | Path, patches: NDArray[np.uint8]) -> None:
    """Write (N, 65, 65) patches as one column."""
    with atomic_path(path) as temporary:
        Image.fromarray(patches.reshape(-1, PATCH_SIDE)).save(temporary, format="PNG")


def patch_std(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Population standard deviation of each patch in grey levels, (N,)."""
    values: NDArray[np.float64] = patches.reshape(len(patches), -1).astype(np.float64).std(axis=1)
    return values


def _check_header(path: Path) -> int:
    if not path.is_file():
        raise MissingFileError(f"{path} is not there: a sequence has the 16 strips ref, e1 … e5, h1 … h5, t1 … t5")
    try:
        with Image.open(path) as image:
            (width, height), mode = image.size, image.mode
    except OSError:
        raise DataError(f"{path} is not a readable PNG") from None
    if mode != "L":
        raise DataError(f"{path} is {mode}, expected 8-bit gray")
    if width != PATCH_SIDE or height == 0 or height % width:
        raise DataError(
            f"{path} is {width} x {height} pixels, expected a column of {PATCH_SIDE} x {PATCH_SIDE} patches"
        )
    return height // width
