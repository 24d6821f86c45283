"""PatchStore: a folder of labelled patches, memory-mapped; :mod:`train.stores.writer` writes them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import read_npy, read_npz
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import read_object

FORMAT = "patchstore/1"
KINDS = ("tuples", "views")
_HASHED = 4096  # patches of a fingerprint
# name -> (dtype, trailing shape, is it in every store); patches apart, whose trailing shape a store chooses
ROW_ARRAYS: dict[str, tuple[str, tuple[int, ...], bool]] = {
    "labels": ("int64", (), True),
    "image_ids": ("int32", (), True),
    "cam_ids": ("int32", (), True),
    "frames": ("float32", (2, 3), False),
    "place_ids": ("int32", (), False),
    "visible": ("bool", (), False),
}


@dataclass(frozen=True)
class PatchStore:
    """An opened store; arrays are read-only memory maps, an optional one that the store lacks is None.

    Attributes:
        path: the folder.
        meta: ``meta.json``; ``crop`` = stored side / plain side, ``mr_size`` = half side of the plain patch / sigma.
        patches: uint8 (N, S, S), or (N, S, S, 3) for colour.
        labels: int64 (N,); patches of one label show one point.
        image_ids: int32 (N,), the source image.
        cam_ids: int32 (N,), the camera or scene that few-camera sampling groups by.
        frames: float32 (N, 2, 3), the plain frame (half side mr_size * sigma) in pixels of the source image.
        place_ids: int32 (N,); labels of one place that come from different ``meta["parts"]`` are never negatives.
        pairs: int64 (M, 3), test pairs: first patch, second patch, 1 if they match.
        visible: bool (N,), inside the image and the masks.
        collisions: two int64 arrays (L + 1,) and (C,): the labels that collide with the k-th smallest label are
            ``collisions[1][collisions[0][k]:collisions[0][k + 1]]``.
    """

    path: Path
    meta: dict[str, Any]
    patches: np.ndarray
    labels: np.ndarray
    image_ids: np.ndarray
    cam_ids: np.ndarray
    frames: np.ndarray | None = None
    place_ids: np.ndarray | None = None
    pairs: np.ndarray | None = None
    visible: np.ndarray | None = None
    collisions: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def patch_size(self) -> int:
        """Side S of a stored patch in pixels."""
        return int(self.meta["patch_size"])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the labels, images and cameras of all patches and the pixels of up to 4096 of them."""
        digest = hashlib.sha256(repr((self.patches.shape, self.meta["kind"], self.meta["crop"])).encode())
        for rows in (self.labels, self.image_ids, self.cam_ids):
            digest.update(np.ascontiguousarray(rows).tobytes())
        step = max(1, -(-len(self) // _HASHED))
        digest.update(np.ascontiguousarray(self.patches[::step]).tobytes())
        return digest.hexdigest()

    @classmethod
    def open(cls, path: str | Path) -> PatchStore:
        """Open a store and check every array against ``meta.json``.

        Raises:
            MissingFileError: the folder or one of its files is not there.
            DataError: not a store of this format, or an array is cut short or of another shape or type.
        """
        path = Path(path)
        if not path.is_dir():
            raise MissingFileError(f"patch store {path} is not there")
        if not (path / "meta.json").is_file():
            raise MissingFileError(f"{path} is no patch store: meta.json is missing")
        meta = _read_meta(path / "meta.json")
        arrays = {name: _load(path, name, spec) for name, spec in meta["arrays"].items() if name != "collisions"}
        _check_arrays(path, meta, arrays)
        collisions = _load_collisions(path, arrays["labels"]) if "collisions" in meta["arrays"] else None
        return cls(path=path, meta=meta, collisions=collisions, **arrays)


def _check_arrays(path: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    count, side = meta["count"], meta["patch_size"]
    if arrays["patches"].shape[:3] != (count, side, side) or arrays["patches"].dtype != np.uint8:
        raise DataError(f"{path}: patches are not uint8 ({count}, {side}, {side}[, 3])")
    for name, (dtype, trailing, _) in ROW_ARRAYS.items():
        if name in arrays and (arrays[name].shape != (count, *trailing) or arrays[name].dtype != dtype):
            raise DataError(f"{path}: {name} must be {dtype} {(count, *trailing)}")
    num_labels = len(np.unique(arrays["labels"]))
    if meta.get("num_labels", num_labels) != num_labels:
        raise DataError(f"{path}: labels.npy holds {num_labels} labels, meta.json says {meta['num_labels']!r}")
    pairs = arrays.get("pairs")
    if pairs is not None and (
        pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 3
        or (len(pairs) and not (0 <= pairs[:, :2].min() <= pairs[:, :2].max() < count))
        or not np.isin(pairs[:, 2], (0, 1)).all()
    ):  # fmt: skip
        raise DataError(f"{path}: pairs must be int64 (M, 3), each two of the {count} patches and 1 or 0")


def _read_meta(path: Path) -> dict[str, Any]:
    meta = read_object(path)
    if meta.get("format") != FORMAT:
        raise DataError(f"{path}: format is {meta.get('format')!r}, this version reads {FORMAT!r}")
    needed = {
        "kind": (lambda value: value in KINDS, " or ".join(KINDS)),
        "count": (lambda value: type(value) is int and value >= 0, "a whole number"),
        "patch_size": (lambda value: type(value) is int and value >= 1, "a whole number"),
        "arrays": (lambda value: isinstance(value, dict), "names with shapes and types"),
        "crop": (lambda value: _is_number(value) and value >= 1, "a number of 1 and more"),
        "mr_size": (lambda value: value is None or (_is_number(value) and value > 0), "a positive number or null"),
    }  # fmt: skip
    for key, (fits, expected) in needed.items():
        if key not in meta:
            raise DataError(f"{path}: {key} is missing")
        if not fits(meta[key]):
            raise DataError(f"{path}: {key} is {meta[key]!r}, expected {expected}")
    for name in ("patches", *(n for n, (_, _, is_needed) in ROW_ARRAYS.items() if is_needed)):
        if name not in meta["arrays"]:
            raise DataError(f"{path}: declares no {name}")
    return meta


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _load(path: Path, name: str, spec: dict[str, Any]) -> np.ndarray:
    file = path / f"{name}.npy"
    if name not in (*ROW_ARRAYS, "patches", "pairs"):
        raise DataError(f"{path / 'meta.json'}: unknown array {name!r}")
    if not file.is_file():
        raise MissingFileError(f"patch store {path}: {name}.npy is missing")
    try:
        shape, dtype = tuple(int(size) for size in spec["shape"]), np.dtype(spec["dtype"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path / 'meta.json'}: {name} is {spec!r}, expected its shape and dtype") from None
    array = read_npy(file, mapped=True)
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"patch store {path}: {name}.npy is {array.dtype} {array.shape}, meta.json says {spec['dtype']} {shape}"
        )
    return array


def _load_collisions(path: Path, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_npz(path / "collisions.npz", ("starts", "items"))
    starts, items = arrays["starts"], arrays["items"]
    count = len(np.unique(labels))
    if (
        starts.dtype != np.int64 or items.dtype != np.int64 or starts.shape != (count + 1,) or items.ndim != 1
        or starts[0] != 0 or starts[-1] != len(items) or (np.diff(starts) < 0).any()
    ):  # fmt: skip
        raise DataError(f"patch store {path}: collisions.npz does not fit the {count} labels")
    return starts, items
