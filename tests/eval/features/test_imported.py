from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.images import gray_from_bgr
from eval.features import Keypoints, load_method
from eval.features.extract import image_digest
from eval.features.imported import Imported, ImportedImage, write_imported
from kornia_hardnet8.errors import DataError

IMAGES = [np.full((40, 60, 3), level, np.uint8) for level in (0, 200)]
ONE, TWO = (image_digest(gray_from_bgr(image)) for image in IMAGES)
POINTS = Keypoints.from_points(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 0.7]))


def write(path: Path, descs: list[np.ndarray | None]) -> None:
    images = {key: ImportedImage(POINTS, rows, True) for key, rows in zip((ONE, TWO), descs, strict=True)}
    write_imported(path, images, {"stereo": {(ONE, TWO): np.array([[0, 1]])}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.h5", [np.eye(2, 4, dtype=np.float32), np.ones((2, 4), np.float32)])
    return tmp_path / "a.h5"


def opened(path: Path) -> Imported:
    method = load_method(f"imported@{path}")
    assert isinstance(method, Imported)
    return method


def test_what_was_written_is_read(path: Path) -> None:
    keypoints, descs = opened(path).detect_and_describe(IMAGES[0], 10)
    np.testing.assert_array_equal(keypoints.xy, POINTS.xy)
    assert descs.tolist() == np.eye(2, 4).tolist()
    assert opened(path).matches("stereo", TWO, ONE).tolist() == [[1, 0]]


def test_descriptors_of_some_images_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 images have no descriptors"):
        write(tmp_path / "a.h5", [np.eye(2, 4, dtype=np.float32), None])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (f"{ONE}/xy", np.zeros((2, 3))), (f"{ONE}/xy", np.float32(3)), (f"{ONE}/size", np.full(2, np.nan)),
        (f"{ONE}/angle", np.zeros(1)), (f"{ONE}/descs", np.zeros((2, 5), np.float32)), (f"{ONE}/descs", np.zeros(2)),
        (f"stereo/{ONE}-{TWO}", np.zeros(2, int)), (f"stereo/{ONE}-{TWO}", np.array([[-1, 0]])),
        (f"stereo/{ONE}-{TWO}", np.zeros((1, 2))), ("dim", "many"), ("dim", "-4"), ("tasks", "other"),
    ],
)  # fmt: skip
def test_damage_is_one_line(name: str, values: str | np.ndarray, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        if isinstance(values, str):
            file.attrs[name] = values
        else:
            del file[name]
            file[name] = values
    uses: list[Callable[[Imported], object]] = [
        lambda method: method.detect_and_describe(IMAGES[0], 10),
        lambda method: method.matches("stereo", ONE, TWO),
    ]
    with pytest.raises(DataError, match=r"a\.h5 is damaged"):
        for use in uses:
            use(opened(path))
