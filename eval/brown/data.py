"""Reading patch sets with labels: Brown's folders, their cached files, and patch stores."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import read_json

SUBSETS = ("liberty", "notredame", "yosemite")
DETECTORS = ("", "_harris")
PATCH_SIDE = 64
PAIR_FILE = "m50_100000_100000_0.txt"
_STORE_FORMAT = "patchstore/1"


@dataclass(frozen=True)
class PatchSet:
    """Gray patches with labels; what a source lacks is None.

    Attributes:
        name: of the subset.
        patches: uint8 (N, S, S), possibly memory-mapped.
        labels: int64 (N,), one label = one 3-D point.
        image_ids: int64 (N,), the (reference) image a patch was cut from.
        pairs: int64 (M, 3): first patch, second patch, 1 if they match.
        crop: stored side / plain side of a patch (1 for Brown's own files).
        cam_ids: int32 (N,), camera or scene.
        frames: float32 (N, 2, 3) in the source image.
        collisions: (starts, items) per sorted label, see the store's format.
        kind: ``views`` where every label is seen by one fixed camera, else ``tuples``.
    """

    name: str
    patches: NDArray[np.uint8]
    labels: NDArray[np.int64]
    image_ids: NDArray[np.int64] | None = None
    pairs: NDArray[np.int64] | None = None
    crop: float = 1.0
    cam_ids: NDArray[np.int32] | None = None
    frames: NDArray[np.float32] | None = None
    collisions: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    kind: str = "tuples"

    def __len__(self) -> int:
        return len(self.labels)


def find_sets(root: str | Path) -> list[PatchSet]:
    """The patch sets at or below ``root``.

    Raises:
        MissingFileError: ``root`` is not there.
        DataError: nothing that can be read.
    """
    root = Path(root)
    if root.is_file() and root.suffix == ".pt":
        return [read_cached(root)]
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of patch sets")
    if (opened := _open(root)) is not None:
        return [opened]
    found = [opened for folder in sorted(root.iterdir()) if folder.is_dir() and (opened := _open(folder)) is not None]
    names = {s.name for s in found}
    cached = [root / f"{subset}{detector}.pt" for subset in SUBSETS for detector in DETECTORS]
    found += [read_cached(path) for path in cached if path.is_file() and path.stem not in names]
    if not found:
        raise DataError(f"{root} holds no patch set: no folder with info.txt and patches0000.bmp, no patch store")
    return found


def _open(folder: Path) -> PatchSet | None:
    if (folder / "meta.json").is_file():
        return read_store(folder)
    # Some archives hold one more folder of the same name.
    for place in (folder, folder / folder.name):
        if (place / "info.txt").is_file():
            return read_brown(place, folder.name)
    return None


def read_brown(folder: Path, name: str | None = None) -> PatchSet:
    """One subset as published: ``info.txt``, ``patchesNNNN.bmp``, and ``interest.txt`` and the pair list if there."""
    labels = parse_first_column(folder / "info.txt")
    interest, pairs = folder / "interest.txt", folder / PAIR_FILE
    image_ids = parse_first_column(interest) if interest.is_file() else None
    if image_ids is not None and len(image_ids) != len(labels):
        raise DataError(f"{interest} has {len(image_ids)} lines, info.txt {len(labels)}")
    matches = parse_matches(pairs) if pairs.is_file() else None
    if matches is not None and len(matches) and matches[:, :2].max() >= len(labels):
        raise DataError(f"{pairs} names patch {matches[:, :2].max()}, info.txt lists {len(labels)}")
    return PatchSet(name or folder.name, read_mosaics(folder, len(labels)), labels, image_ids, matches)


def parse_first_column(path: Path) -> NDArray[np.int64]:
    """The first number of each line: 3-D point ids of ``info.txt``, image ids of ``interest.txt``."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    column = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        text = line.split()[0]
        if not text.lstrip("-").isdecimal():
            raise DataError(f"{path}: line {number} starts with {text!r}, expected a whole number")
        column.append(int(text))
    return np.array(column, dtype=np.int64)


def parse_matches(path: Path) -> NDArray[np.int64]:
    """Pairs of a ``m50_*`` file, (M, 3): patch, patch, 1 if their 3-D point ids agree."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) < 5 or not (fields[0].isdecimal() and fields[3].isdecimal()):
            raise DataError(f"{path}: line {number} is no pair (patch, point, 0, patch, point, …)")
        rows.append((int(fields[0]), int(fields[3]), int(fields[1] == fields[4])))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def read_mosaics(folder: Path, count: int) -> NDArray[np.uint8]:
    """The first ``count`` patches of the mosaics in name order, row by row, (count, 64, 64)."""
    patches = np.empty((count, PATCH_SIDE, PATCH_SIDE), dtype=np.uint8)
    at = 0
    for path in sorted(folder.glob("patches*.bmp")):
        if at == count:
            break
        try:
            with Image.open(path) as image:
                mosaic = np.asarray(image.convert("L"))
        except OSError:
            raise DataError(f"{path} is damaged or no image") from None
        height, width = mosaic.shape
        if height % PATCH_SIDE or width % PATCH_SIDE:
            raise DataError(f"{path} is {width} x {height}, expected multiples of {PATCH_SIDE}")
        tiles = mosaic.reshape(height // PATCH_SIDE, PATCH_SIDE, width // PATCH_SIDE, PATCH_SIDE).swapaxes(1, 2)
        part = tiles.reshape(-1, PATCH_SIDE, PATCH_SIDE)[: count - at]
        patches[at : at + len(part)] = part
        at += len(part)
    if at < count:
        raise DataError(f"{folder} holds {at} patches in its mosaics, info.txt lists {count}")
    return patches


def read_cached(path: Path) -> PatchSet:
    """A ``.pt`` file: (patches, labels, matches or image ids), or a dictionary with these names."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, struct.error) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} is not a readable patch file: {reason}") from None
    if isinstance(content, (tuple, list)) and len(content) == 3:
        content = dict(zip(("patches", "labels", "third"), content, strict=True))
        third = np.asarray(content.pop("third"))
        content["matches" if third.ndim == 2 else "image_ids"] = third
    if not isinstance(content, dict) or not {"patches", "labels"} <= set(content):
        raise DataError(f"{path} holds no patches and labels")
    arrays = {key: np.asarray(value) for key, value in content.items() if value is not None}
    patches, labels = arrays["patches"], arrays["labels"].astype(np.int64)
    if patches.ndim != 3 or patches.dtype != np.uint8 or len(patches) != len(labels):
        raise DataError(f"{path}: patches are {patches.dtype} {patches.shape} for {len(labels)} labels")
    ids, matches = arrays.get("image_ids"), arrays.get("matches")
    return PatchSet(
        path.stem,
        patches,
        labels,
        None if ids is None else ids.astype(np.int64),
        None if matches is None else matches.astype(np.int64),
    )


def read_store(folder: Path) -> PatchSet:
    """A patch store, its arrays memory-mapped.

    Raises:
        DataError: another format, colour patches, or arrays that do not fit together.
    """
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != _STORE_FORMAT:
        raise DataError(f"{folder / 'meta.json'} is not of format {_STORE_FORMAT}")
    arrays = {}
    for name in ("patches", "labels", "image_ids", "cam_ids", "frames", "pairs"):
        path = folder / f"{name}.npy"
        if not path.is_file():
            if name in ("patches", "labels"):
                raise MissingFileError(f"{path} is not there")
            continue
        try:
            arrays[name] = np.load(path, mmap_mode="r" if name == "patches" else None, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            raise DataError(f"{path} is cut short or damaged") from None
        if name != "pairs" and len(arrays[name]) != meta.get("count"):
            raise DataError(f"{path} has {len(arrays[name])} rows, meta.json says {meta.get('count')}")
    if arrays["patches"].ndim != 3:
        raise DataError(f"{folder}: patches must be gray (N, S, S), got {arrays['patches'].shape}")
    collisions = None
    if (folder / "collisions.npz").is_file():
        with np.load(folder / "collisions.npz", allow_pickle=False) as data:
            collisions = (data["starts"], data["items"])
    return PatchSet(
        folder.resolve().name,
        arrays["patches"],
        arrays["labels"],
        arrays.get("image_ids"),
        arrays.get("pairs"),
        float(meta.get("crop", 1.0)),
        arrays.get("cam_ids"),
        arrays.get("frames"),
        collisions,
        str(meta.get("kind", "tuples")),
    )
