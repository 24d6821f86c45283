"""A sound submission of two small scenes, and their images."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from tests.eval.imw_vector_cases import CASES

IMAGES = ("img_a", "img_b", "img_c")
SCENES = ("phototourism/one", "phototourism/two")
PAIRS = ("img_b-img_a", "img_c-img_a", "img_c-img_b")


@dataclass
class Submission:
    """Arrays of a submission that a test changes before it is packed."""

    data: Path
    config: list[dict[str, Any]]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """The unpacked folder."""
        for name, entries in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / name, "w") as file:
                for key, values in entries.items():
                    file[key] = values
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    def pack(self, folder: Path) -> Path:
        """The zip of it."""
        path = folder.with_suffix(".zip")
        self.write(folder)
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
        return path


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    found = Submission(data, [copy.deepcopy(CASES["submission_valid_base_challenge"]["inputs"]["config"])])
    for scene in SCENES:
        (data / scene).mkdir(parents=True)
        for name in IMAGES:
            assert cv2.imwrite(str(data / scene / f"{name}.png"), np.zeros((40, 60), np.uint8))
        counts = dict(zip(IMAGES, (7, 9, 8), strict=True))
        found.files[f"{scene}/keypoints.h5"] = {n: rng.uniform(0, 39, (c, 2)) for n, c in counts.items()}
        found.files[f"{scene}/descriptors.h5"] = {n: rng.random((c, 128), np.float32) for n, c in counts.items()}
        found.files[f"{scene}/scores.h5"] = {n: rng.random(c) for n, c in counts.items()}
    return found


@pytest.fixture
def with_matches(submission: Submission) -> Submission:
    """The same with matches of its own for both tasks."""
    for scene in SCENES:
        for task in ("stereo", "multiview"):
            submission.files[f"{scene}/matches_{task}.h5"] = {
                pair: np.array([[0, 1, 2, 6], [3, 2, 1, 0]], np.int32) for pair in PAIRS
            }
    custom = {"use_custom_matches": True, "custom_matches_name": "own"}
    submission.config[0]["config_phototourism_stereo"] = {**custom, "geom": {"method": "cv2-8pt"}}
    submission.config[0]["config_phototourism_multiview"] = dict(custom)
    return submission


@pytest.fixture(name="make_zip")
def make_zip_fixture(tmp_path: Path) -> Callable[..., Path]:
    """A zip of the given names and contents."""

    def make(*entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return path

    return make
