"""``python -m train bundle``: write a checkpoint as weights that ship with the library."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from kornia_hardnet8.checkpoints import BUNDLED_DIR, load_weights, save_weights
from kornia_hardnet8.errors import DataError, UsageError

MAX_BYTES = 19_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint with its projection (python -m train pca)")
    parser.add_argument("--name", required=True, help="name of the model, e.g. h8E512")


def run(args: argparse.Namespace) -> None:
    """Write ``kornia_hardnet8/weights/NAME.safetensors`` and remind of the card beside it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise UsageError(f"--name {args.name!r}: letters, digits, dot, underscore and hyphen only")
    weights = load_weights(args.checkpoint)
    if weights.projection is None:
        raise DataError(f"{args.checkpoint} has no projection: fit one with python -m train pca")
    if "mr_size" not in weights.metadata:
        raise DataError(f"{args.checkpoint} does not say its mr_size: train it with this package")
    target = BUNDLED_DIR / f"{args.name}.safetensors"
    save_weights(target, weights)
    size = target.stat().st_size
    if size > MAX_BYTES:
        target.unlink()
        raise DataError(f"{target.name} would be {size} bytes, more than the {MAX_BYTES} that a wheel should hold")
    card = target.with_suffix(".md")
    print(f"{target}: {size} bytes, arch {weights.arch}, mr_size {weights.metadata['mr_size']}")
    print(f"{card}: {'check that the model card still tells the truth' if card.is_file() else 'write the model card'}")
