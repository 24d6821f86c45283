"""The development data on disk: scenes with poses, homography sequences, fixed cameras."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images import folders_in, pictures_in, read_gray, reduce_image
from eval.core.estimators import EstimatorSettings
from eval.core.homography_estimators import HomographySettings
from eval.core.image_sequences import ImageSequence, find_sequences
from eval.features.detect import DogSettings
from eval.imw.build import read_model
from eval.imw.scene import Camera, checked_camera
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import read_text
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

log = logging.getLogger(__name__)

CAMERA_FILE = "cameras_KRt.txt"
_CAMERA_FIELDS = 19  # name, width, height, fx, fy, cx, cy, 9 of R, 3 of t


@dataclass(frozen=True)
class PoseScene:
    """A scene whose camera poses are known.

    Attributes:
        name: ``group/scene``.
        images: path by image name.
        cameras: calibration by image name, for the images as stored; pixel centres at integers.
        sizes: (width, height) by image name.
        pairs: the pairs that are judged, in order.
    """

    name: str
    images: dict[str, Path]
    cameras: dict[str, Camera]
    sizes: dict[str, tuple[int, int]]
    pairs: list[tuple[str, str]]

    def load(self, name: str, max_side_px: int) -> tuple[NDArray[np.uint8], Camera]:
        """The gray image, its long side at most ``max_side_px``, with the calibration that fits it.

        Raises:
            DataError: the image is not of the size that its calibration is for.
        """
        image = read_gray(self.images[name])
        if image.shape[::-1] != self.sizes[name]:
            wanted = "{} x {}".format(*self.sizes[name])
            raise DataError(f"{self.images[name]} is {image.shape[1]} x {image.shape[0]}, its camera {wanted}")
        image, (sx, sy) = reduce_image(image, max_side_px)
        camera = self.cameras[name]
        return image, Camera(resize_matrix(sx, sy) @ camera.K, camera.R, camera.t)


@dataclass(frozen=True)
class DevData:
    """Everything below one folder, by kind; keys and names are ``group/scene``."""

    poses: dict[str, Path]
    homography: dict[str, ImageSequence]
    webcam: dict[str, list[Path]]


def resize_matrix(sx: float, sy: float) -> NDArray[np.float64]:
    """Where a resize by (sx, sy) moves points, (3, 3); pixel centres at integers."""
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])


def find_data(root: Path) -> DevData:
    """Find the scenes of the three kinds in the folders ``root/<group>/<scene>`` (or ``root/<scene>``).

    A folder with ``images/`` and ``sparse/`` or ``cameras_KRt.txt`` is a scene with poses, one with ``H_1_2`` a
    homography sequence, any other one with two or more images a fixed camera. Folders of other things are left out.

    Raises:
        MissingFileError: no such folder.
        DataError: nothing to judge in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"folder {root} is not there")
    data = DevData({}, {}, {})
    for folder in folders_in(root):
        if not _add(data, folder, folder.name):
            for scene in folders_in(folder):
                if not _add(data, scene, f"{folder.name}/{scene.name}"):
                    log.info("%s: left out, neither poses nor homographies nor a fixed camera", scene)
    if not (data.poses or data.homography or data.webcam):
        raise DataError(
            f"{root} holds nothing to judge: expected GROUP/SCENE folders with images/ and sparse/, "
            "with 1.png … and H_1_2 …, or with the pictures of one fixed camera"
        )
    return data


def open_pose_scene(name: str, folder: Path, min_common: int, max_pairs: int, seed: int) -> PoseScene:
    """Read cameras and choose pairs.

    Pairs have at least ``min_common`` common 3-D points in ``sparse/`` (all pairs without a model); of more than
    ``max_pairs``, that many are drawn.

    Raises:
        DataError: a model or camera file that does not read, distorted cameras, fewer than two images, no pair.
        MissingFileError: an image that is not there.
    """
    if (folder / "sparse").is_dir():
        views = read_model(folder / "images", folder / "sparse")
        distorted = [view.source.name for view in views if view.distorted is not None]
        if distorted:
            raise DataError(f"scene {folder}: the camera of {distorted[0]} has distortion: undistort the images first")
        images = {view.name: view.source for view in views}
        cameras = {view.name: view.camera for view in views}
        sizes = {view.name: view.size for view in views}
        points = {view.name: view.points.keys() for view in views}
        candidates = [(a, b) for a, b in combinations(sorted(images), 2) if len(points[a] & points[b]) >= min_common]
    else:
        images, cameras, sizes = _read_cameras(folder)
        candidates = list(combinations(sorted(images), 2))
    if not candidates:
        raise DataError(f"scene {folder}: no two images have {min_common} common points")
    if len(candidates) > max_pairs:
        chosen = np.random.default_rng(seed).choice(len(candidates), max_pairs, replace=False)
        candidates = [candidates[i] for i in sorted(chosen.tolist())]
    return PoseScene(name, images, cameras, sizes, candidates)


def _read_cameras(folder: Path) -> tuple[dict[str, Path], dict[str, Camera], dict[str, tuple[int, int]]]:
    """Read ``cameras_KRt.txt``: corner-origin pixels, one image a line; see its first line."""
    path = folder / CAMERA_FILE
    images: dict[str, Path] = {}
    cameras: dict[str, Camera] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        try:
            width, height = int(fields[1]), int(fields[2])
            values = np.array(fields[3:], np.float64)
        except (ValueError, IndexError):
            values = np.zeros(0)
        if len(fields) != _CAMERA_FIELDS or not np.isfinite(values).all():
            raise DataError(f"{path} line {number}: expected name, width, height and 16 finite numbers")
        fx, fy, cx, cy = values[:4]
        name = Path(fields[0]).stem
        images[name] = folder / "images" / fields[0]
        if not images[name].is_file():
            raise MissingFileError(f"{path} line {number}: {images[name]} is not there")
        K = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
        cameras[name] = checked_camera(K, values[4:13].reshape(3, 3), values[13:], f"{path} line {number}")
        sizes[name] = (width, height)
    if len(images) < 2:
        raise DataError(f"{path} names {len(images)} image(s), at least 2 are needed")
    return images, cameras, sizes


def _add(data: DevData, folder: Path, name: str) -> bool:
    """Enter one folder under its kind; False when it is none of them."""
    if (folder / "images").is_dir() and ((folder / "sparse").is_dir() or (folder / CAMERA_FILE).is_file()):
        data.poses[name] = folder
        return True
    if any(p.stem.startswith("H_1_") and p.is_file() for p in folder.iterdir()):
        data.homography[name] = find_sequences(folder)[0]
        return True
    pictures = pictures_in(folder)
    if len(pictures) < 2 or _is_patch_strips(pictures):
        return False
    data.webcam[name] = pictures
    return True


def _is_patch_strips(pictures: list[Path]) -> bool:
    """Strips of HPatches patches: ``ref`` and ``e1`` to ``t5``."""
    return {"ref", "e1", "h1", "t1"} <= {p.stem for p in pictures}


@dataclass(frozen=True)
class DevSettings:
    """Every setting; the defaults are the protocol.

    Attributes:
        detector: keypoints of an image; a fixed camera uses half as many places.
        mr_size: half side of a patch / sigma.
        max_side_px: larger images are reduced to this long side.
        ratios: thresholds of the ratio test, one of which is chosen on half of the pairs.
        min_common: 3-D points that a pair of a scene with poses has in common, at least.
        pose_pairs: pairs judged a scene with poses, at most.
        estimator: of the relative pose.
        ransac_seeds: estimates a pair; a pair's accuracy is the mean over them.
        homography: of the corner error.
        spacing_px: no two places of a fixed camera are nearer.
        webcam_pairs: pairs judged a fixed camera, at most.
        seed: of the choice of pairs, of the estimators (the first of ``ransac_seeds``) and of the intervals.
    """

    detector: DogSettings = field(default_factory=lambda: DogSettings(num=2048, contrast=0.002, edge=10.0))
    mr_size: float = DEFAULT_MR_SIZE
    max_side_px: int = 1024
    ratios: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95)
    min_common: int = 20
    pose_pairs: int = 30
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    ransac_seeds: int = 1
    homography: HomographySettings = field(default_factory=HomographySettings)
    spacing_px: float = 4.0
    webcam_pairs: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.ransac_seeds, self.pose_pairs, self.webcam_pairs, self.max_side_px) < 1 or not self.ratios:
            raise UsageError("seeds, pairs, the long side and the number of ratios must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            **asdict(self),
            "detector": self.detector.to_dict(),
            "estimator": self.estimator.to_dict(),
            "homography": self.homography.to_dict(),
        }
