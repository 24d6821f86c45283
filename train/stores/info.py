"""``python -m train info STORE``: what a patch store holds, and a contact sheet to look at."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from common.images import load_cv2
from common.patchstore import PatchStore
from common.shell import output_file, seed_number
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_path
from train.datasets import open_place

_GAP = 3  # pixels between the patches of a sheet


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("store", type=Path, metavar="STORE", help="the store, or a data file of 2020")
    parser.add_argument(
        "--sheet", type=output_file, metavar="FILE", help="write a picture: a row a label, the plain patch outlined"
    )
    parser.add_argument("--rows", type=int, default=24, metavar="N", help="labels on the sheet")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="patches of a label on the sheet")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the labels that are shown")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print what the store holds; write the sheet."""
    store = open_place(args.store)
    facts = describe(store, args.seed)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            print(f"{name:28} {value}")
    if args.sheet is not None:
        if args.rows < 1 or args.columns < 1:
            raise UsageError("--rows and --columns must be at least 1")
        write_sheet(store, args.sheet, args.rows, args.columns, args.seed)
        print(f"sheet: {args.sheet}")


def describe(store: PatchStore, seed: int = 0) -> dict[str, Any]:
    """Counts of a store, and the correlation of plain patches of one label and of different ones (2000 pairs)."""
    _, counts = np.unique(np.asarray(store.labels), return_counts=True)
    facts: dict[str, Any] = {
        "path": str(store.path),
        "kind": store.meta["kind"],
        "patches": len(store),
        "labels": len(counts),
        "patches a label (median, max)": [float(np.median(counts)), int(counts.max())] if len(counts) else None,
        "images": len(np.unique(np.asarray(store.image_ids))),
        "cameras": len(np.unique(np.asarray(store.cam_ids))),
        "patch size": store.patch_size,
        "crop": store.meta["crop"],
        "mr_size": store.meta["mr_size"],
        "optional arrays": [n for n in ("frames", "place_ids", "pairs", "visible", "collisions") if _has(store, n)],
    }
    same, other = correlations(store, seed=seed)
    if len(same):
        facts["correlation, one label"] = round(float(np.median(same)), 4)
        facts["correlation, different labels"] = round(float(np.median(other)), 4)
    return facts


def correlations(store: PatchStore, count: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixel correlation of ``count`` random pairs of one label, and of as many pairs of different labels.

    Taken over the plain part of the patches; a flat patch correlates 0 with everything. Empty arrays when no label
    has two patches.
    """
    rng = np.random.default_rng(seed)
    order, starts, counts = _groups(store)
    good = np.flatnonzero(counts >= 2)
    if not len(good):
        return np.empty(0), np.empty(0)
    chosen = rng.choice(good, size=count)
    first = rng.integers(0, counts[chosen])
    second = (first + rng.integers(1, counts[chosen])) % counts[chosen]
    a, b = order[starts[chosen] + first], order[starts[chosen] + second]
    x, y = _plain(store, a), _plain(store, b)
    shift = rng.permutation(count)
    differ = np.asarray(store.labels)[a] != np.asarray(store.labels)[b[shift]]
    return (x * y).sum(axis=1), (x * y[shift]).sum(axis=1)[differ]


def write_sheet(store: PatchStore, path: str | Path, rows: int = 24, columns: int = 8, seed: int = 0) -> None:
    """Write a contact sheet: ``rows`` random labels with two or more patches, up to ``columns`` patches each.

    Raises:
        DataError: no label has two patches.
        UsageError: the file's extension is no picture format.
    """
    cv2 = load_cv2()
    rng = np.random.default_rng(seed)
    order, starts, counts = _groups(store)
    good = np.flatnonzero(counts >= 2)
    if not len(good):
        raise DataError(f"{store.path}: no label has two patches, there is nothing to compare on a sheet")
    chosen = np.sort(rng.choice(good, size=min(rows, len(good)), replace=False))
    side = store.patch_size
    sheet = np.full((len(chosen) * (side + _GAP) + _GAP, columns * (side + _GAP) + _GAP, 3), 255, np.uint8)
    inset = round(side * (1 - 1 / store.meta["crop"]) / 2)
    for row, label in enumerate(chosen):
        members = rng.permutation(counts[label])[:columns]
        for column, member in enumerate(np.sort(members)):
            patch = np.array(store.patches[order[starts[label] + member]])
            patch = patch if patch.ndim == 3 else np.repeat(patch[:, :, None], 3, axis=2)
            if inset:
                low, high = inset - 1, side - inset
                patch[low, low : high + 1] = patch[high, low : high + 1] = (255, 200, 0)
                patch[low : high + 1, low] = patch[low : high + 1, high] = (255, 200, 0)
            y, x = _GAP + row * (side + _GAP), _GAP + column * (side + _GAP)
            sheet[y : y + side, x : x + side] = patch
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"--sheet must end in .png or .jpg, got {path.name!r}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, sheet[:, :, ::-1])[1].tobytes())


def _groups(store: PatchStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch indices sorted by label; the start and the length of each label's run."""
    labels = np.asarray(store.labels)
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order, starts, counts


def _plain(store: PatchStore, rows: np.ndarray) -> np.ndarray:
    """The plain part of patches, flattened, with mean 0 and norm 1."""
    side = store.patch_size
    inset = round(side * (1 - 1 / store.meta["crop"]) / 2)
    patches = store.patches[np.asarray(rows)][:, inset : side - inset, inset : side - inset].astype(np.float64)
    flat = patches.reshape(len(patches), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def _has(store: PatchStore, name: str) -> bool:
    return getattr(store, name) is not None
