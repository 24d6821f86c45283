"""``python -m train build hpatches``: strips of corresponding patches of the HPatches release."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.hpatches import LEVELS, NUM_TARGETS, PATCH_SIDE, count_patches, find_strips, read_strip
from common.jobs import ordered_map
from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.flags import add_output, how_built
from train.stores.writer import Built, create_store, source_hashes, source_key

MR_SIZE = 12.0  # HardNets trained on these patches are used with patches of half side 12 sigma


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="DIR/<sequence>/ref.png, e1.png … t5.png")
    add_output(parser)
    parser.add_argument(
        "--levels", nargs="+", default=["e", "h", "t"], metavar="LEVEL", help="noise beside the reference: e, h, t"
    )
    parser.add_argument("--sequences", nargs="+", default=["*"], metavar="GLOB", help="sequences to take")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="GLOB", help="sequences to leave out")


def run(args: argparse.Namespace) -> None:
    """Build, and say what came out."""
    built = build_hpatches(
        args.folder, args.out, levels=args.levels, sequences=args.sequences, exclude=args.exclude,
        num_workers=args.num_workers, how=how_built(args, "hpatches"),
    )  # fmt: skip
    print(f"{args.out}: {built}")


def build_hpatches(
    folder: str | Path,
    out: str | Path,
    *,
    levels: Sequence[str] = LEVELS,
    sequences: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from ``<sequence>/{ref,e1 … e5,h1 … h5,t1 … t5}.png``, columns of 65 x 65 patches.

    Patch i of all strips of a sequence is one label; ``image_ids`` and ``cam_ids`` number the strips.

    Args:
        folder: the release.
        out: the store.
        levels: ``e``, ``h``, ``t``: noise levels beside the reference.
        sequences: names or patterns (``v_*``) of the sequences to take.
        exclude: names or patterns of those to leave out.
        num_workers: processes.
        how: settings to record.

    Raises:
        UsageError: an unknown level, or none.
        MissingFileError: the folder or a strip is not there.
        DataError: no such sequence, or strips that are damaged or of different lengths.
    """
    if not levels or any(level not in LEVELS for level in levels):
        raise UsageError(f"--levels takes {', '.join(LEVELS)}, got {' '.join(levels) or 'nothing'}")
    chosen = _sequences(Path(folder), sequences, exclude)
    types = ["ref", *(f"{level}{k}" for level in LEVELS if level in levels for k in range(1, NUM_TARGETS + 1))]
    counts = [count_patches(path, types) for path in chosen]
    first = np.concatenate([[0], np.cumsum(counts)])
    strips = [path / f"{name}.png" for path in chosen for name in types]

    with create_store(out, PATCH_SIDE, key=["hpatches", source_key(strips)]) as writer:
        done = len(writer.records)
        rest = strips[done:]
        results = progress(ordered_map(read_strip, rest, num_workers), len(rest), what="hpatches", unit="strip")
        for number, patches in enumerate(results, done):
            sequence = number // len(types)
            ids = np.full(len(patches), number)
            labels = np.arange(first[sequence], first[sequence + 1])
            writer.append(patches, labels=labels, image_ids=ids, cam_ids=ids)
            writer.commit({})
        writer.meta = {
            "crop": 1.0,
            "mr_size": MR_SIZE,
            "sequences": [{"name": path.name, "labels": count} for path, count in zip(chosen, counts, strict=True)],
            "built": how or {},
            "sources": source_hashes(strips, Path(folder)),
        }
    return Built(writer.count, int(first[-1]), {"sequences": len(chosen)})


def _sequences(folder: Path, patterns: Sequence[str], exclude: Sequence[str]) -> list[Path]:
    """The folders of the sequences that the patterns take, by name."""
    present = list(find_strips(folder).values())
    chosen = [path for path in present if _among(path.name, patterns) and not _among(path.name, exclude)]
    if not chosen:
        left = f" and --exclude {' '.join(exclude)} leaves" if exclude else ""
        raise DataError(
            f"{folder} holds {len(present)} sequences, but none that --sequences {' '.join(patterns)} takes{left}"
        )
    return chosen


def _among(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
