from __future__ import annotations

import logging
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from common.images import (
    MAX_PIXELS,
    can_read_heif,
    exif_orientation,
    folders_in,
    image_size,
    is_companion,
    is_picture,
    pictures_below,
    pictures_in,
    read_bgr,
    read_gray,
    read_luma,
)
from kornia_hardnet8.errors import DataError, MissingFileError

RNG = np.random.default_rng(0)
COLOURS = cv2.GaussianBlur(RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8), (0, 0), 1.5)
GRAY = COLOURS[..., 0].copy()
DEEP = RNG.integers(0, 65536, (30, 20)).astype(np.uint16)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be of a size, and holds one empty stream."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_gray_is_opencvs_or_pillows_of_the_colours(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_bgr(tmp_path / "a.png"), COLOURS[..., ::-1])
    gray = read_gray(tmp_path / "a.png")
    np.testing.assert_array_equal(gray, cv2.cvtColor(COLOURS, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(read_luma(tmp_path / "a.png"), np.array(Image.fromarray(COLOURS).convert("L")))
    Image.fromarray(gray).save(tmp_path / "b.png")
    for read in (read_gray, read_luma):
        np.testing.assert_array_equal(read(tmp_path / "b.png"), gray)


KINDS = ["rgb.tif", "lzw.tif", "gray.tif", "gray.jpg", "colour.jpg", "cmyk.jpg", "alpha.png", "la.png"]
KINDS += ["palette.png", "one_bit.png", "a.ppm", "a.bmp", "lossless.webp"]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_8_bits_are_what_opencv_reads(kind: str, tmp_path: Path) -> None:
    colour, gray, opaque = Image.fromarray(COLOURS), Image.fromarray(GRAY), Image.new("L", (50, 40), 200)
    images = {
        "gray": gray, "cmyk": colour.convert("CMYK"), "alpha": Image.merge("RGBA", (*colour.split(), opaque)),
        "la": Image.merge("LA", (gray, opaque)), "palette": colour.convert("P"), "one_bit": gray.convert("1"),
    }  # fmt: skip
    options = {"lzw": {"compression": "tiff_lzw"}, "lossless": {"lossless": True}}
    stem = kind.partition(".")[0]
    images.get(stem, colour).save(tmp_path / kind, **options.get(stem, {}))
    expected = cv2.imread(str(tmp_path / kind), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(read_bgr(tmp_path / kind), expected)
    np.testing.assert_array_equal(
        read_luma(tmp_path / kind), np.array(Image.fromarray(expected[..., ::-1]).convert("L"))
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(suffix: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ("a.ppm" if (suffix, channels) == (".pgm", 3) else f"a{suffix}")
    cv2.imwrite(str(path), DEEP if channels == 1 else np.dstack([DEEP, DEEP, DEEP]))
    expected = np.rint(DEEP / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_bgr(path), np.dstack([expected] * 3))
    np.testing.assert_array_equal(read_luma(path), expected)
    assert not caplog.records


def test_white_is_what_the_file_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """14 bits in 16: as a TIFF that states its white, a PGM, and a TIFF that does not."""
    samples = DEEP // 4
    expected = np.rint(samples / 16383 * 255).astype(np.uint8)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 16383
    Image.fromarray(samples).save(tmp_path / "stated.tif", tiffinfo=tags)
    (tmp_path / "a.pgm").write_bytes(b"P5\n# a comment\n20 30\n16383\n" + samples.astype(">u2").tobytes())
    for name in ("stated.tif", "a.pgm"):
        np.testing.assert_array_equal(read_gray(tmp_path / name), expected)
    assert not caplog.records
    Image.fromarray(samples).save(tmp_path / "silent.tif")
    np.testing.assert_array_equal(read_gray(tmp_path / "silent.tif"), np.rint(samples / 257).astype(np.uint8))
    assert f"{tmp_path / 'silent.tif'}: no sample of its 16 bits is above {samples.max()}" in caplog.text


def test_floats(tmp_path: Path) -> None:
    expected = np.rint(DEEP / 65535 * 255).astype(np.uint8)
    for white in (1, 255):
        Image.fromarray((DEEP / 65535 * white).astype(np.float32)).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(read_gray(tmp_path / "a.tif"), expected)
    for value, message in ((np.nan, "not finite"), (-1, "floats of -1 to"), (256, "floats of 0 to 256")):
        samples = np.zeros((30, 20), np.float32)
        samples[3, 4] = value
        Image.fromarray(samples).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=message):
            read_bgr(tmp_path / "a.tif")


def test_the_exif_orientation_is_read_and_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_gray(tmp_path / "a.jpg").shape == (20, 30)
    assert image_size(tmp_path / "a.jpg") == (30, 20)
    assert exif_orientation(tmp_path / "a.jpg") == 6


def test_bad_files_are_named(tmp_path: Path) -> None:
    for read in (read_gray, image_size, exif_orientation):
        with pytest.raises(MissingFileError, match=r"a\.jpg is not there"):
            read(tmp_path / "a.jpg")
    for content in (b"", b"no image", b"\xff\xd8\xff\xe0 cut", png_header(20, 30)):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jpg does not decode"):
            read_gray(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".ppm", ".pgm", ".tif", ".bmp", ".webp"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, encoded = cv2.imencode(suffix, GRAY if suffix == ".pgm" else COLOURS)
    content = encoded.tobytes()
    path = tmp_path / f"a{suffix}"
    lengths = [int(len(content) * share) for share in (0.02, 0.3, 0.6, 0.9, 0.98)]
    for length in [*lengths, *([len(content) - 1] if suffix in (".png", ".jpg") else [])]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"a\{suffix} (does not decode|is cut short)"):
            read_bgr(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("width", [MAX_PIXELS // 1000 + 1, 2**31 - 1])
def test_too_many_pixels_are_refused_by_the_header(width: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, 1000))
    for read in (read_bgr, read_luma, image_size):
        with pytest.raises(DataError, match=rf"a\.png has {width} x 1000 pixels, at most 200 million are read"):
            read(tmp_path / "a.png")
    assert exif_orientation(tmp_path / "a.png") == 1


def test_a_file_far_larger_than_its_pixels_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", GRAY)[1].tobytes())
    os.truncate(tmp_path / "a.png", 1 << 26)
    assert read_gray(tmp_path / "a.png").shape == GRAY.shape  # zeros after the end
    os.truncate(tmp_path / "a.png", 1 << 31)
    for read in (read_bgr, read_luma, image_size):
        with pytest.raises(DataError, match=r"a\.png holds 2147483648 bytes, far more than 50 x 40 pixels need"):
            read(tmp_path / "a.png")


def test_segments_of_a_jpeg_follow_each_other(tmp_path: Path) -> None:
    data = cv2.imencode(".jpg", GRAY)[1].tobytes()
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    path = tmp_path / "a.jpg"
    for sound in (data[:2] + comment * 3 + data[2:], data[:2] + b"\xff" * 50 + data[2:]):
        path.write_bytes(sound)
        assert read_gray(path).shape == GRAY.shape
        assert image_size(path) == GRAY.shape[::-1]
    path.write_bytes(data[:2] + bytes(8192) + data[2:])
    for read in (read_bgr, read_luma, image_size):
        with pytest.raises(DataError, match=r"a\.jpg is damaged: a segment of its header leads nowhere"):
            read(path)


def test_more_pixels_than_pillow_likes_are_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS < 199_000_000
    (tmp_path / "a.png").write_bytes(png_header(199_000, 1000))
    assert image_size(tmp_path / "a.png") == (199_000, 1000)
    assert not recwarn.list


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    can_read_heif.cache_clear()
    yield
    can_read_heif.cache_clear()


@pytest.mark.usefixtures("without_heif")
def test_one_rule_of_which_files_are_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("b c.JPG", "ä/1.png", "._b c.JPG", ".hidden.png", ".thumbs/1.png", "notes.txt", "out/m.png", "x.heic",
             "Thumbs.db", ".DS_Store", "ä/y.HEIC")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    with caplog.at_level(logging.WARNING):
        pictures = pictures_below(tmp_path, leave_out=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == ["b c.JPG", "ä/1.png"]
    assert "2 picture(s) of formats that are not read passed over (x.heic, y.HEIC); make JPEGs of" in caplog.text
    assert pictures_in(tmp_path) == [tmp_path / "b c.JPG"] == [p for p in tmp_path.iterdir() if is_picture(p)]
    assert {p.name for p in tmp_path.iterdir() if is_companion(p)} == {
        "._b c.JPG", ".hidden.png", ".thumbs", "Thumbs.db", ".DS_Store",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_not_utf8_are_passed_over_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (b"a.png", b"Fa\xe7ade.png", "Façade.png".encode(), b"d\xe7/b.png", b"d/c.png"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in pictures_below(tmp_path)] == ["Façade.png", "a.png", "c.png"]
    assert "2 name(s) that are not UTF-8 passed over (Fa\\xe7ade.png, d\\xe7/b.png); rename" in caplog.text
    assert folders_in(tmp_path) == [tmp_path / "d"]
    assert [path.name for path in pictures_in(tmp_path / os.fsdecode(b"d\xe7"))] == ["b.png"]


def test_heic_is_read_where_its_plugin_is(tmp_path: Path) -> None:
    plugin = pytest.importorskip("pillow_heif")
    plugin.from_pillow(Image.fromarray(COLOURS)).save(tmp_path / "a.HEIC", quality=-1, chroma=444)
    assert pictures_in(tmp_path) == [tmp_path / "a.HEIC"]
    assert np.abs(read_bgr(tmp_path / "a.HEIC").astype(int) - COLOURS[..., ::-1]).max() <= 4
    assert image_size(tmp_path / "a.HEIC") == (50, 40)


@pytest.mark.usefixtures("without_heif")
def test_heic_without_its_plugin_is_answered_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.heic").touch()
    with caplog.at_level(logging.WARNING):
        assert pictures_in(tmp_path) == []
    assert "(a.heic); make JPEGs of them, or pip install pillow-heif for HEIC" in caplog.text
    with pytest.raises(DataError, match=r"a\.heic is HEIC: pip install pillow-heif to read it, or make a JPEG"):
        read_bgr(tmp_path / "a.heic")


def test_nothing_to_find(tmp_path: Path) -> None:
    (tmp_path / "walk me.MP4").touch()
    with pytest.raises(DataError, match=r"is a video, .*: mkdir frames && ffmpeg -i '.*walk me\.MP4' -vf fps=2"):
        pictures_below(tmp_path / "walk me.MP4")
    (tmp_path / "walk me.MP4").rename(tmp_path / "a.txt")
    with pytest.raises(MissingFileError, match=r"a\.txt is a file"):
        pictures_below(tmp_path / "a.txt")
    with pytest.raises(DataError, match="holds no picture"):
        pictures_below(tmp_path)
    with pytest.raises(MissingFileError, match="nowhere is not there"):
        pictures_below(tmp_path / "nowhere")


def test_what_a_decoder_makes_of_damage_is_one_error(tmp_path: Path) -> None:
    """Bits are flipped in headers: each file is read, or refused by one line."""
    rng = np.random.default_rng(1)
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".ppm"):
        _, encoded = cv2.imencode(suffix, COLOURS)
        for _ in range(25):
            damaged = encoded.copy().ravel()
            damaged[rng.integers(0, 60, 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
            (tmp_path / f"a{suffix}").write_bytes(damaged.tobytes())
            for read in (read_bgr, image_size, exif_orientation):
                try:
                    read(tmp_path / f"a{suffix}")
                except DataError as error:
                    assert "\n" not in str(error)
