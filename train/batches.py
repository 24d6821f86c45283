"""From opened stores to batches: every batch is a pure function of the settings and the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kornia_hardnet8.errors import DataError
from train.config import TrainConfig
from train.sampling import LabelIndex, dataset_sequence, index_labels, plan_batch
from train.stores.store import PatchStore

# First entries of the seed sequences, so that the streams of randomness of one run are independent.
_SEQUENCE, _PLAN, _HOLDOUT = 1, 2, 3
_MAX_HELD_OUT = 2000


@dataclass(frozen=True)
class Batch:
    """Stored patches of one batch.

    Attributes:
        patches: uint8 (T * npos, P, P), the patches of a tuple in adjacent rows.
        labels: int64 (T * npos,).
        exclude: bool (T, T), tuples that are no negatives of each other, or None.
        crop: stored side / plain side.
    """

    patches: Tensor
    labels: Tensor
    exclude: Tensor | None
    crop: float


class BatchSource:
    """Draws the batches of a run from its stores, less the labels held out for validation."""

    def __init__(self, stores: list[tuple[PatchStore, float]], config: TrainConfig) -> None:
        self.stores = [store for store, _ in stores]
        self.weights = [weight for _, weight in stores]
        self.config = config
        self.indices: list[LabelIndex] = []
        self.held_out: list[NDArray[np.int64]] = []
        for number, store in enumerate(self.stores):
            if store.patches.ndim != 3:
                raise DataError(f"{store.path} holds colour patches: networks here take gray ones")
            train_rows, held_pairs = _split(store, config, number)
            index = index_labels(np.asarray(store.labels)[train_rows], np.asarray(store.cam_ids)[train_rows])
            self.indices.append(_on_rows(index, train_rows))
            self.held_out.append(held_pairs)

    def batch(self, step: int) -> Batch:
        """The batch of a step (counted from 0)."""
        config = self.config
        epoch, position = divmod(step, max(1, config.steps_per_epoch))
        draw = np.random.default_rng([config.seed, _SEQUENCE, epoch])
        which = int(dataset_sequence(self.weights, max(1, config.steps_per_epoch), draw)[position])
        rng = np.random.default_rng([config.seed, _PLAN, step])
        rows = plan_batch(self.indices[which], config.sampling, rng)
        return _gather(self.stores[which], rows)

    def validation(self) -> list[Batch]:
        """Pairs of labels that are never trained on, one batch a store."""
        return [_gather(store, rows) for store, rows in zip(self.stores, self.held_out, strict=True) if len(rows)]


def _split(store: PatchStore, config: TrainConfig, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, and one pair of rows (H, 2) of each held-out label."""
    labels = np.asarray(store.labels)
    usable = np.ones(len(labels), dtype=bool) if store.visible is None else np.asarray(store.visible)
    rows = np.flatnonzero(usable)
    distinct, counts = np.unique(labels[rows], return_counts=True)
    distinct = distinct[counts >= 2]
    count = min(int(len(distinct) * config.holdout), _MAX_HELD_OUT)
    if not count:
        return rows, np.empty((0, 2), dtype=np.int64)
    rng = np.random.default_rng([config.seed, _HOLDOUT, number])
    held = np.isin(labels, rng.choice(distinct, size=count, replace=False))
    index = index_labels(labels[rows[held[rows]]], np.asarray(store.cam_ids)[rows[held[rows]]])
    first = index.patches[index.patch_starts[:-1]]
    last = index.patches[index.patch_starts[1:] - 1]
    pairs = rows[held[rows]][np.stack([first, last], axis=1)]
    return rows[~held[rows]], pairs


def _on_rows(index: LabelIndex, rows: NDArray[np.int64]) -> LabelIndex:
    """The same index with patches numbered as in the whole store."""
    patch_cams = np.full(int(rows.max()) + 1, -1, dtype=np.int64)
    patch_cams[rows] = index.patch_cams
    return LabelIndex(
        labels=index.labels,
        patch_starts=index.patch_starts,
        patches=rows[index.patches],
        cams=index.cams,
        cam_starts=index.cam_starts,
        cam_labels=index.cam_labels,
        patch_cams=patch_cams,
        num_single=index.num_single,
    )


def _gather(store: PatchStore, rows: NDArray[np.int64]) -> Batch:
    flat = rows.reshape(-1)
    order = np.argsort(flat)  # ascending reads of the memory map
    patches = np.empty((len(flat), store.patch_size, store.patch_size), dtype=np.uint8)
    patches[order] = store.patches[flat[order]]
    labels = torch.from_numpy(np.asarray(store.labels)[flat])
    return Batch(torch.from_numpy(patches), labels, _same_place(store, rows[:, 0]), float(store.meta["crop"]))


def _same_place(store: PatchStore, rows: NDArray[np.int64]) -> Tensor | None:
    """(T, T) tuples of one place that come from different source stores: they may show the same point."""
    if store.place_ids is None or "parts" not in store.meta:
        return None
    places = np.asarray(store.place_ids)[rows]
    starts = [part["labels"][0] for part in store.meta["parts"]]
    source = np.searchsorted(starts, np.asarray(store.labels)[rows], side="right")
    same = (places[:, None] == places) & (places[:, None] >= 0) & (source[:, None] != source)
    return torch.from_numpy(same)
