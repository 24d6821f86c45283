"""Fitting the projection of a trained network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.patchstore import PatchStore
from common.shell import progress
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.inference import calibrate
from kornia_hardnet8.projection import PCAFitter, Projection
from train.augment import center_crop
from train.batches import read_patches
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
