"""Joining patch stores into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kornia_hardnet8._shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.store import PatchStore
from train.stores.writer import create_store

_BLOCK = 8192  # patches copied at once


def merge_stores(
    paths: Sequence[str | Path], out: str | Path, same_place: Sequence[Sequence[str | Path]] = ()
) -> PatchStore:
    """Join stores of one patch frame into one; returns it opened.

    Labels, image and camera ids of each store are renumbered from 0 and follow those of the stores before.
    ``place_ids`` appears when ``same_place`` names groups of stores that show one place, or a store has it: stores
    of a group share one place, any other store without it is a place of its own. ``meta["parts"]`` tells which rows,
    labels and cameras ([first, end)) come from which store: labels of one place are wrong negatives of each other
    only when they come from different parts. Frames are kept when all stores
    have them; test pairs and collisions of the stores are kept; ``visible`` counts as true where a store lacks it.

    Raises:
        UsageError: no store, a store given twice, or a group that names a store that is not merged.
        DataError: stores of different patch size, colour, crop, mr_size or kind.
    """
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
    stores = [PatchStore.open(p) for p in paths]
    for store in stores[1:]:
        for name, (a, b) in _frame_of(stores[0], store).items():
            if a != b:
                raise DataError(
                    f"{store.path} has {name} {b}, {stores[0].path} has {a}: stores to merge must agree in it"
                )

    with_frames = all(store.frames is not None for store in stores)
    with_visible = any(store.visible is not None for store in stores)
    with_places = bool(groups) or any(store.place_ids is not None for store in stores)
    places = _Places()
    labels_before = images_before = cams_before = patches_before = collided = 0
    parts, pairs, starts, items = [], [], [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
    first = stores[0]
    channels = 1 if first.patches.ndim == 3 else first.patches.shape[3]
    with create_store(out, first.patch_size, channels) as writer:
        for store, place in progress(list(zip(stores, resolved, strict=True)), what="merge", unit="store"):
            names, labels = np.unique(store.labels, return_inverse=True)
            images, image_ids = np.unique(store.image_ids, return_inverse=True)
            cams, cam_ids = np.unique(store.cam_ids, return_inverse=True)
            rows = {
                "labels": labels + labels_before,
                "image_ids": image_ids + images_before,
                "cam_ids": cam_ids + cams_before,
            }
            if with_frames and store.frames is not None:
                rows["frames"] = store.frames
            if with_visible:
                rows["visible"] = np.ones(len(store), bool) if store.visible is None else store.visible
            if with_places:
                rows["place_ids"] = places.of(store, groups.get(place), str(place))
            for low in range(0, len(store), _BLOCK):
                part = slice(low, low + _BLOCK)
                writer.append(np.asarray(store.patches[part]), **{name: row[part] for name, row in rows.items()})
            if store.pairs is not None:
                pairs.append(np.asarray(store.pairs) + np.array([patches_before, patches_before, 0]))
            if store.collisions is None:
                starts.append(np.full(len(names), collided))
            else:
                own, others = store.collisions
                starts.append(own[1:] + collided)
                collided += len(others)
                items.append(np.searchsorted(names, others) + labels_before)
            parts.append(
                {
                    "name": store.path.name,
                    "patches": [patches_before, patches_before + len(store)],
                    "labels": [labels_before, labels_before + len(names)],
                    "cam_ids": [cams_before, cams_before + len(cams)],
                }
            )
            labels_before += len(names)
            images_before += len(images)
            cams_before += len(cams)
            patches_before += len(store)
        if pairs:
            writer.set_pairs(np.concatenate(pairs))
        if any(store.collisions is not None for store in stores):
            writer.set_collisions(np.concatenate(starts), np.concatenate(items))
        writer.meta = {
            "kind": first.meta["kind"],
            "crop": first.meta["crop"],
            "mr_size": first.meta["mr_size"],
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
    return PatchStore.open(out)


class _Places:
    """Hands out place ids: a number a group, a number a store of no group, or the store's own places renumbered."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def of(self, store: PatchStore, group: int | None, path: str) -> np.ndarray:
        if group is not None:
            return np.full(len(store), self._number(("group", group)), np.int32)
        if store.place_ids is None:
            return np.full(len(store), self._number(("store", path)), np.int32)
        own, index = np.unique(store.place_ids, return_inverse=True)
        numbers = np.array([self._number(("place", path, int(p))) for p in own], np.int32)
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
