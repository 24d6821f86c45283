"""``python -m train convert``, ``export``, ``bundle``: weight files in the formats of others and of this library."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

import torch

from common.shell import output_file
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import MATCHABILITY, load_weights, save_kornia, save_weights
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.export import SUFFIXES, ExportPrecision, export
from kornia_hardnet8.files import atomic_path, sha256_file
from kornia_hardnet8.matchability import MR_SIZES, PATCH_SIZE, Matchability
from kornia_hardnet8.models import BUNDLED_DIR

MAX_BYTES = 19_000_000  # of a bundled file: what a wheel should hold
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def configure_convert(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("input", metavar="IN", help="weight file of any known format, or the name of a bundled model")
    parser.add_argument(
        "output", metavar="OUT", type=output_file, help="file to write: .safetensors, or .pt/.pth for kornia"
    )
    parser.add_argument("--to", choices=("ours", "kornia"), help="format to write (default: what OUT's suffix says)")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="fp32", help="of convolutions in our format")


def run_convert(args: argparse.Namespace) -> None:
    """Convert and say what it is."""
    suffix = args.output.suffix
    target = args.to or {".safetensors": "ours", ".pt": "kornia", ".pth": "kornia"}.get(suffix)
    if target is None or (target == "ours") != (suffix == ".safetensors"):
        raise UsageError(f"{args.output}: our format ends in .safetensors, kornia's in .pt or .pth (see --to)")
    weights = load_weights(args.input)
    if target == "ours":
        save_weights(args.output, weights, _DTYPES[args.dtype])
    else:
        save_kornia(args.output, weights)
    basis = weights.projection
    width = "no projection" if basis is None else f"projection {tuple(basis.components.shape)}"
    print(f"{args.output}: {weights.arch}, {width}, {args.output.stat().st_size} bytes")


def configure_export(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", help="weight file of any known format, or the name of what is bundled")
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="onnx", help="what to write")
    parser.add_argument("--out", type=output_file, required=True, help="file to write: .onnx, .jitpt or .xml")
    parser.add_argument("--precision", choices=get_args(ExportPrecision), default="fp32", help="of the convolutions")
    parser.add_argument(
        "--output-dim", type=int, help="width of the descriptor (default: the projection's, 128 of a full basis)"
    )


def run_export(args: argparse.Namespace) -> None:
    """Export and say what it is."""
    if args.checkpoint == MATCHABILITY:
        export(Matchability(pretrained=True), args.out, args.format, args.precision)
        shape = f"(N, {len(MR_SIZES)}, {PATCH_SIZE}, {PATCH_SIZE})"
        print(f"{args.out}: matchability, patches {shape} and sigma (N,) to shares (N,)")
        return
    module = HardNet8.from_checkpoint(args.checkpoint, args.output_dim)
    export(module, args.out, args.format, args.precision)
    print(
        f"{args.out}: {module.arch}, patches (N, 1, {module.patch_size}, {module.patch_size}) to descriptors "
        f"(N, {module.output_dim}), {args.precision}, {args.out.stat().st_size} bytes"
    )


def configure_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint with its projection (python -m train pca)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--name", help="put it into this checkout's library as the model of this name, e.g. h8E512")
    target.add_argument("--out", type=output_file, metavar="FILE.safetensors", help="write it there instead")


def run_bundle(args: argparse.Namespace) -> None:
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
