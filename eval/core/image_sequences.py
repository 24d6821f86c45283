"""Homography sequences on disk: numbered images and the files H_1_2, H_1_3, and so on."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.homography import check_homography
from common.images import SUFFIXES, folders_in
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import read_text

log = logging.getLogger(__name__)

_HOMOGRAPHY_FILE = re.compile(r"H_1_(\d+)")
CLASSES = {"i": "illumination", "v": "viewpoint", "other": "other"}


@dataclass(frozen=True)
class ImageSequence:
    """One scene: image 1 and the targets with their homographies.

    Attributes:
        name: the folder's name.
        reference: path of image 1.
        targets: (number, path, H_1_k) of the others, ascending.
    """

    name: str
    reference: Path
    targets: tuple[tuple[int, Path, NDArray[np.float64]], ...]

    @property
    def kind(self) -> str:
        """``i`` (illumination), ``v`` (viewpoint) or ``other``, from the prefix of the name."""
        return {"i_": "i", "v_": "v"}.get(self.name[:2], "other")


def find_sequences(root: str | Path) -> list[ImageSequence]:
    """The sequences below ``root`` by name; ``root`` itself may be one.

    A homography whose image is not there is left out with a line, and so is a sequence without its first image.

    Raises:
        MissingFileError: not a folder.
        DataError: no sequence, or a homography that is not one.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of sequences")
    folders = [root] if _homography_files(root) else folders_in(root)
    sequences = [sequence for folder in folders if (sequence := _read_sequence(folder)) is not None]
    if not sequences:
        raise DataError(f"{root} holds no folder with images 1, 2, … and files H_1_2, H_1_3, …")
    return sequences


def read_homography(path: str | Path) -> NDArray[np.float64]:
    """The 3 x 3 matrix of a text file; repeated and trailing blanks are fine.

    Raises:
        DataError: not 3 lines of 3 numbers, not finite, or singular.
    """
    path = Path(path)
    try:
        values = np.array([[float(v) for v in line.split()] for line in read_text(path).splitlines() if line.strip()])
    except ValueError:
        raise DataError(f"{path} is not 3 lines of 3 numbers") from None
    return check_homography(values, str(path))


def _homography_files(folder: Path) -> list[tuple[int, Path]]:
    numbered = [(int(m[1]), p) for p in folder.iterdir() if (m := _HOMOGRAPHY_FILE.fullmatch(p.stem)) and p.is_file()]
    return sorted(numbered)


def _read_sequence(folder: Path) -> ImageSequence | None:
    listed = _homography_files(folder)
    reference = _image(folder, 1) if listed else None
    images = [(k, _image(folder, k), path) for k, path in listed] if reference is not None else []
    targets = [(k, image, read_homography(path)) for k, image, path in images if image is not None]
    return ImageSequence(folder.resolve().name, reference, tuple(targets)) if reference and targets else None


def _image(folder: Path, number: int) -> Path | None:
    """The image of a number; None, with a line, where there is none."""
    for suffix in (".ppm", *SUFFIXES):
        for name in (f"{number}{suffix}", f"{number}{suffix.upper()}"):
            if (folder / name).is_file():
                return folder / name
    log.warning("left out: %s has no image %d (%s)", folder, number, ", ".join(SUFFIXES))
    return None
