"""Fitting the projection of a trained network."""

from __future__ import annotations

import numpy as np
import torch

from kornia_hardnet8 import HardNet8
from kornia_hardnet8._shell import progress
from kornia_hardnet8.projection import PCAFitter, Projection
from train.batches import read_patches
from train.stores.store import PatchStore
from train.validate import describe_batch

ROWS = 4096  # stored patches read at once: 17 MB


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
    total = sum(len(store) for store in stores)
    rng = np.random.default_rng(seed)
    fitter = PCAFitter(model.output_dim)
    jobs = []
    for store in stores:
        count = min(len(store), round(max_patches * len(store) / total))
        rows = np.sort(rng.choice(len(store), size=count, replace=False))
        jobs += [(store, part) for part in np.array_split(rows, max(1, -(-count // ROWS)))]
    for store, rows in progress(jobs, what="describing", unit="batch"):
        fitter.update(describe_batch(model, read_patches(store, rows), float(store.meta["crop"]), device))
    return fitter.finish(), fitter.count
