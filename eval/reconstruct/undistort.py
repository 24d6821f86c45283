"""Photographs without distortion beside their model, as gsplat, nerfstudio and 3D Gaussian splatting read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from common.colmap import load_pycolmap
from kornia_hardnet8.files import atomic_dir


def undistort(sparse: Path, images: Path, out: Path) -> Path:
    """Write ``out/images`` and ``out/sparse/0`` (pinhole cameras), whole or not at all; returns ``out``.

    Args:
        sparse: folder of a model.
        images: folder of its photographs.
        out: a folder; replaced when it is there.

    Source: COLMAP's image undistorter with its defaults: no pixel of a photograph is blank, and its edges are cut.
    """
    shutil.rmtree(out, ignore_errors=True)
    pycolmap = load_pycolmap()
    with atomic_dir(out) as temporary:
        pycolmap.undistort_images(temporary, sparse, images)
        model = pycolmap.Reconstruction(temporary / "sparse")
        for name in ("sparse", "stereo"):  # COLMAP's dense stereo wants another layout
            shutil.rmtree(temporary / name)
        for camera in model.cameras.values():
            _make_pinhole(camera)
        (temporary / "sparse" / "0").mkdir(parents=True)
        model.write(temporary / "sparse" / "0")
        for script in temporary.glob("run-colmap-*.sh"):
            script.unlink()
    return out


def _make_pinhole(camera: Any) -> None:
    """Call a camera without distortion a pinhole; COLMAP leaves one whose coefficients are all zero as it is."""
    params = [camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y]
    camera.model = load_pycolmap().CameraModelId.PINHOLE
    camera.params = params
