from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.images import exif_orientation
from eval.reconstruct.photos import find_photos, stored_from_upright, turn_upright

STORED = np.random.default_rng(0).integers(0, 255, (4, 6), dtype=np.uint8)


def with_orientation(value: int) -> io.BytesIO:
    image = Image.fromarray(STORED)
    exif = image.getexif()
    exif[0x0112] = value
    file = io.BytesIO()
    image.save(file, "png", exif=exif)
    return file


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns_and_back(orientation: int, tmp_path: Path) -> None:
    file = with_orientation(orientation)
    upright = turn_upright(STORED, orientation)
    np.testing.assert_array_equal(upright, np.array(ImageOps.exif_transpose(Image.open(file))))
    rows, columns = np.mgrid[: upright.shape[0], : upright.shape[1]].reshape(2, -1)
    x, y = stored_from_upright(orientation, (6, 4)) @ np.stack([columns, rows, np.ones_like(rows)])
    np.testing.assert_array_equal(STORED[y.astype(int), x.astype(int)], upright[rows, columns])
    (tmp_path / "a.png").write_bytes(file.getvalue())
    assert exif_orientation(tmp_path / "a.png") == orientation


def test_colour_turns_as_gray() -> None:
    color = np.stack([STORED] * 3, axis=2)
    np.testing.assert_array_equal(turn_upright(color, 6)[..., 1], turn_upright(STORED, 6))


@pytest.mark.parametrize("content", [b"", b"not an image", with_orientation(9).getvalue()])
def test_no_orientation_is_1(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert exif_orientation(tmp_path / "a.png") == 1


def test_photographs_of_a_folder(tmp_path: Path) -> None:
    for name in ("b c.JPG", "ä/1.png", ".hidden.png", "out/model.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(with_orientation(6).getvalue())
    photos = find_photos(tmp_path, leave_out=tmp_path / "out")
    assert photos == [
        ("b c.JPG", tmp_path / "b c.JPG", 6),
        ("ä/1.png", tmp_path / "ä" / "1.png", 6),
    ]
