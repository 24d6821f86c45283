"""``python -m eval imw-scene``: make an IMW scene from a COLMAP model and its images."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.imw.build import build_scene
from eval.imw.scene import open_scene
from kornia_hardnet8.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the model's images")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="COLMAP model: cameras, images, points3D, binary or text",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the scene: a new or empty folder")
    parser.add_argument(
        "--bags",
        default="5:20,10:10,25:5",
        metavar="SIZE:COUNT,…",
        help="bags of images for the multiview task, as far as the scene has them",
    )
    parser.add_argument(
        "--dense",
        type=Path,
        metavar="DIR",
        help="dense workspace of the model (stereo/depth_maps, sparse): also write depth maps",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of bags")


def run(args: argparse.Namespace) -> int:
    """Make the scene and print what it holds."""
    names = build_scene(args.images, args.model, args.out, parse_bags(args.bags), args.seed, args.dense)
    bags = open_scene(args.out).bags
    made = ", ".join(f"{len(of_size)} bags of {size}" for size, of_size in bags.items()) or "no bags"
    print(f"{args.out}: {len(names)} images, {len(names) * (len(names) - 1) // 2} pairs, {made}")
    return 0


def parse_bags(text: str) -> dict[int, int]:
    """Read ``5:20,10:10``: 20 bags of 5 images and 10 of 10; an empty text gives none."""
    bags: dict[int, int] = {}
    for part in filter(None, text.split(",")):
        size, colon, count = part.partition(":")
        if not colon or not size.isdecimal() or not count.isdecimal() or int(size) < 2 or int(size) in bags:
            raise UsageError(f"--bags {text}: {part!r} is not SIZE:COUNT (size at least 2, each once), e.g. 5:20,10:10")
        bags[int(size)] = int(count)
    return bags
