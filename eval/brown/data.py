"""Reading patch sets with labels: Brown's folders, their cached files, and patch stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.brown import open_brown, read_mosaic
from common.images import folders_in
from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.torch_files import load_torch

SUBSETS = ("liberty", "notredame", "yosemite")
DETECTORS = ("", "_harris")
_OF_CACHED = ("patches", "labels", "image_ids", "matches")


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
    found = [opened for folder in folders_in(root) if (opened := _open(folder)) is not None]
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
    """One subset as published; see :func:`common.brown.open_brown` for what is checked."""
    files = open_brown(folder)
    patches = np.concatenate([read_mosaic(path)[0] for path in files.mosaics])[: len(files.labels)]
    return PatchSet(name or folder.name, patches, files.labels, files.images, files.pairs)


def read_cached(path: Path) -> PatchSet:
    """A ``.pt`` file: (patches, labels, matches or image ids), or a dictionary with these names."""
    content = load_torch(path, check_sums=False)
    try:
        return _cached(path, content)
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} holds no patches and labels: {' '.join(str(error).split())[:160]}") from None


def _cached(path: Path, content: Any) -> PatchSet:
    if isinstance(content, (tuple, list)) and len(content) == 3:
        content = dict(zip(("patches", "labels", "third"), content, strict=True))
        third = np.asarray(content.pop("third"))
        content["matches" if third.ndim == 2 else "image_ids"] = third
    if not isinstance(content, dict) or not {"patches", "labels"} <= set(content):
        raise DataError(f"{path} holds no patches and labels")
    arrays = {key: np.asarray(content[key]) for key in _OF_CACHED if content.get(key) is not None}
    patches = arrays.pop("patches")
    if patches.ndim != 3 or patches.dtype != np.uint8 or patches.shape[1] != patches.shape[2]:
        raise DataError(f"{path}: patches must be uint8 (N, S, S), got {patches.dtype} {patches.shape}")
    for key, array in arrays.items():
        shape = (len(array), 3) if key == "matches" else (len(patches),)
        if array.dtype.kind not in "iu" or array.shape != shape:
            raise DataError(f"{path}: {key} must be whole numbers of shape {shape}, got {array.dtype} {array.shape}")
    labels, ids, matches = (
        None if key not in arrays else arrays[key].astype(np.int64) for key in ("labels", "image_ids", "matches")
    )
    assert labels is not None
    if matches is not None and len(matches) and not (0 <= matches[:, :2].min() <= matches[:, :2].max() < len(patches)):
        raise DataError(f"{path}: matches name patches that are not among the {len(patches)}")
    return PatchSet(path.stem, patches, labels, ids, matches)


def read_store(folder: Path) -> PatchSet:
    """A patch store, its arrays memory-mapped.

    Raises:
        DataError: another format, colour patches, or arrays that do not fit together.
    """
    store = PatchStore.open(folder)
    if store.patches.ndim != 3:
        raise DataError(f"{folder}: patches must be gray (N, S, S), got {store.patches.shape}")
    return PatchSet(
        folder.resolve().name,
        store.patches,
        np.asarray(store.labels),
        np.asarray(store.image_ids).astype(np.int64),
        None if store.pairs is None else np.asarray(store.pairs),
        float(store.meta["crop"]),
        np.asarray(store.cam_ids),
        None if store.frames is None else np.asarray(store.frames),
        store.collisions,
        store.meta["kind"],
    )


_SHORT = {"liberty": "LIB", "notredame": "ND", "yosemite": "YOS"}
PAIRS = tuple((train, test) for test in _SHORT for train in _SHORT if train != test)
HEADS = (*(f"{_SHORT[train]}>{_SHORT[test]}" for train, test in PAIRS), "mean")


def combinations_table(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]]) -> list[list[Any]]:
    """One row for each descriptor name that says what it was trained on: the name, then a value for each of ``HEADS``.

    Args:
        runs: ``method`` and ``per_scene`` of results.

    Returns:
        Rows; None for a combination that was not measured, and for the mean unless all six were.
    """
    rows: list[list[Any]] = []
    for name in dict.fromkeys(method["name"] for method, _ in runs if method.get("trained_on")):
        found = {
            (method["trained_on"], test): scores.get("FPR95")
            for method, per_scene in runs
            if method.get("name") == name
            for test, scores in per_scene.items()
        }
        values = [found.get(pair) for pair in PAIRS]
        known = [value for value in values if value is not None]
        rows.append([name, *values, sum(known) / len(known) if len(known) == len(PAIRS) else None])
    return rows
