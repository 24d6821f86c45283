"""``python -m train export``: write weights as a file that runs elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.export import SUFFIXES, ExportPrecision, export


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", help="weight file of any known format, or the name of a bundled model")
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="onnx", help="what to write")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .onnx, .jitpt or .xml")
    parser.add_argument("--precision", choices=get_args(ExportPrecision), default="fp32", help="of the convolutions")
    parser.add_argument(
        "--output-dim", type=int, help="width of the descriptor (default: the projection's, 128 of a full basis)"
    )


def run(args: argparse.Namespace) -> None:
    """Export and say what it is."""
    module = HardNet8.from_checkpoint(args.checkpoint, args.output_dim)
    export(module, args.out, args.format, args.precision)
    print(
        f"{args.out}: {module.arch}, patches (N, 1, {module.patch_size}, {module.patch_size}) to descriptors "
        f"(N, {module.output_dim}), {args.precision}, {args.out.stat().st_size} bytes"
    )
