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
from common.patchfiles import open_2020
from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError

SUBSETS = ("liberty", "notredame", "yosemite")
DETECTORS = ("", "_harris")


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
    sets = [opened for folder in folders_in(root) if (opened := _open(folder)) is not None]
    names = {s.name for s in sets}
    cached = [root / f"{subset}{detector}.pt" for subset in SUBSETS for detector in DETECTORS]
    sets += [read_cached(path) for path in cached if path.is_file() and path.stem not in names]
    if not sets:
        raise DataError(f"{root} holds no patch set: no folder with info.txt and patches0000.bmp, no patch store")
    return sets


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
    """A ``.pt`` file, see :func:`common.patchfiles.open_2020`; gray patches alone."""
    store = open_2020(path)
    if store.patches.ndim != 3:
        raise DataError(f"{path}: patches must be gray (N, S, S), got {store.patches.shape}")
    ids = store.image_ids.astype(np.int64) if store.meta["has_cams"] else None
    return PatchSet(path.stem, store.patches, store.labels, ids, store.pairs)


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
        rates = {
            (method["trained_on"], test): scores.get("FPR95")
            for method, per_scene in runs
            if method.get("name") == name
            for test, scores in per_scene.items()
        }
        values = [rates.get(pair) for pair in PAIRS]
        known = [value for value in values if value is not None]
        rows.append([name, *values, sum(known) / len(known) if len(known) == len(PAIRS) else None])
    return rows
