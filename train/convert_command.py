"""``python -m train convert``: turn weights of any known format into this package's or kornia's."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kornia_hardnet8.checkpoints import load_weights, save_kornia, save_weights
from kornia_hardnet8.errors import UsageError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("input", metavar="IN", help="weight file of any known format, or the name of a bundled model")
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write: .safetensors, or .pt/.pth for kornia")
    parser.add_argument("--to", choices=("ours", "kornia"), help="format to write (default: what OUT's suffix says)")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="fp32", help="of convolutions in our format")


def run(args: argparse.Namespace) -> None:
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
    width = (
        "no projection" if weights.projection is None else f"projection {tuple(weights.projection.components.shape)}"
    )
    print(f"{args.output}: {weights.arch}, {width}, {args.output.stat().st_size} bytes")
