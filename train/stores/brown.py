"""``python -m train build brown``: Brown's photo tourism patches, in the layout in which they were published."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

from common.brown import COUNTS, SIDE, open_brown, read_mosaic
from common.jobs import ordered_map
from common.shell import progress
from kornia_hardnet8.files import sha256_file
from train.stores.flags import add_output, how_built
from train.stores.writer import Built, create_store, source_key

log = logging.getLogger(__name__)
MR_SIZE = 12.0  # HardNets trained on these patches are used with patches of half side 12 sigma


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="patches0000.bmp …, info.txt, interest.txt, m50_100000_100000_0.txt"
    )
    add_output(parser)
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="another list of test pairs")


def run(args: argparse.Namespace) -> None:
    """Build, and say what came out."""
    how = how_built(args, "brown")
    built = build_brown(args.folder, args.out, pairs=args.pairs, num_workers=args.num_workers, how=how)
    print(f"{args.out}: {built}")


def build_brown(
    folder: str | Path,
    out: str | Path,
    *,
    pairs: str | Path | None = None,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from ``patchesNNNN.bmp``, ``info.txt``, ``interest.txt`` and a list of test pairs.

    ``labels`` are the 3-D points of ``info.txt``; ``image_ids`` and ``cam_ids`` the reference images of
    ``interest.txt`` (without that file there are no cameras). See :func:`common.brown.open_brown` for what is checked.

    Args:
        folder: the files, or a folder with one folder of them.
        out: the store.
        pairs: list of test pairs (default: ``m50_100000_100000_0.txt`` where it is there).
        num_workers: processes.
        how: settings to record.

    Raises:
        MissingFileError: a folder or a file is not there.
        DataError: a check fails, or a file is damaged.
    """
    files = open_brown(folder, pairs)
    folder, labels = files.folder, files.labels
    if files.images is None:
        log.warning("%s has no interest.txt: the store has no cameras, so --fewcams cannot be used with it", folder)
    cams = np.zeros(len(labels), np.int32) if files.images is None else files.images.astype(np.int32)

    with create_store(out, SIDE, key=["brown", source_key([*files.mosaics, *files.texts])]) as writer:
        rest = files.mosaics[len(writer.records) :]
        results = progress(ordered_map(read_mosaic, rest, num_workers), len(rest), what="brown", unit="mosaic")
        for patches, digest in results:
            rows = slice(writer.count, writer.count + len(patches))
            patches = patches[: len(labels[rows])]  # the last mosaic is filled up
            writer.append(patches, labels=labels[rows], image_ids=cams[rows], cam_ids=cams[rows])
            writer.commit({"sha256": digest})
        if files.pairs is not None:
            writer.set_pairs(files.pairs)
        named = zip(files.mosaics, (record["sha256"] for record in writer.records), strict=True)
        writer.meta = {
            "crop": 1.0,
            "mr_size": MR_SIZE,
            "has_cams": files.images is not None,
            "subset": folder.name if folder.name in COUNTS else None,
            "built": how or {},
            "sources": [
                *({"name": path.name, "sha256": sha256_file(path)} for path in files.texts),
                *({"name": path.name, "sha256": digest} for path, digest in named),
            ],
        }
    num_images = 0 if files.images is None else len(np.unique(files.images))
    num_pairs = 0 if files.pairs is None else len(files.pairs)
    return Built(len(labels), len(np.unique(labels)), {"images": num_images, "test pairs": num_pairs})
