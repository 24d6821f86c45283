"""Pictures on disk: which files are pictures, what their headers say, their pixels.

A header is read before anything is decoded. What cannot be used raises one line that names the file.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError, MissingFileError, need
from kornia_hardnet8.files import RENAME, is_utf8, shown_name

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".webp")
# More pixels are never decoded: in colour these take 0.6 GB.
MAX_PIXELS = 200_000_000
# What a file may hold beside its pixels, and for each of them (four samples of 64 bits).
_ROOM_BYTES, _PIXEL_BYTES = 64 << 20, 32
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"
_JPEG_FRAMES, _JPEG_SCAN = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}, 0xDA
# Bytes that may stand between two segments of a JPEG, and segments before its frame.
_STRAY_BYTES, _MOST_SEGMENTS = 4096, 10_000
# Read by Pillow where pillow-heif is installed.
HEIF = (".heic", ".heif")
# Read here, not by COLMAP.
NOT_COLMAPS = (".webp", *HEIF)
# What photographs also come as: said aloud, so that nobody wonders where they are.
_FOREIGN = {*HEIF, ".avif", ".jxl", ".jp2", ".gif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"}
_VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".3gp", ".mpg", ".mpeg"}
_MOST_NAMED = 10
_ORIENTATION = 0x0112
# Tags of TIFF: the largest value that a sample may have, for integers and for floats.
_WHITE_TAGS = (281, 341)
_EXTRA = "eval,train"


# --- which files are pictures ----------------------------------------------------------------------------------------


def is_picture(path: Path) -> bool:
    """Whether a file is taken for a picture: by its suffix; hidden ones (``._a.jpg`` of other systems) are none."""
    suffix = path.suffix.lower()
    known = suffix in SUFFIXES or (suffix in HEIF and can_read_heif())
    return known and not is_companion(path) and path.is_file()


@functools.cache
def can_read_heif() -> bool:
    """Whether pillow-heif is installed, which makes Pillow read HEIC."""
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True


def is_companion(path: Path) -> bool:
    """Whether a file is one that systems leave beside others: hidden, or the thumbnails of Windows."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "ehthumbs.db", "desktop.ini")


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; hidden ones are left out, those whose names are not UTF-8 with a line."""
    return _named(folder, sorted(path for path in folder.iterdir() if path.is_dir() and not is_companion(path)))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted; other files are passed over.

    Photographs of formats that are not read, and pictures whose names are not UTF-8, are passed over with a line.
    """
    return _chosen(folder, sorted(folder.iterdir()))


def pictures_below(folder: str | Path, leave_out: Path | None = None) -> list[Path]:
    """The pictures in a folder and the folders below it, sorted by their paths; hidden folders are left out.

    Args:
        folder: where to look.
        leave_out: a folder below it that is not looked into.

    Raises:
        MissingFileError: no such folder.
        DataError: no picture in it, or it is a video.
    """
    folder = Path(folder)
    if folder.suffix.lower() in _VIDEOS and folder.is_file():
        raise DataError(
            f"{folder} is a video, and a folder of pictures is needed; two frames a second into one: "
            f"mkdir frames && ffmpeg -i {shlex.quote(str(folder))} -vf fps=2 -q:v 2 frames/%04d.jpg"
        )
    if not folder.is_dir():
        raise MissingFileError(f"folder {folder} is {'a file' if folder.is_file() else 'not there'}")
    skipped = leave_out.resolve() if leave_out is not None else None
    files: list[Path] = []
    for where, folders, names in os.walk(folder):
        here = Path(where)
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() != skipped]
        files += [here / name for name in names]
    pictures = _chosen(folder, sorted(files, key=lambda path: path.relative_to(folder).as_posix()))
    if not pictures:
        raise DataError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return pictures


def _chosen(folder: Path, files: Iterable[Path]) -> list[Path]:
    pictures, foreign = [], []
    for path in files:
        if is_picture(path):
            pictures.append(path)
        elif path.suffix.lower() in _FOREIGN and not is_companion(path):
            foreign.append(path.name)
    if foreign:
        names = ", ".join(foreign[:_MOST_NAMED]) + (" …" if len(foreign) > _MOST_NAMED else "")
        by_plugin = any(name.lower().endswith(HEIF) for name in foreign)
        log.warning(
            "%s: %d picture(s) of formats that are not read passed over (%s); make JPEGs of them%s",
            folder, len(foreign), names, ", or pip install pillow-heif for HEIC" if by_plugin else "",
        )  # fmt: skip
    return _named(folder, pictures)


def _named(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The paths whose names below ``folder`` are UTF-8: databases, pages and hashes hold no others."""
    strange = [path for path in paths if not is_utf8(str(path.relative_to(folder)))]
    if strange:
        names = ", ".join(shown_name(str(path.relative_to(folder))) for path in strange)
        log.warning("%s: %d name(s) that are not UTF-8 passed over (%s); %s", folder, len(strange), names, RENAME)
    return [path for path in paths if path not in strange]


# --- headers ---------------------------------------------------------------------------------------------------------


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture in pixels, by its header.

    Raises:
        MissingFileError: the file is not there.
        DataError: no picture, or one of more than ``MAX_PIXELS`` pixels.
    """
    with open_picture(Path(path)) as header:
        return header.size[0], header.size[1]


def exif_orientation(path: str | Path) -> int:
    """EXIF orientation of a picture, 1 … 8; 1 (shown as stored) where none is stated or the file is no picture."""
    try:
        with open_picture(Path(path)) as header:
            value = header.getexif().get(_ORIENTATION, 1)
    except DataError:
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


@contextmanager
def open_picture(path: Path) -> Iterator[Any]:
    """The file as Pillow opens it: only the header is read, until the block asks for pixels.

    Raises:
        MissingFileError: the file is not there.
        DataError: no picture, one of more than ``MAX_PIXELS`` pixels, or a file far larger than its pixels need; or
            what the block did with it failed.
    """
    pillow = need("PIL.Image", _EXTRA)
    if not path.is_file():
        raise MissingFileError(f"image {path} is not there")
    if path.suffix.lower() in HEIF and not can_read_heif():
        raise DataError(f"image {path} is HEIC: pip install pillow-heif to read it, or make a JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they do not say which file
        pillow.MAX_IMAGE_PIXELS = None  # there is a limit of our own
        try:
            _check_segments(path)
            with pillow.open(path) as header:
                if header.width * header.height > MAX_PIXELS:
                    raise DataError(
                        f"image {path} has {header.width} x {header.height} pixels, at most {MAX_PIXELS // 10**6} "
                        "million are read: reduce it, or cut it into parts"
                    )
                if path.stat().st_size > _ROOM_BYTES + _PIXEL_BYTES * header.width * header.height:
                    raise DataError(
                        f"image {path} holds {path.stat().st_size} bytes, far more than {header.width} x "
                        f"{header.height} pixels need: save it anew"
                    )
                yield header
        except (DataError, PermissionError):
            raise
        except Exception:
            raise DataError(
                f"image {path} does not decode: it is damaged, empty, or of a kind that is not read"
            ) from None


def _check_segments(path: Path) -> None:
    """Refuse a JPEG whose segments do not follow each other up to its frame.

    Pillow would look for the next one byte by byte, for minutes in a large file.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return
        for _ in range(_MOST_SEGMENTS):
            here, head = file.tell(), file.read(_STRAY_BYTES)
            start = re.search(rb"\xff+([^\x00\xff])(..)?", head, re.DOTALL)
            if start is None and len(head) == _STRAY_BYTES:
                break
            if start is None or start[2] is None or start[1][0] in (*_JPEG_FRAMES, _JPEG_SCAN):
                return  # what is cut short is said by Pillow
            alone = start[1][0] == 0x01 or 0xD0 <= start[1][0] <= 0xD9
            file.seek(here + start.end(1) + (0 if alone else int.from_bytes(start[2], "big")))
        raise DataError(f"image {path} is damaged: a segment of its header leads nowhere")


def usable(paths: Iterable[Path]) -> list[Path]:
    """The pictures that decode; the others are left out, each with a line."""
    kept = []
    for path in paths:
        try:
            read_luma(path)
            kept.append(path)
        except DataError as error:
            log.warning("left out: %s", error)
    return kept


# --- pixels ----------------------------------------------------------------------------------------------------------


def read_bgr(path: str | Path) -> NDArray[np.uint8]:
    """Colour image (H, W, 3) uint8 in OpenCV's order, as its pixels lie in the file: an EXIF rotation is ignored.

    Transparency is dropped. Samples of more than 8 bits are scaled by the white that the file states (the maximum of
    a PGM, TIFF's MaxSampleValue), else by the largest value of their type; floats without a stated white are 0 … 1, or
    0 … 255 where one is larger.

    Raises:
        MissingFileError: the file is not there.
        DataError: it does not decode, is cut short, or has more than ``MAX_PIXELS`` pixels.
    """
    image = _decode(Path(path), grayscale_stays=False)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def read_gray(path: str | Path) -> NDArray[np.uint8]:
    """Gray image (H, W) uint8, converted from colour as OpenCV does; see :func:`read_bgr`."""
    return gray_from_bgr(read_bgr(path))


def read_luma(path: str | Path) -> NDArray[np.uint8]:
    """Gray image (H, W) uint8, converted from colour as Pillow's mode "L" does; see :func:`read_bgr`."""
    image = _decode(Path(path), grayscale_stays=True)
    if image.ndim == 2:
        return image
    return np.array(need("PIL.Image", _EXTRA).fromarray(image[..., ::-1]).convert("L"))


def gray_from_bgr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray image (H, W) of a colour image (H, W, 3) in OpenCV's order; a gray one is returned as it is."""
    if image.ndim == 2:
        return image
    cv2 = load_cv2()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def rgb_tensor(image: NDArray[np.uint8]) -> Tensor:
    """An image (H, W, 3) in OpenCV's order, or a gray one (H, W), as RGB (1, 3, H, W) float32 in [0, 1]."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(image)).float() / 255.0
    rgb = pixels.expand(3, -1, -1) if image.ndim == 2 else pixels.permute(2, 0, 1).flip(0)
    return rgb[None].contiguous()


def reduce_image(image: NDArray[np.uint8], max_side_px: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Shrink an image so that its long side is at most ``max_side_px`` (area interpolation), and the factors (x, y).

    A point moves to ``s (x + 0.5) - 0.5``. Smaller images are returned as they are, with factors of 1.
    """
    height, width = image.shape[:2]
    if max(height, width) <= max_side_px:
        return image, (1.0, 1.0)
    cv2 = load_cv2()
    scale = max_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return smaller, (size[0] / width, size[1] / height)


def load_cv2() -> Any:
    """OpenCV, silent: what it cannot do is said by our own errors."""
    cv2 = need("cv2", _EXTRA)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _decode(path: Path, grayscale_stays: bool) -> NDArray[np.uint8]:
    """A picture (H, W, 3), or (H, W) where the file is gray and may stay so, or holds floats of one channel."""
    with open_picture(path) as header:
        white = _stated_white(header)
        if path.suffix.lower() in HEIF:
            return np.ascontiguousarray(np.asarray(header.convert("RGB"))[..., ::-1])
    stored = np.frombuffer(_read_whole(path), np.uint8)
    cv2 = load_cv2()
    colour = cv2.IMREAD_ANYCOLOR if grayscale_stays else cv2.IMREAD_COLOR
    flags = colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = None
    try:
        image = cv2.imdecode(stored, flags)
        if image is None:  # floats of one channel decode only as they are
            image = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pass
    if image is None or image.ndim > 3 or (image.ndim == 3 and image.shape[2] != 3):
        raise DataError(f"image {path} does not decode: it is damaged, or of a kind that is not read")
    if image.dtype == np.uint8:
        return np.asarray(image)
    return _to_8_bits(np.asarray(image), white or _assumed_white(image, path), path)


def _stated_white(header: Any) -> float | None:
    """The largest value that a sample may have, where the file says it; None otherwise."""
    if header.format == "PPM":
        header.fp.seek(0)
        numbers = re.match(rb"P[56]((?:\s+|#[^\n]*\n)+\d+){3}\s", header.fp.read(1024))
        return float(re.split(rb"\s+", numbers.group().rstrip())[-1]) if numbers else None
    for tag in _WHITE_TAGS:
        value = getattr(header, "tag_v2", {}).get(tag)
        value = max(value) if isinstance(value, tuple) and value else value
        if isinstance(value, (int, float)) and value > 0:
            return float(value)
    return None


def _assumed_white(image: NDArray[Any], path: Path) -> float:
    """White of samples that the file does not describe."""
    largest = float(image.max())
    if image.dtype.kind == "f":
        return 1.0 if largest <= 1 else 255.0
    white = float(np.iinfo(image.dtype).max)
    if 0 < largest < white / 3:
        log.warning(
            "image %s: no sample of its %d bits is above %g, so it is nearly black; if its white is lower, store it "
            "stretched (or say so: TIFF's MaxSampleValue)", path, image.dtype.itemsize * 8, largest,
        )  # fmt: skip
    return white


def _to_8_bits(image: NDArray[Any], white: float, path: Path) -> NDArray[np.uint8]:
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise DataError(f"image {path} holds values that are not finite: convert it to 8 bits")
        if image.min() < 0 or image.max() > white:
            raise DataError(
                f"image {path} holds floats of {image.min():g} to {image.max():g}, expected 0 to {white:g}: convert it "
                "to 8 bits"
            )
    scaled = image * np.float32(255.0 / white)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _read_whole(path: Path) -> bytes:
    """The bytes of a file that is not cut short."""
    content = path.read_bytes()
    if _is_cut_short(content):
        raise DataError(f"image {path} is cut short: its end is missing; fetch it again or remove it")
    return content


def _is_cut_short(content: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end: OpenCV fills the rest with gray. Other formats do not decode then."""
    if content.startswith(_PNG):
        return _PNG_END not in content
    place = 2
    while content.startswith(b"\xff\xd8") and content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xda":  # the first scan
            return content.find(b"\xff\xd9", place) < 0
        # an embedded thumbnail has an end marker of its own: segments are skipped whole
        place += 1 if marker == b"\xff" else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False
