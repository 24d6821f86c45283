"""The images that a submission is about: ``DATASET/SCENE`` with images, or full scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.images import folders_in, pictures_in
from eval.imw.official import TEST_SCENES
from eval.imw.scene import is_scene, open_scene
from kornia_hardnet8.errors import DataError, MissingFileError

# The official code takes these alone.
SUFFIXES = (".png", ".jpg")


@dataclass(frozen=True)
class RawScene:
    """One scene: its dataset, its name, and its images by name in sorted order."""

    dataset: str
    name: str
    images: dict[str, Path]

    @property
    def where(self) -> str:
        """``DATASET/SCENE``."""
        return f"{self.dataset}/{self.name}"


def find_raw_scenes(root: Path) -> list[RawScene]:
    """The scenes below a folder, in the order of the datasets and of the names.

    Raises:
        MissingFileError: no such folder.
        DataError: no scene of an official dataset, fewer than two images, or a name that pair keys cannot hold.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"folder {root} is not there")
    scenes = []
    for dataset in TEST_SCENES:
        folder = root / dataset
        scenes += [open_raw_scene(dataset, scene) for scene in (folders_in(folder) if folder.is_dir() else [])]
    if not scenes:
        raise DataError(f"{root} holds no DATASET/SCENE folder with images; DATASET is one of {', '.join(TEST_SCENES)}")
    return scenes


def open_raw_scene(dataset: str, folder: Path) -> RawScene:
    """One scene: a folder of images, or a full scene with its calibration."""
    if is_scene(folder):
        images = open_scene(folder).images
    else:
        files = [path for path in pictures_in(folder) if path.suffix.lower() in SUFFIXES]
        images = {file.stem: file for file in files}
        if len(images) < len(files):
            raise DataError(f"scene {folder}: two images have one name without suffix")
    if len(images) < 2:
        raise DataError(f"scene {folder} has {len(images)} image(s) ({', '.join(SUFFIXES)}), at least 2 are needed")
    for name in images:
        if "-" in name:
            raise DataError(f"scene {folder}: the image name {name!r} holds '-', at which pair keys are split")
    return RawScene(dataset, folder.name, dict(sorted(images.items())))
