"""``python -m train merge STORE… --out STORE``: join patch stores into one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.patchstore import PatchStore
from common.shell import output_folder, progress
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.writer import StoreWriter, create_store

_BLOCK = 8192  # patches copied at once


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="the stores, in this order")
    parser.add_argument("--out", required=True, type=output_folder, metavar="STORE", help="the store to build")
    parser.add_argument(
        "--same-place",
        action="append",
        nargs="+",
        default=[],
        type=Path,
        metavar="STORE",
        help="stores of one place, whose labels are never negatives of each other; once for each group",
    )


def run(args: argparse.Namespace) -> None:
    """Merge."""
    store = merge_stores(args.stores, args.out, args.same_place)
    print(f"{args.out}: {len(store)} patches, {store.meta['num_labels']} labels, from {len(args.stores)} stores")


def merge_stores(
    paths: Sequence[str | Path], out: str | Path, same_place: Sequence[Sequence[str | Path]] = ()
) -> PatchStore:
    """Join stores of one patch frame into one; returns it opened.

    Labels, image and camera ids of each store are renumbered from 0 and follow those of the stores before.
    ``place_ids`` appears when ``same_place`` names groups of stores that show one place, or a store has it: stores
    of a group share one place, any other store without it is a place of its own. ``meta["parts"]`` tells which rows,
    labels and cameras ([first, end)) come from which store, or from which part of one that is merged itself: labels
    of one place are wrong negatives of each other only when they come from different parts. Frames are kept when all
    stores have them; test pairs and collisions of the stores are kept; ``visible`` counts as true where a store lacks
    it. Cameras are known where they are in all stores (``meta["has_cams"]``).

    Raises:
        UsageError: no store, a file, a store given twice, or a group that names a store that is not merged.
        DataError: stores of different patch size, colour, crop, mr_size or kind.
    """
    groups = _place_groups(paths, same_place)
    stores = _open_alike(paths)
    with_places = bool(groups) or any(store.place_ids is not None for store in stores)
    places = _Places()
    parts: list[dict[str, Any]] = []
    pairs, starts, items = [], [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
    first = stores[0]
    channels = 1 if first.patches.ndim == 3 else first.patches.shape[3]
    before = _Counts()
    with create_store(out, first.patch_size, channels) as writer:
        for store in progress(stores, what="merge", unit="store"):
            ids = _Ids.of(store)
            rows = {**ids.rows(before), **_optional_rows(store, stores)}
            if with_places:
                place = store.path.resolve()
                rows["place_ids"] = places.of(store, groups.get(place), str(place))
            _copy(store, rows, writer)
            if store.pairs is not None:
                pairs.append(np.asarray(store.pairs) + np.array([before.patches, before.patches, 0]))
            own_starts, own_items = ids.collisions(store, before)
            starts.append(own_starts[1:] + sum(map(len, items)))
            items.append(own_items)
            parts += ids.parts(store, before)
            before = ids.counts_after(before)
        if pairs:
            writer.set_pairs(np.concatenate(pairs))
        if any(store.collisions is not None for store in stores):
            writer.set_collisions(np.concatenate(starts), np.concatenate(items))
        writer.meta = _meta(stores, parts, same_place)
    return PatchStore.open(out)


def _optional_rows(store: PatchStore, stores: list[PatchStore]) -> dict[str, np.ndarray]:
    """Frames, which are kept where all stores have them, and visibility, which is told where one has it."""
    rows = {}
    if store.frames is not None and all(other.frames is not None for other in stores):
        rows["frames"] = store.frames
    if any(other.visible is not None for other in stores):
        rows["visible"] = np.ones(len(store), bool) if store.visible is None else store.visible
    return rows


def _copy(store: PatchStore, rows: dict[str, np.ndarray], writer: StoreWriter) -> None:
    for low in range(0, len(store), _BLOCK):
        block = slice(low, low + _BLOCK)
        writer.append(np.asarray(store.patches[block]), **{name: row[block] for name, row in rows.items()})


def _meta(
    stores: list[PatchStore], parts: list[dict[str, Any]], same_place: Sequence[Sequence[str | Path]]
) -> dict[str, Any]:
    return {
        **{name: stores[0].meta[name] for name in ("kind", "crop", "mr_size")},
        "has_cams": all(store.meta.get("has_cams", True) for store in stores),
        "parts": parts,
        "built": {
            "command": "merge",
            "stores": [{"name": s.path.name, "built": s.meta.get("built", {})} for s in stores],
            "same_place": [[Path(p).name for p in members] for members in same_place],
        },
        "sources": [
            {**source, "name": f"{s.path.name}/{source['name']}"} for s in stores for source in s.meta["sources"]
        ],
    }


def _place_groups(paths: Sequence[str | Path], same_place: Sequence[Sequence[str | Path]]) -> dict[Path, int]:
    """The number of its group for each store of one, by resolved path."""
    if not paths:
        raise UsageError("merge: no store is named")
    resolved = [Path(p).resolve() for p in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(p for p in paths if resolved.count(Path(p).resolve()) > 1)
        raise UsageError(f"merge: {twice} is named twice")
    groups: dict[Path, int] = {}
    for number, members in enumerate(same_place):
        for member in members:
            place = Path(member).resolve()
            if place not in resolved:
                raise UsageError(f"--same-place: {member} is not among the merged stores")
            if place in groups:
                raise UsageError(f"--same-place: {member} is in two groups")
            groups[place] = number
    return groups


def _open_alike(paths: Sequence[str | Path]) -> list[PatchStore]:
    """The stores, of one kind and patch frame."""
    for path in map(Path, paths):
        if path.is_file():
            raise UsageError(
                f"merge: {path} is a file, a patch store is a folder; data files of 2020 are joined in training: "
                "--ds FILE+STORE"
            )
    stores = [PatchStore.open(p) for p in paths]
    for store in stores[1:]:
        for name, (a, b) in _frame_of(stores[0], store).items():
            if a != b:
                raise DataError(
                    f"{store.path} has {name} {b}, {stores[0].path} has {a}: stores to merge must agree in it"
                )
    return stores


@dataclass(frozen=True)
class _Counts:
    """What the stores before one have together."""

    patches: int = 0
    labels: int = 0
    images: int = 0
    cams: int = 0


@dataclass(frozen=True)
class _Ids:
    """The distinct ids of a store, ascending, and for each patch where among them its own is."""

    labels: tuple[np.ndarray, np.ndarray]
    images: tuple[np.ndarray, np.ndarray]
    cams: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, store: PatchStore) -> _Ids:
        return cls(*(np.unique(ids, return_inverse=True) for ids in (store.labels, store.image_ids, store.cam_ids)))

    def rows(self, before: _Counts) -> dict[str, np.ndarray]:
        return {
            "labels": self.labels[1] + before.labels,
            "image_ids": self.images[1] + before.images,
            "cam_ids": self.cams[1] + before.cams,
        }

    def collisions(self, store: PatchStore, before: _Counts) -> tuple[np.ndarray, np.ndarray]:
        """Those of the store, none where it has none, in new labels."""
        names = self.labels[0]
        if store.collisions is None:
            return np.zeros(len(names) + 1, np.int64), np.empty(0, np.int64)
        starts, items = store.collisions
        return starts, np.searchsorted(names, items) + before.labels

    def parts(self, store: PatchStore, before: _Counts) -> list[dict[str, Any]]:
        """The store as one part, or its own parts where it is merged itself."""
        after = self.counts_after(before)
        if "parts" not in store.meta:
            return [
                {
                    "name": store.path.name,
                    "patches": [before.patches, after.patches],
                    "labels": [before.labels, after.labels],
                    "cam_ids": [before.cams, after.cams],
                }
            ]
        return [
            {
                "name": f"{store.path.name}/{part['name']}",
                "patches": [row + before.patches for row in part["patches"]],
                "labels": (np.searchsorted(self.labels[0], part["labels"]) + before.labels).tolist(),
                "cam_ids": (np.searchsorted(self.cams[0], part["cam_ids"]) + before.cams).tolist(),
            }
            for part in store.meta["parts"]
        ]

    def counts_after(self, before: _Counts) -> _Counts:
        return _Counts(
            before.patches + len(self.labels[1]),
            before.labels + len(self.labels[0]),
            before.images + len(self.images[0]),
            before.cams + len(self.cams[0]),
        )


class _Places:
    """Hands out place ids: a number a group, a number a store of no group, or the store's own places renumbered."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def of(self, store: PatchStore, group: int | None, path: str) -> np.ndarray:
        if group is not None:
            return np.full(len(store), self._number(("group", group)), np.int32)
        if store.place_ids is None:
            return np.full(len(store), self._number(("store", path)), np.int32)
        distinct, index = np.unique(store.place_ids, return_inverse=True)
        numbers = np.array([self._number(("place", path, int(p))) for p in distinct], np.int32)
        return numbers[index]

    def _number(self, key: object) -> int:
        return self._known.setdefault(key, len(self._known))


def _frame_of(a: PatchStore, b: PatchStore) -> dict[str, tuple[object, object]]:
    return {
        "kind": (a.meta["kind"], b.meta["kind"]),
        "patches of shape": (a.patches.shape[1:], b.patches.shape[1:]),
        "crop": (a.meta["crop"], b.meta["crop"]),
        "mr_size": (a.meta["mr_size"], b.meta["mr_size"]),
    }
