"""``python -m train pca``: fit the projection of a checkpoint on a patch store."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path

from common.machine import choose_device
from common.shell import positive_number, seed_number
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import load_weights
from kornia_hardnet8.errors import UsageError

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.epilog = (
        "difference from the 2020 notebook, which left dropout on and took the statistics of each batch: the network "
        "describes in evaluation mode; the basis is exact, ordered and whole, to be cut to any width on use; as a "
        "layer of the network it stays on the device and passes gradients (there: computed on the CPU, without)."
    )
    parser.add_argument("checkpoint", type=Path, help="weights to fit a projection to")
    parser.add_argument("--ds", required=True, help="data sets, as for training (weights are ignored)")
    parser.add_argument("--data-root", default="Datasets", help="folder in which tokens are looked up")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write: the same with its projection")
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
    from train.checkpoint import save_checkpoint
    from train.datasets import open_mix
    from train.pca import fit_projection, measure_ranges

    if not 0.0 <= args.whiten <= 1.0:
        raise UsageError(f"--whiten must be 0 … 1, got {args.whiten}")
    weights = load_weights(args.checkpoint)
    stores = [store for store, _ in open_mix(args.ds, args.data_root)]
    told = [*(store.meta["mr_size"] for store in stores), weights.metadata.get("mr_size")]
    mr_sizes = sorted({float(size) for size in told if size})  # fixed windows have none
    if len(mr_sizes) > 1:
        log.warning("the patches and the weights differ in mr_size (%s): the weights keep theirs", mr_sizes)
    device = choose_device(args.device)
    model = HardNet8(args.checkpoint, output_dim=None).to(device)
    projection, count = fit_projection(model, stores, device, args.patches, args.seed)
    share = projection.eigenvalues.cumsum(0) / projection.eigenvalues.sum()
    projection = projection.whitened(args.whiten)
    metadata = {**weights.metadata, "pca_ds": args.ds, "pca_patches": count, "pca_whiten": args.whiten}
    # Networks that int8 cannot run have no use for ranges.
    with contextlib.suppress(UsageError):
        metadata["int8_ranges"] = measure_ranges(model, stores, seed=args.seed)
    save_checkpoint(
        args.out,
        {
            "arch": weights.arch,
            "features": weights.features,
            "projection": vars(projection),
            "metadata": metadata,
        },
    )
    kept = ", ".join(f"{d}: {share[d - 1]:.3f}" for d in (32, 64, 128, 256) if d <= len(share))
    print(f"{args.out}: projection from {count} descriptors; variance kept by dimension {kept}")
