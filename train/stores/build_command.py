"""``python -m train build KIND …``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kornia_hardnet8.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one sub-parser for each kind of source."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    colmap = kinds.add_parser(
        "colmap", help="images and a COLMAP model: one label for each 3-D point", allow_abbrev=False
    )
    colmap.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the model's images")
    colmap.add_argument("--model", required=True, type=Path, metavar="DIR", help="COLMAP model, binary or text")
    colmap.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="HDF5 with x, y, sigma, orientation for each 2-D point (default: features.h5 in or beside the model "
        "folder; without one, SIFT is detected again)",
    )
    _common(colmap)
    colmap.add_argument("--min-track", type=int, default=2, metavar="N", help="images that must see a point")

    photos = kinds.add_parser(
        "photos", help="single photographs under random homographies and light", allow_abbrev=False
    )
    photos.add_argument("folder", type=Path, metavar="DIR", help="folder of photographs")
    _common(photos)
    photos.add_argument("--exclude", nargs="+", default=[], metavar="GLOB", help="file names to leave out")
    photos.add_argument("--views", type=int, default=6, metavar="N", help="views made of each photograph")
    photos.add_argument("--max-labels", type=int, default=700, metavar="N", help="labels kept of each photograph")
    photos.add_argument("--seed", type=int, default=0, help="seed of the views")


def run(args: argparse.Namespace) -> None:
    """Build the store that ``args`` asks for."""
    from train.stores.colmap import build_colmap, parse_crop

    crop = parse_crop(args.crop)
    how = {
        "command": f"build {args.kind}",
        **{k: v for k, v in vars(args).items() if isinstance(v, int | float | str | list) and k not in _NOT_SETTINGS},
    }
    if args.mr_size <= 0 or args.patch_size < 8:
        raise UsageError("--mr-size must be positive and --patch-size at least 8")
    settings = {"mr_size": args.mr_size, "patch_size": args.patch_size, "num_workers": args.num_workers, "how": how}
    if args.kind == "colmap":
        colmap = build_colmap(
            args.images, args.model, args.out, features=args.features, crop=crop, min_track=args.min_track, **settings
        )
        print(f"{args.out}: {colmap.patches} patches, {colmap.labels} labels, {colmap.images} images")
    elif args.kind == "photos":
        from train.stores.photos import build_photos

        if crop == "fixed":
            raise UsageError("build photos has no --crop fixed: its patches are cut in the keypoints' frames")
        photos = build_photos(
            args.folder, args.out, crop=crop, exclude=args.exclude, num_views=args.views,
            max_labels=args.max_labels, seed=args.seed, **settings,
        )  # fmt: skip
        print(f"{args.out}: {photos.patches} patches, {photos.labels} labels, {photos.photos} photographs")


_NOT_SETTINGS = ("verbose", "quiet", "debug", "num_workers", "kind")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="the store to build")
    parser.add_argument(
        "--crop", default="1.5", help="stored side / plain side of a patch; colmap: 'fixed' = 64-pixel windows of 2020"
    )
    parser.add_argument("--mr-size", type=float, default=12.0, help="half side of the plain patch / sigma")
    parser.add_argument("--patch-size", type=int, default=64, metavar="PIXELS", help="side of a stored patch")
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; 0 = only this one"
    )
