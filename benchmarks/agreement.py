"""``eval bench agreement``: whether reduced precision finds the same nearest neighbours as fp32, on real patches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from common.images import read_gray
from common.shell import positive_number
from eval.brown.data import find_sets
from eval.core.nearest import nearest
from eval.core.results import format_table
from kornia_hardnet8 import HardNet8, HardNet8Feature, prepare_for_inference
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.fused import Precision
from kornia_hardnet8.patches import extract_patches


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this bench."""
    parser.add_argument("--weights", default="h8E512", help="of h8E512 with its projection: a name or a file")
    parser.add_argument("--images", nargs=2, type=Path, metavar=("A", "B"), help="photographs of one scene")
    parser.add_argument("--patches-of", nargs="+", type=Path, metavar="STORE", help="patch stores, or Brown's folders")
    parser.add_argument(
        "--neighbours", type=positive_number, default=2048, help="keypoints of an image, labels of a store"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare nearest neighbours and print a table for each source; returns what was measured."""
    if not (args.images or args.patches_of):
        raise UsageError("give two photographs with --images, or stores with --patches-of")
    module = HardNet8(args.weights)
    sources: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    if args.images:
        first, second = args.images
        sources[f"{first.name} {second.name}"] = partial(patches_of_images, module, first, second, args.neighbours)
    for path in args.patches_of or ():
        sources[str(path)] = partial(patches_of_store, module, path, args.neighbours)
    results = {}
    for name, patches in sources.items():
        first, second = patches()
        results[name] = measure(module, first, second)
        rows = [
            [r["name"], *(f"{r[key]:.4f}" for key in ("nearest", "mutual", "max_difference"))] for r in results[name]
        ]
        title = f"{name}: {len(first)} x {len(second)} patches, {results[name][0]['num_mutual']} mutual"
        print(format_table([title, "same nearest", "same mutual", "max diff"], rows))
    return {"agreement": results}


def patches_of_images(module: HardNet8, first: Path, second: Path, num_features: int) -> tuple[Tensor, Tensor]:
    """Patches (N, 1, S, S) at the DoG keypoints of two photographs of one scene."""
    feature = HardNet8Feature(num_features, "dog", module)
    patches = []
    for path in (first, second):
        image = torch.from_numpy(read_gray(path)).float() / 255.0
        with torch.inference_mode():
            lafs, _, _ = feature.detect_and_describe(image[None])
            patches.append(extract_patches(image, lafs, module.patch_size))
        if len(lafs) == 0:
            raise DataError(f"{path} has no keypoints")
    return patches[0], patches[1]


def patches_of_store(module: HardNet8, path: Path, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two patches of each of at most ``count`` labels, drawn from a patch store or another set with labels.

    Raises:
        DataError: no label has two patches.
    """
    patches = find_sets(path)[0]
    order = np.argsort(patches.labels, kind="stable")
    _, starts, sizes = np.unique(patches.labels[order], return_index=True, return_counts=True)
    starts = starts[sizes >= 2]
    if len(starts) == 0:
        raise DataError(f"{path}: no label has two patches")
    drawn = np.sort(np.random.default_rng(seed).permutation(starts)[:count])
    side = patches.patches.shape[1]
    half = side / patches.crop / 2.0
    frame = torch.tensor([[[half, 0.0, (side - 1) / 2.0], [0.0, half, (side - 1) / 2.0]]])
    with torch.inference_mode():
        first, second = (
            torch.cat(
                [
                    extract_patches(
                        torch.from_numpy(np.array(patches.patches[row])).float() / 255.0, frame, module.patch_size
                    )
                    for row in order[drawn + step]
                ]
            )
            for step in (0, 1)
        )
    return first, second


def measure(module: HardNet8, first: Tensor, second: Tensor) -> list[dict[str, Any]]:
    """Agreement of each precision that this machine has with fp32.

    Args:
        module: the network.
        first: patches (N, 1, S, S), the queries.
        second: patches (M, 1, S, S), among which neighbours are looked for.

    Returns:
        one row a precision: ``name``, ``nearest`` (share of queries whose nearest neighbour is fp32's), ``mutual``
        (share of fp32's mutual nearest neighbours that are mutual here too), ``num_mutual`` of fp32, and
        ``max_difference`` of any number of a descriptor.
    """
    rows: list[dict[str, Any]] = []
    reference: tuple[Tensor, Tensor] | None = None
    for precision in get_args(Precision):
        try:
            prepared = prepare_for_inference(module, precision)
        except UsageError:
            continue
        with torch.inference_mode():
            here = prepared(first), prepared(second)
        reference = here if reference is None else reference
        neighbours, mutual = _neighbours(*here)
        found32, mutual32 = _neighbours(*reference)
        rows.append(
            {
                "name": precision,
                "nearest": float((neighbours == found32).float().mean()),
                "mutual": float((mutual & (neighbours == found32))[mutual32].float().mean()),
                "num_mutual": int(mutual32.sum()),
                "max_difference": max(float((a - b).abs().max()) for a, b in zip(here, reference, strict=True)),
            }
        )
    return rows


def _neighbours(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest one of the second (N,) to each of the first, and whether it is mutual."""
    forward = nearest(first, second, 1).idx[:, 0]
    backward = nearest(second, first, 1).idx[:, 0]
    return forward, backward[forward] == torch.arange(len(first))
