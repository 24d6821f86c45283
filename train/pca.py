"""``python -m train pca``: fit the projection of a checkpoint on patch stores, and measure the ranges for int8."""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.devices import choose_device
from common.patchstore import PatchStore
from common.shell import output_file, positive_number, progress, seed_number
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import load_weights
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.inference import calibrate
from kornia_hardnet8.projection import PCAFitter, Projection
from train.augment import center_crop
from train.batches import read_patches
from train.checkpoint import save_checkpoint
from train.datasets import open_mix
from train.validate import describe_batch

log = logging.getLogger(__name__)
ROWS = 4096  # stored patches read at once: 17 MB


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("checkpoint", type=Path, help="weights to fit a projection to")
    parser.add_argument("--ds", required=True, help="data sets, as for training (weights are ignored)")
    parser.add_argument("--data-root", default="Datasets", help="folder in which tokens are looked up")
    parser.add_argument(
        "--out", type=output_file, required=True, help="checkpoint to write: the same with its projection"
    )
    parser.add_argument("--patches", type=positive_number, default=100_000, help="at most so many patches")
    parser.add_argument(
        "--whiten",
        type=float,
        default=0.0,
        metavar="POWER",
        help="divide each axis by its standard deviation to this power: 0 … 1",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the draw of patches")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")


def run(args: argparse.Namespace) -> None:
    """Fit and write."""
    if not 0.0 <= args.whiten <= 1.0:
        raise UsageError(f"--whiten must be 0 … 1, got {args.whiten}")
    weights = load_weights(args.checkpoint)
    stores = [store for store, _ in open_mix(args.ds, args.data_root)]
    mr_sizes = [*(store.meta["mr_size"] for store in stores), weights.metadata.get("mr_size")]
    mr_sizes = sorted({float(size) for size in mr_sizes if size})  # fixed windows have none
    if len(mr_sizes) > 1:
        log.warning("the patches and the weights differ in mr_size (%s): the weights keep theirs", mr_sizes)
    device = choose_device(args.device)
    model = HardNet8(args.checkpoint, output_dim=None).to(device)
    metadata = dict(weights.metadata)
    # Networks that int8 cannot run have no use for ranges.
    with contextlib.suppress(UsageError):
        metadata["int8_ranges"] = measure_ranges(model, stores, seed=args.seed)
    if weights.projection is not None and "teacher" in metadata:
        # With other axes the descriptors would no longer match the teacher's.
        if args.whiten:
            raise UsageError(f"--whiten {args.whiten:g}: {args.checkpoint} keeps the axes of its teacher")
        projection, said = weights.projection, f"axes of {metadata['teacher']}, which the network learnt, stay"
    else:
        projection, count = fit_projection(model, stores, device, args.patches, args.seed)
        share = projection.eigenvalues.cumsum(0) / projection.eigenvalues.sum()
        projection = projection.whitened(args.whiten)
        metadata |= {"pca_ds": args.ds, "pca_patches": count, "pca_whiten": args.whiten}
        kept = ", ".join(f"{d}: {share[d - 1]:.3f}" for d in (32, 64, 128, 256) if d <= len(share))
        said = f"projection from {count} descriptors; variance kept by dimension {kept}"
    content = {"arch": weights.arch, "features": weights.features, "projection": vars(projection), "metadata": metadata}
    save_checkpoint(args.out, content)
    print(f"{args.out}: {said}")


def fit_projection(
    model: HardNet8, stores: list[PatchStore], device: torch.device, max_patches: int, seed: int = 0
) -> tuple[Projection, int]:
    """PCA of the descriptors of stored patches, the network in eval mode.

    Args:
        model: a network without projection (``output_dim=None``).
        stores: sets of patches, cut plainly.
        device: where the network runs.
        max_patches: at most so many patches, drawn without replacement in proportion to the stores' sizes.
        seed: of the draw.

    Returns:
        The projection and the number of descriptors it was fitted to.

    Source: the 2020 notebook fitted scikit-learn's PCA to all Liberty patches (with the network left in training
    mode, which is not repeated here).
    """
    fitter = PCAFitter(model.output_dim)
    jobs = _draw(stores, max_patches, seed)
    for store, rows in progress(jobs, what="describing", unit="batch"):
        fitter.update(describe_batch(model, read_patches(store, rows), float(store.meta["crop"]), device))
    return fitter.finish(), fitter.count


def measure_ranges(model: HardNet8, stores: list[PatchStore], max_patches: int = 4096, seed: int = 0) -> dict[str, Any]:
    """Ranges of the activations on stored patches, for int8 (see ``kornia_hardnet8.inference.calibrate``).

    Raises:
        UsageError: the network is no plain chain of convolutions with ReLU.
    """
    cut = [
        center_crop(read_patches(store, rows), float(store.meta["crop"]), model.patch_size)
        for store, rows in _draw(stores, max_patches, seed)
    ]
    return calibrate(copy.deepcopy(model).cpu(), torch.cat(cut))


def _draw(stores: list[PatchStore], max_patches: int, seed: int) -> list[tuple[PatchStore, NDArray[np.int64]]]:
    """Rows of the stores in parts of at most ``ROWS``, drawn in proportion to their sizes."""
    total = sum(len(store) for store in stores)
    rng = np.random.default_rng(seed)
    jobs: list[tuple[PatchStore, NDArray[np.int64]]] = []
    for store in stores:
        count = min(len(store), round(max_patches * len(store) / total))
        rows = np.sort(rng.choice(len(store), size=count, replace=False))
        jobs += [(store, part) for part in np.array_split(rows, max(1, -(-count // ROWS)))]
    return jobs
