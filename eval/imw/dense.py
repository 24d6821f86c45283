"""Depth maps of a COLMAP dense workspace for the images of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.colmap import is_distorted, read_model
from kornia_hardnet8.errors import DataError, MissingFileError

# Cleaned maps first.
_KINDS = ("geometric", "photometric")


class DenseModel:
    """A dense workspace: ``stereo/depth_maps/<image>.<kind>.bin``, and ``sparse`` with the cameras of its images.

    Args:
        folder: the workspace, made from the model that the scene is made from.

    Raises:
        MissingFileError: no such folder, or none of depth maps or of cameras in it.
        DataError: cameras that do not read.
    """

    def __init__(self, folder: Path) -> None:
        self.maps = folder / "stereo" / "depth_maps"
        sparse = folder / "sparse"
        for needed in (folder, self.maps, sparse):
            if not needed.is_dir():
                raise MissingFileError(
                    f"folder {needed} is not there: a dense workspace has stereo/depth_maps and sparse"
                )
        self._cameras: dict[str, Any] = {image.name: image.camera for image in read_model(sparse).images}

    def depth(self, image: str, K: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Depth (H, W) for a camera without distortion at the place of an image; None without a map.

        Args:
            image: its name in the model.
            K: calibration of the wanted map; pixel centres at integers.
            size: (width, height) of the wanted map.

        Returns:
            the nearest pixel of the workspace's map; 0 outside it and where it has no depth.

        Raises:
            DataError: a damaged map, or one that is not of its camera's size.
        """
        files = [self.maps / f"{image}.{kind}.bin" for kind in _KINDS]
        path = next((file for file in files if file.is_file()), None)
        camera = self._cameras.get(image)
        if path is None or camera is None:
            return None
        depth = read_depth_map(path)
        if depth.shape != (camera.height, camera.width):
            raise DataError(
                f"{path} is {depth.shape[1]} x {depth.shape[0]}, its camera {camera.width} x {camera.height}"
            )
        if is_distorted(camera) or not camera.focal_length_idxs():
            raise DataError(f"{path} is of a {camera.model_name} camera: a dense workspace has pinhole cameras")
        theirs = np.array(camera.calibration_matrix(), np.float64)
        theirs[:2, 2] -= 0.5
        return _resampled(depth, theirs, K, size)


def read_depth_map(path: Path) -> NDArray[np.float32]:
    """A depth map (H, W) of COLMAP; 0 where there is no depth.

    Raises:
        DataError: not such a file, or cut short.
    """
    content = path.read_bytes()
    fields = content[:64].split(b"&", 3)
    if len(fields) != 4 or not all(field.isdigit() for field in fields[:3]) or int(fields[2]) != 1:
        raise DataError(f"{path} is no depth map of COLMAP: expected `width&height&1&` and float32 values")
    width, height = int(fields[0]), int(fields[1])
    start = sum(len(field) + 1 for field in fields[:3])
    if len(content) - start != 4 * width * height:
        raise DataError(f"{path} is cut short: {len(content) - start} bytes for {width} x {height} float32 values")
    depth = np.frombuffer(content, np.float32, offset=start).reshape(height, width)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _resampled(
    depth: NDArray[np.float32], theirs: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map of a pinhole camera seen by another one at the same place: nearest pixels."""
    places = []
    for axis, length in enumerate(size):
        on_plane = (np.arange(length) - K[axis, 2]) / K[axis, axis]
        places.append(np.rint(on_plane * theirs[axis, axis] + theirs[axis, 2]).astype(np.int64))
    columns, rows = places
    inside = [(place >= 0) & (place < limit) for place, limit in zip(places, depth.shape[::-1], strict=True)]
    result = np.zeros((size[1], size[0]), np.float32)
    result[np.ix_(inside[1], inside[0])] = depth[np.ix_(rows[inside[1]], columns[inside[0]])]
    return result
