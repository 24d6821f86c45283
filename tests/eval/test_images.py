from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from eval.images import read_bgr, read_gray
from kornia_hardnet8.errors import DataError, MissingFileError


def test_gray_is_opencvs_of_the_colours(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_bgr(tmp_path / "a.png"), image[..., ::-1])
    gray = read_gray(tmp_path / "a.png")
    np.testing.assert_array_equal(gray, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    Image.fromarray(gray).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_gray(tmp_path / "b.png"), gray)


def test_the_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_gray(tmp_path / "a.jpg").shape == (20, 30)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"a\.jpg is not there"):
        read_gray(tmp_path / "a.jpg")
    for content in (b"", b"no image", b"\xff\xd8\xff\xe0 cut"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jpg does not decode"):
            read_gray(tmp_path / "a.jpg")
