"""Folders of views: many photographs of one fixed camera each, with masks and registration homographies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.images import folders_in, image_size, is_companion, is_picture, pictures_in, read_luma, usable
from kornia_hardnet8.errors import DataError, MissingFileError, need
from kornia_hardnet8.files import read_text
from train.stores.writer import source_key

log = logging.getLogger(__name__)
_IDENTITY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ViewImage:
    """One image of a view: ``homography`` (3, 3) maps positions in the reference to the file; None = as it is.

    Positions count from the corner of the first pixel. ``size`` is the reference's (width, height), ``file_size`` the
    file's.
    """

    path: Path
    homography: np.ndarray | None
    size: tuple[int, int]
    file_size: tuple[int, int]


@dataclass(frozen=True)
class ViewFolder:
    """One view: the images, the first of which is the reference, and the usable pixels of it (None = all)."""

    name: str
    images: list[ViewImage]
    mask: np.ndarray | None


def list_views(root: str | Path, masks: str | Path | None = None) -> list[ViewFolder]:
    """Read the layout ``root/<camera>[_<anything>]/<images and homographies>``.

    Views and images are sorted by name. A view has no homography files or one for each image but the first: files
    without an image's extension, sorted by name, of nine numbers. The mask of a view is ``masks/<camera>.png``,
    non-zero where usable, and is brought to the size of the images.

    An image that does not decode is left out with a line, and so is a view that has fewer than two others. Without the
    first image, homographies go from the next one; a view with a mask, which is of the first, is left out then.

    Raises:
        MissingFileError: a folder or a mask is not there.
        DataError: no view of two images, a wrong count of homographies or a damaged one, or images of different sizes
            without homographies.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"folder {root} is not there")
    if masks is not None and not Path(masks).is_dir():
        raise MissingFileError(f"mask folder {masks} is not there")
    folders = folders_in(root)
    if not folders:
        raise DataError(f"{root} holds no view folder")
    there = {folder: pictures_in(folder) for folder in folders}
    read = [_read_view(folder, images, None if masks is None else Path(masks)) for folder, images in there.items()]
    views = [view for view in read if view is not None]
    if not views:
        raise DataError(f"{root}: no view has two images that can be used")
    if left_out := sum(map(len, there.values())) - sum(len(view.images) for view in views):
        log.warning("%d image(s) and %d whole view(s) left out, see above", left_out, len(folders) - len(views))
    return views


def view_key(views: list[ViewFolder], masks: str | Path | None) -> list[Any]:
    """What decides the content of views, for the ``key`` of a store: their files, homographies and masks."""
    homographies = [[None if i.homography is None else i.homography.tolist() for i in view.images] for view in views]
    masks_of = [] if masks is None else sorted(Path(masks).glob("*.png"))
    return [source_key(i.path for view in views for i in view.images), homographies, source_key(masks_of)]


def read_view_image(image: ViewImage) -> np.ndarray:
    """The gray image, uint8 (H, W), in the frame of the reference; 0 where the homography leaves the file."""
    gray = read_luma(image.path)
    return gray if image.homography is None else warp_to_reference(gray, image.homography, image.size)


def warp_to_reference(gray: np.ndarray, homography: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample an image, bicubic, so that its pixel p shows what ``homography @ p`` shows in ``gray``."""
    pillow = need("PIL.Image", "train")
    coefficients = (homography / homography[2, 2]).ravel()[:8].tolist()
    warped = pillow.fromarray(gray).transform(
        size, pillow.Transform.PERSPECTIVE, coefficients, pillow.Resampling.BICUBIC
    )
    return np.array(warped)


def read_homography(path: Path) -> np.ndarray | None:
    """The homography (3, 3) of a text file, its last entry 1; None when it is the identity.

    Raises:
        DataError: not nine finite numbers, no inverse, or the last one is 0.
    """
    try:
        matrix = np.array(read_text(path).replace(",", " ").split(), dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if matrix.size != 9 or not np.isfinite(matrix).all() or matrix[8] == 0 or not np.linalg.det(matrix.reshape(3, 3)):
        raise DataError(f"{path}: a homography is nine numbers that have an inverse, the last one not 0")
    return _unless_identity(matrix.reshape(3, 3))


def _between(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """From one file to another, of two homographies from the reference to files."""
    there, back = (np.eye(3) if matrix is None else matrix for matrix in (second, first))
    return _unless_identity(there @ np.linalg.inv(back))


def _unless_identity(matrix: np.ndarray) -> np.ndarray | None:
    matrix = matrix / matrix[2, 2]
    return None if np.abs(matrix - np.eye(3)).max() <= _IDENTITY_TOLERANCE else matrix


def _read_view(folder: Path, there: list[Path], masks: Path | None) -> ViewFolder | None:
    """The view of a folder with these images, or None, with a line, where too few of them can be used."""
    others = sorted(p for p in folder.iterdir() if p.is_file() and not is_companion(p) and not is_picture(p))
    if others and len(others) != len(there) - 1:
        raise DataError(
            f"view {folder} has {len(there)} images and {len(others)} other files: expected no other file, or "
            f"{len(there) - 1} homographies"
        )
    homographies = dict(zip(there, [None, *map(read_homography, others)], strict=True)) if others else {}
    images = usable(there)
    if len(images) < 2:
        log.warning("left out: view %s has %d image(s) that can be used, at least 2 are needed", folder, len(images))
        return None
    if others and images[0] != there[0]:
        if masks is not None:
            log.warning("left out: view %s has a mask, which is of its first image, and that cannot be used", folder)
            return None
        homographies = {path: _between(homographies[images[0]], homographies[path]) for path in images}
    sizes = [image_size(path) for path in images]
    listed = [ViewImage(path, homographies.get(path), sizes[0], size) for path, size in zip(images, sizes, strict=True)]
    for image in listed:
        if image.homography is None and image.file_size != image.size:
            raise DataError(
                f"{image.path} is {'{} x {}'.format(*image.file_size)} pixels, the first image of its view "
                f"{'{} x {}'.format(*image.size)}: without a homography they must agree"
            )
    mask = None if masks is None else _read_mask(masks / f"{folder.name.split('_')[0]}.png", *sizes[0])
    return ViewFolder(folder.name, listed, mask)


def _read_mask(path: Path, width: int, height: int) -> np.ndarray:
    mask = read_luma(path)
    if mask.shape != (height, width):
        if abs(mask.shape[1] / mask.shape[0] - width / height) > 0.02 * width / height:
            raise DataError(
                f"mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels, the images are {width} x {height}: "
                f"another aspect"
            )
        rows = (np.arange(height) * mask.shape[0] // height).astype(int)
        columns = (np.arange(width) * mask.shape[1] // width).astype(int)
        mask = mask[rows][:, columns]
    return mask > 0
