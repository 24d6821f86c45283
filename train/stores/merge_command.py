"""``python -m train merge STORE… --out STORE``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="the stores, in this order")
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="the store to build")
    parser.add_argument(
        "--same-place",
        action="append",
        nargs="+",
        default=[],
        type=Path,
        metavar="STORE",
        help="stores of one place, whose labels are never negatives of each other; once for each group",
    )


def run(args: argparse.Namespace) -> None:
    """Merge."""
    from train.stores.merge import merge_stores

    store = merge_stores(args.stores, args.out, args.same_place)
    print(f"{args.out}: {len(store)} patches, {store.meta['num_labels']} labels, from {len(args.stores)} stores")
