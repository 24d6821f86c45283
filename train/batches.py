"""From opened stores to batches: every batch is a pure function of the settings and the step."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError
from train.config import TrainConfig
from train.sampling import (
    LabelIndex,
    ViewIndex,
    dataset_sequence,
    index_labels,
    index_views,
    label_offsets,
    plan_batch,
    plan_view_batch,
)

log = logging.getLogger(__name__)

# First entries of the seed sequences, so that the streams of randomness of one run are independent.
_SEQUENCE, _PLAN, _HOLDOUT = 1, 2, 3
_MAX_HELD_OUT = 2000
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as image libraries turn colour gray


@dataclass(frozen=True)
class Part:
    """Stored patches of one set in a batch, or those of them that this process takes.

    Attributes:
        patches: uint8 (n, P, P), the patches of a tuple in adjacent rows.
        rows: (first, total), where they lie among the patches that all processes take from the set.
        crop: stored side / plain side.
        kind: of the store, ``tuples`` or ``views``.
    """

    patches: Tensor
    rows: tuple[int, int]
    crop: float
    kind: str


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        parts: patches by set, one unless sets are combined in the batch.
        labels: int64 (T * npos,) of the whole batch, in the order in which the processes' descriptors are joined.
        exclude: bool (T, T), tuples that are no negatives of each other, or None.
    """

    parts: tuple[Part, ...]
    labels: Tensor
    exclude: Tensor | None


class BatchSource:
    """Draws the batches of a run from its stores, less the labels held out for validation.

    Args:
        stores: opened stores with their weights.
        config: the settings.
        shard: (number of this process, number of processes): it takes its share of the tuples of each batch.
        val_stores: opened stores to validate on instead of held-out labels.

    Raises:
        DataError: a store that gives no negatives, or has no cameras where they are needed.
    """

    def __init__(
        self,
        stores: list[tuple[PatchStore, float]],
        config: TrainConfig,
        shard: tuple[int, int] = (0, 1),
        val_stores: list[PatchStore] | None = None,
    ) -> None:
        self.stores = [store for store, _ in stores]
        self.weights = [weight for _, weight in stores]
        self.config, self.shard = config, shard
        self.indices: list[LabelIndex | ViewIndex] = []
        self._held_out: list[tuple[PatchStore, NDArray[np.int64]]] = []
        self.offsets = label_offsets([int(np.max(store.labels, initial=0)) for store in self.stores])
        for number, store in enumerate(self.stores):
            if config.fewcams and not store.meta.get("has_cams", True):
                raise DataError(f"{store.path} has no cam_ids: leave out --fewcams")
            rows, held_pairs = _split(store, 0.0 if val_stores else config.holdout, config.seed, number)
            try:
                index = _index(store, rows)
            except DataError as error:
                raise DataError(f"{store.path}: {error}") from None
            if len(index.labels) < 2:
                raise DataError(f"{store.path}: one label gives no negatives, two are needed at least")
            self.indices.append(index)
            self._held_out.append((store, held_pairs))
        if val_stores:
            self._held_out = [(s, _split(s, 1.0, config.seed, number)[1]) for number, s in enumerate(val_stores)]

    @property
    def num_single(self) -> list[int]:
        """For each store the labels left out because they have a single patch."""
        return [index.num_single if isinstance(index, LabelIndex) else 0 for index in self.indices]

    def log_notes(self) -> None:
        """Log what of the data is left out or falls short of the settings."""
        if any(self.num_single):
            log.info("labels with a single patch, left out: %s", ", ".join(map(str, self.num_single)))
        for store, index in zip(self.stores, self.indices, strict=True):
            if len(index.labels) < self.config.bs:
                log.warning(
                    "%s has %d labels to train on: its batches are smaller than --bs %d",
                    store.path, len(index.labels), self.config.bs,
                )  # fmt: skip
        if not any(len(pairs) for _, pairs in self._held_out):
            log.info("nothing is held out: no validation")

    def batch(self, step: int) -> Batch:
        """The batch of a step (counted from 0)."""
        rng = np.random.default_rng([self.config.seed, _PLAN, step])
        return self._gather([(number, self._plan(number, rng)) for number in self.sets(step)])

    def sets(self, step: int) -> list[int]:
        """Which stores the batch of a step is taken from."""
        config, count = self.config, len(self.stores)
        if config.combine == "inbatch":
            return list(range(count))
        epoch, position = divmod(step, max(1, config.steps_per_epoch))
        if config.combine == "epoch":
            return [min(position * count // max(1, config.steps_per_epoch), count - 1)]
        rng = np.random.default_rng([config.seed, _SEQUENCE, epoch])
        return [int(dataset_sequence(self.weights, max(1, config.steps_per_epoch), rng)[position])]

    def validation(self) -> list[Part]:
        """Pairs of labels that are never trained on, for each store that has some."""
        return [_part(store, rows) for store, rows in self._held_out if len(rows)]

    def _plan(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        index, sampling = self.indices[number], self.config.sampling
        if isinstance(index, ViewIndex):
            rows = plan_view_batch(index, sampling.batch_size, sampling.npos, rng)
        else:
            rows = plan_batch(index, sampling, rng)
        share = len(rows) // self.shard[1]  # every process needs as many tuples
        if not share:
            raise DataError(f"{self.stores[number].path}: fewer labels than processes")
        return rows[: share * self.shard[1]]

    def _gather(self, plans: list[tuple[int, NDArray[np.int64]]]) -> Batch:
        rank, world = self.shard
        parts, labels, places = [], [], []
        for number, rows in plans:
            store, share = self.stores[number], len(rows) // world
            parts.append(_part(store, rows, slice(rank * share, (rank + 1) * share)))
            labels.append(np.asarray(store.labels)[rows] + self.offsets[number])
            places.append(_Places.of(store, rows[:, 0], number))
        # joined by process first, then by set
        order = _joined_order([len(rows) for _, rows in plans], world)
        joined = np.concatenate(labels)[order].reshape(-1)
        return Batch(tuple(parts), torch.from_numpy(joined), _exclusion(places, order))


def _part(store: PatchStore, rows: NDArray[np.int64], share: slice = slice(None)) -> Part:
    """The patches of ``share`` of the tuples (T, npos)."""
    first = range(*share.indices(len(rows))).start * rows.shape[1]
    patches = read_patches(store, rows[share].reshape(-1))
    return Part(patches, (first, rows.size), float(store.meta["crop"]), str(store.meta["kind"]))


@dataclass(frozen=True)
class _Places:
    """What is known of tuples that must not be negatives of each other: place and source, -1 where nothing is."""

    place: NDArray[np.int64]
    source: NDArray[np.int64]
    collides: NDArray[np.bool_] | None

    @classmethod
    def of(cls, store: PatchStore, rows: NDArray[np.int64], number: int) -> _Places:
        """Of the tuples whose first patches are ``rows``; places of different stores are different."""
        labels = np.asarray(store.labels)[rows]
        place = source = np.full(len(rows), -1, dtype=np.int64)
        if store.place_ids is not None and "parts" in store.meta:
            place = np.asarray(store.place_ids)[rows].astype(np.int64)
            place = np.where(place >= 0, place + (number << 32), -1)
            starts = [part["labels"][0] for part in store.meta["parts"]]
            source = np.searchsorted(starts, labels, side="right")
        return cls(place, source, _collisions(store, labels) if store.collisions is not None else None)


def _collisions(store: PatchStore, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(T, T) labels that the store says must not be negatives of each other."""
    assert store.collisions is not None
    starts, items = store.collisions
    names = np.unique(store.labels)
    lines = np.searchsorted(names, labels)
    counts = starts[lines + 1] - starts[lines]
    offsets = np.repeat(starts[lines] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    other = items[offsets]
    order = np.argsort(labels, kind="stable")
    place = np.searchsorted(labels, other, sorter=order).clip(max=len(labels) - 1)
    is_here = labels[order[place]] == other
    out = np.zeros((len(labels), len(labels)), dtype=bool)
    out[np.repeat(np.arange(len(labels)), counts)[is_here], order[place[is_here]]] = True
    np.fill_diagonal(out, False)
    return out | out.T


def _exclusion(places: list[_Places], order: NDArray[np.int64]) -> Tensor | None:
    """(T, T) tuples that are no negatives of each other: colliding, or of one place and different sources."""
    place, source = (np.concatenate([getattr(p, name) for p in places]) for name in ("place", "source"))
    exclude: NDArray[np.bool_] | None = None
    if (place >= 0).any():
        exclude = (place[:, None] == place) & (place[:, None] >= 0) & (source[:, None] != source)
    if any(p.collides is not None for p in places):
        exclude = np.zeros((len(place), len(place)), dtype=bool) if exclude is None else exclude
        first = 0
        for part in places:
            here = slice(first, first + len(part.place))
            if part.collides is not None:
                exclude[here, here] |= part.collides
            first = here.stop
    return None if exclude is None else torch.from_numpy(exclude[np.ix_(order, order)])


def _joined_order(counts: list[int], world: int) -> NDArray[np.int64]:
    """Positions of tuples, numbered set by set, in the order process by process, set by set within each."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    pieces = [
        start + np.arange(rank * (count // world), (rank + 1) * (count // world))
        for rank in range(world)
        for start, count in zip(starts, counts, strict=True)
    ]
    return np.concatenate(pieces).astype(np.int64)


def _index(store: PatchStore, rows: NDArray[np.int64]) -> LabelIndex | ViewIndex:
    """The index of a store's training rows, with patches numbered as in the whole store."""
    labels, cams = np.asarray(store.labels)[rows], np.asarray(store.cam_ids)[rows]
    if store.meta["kind"] == "views":
        index = index_views(labels, np.asarray(store.image_ids)[rows], cams, store.collisions, np.unique(store.labels))
        views = [(places, np.where(table >= 0, rows[table], -1)) for places, table in index.views]
        return ViewIndex(index.labels, views, index.collision_starts, index.collisions)
    return _on_rows(index_labels(labels, cams), rows)


def _split(store: PatchStore, share: float, seed: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, and one pair of rows (H, 2) of each of the share of labels that is held out."""
    labels = np.asarray(store.labels)
    usable = np.ones(len(labels), dtype=bool) if store.visible is None else np.asarray(store.visible)
    rows = np.flatnonzero(usable)
    distinct, counts = np.unique(labels[rows], return_counts=True)
    distinct = distinct[counts >= 2]
    count = min(int(len(distinct) * share), _MAX_HELD_OUT)
    if not count:
        return rows, np.empty((0, 2), dtype=np.int64)
    rng = np.random.default_rng([seed, _HOLDOUT, number])
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


def read_patches(store: PatchStore, rows: NDArray[np.int64]) -> Tensor:
    """Gray patches uint8 (n, P, P) of a store's rows, colour turned gray."""
    order = np.argsort(rows)  # ascending reads of the memory map
    patches = np.empty((len(rows), store.patch_size, store.patch_size), dtype=np.uint8)
    read = store.patches[rows[order]]
    patches[order] = read if read.ndim == 3 else np.rint(read @ _LUMA).astype(np.uint8)
    return torch.from_numpy(patches)
