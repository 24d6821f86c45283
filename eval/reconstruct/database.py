"""The COLMAP database: cameras and images by COLMAP's own reader of EXIF, our keypoints and matches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.colmap import load_pycolmap
from common.colmap_worker import import_images
from eval.reconstruct.describe import DescribedPhoto
from eval.reconstruct.settings import CameraSettings
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import colmap_from_lafs

_MODES = {"auto": "AUTO", "single": "SINGLE", "per-folder": "PER_FOLDER", "per-image": "PER_IMAGE"}


def make_database(
    path: Path, folder: Path, described: Sequence[DescribedPhoto], settings: CameraSettings, mr_size: float
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write a new database with cameras, images and keypoints.

    Keypoints are COLMAP's: affine frames, shifted by +0.5 as its first pixel's corner is (0, 0).

    Args:
        path: the database; replaced when it is there.
        folder: of the photographs.
        described: the photographs.
        settings: where intrinsics come from.
        mr_size: half side of a patch / sigma, of the frames.

    Returns:
        Image ids, and cameras, by image name.

    Raises:
        DataError: one camera for images of several sizes, or an image that COLMAP does not read.
    """
    pycolmap = load_pycolmap()
    _check_sizes(described, settings.mode)
    path.unlink(missing_ok=True)
    pycolmap.Database.open(path).close()
    options = {"camera_model": settings.model, "camera_params": ", ".join(map(repr, settings.params))}
    names = [item.photo.name for item in described]
    import_images(path, folder, _MODES[settings.mode], names, options)
    with pycolmap.Database.open(path) as database:
        images = {image.name: image for image in database.read_all_images()}
        missing = [name for name in names if name not in images]
        if missing:
            raise DataError(f"COLMAP does not read {len(missing)} of the images: {folder / missing[0]} …")
        if settings.focal_px is not None:
            for camera in database.read_all_cameras():
                _set_focal(camera, settings.focal_px)
                database.update_camera(camera)
        for item in described:
            keypoints = colmap_from_lafs(item.lafs, mr_size)
            database.write_keypoints(images[item.photo.name].image_id, keypoints)
        cameras = {name: database.read_camera(images[name].camera_id) for name in names}
    return {name: images[name].image_id for name in names}, cameras


def write_pair(database: Any, ids: tuple[int, int], matches: NDArray[Any], geometry: Any) -> None:
    """Write the matches (M, 2) of a pair of image ids, and their verified geometry, into an open database."""
    if len(matches) and int(matches.min()) < 0:
        raise DataError("a match has a negative index")
    database.write_matches(*ids, np.ascontiguousarray(matches, np.uint32))
    database.write_two_view_geometry(*ids, geometry)


def _check_sizes(described: Sequence[DescribedPhoto], mode: str) -> None:
    """Images that share a camera by the user's word must have one size."""
    if mode not in ("single", "per-folder"):
        return
    first: dict[str, DescribedPhoto] = {}
    for item in described:
        group = "" if mode == "single" else item.photo.name.rpartition("/")[0]
        other = first.setdefault(group, item)
        if other.size != item.size:
            sizes = [f"{i.photo.name} is {i.size[0]} x {i.size[1]}" for i in (other, item)]
            raise DataError(f"images of one camera need one size, but {' and '.join(sizes)}: use --cameras auto")


def _set_focal(camera: Any, focal_px: float) -> None:
    params = camera.params
    for index in camera.focal_length_idxs():
        params[index] = focal_px
    camera.params = params
    camera.has_prior_focal_length = True
