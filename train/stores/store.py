"""PatchStore: a folder of labelled patches, memory-mapped, written once."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from kornia_hardnet8._files import atomic_dir, read_json, write_json
from kornia_hardnet8.errors import DataError, MissingFileError

FORMAT = "patchstore/1"
KINDS = ("tuples", "views")
# name -> (dtype, trailing shape, is it in every store); patches apart, whose trailing shape a store chooses
_ROW_ARRAYS: dict[str, tuple[str, tuple[int, ...], bool]] = {
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
        meta = read_json(path / "meta.json")
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
            raise DataError(f"{path / 'meta.json'}: format is {found!r}, this version reads {FORMAT!r}")
        for key in ("kind", "count", "patch_size", "arrays", "crop", "mr_size"):
            if key not in meta:
                raise DataError(f"{path / 'meta.json'}: {key} is missing")
        declared = meta["arrays"]
        for name in ("patches", *(n for n, (_, _, needed) in _ROW_ARRAYS.items() if needed)):
            if name not in declared:
                raise DataError(f"{path / 'meta.json'}: declares no {name}")
        arrays = {name: _load(path, name, spec) for name, spec in declared.items() if name != "collisions"}
        count, side = meta["count"], meta["patch_size"]
        if arrays["patches"].shape[:3] != (count, side, side) or arrays["patches"].dtype != np.uint8:
            raise DataError(f"{path}: patches are not uint8 ({count}, {side}, {side}[, 3])")
        for name, (dtype, trailing, _) in _ROW_ARRAYS.items():
            if name in arrays and (arrays[name].shape != (count, *trailing) or arrays[name].dtype != dtype):
                raise DataError(f"{path}: {name} must be {dtype} {(count, *trailing)}")
        collisions = _load_collisions(path) if "collisions" in declared else None
        return cls(path=path, meta=meta, collisions=collisions, **arrays)


class StoreWriter:
    """Appends rows to a store under construction; use it through :func:`create_store`."""

    def __init__(self, folder: Path, patch_size: int, channels: int = 1) -> None:
        self.meta: dict[str, Any] = {}
        self._folder = folder
        self._trailing = (patch_size, patch_size) if channels == 1 else (patch_size, patch_size, channels)
        self._patches = _GrowingArray(folder / "patches.npy", "uint8", self._trailing)
        self._rows: dict[str, list[np.ndarray]] = {}
        self._extra: dict[str, Any] = {}
        self.count = 0

    def append(self, patches: np.ndarray, **rows: np.ndarray) -> None:
        """Add n patches uint8 (n, S, S[, 3]) with their ``labels``, ``image_ids``, ``cam_ids``, ``frames``, ... ."""
        count = len(patches)
        if patches.dtype != np.uint8 or patches.shape[1:] != self._trailing:
            raise DataError(f"store: patches must be uint8 (n, {self._trailing}), got {patches.dtype} {patches.shape}")
        if self.count and set(rows) != set(self._rows):
            raise DataError(f"store: rows {sorted(rows)} differ from the first ones {sorted(self._rows)}")
        for name, values in rows.items():
            dtype, trailing, _ = _ROW_ARRAYS[name]
            if np.shape(values) != (count, *trailing):
                raise DataError(f"store: {name} must have shape {(count, *trailing)}, got {np.shape(values)}")
            self._rows.setdefault(name, []).append(np.asarray(values, dtype=dtype))
        self._patches.append(patches)
        self.count += count

    def set_pairs(self, pairs: np.ndarray) -> None:
        """Set the test pairs, int64 (M, 3)."""
        self._extra["pairs"] = np.asarray(pairs, dtype=np.int64).reshape(-1, 3)

    def set_collisions(self, starts: np.ndarray, items: np.ndarray) -> None:
        """Set the labels that must not be negatives of each label (see :class:`PatchStore`)."""
        self._extra["collisions"] = (np.asarray(starts, dtype=np.int64), np.asarray(items, dtype=np.int64))

    def _finish(self) -> None:
        self._patches.close()
        arrays = {"patches": {"dtype": "uint8", "shape": [self.count, *self._trailing]}}
        for name, (dtype, trailing, needed) in _ROW_ARRAYS.items():
            if name not in self._rows and not needed:
                continue
            empty = np.empty((0, *trailing), dtype=dtype)
            values = np.concatenate([empty, *self._rows.get(name, [])])
            np.save(self._folder / f"{name}.npy", values)
            arrays[name] = {"dtype": dtype, "shape": list(values.shape)}
        labels = np.concatenate([np.empty(0, np.int64), *self._rows.get("labels", [])])
        if "pairs" in self._extra:
            np.save(self._folder / "pairs.npy", self._extra["pairs"])
            arrays["pairs"] = {"dtype": "int64", "shape": list(self._extra["pairs"].shape)}
        if "collisions" in self._extra:
            starts, items = self._extra["collisions"]
            np.savez(self._folder / "collisions.npz", starts=starts, items=items)
            arrays["collisions"] = {"dtype": "int64", "shape": [len(starts), len(items)]}
        meta = {
            "format": FORMAT,
            "kind": "tuples",
            "count": self.count,
            "num_labels": len(np.unique(labels)),
            "patch_size": self._trailing[0],
            **self.meta,
            "version": importlib.metadata.version("kornia-hardnet8") if _installed() else "source",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "arrays": arrays,
        }
        write_json(self._folder / "meta.json", meta)


@contextlib.contextmanager
def create_store(path: str | Path, patch_size: int, channels: int = 1) -> Iterator[StoreWriter]:
    """Build a store at ``path``: it appears when the block ends without an error, and not at all otherwise.

    ``writer.meta`` needs ``crop`` and ``mr_size``; ``kind`` is ``"tuples"`` unless set.

    Raises:
        DataError: something is at ``path`` already.
    """
    with atomic_dir(path) as folder:
        writer = StoreWriter(folder, patch_size, channels)
        try:
            yield writer
        finally:
            writer._patches.close()
        writer._finish()


class _GrowingArray:
    """An ``.npy`` file that grows along its first axis: the header is written again, in place, at the end."""

    def __init__(self, path: Path, dtype: str, trailing: tuple[int, ...]) -> None:
        self._file: IO[bytes] = open(path, "w+b")  # noqa: SIM115  (closed by close())
        self._dtype, self._trailing, self._count = np.dtype(dtype), trailing, 0
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._count += len(rows)

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._trailing),
        }
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for any first axis


def _load(path: Path, name: str, spec: dict[str, Any]) -> np.ndarray:
    file = path / f"{name}.npy"
    if name not in (*_ROW_ARRAYS, "patches", "pairs"):
        raise DataError(f"{path / 'meta.json'}: unknown array {name!r}")
    if not file.is_file():
        raise MissingFileError(f"patch store {path}: {name}.npy is missing")
    shape = tuple(spec["shape"])
    try:
        array: np.ndarray = np.load(file, mmap_mode=None if 0 in shape else "r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        want = int(np.prod(shape)) * np.dtype(spec["dtype"]).itemsize
        raise DataError(
            f"patch store {path}: {name}.npy is cut short or damaged: {file.stat().st_size} bytes, "
            f"{spec['dtype']} {shape} needs more than {want}"
        ) from None
    if array.shape != shape or array.dtype != np.dtype(spec["dtype"]):
        raise DataError(
            f"patch store {path}: {name}.npy is {array.dtype} {array.shape}, meta.json says {spec['dtype']} {shape}"
        )
    return array


def _load_collisions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    file = path / "collisions.npz"
    if not file.is_file():
        raise MissingFileError(f"patch store {path}: collisions.npz is missing")
    try:
        with np.load(file, allow_pickle=False) as data:
            return data["starts"], data["items"]
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile):
        raise DataError(f"patch store {path}: collisions.npz is cut short or damaged") from None


def _installed() -> bool:
    try:
        importlib.metadata.version("kornia-hardnet8")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
