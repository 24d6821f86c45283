"""Calibrations of single photographs: by EXIF or as given, and the rays of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.colmap import load_pycolmap
from common.images import exif_orientation
from eval.reconstruct.photos import stored_from_upright
from eval.reconstruct.settings import CameraSettings
from kornia_hardnet8.errors import DataError, UsageError

Floats = NDArray[np.float64]


class PhotoCamera(NamedTuple):
    """The camera of one photograph, as it is to be seen (EXIF)."""

    camera: Any
    """pycolmap's, of the stored image."""
    stored: Floats
    """The affine map (2, 3) from pixels of the upright image to those of the stored one."""
    source: str
    """``EXIF`` or ``given``."""

    @property
    def focal_px(self) -> float:
        """Mean focal length."""
        return float(self.camera.mean_focal_length())

    def normalize(self, kpts: Floats) -> Floats:
        """Points (N, 2) of the upright image, pixel centres at integers, on the plane z = 1, without distortion."""
        stored = kpts @ self.stored[:, :2].T + self.stored[:, 2]
        rays = np.asarray(self.camera.cam_from_img(stored + 0.5), np.float64).reshape(-1, 2)
        upright: Floats = rays @ np.linalg.inv(self.stored[:, :2]).T
        return upright

    def to_dict(self) -> dict[str, Any]:
        """What is shown."""
        return {"model": self.camera.model_name, "params": self.camera.params, "source": self.source}


def photo_camera(path: Path, size: tuple[int, int], settings: CameraSettings) -> PhotoCamera:
    """The camera of a photograph.

    Args:
        path: the file.
        size: (width, height) of the upright image.
        settings: model and parameters; without parameters EXIF's focal length and a principal point in the middle.

    Raises:
        UsageError: no parameters, and EXIF has no focal length.
        DataError: COLMAP does not read the file.
    """
    pycolmap = load_pycolmap()
    orientation = exif_orientation(path)
    width, height = size if orientation < 5 else size[::-1]
    stored = stored_from_upright(orientation, (width, height))
    if settings.params:
        camera = pycolmap.Camera(model=settings.model, width=width, height=height, params=list(settings.params))
        return PhotoCamera(camera, stored, "given")
    options = pycolmap.ImageReaderOptions()
    options.camera_model = "SIMPLE_PINHOLE"
    try:
        camera = pycolmap.infer_camera_from_image(path, options)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{path}: COLMAP does not read its EXIF: {' '.join(str(error).split())}") from None
    if not camera.has_prior_focal_length:
        raise UsageError(
            f"{path}: EXIF has no focal length, which an estimator of E needs: give --camera-params, or take one of F"
        )
    return PhotoCamera(camera, stored, "EXIF")
