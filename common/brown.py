"""Patches of Brown's photo tourism data, in the layout in which they were published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.images import image_size, read_luma
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import check_text, sha256_file

SIDE = 64
PAIRS = "m50_100000_100000_0.txt"
# patches of each subset as published
COUNTS = {
    "liberty": 450_092, "notredame": 468_159, "yosemite": 633_587,
    "liberty_harris": 379_587, "notredame_harris": 325_295, "yosemite_harris": 450_912,
}  # fmt: skip
_HALF = 0.02  # by which the share of matches in an m50 file may miss one half


class BrownFiles(NamedTuple):
    """What the files of one subset say; the mosaics are checked by their headers and not yet decoded.

    Attributes:
        folder: where they are.
        labels: int64 (N,), the 3-D point of each patch.
        images: int64 (N,), the reference image of each; None without ``interest.txt``.
        pairs: int64 (M, 3): first patch, second patch, 1 if they show one point; None without a list.
        mosaics: the files that hold the patches, in order.
        texts: the files that the others were read from.
    """

    folder: Path
    labels: np.ndarray
    images: np.ndarray | None
    pairs: np.ndarray | None
    mosaics: list[Path]
    texts: list[Path]


def open_brown(folder: str | Path, pairs: str | Path | None = None) -> BrownFiles:
    """Read ``info.txt``, ``interest.txt`` and a list of test pairs, and check them and the mosaics.

    Checked: that all files have as many patches as ``info.txt``, and a folder called as a published subset as many as
    that one; that the pairs name the points of ``info.txt``, that there are as many as the file's name says, and that
    half of them match.

    Args:
        folder: the files, or a folder with one folder of them.
        pairs: list of test pairs (default: ``m50_100000_100000_0.txt`` where it is there).

    Raises:
        MissingFileError: a folder or a file is not there.
        DataError: a check fails, or a file is damaged.
    """
    folder = find_folder(Path(folder))
    labels = read_first_column(folder / "info.txt")
    expected = COUNTS.get(folder.name)
    if expected is not None and len(labels) != expected:
        raise DataError(
            f"{folder / 'info.txt'} lists {len(labels)} patches, {folder.name} has {expected}: the files are not "
            f"complete (a folder of another name is not checked)"
        )
    mosaics = list_mosaics(folder, len(labels))
    interest = folder / "interest.txt"
    images = read_first_column(interest) if interest.is_file() else None
    if images is not None and len(images) != len(labels):
        raise DataError(f"{interest} has {len(images)} lines, info.txt {len(labels)}")
    listed = Path(pairs) if pairs is not None else folder / PAIRS
    tested = read_pairs(listed, labels) if pairs is not None or listed.is_file() else None
    texts = [path for path in (folder / "info.txt", interest, listed) if path.is_file()]
    return BrownFiles(folder, labels, images, tested, mosaics, texts)


def find_folder(folder: Path) -> Path:
    """``folder``, or the one folder in it, whichever holds ``info.txt``."""
    if not folder.is_dir():
        raise MissingFileError(f"folder {folder} is not there")
    inner = [path for path in folder.iterdir() if (path / "info.txt").is_file()]
    if (folder / "info.txt").is_file():
        return folder
    if len(inner) == 1:
        return inner[0]
    raise MissingFileError(f"{folder} holds no info.txt: expected patches0000.bmp …, info.txt, interest.txt, m50_*.txt")


def read_first_column(path: Path) -> np.ndarray:
    """The first number of every line, int64.

    Raises:
        MissingFileError: no file.
        DataError: a line that does not begin with a whole number, or no line.
    """
    return _columns(path, [0])[:, 0]


def read_pairs(path: Path, labels: np.ndarray) -> np.ndarray:
    """Test pairs int64 (M, 3): first patch, second patch, 1 if they show one point.

    Raises:
        MissingFileError: no file.
        DataError: a pair that contradicts ``labels``, another number of pairs than the file's name says, or not about
            as many matches as others in an ``m50`` file.
    """
    rows = _columns(path, [0, 1, 3, 4])
    patches, points = rows[:, [0, 2]], rows[:, [1, 3]]
    outside = patches[(patches < 0) | (patches >= len(labels))]
    if len(outside):
        raise DataError(f"{path} names patch {outside[0]}, there are 0 … {len(labels) - 1}")
    wrong = np.flatnonzero((labels[patches] != points).any(axis=1))
    if len(wrong):
        raise DataError(f"{path}, pair {wrong[0] + 1}: points {points[wrong[0]].tolist()} are not those of info.txt")
    match = (points[:, 0] == points[:, 1]).astype(np.int64)
    name = re.fullmatch(r"m50_(\d+)_\d+_\d+\.txt", path.name)
    if name is not None and len(rows) != int(name[1]):
        raise DataError(f"{path} holds {len(rows)} pairs, its name says {name[1]}: it is cut short")
    if name is not None and abs(match.mean() - 0.5) > _HALF:
        raise DataError(f"{path}: {match.sum()} of {len(rows)} pairs match, it should be half of them")
    return np.column_stack([patches, match])


def list_mosaics(folder: Path, count: int) -> list[Path]:
    """The mosaics that hold ``count`` patches, by name.

    Raises:
        DataError: they hold fewer or too many, or one is no multiple of 64 pixels wide and high.
    """
    paths, present = sorted(folder.glob("patches*.bmp")), 0
    for number, path in enumerate(paths):
        width, height = image_size(path)
        if width % SIDE or height % SIDE:
            raise DataError(f"{path} is {width} x {height} pixels, expected multiples of {SIDE}")
        if present >= count:
            raise DataError(f"{folder} holds {len(paths)} mosaics, {number} hold all {count} patches of info.txt")
        present += (width // SIDE) * (height // SIDE)
    if present < count:
        raise DataError(f"{folder}: {len(paths)} mosaics hold {present} patches, info.txt lists {count}")
    return paths


def read_mosaic(path: Path) -> tuple[np.ndarray, str]:
    """The patches (n, 64, 64) of a mosaic, row by row, and the SHA-256 of the file."""
    mosaic = read_luma(path)
    height, width = mosaic.shape
    tiles = mosaic.reshape(height // SIDE, SIDE, width // SIDE, SIDE).swapaxes(1, 2)
    return tiles.reshape(-1, SIDE, SIDE), sha256_file(path)


def _columns(path: Path, columns: list[int]) -> np.ndarray:
    check_text(path)
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    try:
        rows: np.ndarray = np.loadtxt(path, dtype=np.int64, usecols=columns, ndmin=2, encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    return rows
