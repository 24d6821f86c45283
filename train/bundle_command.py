"""``python -m train bundle``: write a checkpoint as one small file of weights, by default among the library's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from kornia_hardnet8.checkpoints import BUNDLED_DIR, load_weights, save_weights
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_path, sha256_file

MAX_BYTES = 19_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint with its projection (python -m train pca)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--name", help="put it into this checkout's library as the model of this name, e.g. h8E512")
    target.add_argument("--out", type=Path, metavar="FILE.safetensors", help="write it there instead")


def run(args: argparse.Namespace) -> None:
    """Write the file; for one of the library's own, remind of the card and the table of models."""
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: weights are written as .safetensors")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise UsageError(f"--name {args.name!r}: letters, digits, dot, underscore and hyphen only")
    weights = load_weights(args.checkpoint)
    if weights.projection is None:
        raise DataError(f"{args.checkpoint} has no projection: fit one with python -m train pca")
    if "mr_size" not in weights.metadata:
        raise DataError(f"{args.checkpoint} does not say its mr_size: train it with this package")
    target = args.out or BUNDLED_DIR / f"{args.name}.safetensors"
    with atomic_path(target) as temporary:
        save_weights(temporary, weights)
        size = temporary.stat().st_size
        if args.name is not None and size > MAX_BYTES:
            raise DataError(f"{target.name} would be {size} bytes, more than the {MAX_BYTES} that a wheel should hold")
    print(f"{target}: {size} bytes, arch {weights.arch}, mr_size {weights.metadata['mr_size']}")
    print(f"SHA-256 {sha256_file(target)}")
    if args.name is None:
        return
    card = target.with_suffix(".md")
    print(f"kornia_hardnet8/models.py: the entry of {args.name}: SHA-256, mr_size, numbers")
    print(f"{card}: {'check that the model card still tells the truth' if card.is_file() else 'write the model card'}")
