"""Which patches make a batch: index plans as pure functions of arrays and a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError, UsageError

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LabelIndex:
    """Patches grouped by label, and labels grouped by camera, both as compressed rows.

    Labels with a single patch are left out: they make no pair (``num_single`` counts them).

    Attributes:
        labels: (L,) the labels that can be drawn, ascending.
        patch_starts, patches: patches of the k-th label are ``patches[patch_starts[k]:patch_starts[k + 1]]``.
        cams: (C,) camera ids, ascending.
        cam_starts, cam_labels: positions in ``labels`` seen by the c-th camera, ascending.
        patch_cams: (N,) position in ``cams`` of the camera of each patch.
        num_single: labels left out.
    """

    labels: IntArray
    patch_starts: IntArray
    patches: IntArray
    cams: IntArray
    cam_starts: IntArray
    cam_labels: IntArray
    patch_cams: IntArray
    num_single: int


@dataclass(frozen=True)
class Sampling:
    """How the labels of a batch are chosen.

    Attributes:
        batch_size: labels (tuples) in a batch.
        npos: patches of a label in a batch.
        fewcams: take the labels of few cameras, so that negatives come from the same photographs.
        cams_in_batch: with ``fewcams``, spread the labels over about so many cameras and take the first patch of each
            label from its camera; 0: as many labels of a camera as fit, patches from any camera (as published).
    """

    batch_size: int
    npos: int = 2
    fewcams: bool = False
    cams_in_batch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.npos < 2 or self.cams_in_batch < 0:
            raise UsageError("a batch needs at least 2 tuples of at least 2 patches, and no negative camera count")
        if self.cams_in_batch and not self.fewcams:
            raise UsageError("--cams-in-batch needs --fewcams")


def index_labels(labels: NDArray[np.integer], cam_ids: NDArray[np.integer]) -> LabelIndex:
    """Group patches by label and labels by camera.

    Args:
        labels: (N,) label of each patch.
        cam_ids: (N,) camera of each patch.

    Raises:
        DataError: no label has two patches.
    """
    labels = np.asarray(labels, dtype=np.int64)
    cams, patch_cams = np.unique(np.asarray(cam_ids, dtype=np.int64), return_inverse=True)
    _, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    usable = counts >= 2
    if not usable.any():
        raise DataError("no label has two patches: there is nothing to train on")
    order = np.argsort(position, kind="stable")
    order = order[usable[position[order]]]
    kept = np.unique(labels[order])
    starts = np.concatenate([[0], np.cumsum(counts[usable])]).astype(np.int64)
    label_rank = np.cumsum(usable) - 1
    seen = np.unique(np.stack([patch_cams[order], label_rank[position[order]]], axis=1), axis=0)
    cam_starts = np.searchsorted(seen[:, 0], np.arange(len(cams) + 1)).astype(np.int64)
    return LabelIndex(
        labels=kept,
        patch_starts=starts,
        patches=order.astype(np.int64),
        cams=cams,
        cam_starts=cam_starts,
        cam_labels=seen[:, 1].astype(np.int64),
        patch_cams=patch_cams.astype(np.int64),
        num_single=int((~usable).sum()),
    )


def plan_batch(index: LabelIndex, sampling: Sampling, rng: np.random.Generator) -> IntArray:
    """Patch indices of one batch, (T, npos), T = ``batch_size`` or the number of labels where that is smaller.

    Rows hold distinct labels. A label with fewer than ``npos`` patches repeats some of them; the draw is uniform over
    the patches of the label otherwise.
    """
    count = min(sampling.batch_size, len(index.labels))
    first: IntArray | None = None
    if not sampling.fewcams:
        chosen = rng.choice(len(index.labels), size=count, replace=False)
    else:
        chosen, cam_of = _fewcams_labels(index, count, sampling.cams_in_batch, rng)
        if sampling.cams_in_batch:
            first = _patches_in_cams(index, chosen, cam_of, rng)
    return _draw_patches(index, np.asarray(chosen, dtype=np.int64), sampling.npos, first, rng)


def _fewcams_labels(
    index: LabelIndex, count: int, cams_in_batch: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Labels of cameras drawn in random order until there are enough, and the camera each was taken from.

    Source: ``--fewcams`` of the 2020 code; there the last camera gave its lowest labels, here it gives random ones.
    """
    limit = -(-count // cams_in_batch) if cams_in_batch else count
    taken = np.zeros(len(index.labels), dtype=bool)
    chosen: list[IntArray] = []
    cam_of: list[IntArray] = []
    missing = count
    while missing:  # a second round is needed only when the limit left labels of small cameras over
        for cam in rng.permutation(len(index.cams)):
            seen = index.cam_labels[index.cam_starts[cam] : index.cam_starts[cam + 1]]
            fresh = seen[~taken[seen]]
            fresh = rng.permutation(fresh)[: min(limit, missing)]
            taken[fresh] = True
            chosen.append(fresh)
            cam_of.append(np.full(len(fresh), cam, dtype=np.int64))
            missing -= len(fresh)
            if not missing:
                break
    return np.concatenate(chosen), np.concatenate(cam_of)


def _patches_in_cams(index: LabelIndex, chosen: IntArray, cam_of: IntArray, rng: np.random.Generator) -> IntArray:
    """For each chosen label one of its patches that its camera took."""
    first = np.empty(len(chosen), dtype=np.int64)
    for row, (label, cam) in enumerate(zip(chosen, cam_of, strict=True)):
        group = index.patches[index.patch_starts[label] : index.patch_starts[label + 1]]
        own = group[index.patch_cams[group] == cam]
        first[row] = own[rng.integers(len(own))]
    return first


def _draw_patches(
    index: LabelIndex, chosen: IntArray, npos: int, first: IntArray | None, rng: np.random.Generator
) -> IntArray:
    """``npos`` patches of each label, distinct where it has as many; column 0 is ``first`` where given."""
    starts = index.patch_starts[chosen]
    sizes = index.patch_starts[chosen + 1] - starts
    out = np.empty((len(chosen), npos), dtype=np.int64)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        keys = rng.random((len(rows), size))
        members = index.patches[starts[rows, None] + np.arange(size)]
        if first is not None:
            keys[members == first[rows, None]] = -1.0
        order = np.argsort(keys, axis=1)
        out[rows] = np.take_along_axis(members, order, axis=1)[:, np.arange(npos) % size]
    return out


def dataset_sequence(weights: list[float], num_batches: int, rng: np.random.Generator) -> IntArray:
    """Which data set each batch of an epoch is taken from: independent draws by relative frequency."""
    frequencies = np.asarray(weights, dtype=np.float64)
    if not len(frequencies) or (frequencies < 0).any() or frequencies.sum() <= 0:
        raise UsageError(f"data set weights must be positive, got {weights}")
    return rng.choice(len(frequencies), size=num_batches, p=frequencies / frequencies.sum()).astype(np.int64)
