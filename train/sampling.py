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
        for name, value, what in (("bs", self.batch_size, "tuples"), ("npos", self.npos, "patches in a tuple")):
            if value < 2:
                raise SettingError(name, f"must be at least 2 {what}, got {value}")
        if self.cams_in_batch < 0:
            raise SettingError("cams_in_batch", f"must not be negative, got {self.cams_in_batch}")
        if self.cams_in_batch and not self.fewcams:
            raise SettingError("cams_in_batch", "needs fewcams")


class SettingError(UsageError):
    """A setting of a run that no run can have; the command line knows which flag sets it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem


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
    given: IntArray | None = None
    if not sampling.fewcams:
        chosen = rng.choice(len(index.labels), size=count, replace=False)
    else:
        chosen, cam_of = _fewcams_labels(index, count, sampling.cams_in_batch, rng)
        if sampling.cams_in_batch:
            given = _patches_in_cams(index, chosen, cam_of, rng)[:, None]
    return _draw_patches(index, np.asarray(chosen, dtype=np.int64), sampling.npos, given, rng)


def _patches_of(index: LabelIndex, chosen: IntArray) -> tuple[IntArray, IntArray]:
    """All patches of the labels, one after the other, and how many each has."""
    starts = index.patch_starts[chosen]
    sizes = index.patch_starts[chosen + 1] - starts
    ends = np.cumsum(sizes)
    patches: IntArray = index.patches[np.repeat(starts - ends + sizes, sizes) + np.arange(sizes.sum())]
    return patches, sizes


def _fewcams_labels(
    index: LabelIndex, count: int, cams_in_batch: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Labels of cameras drawn in random order until there are enough, and the camera each was taken from.

    Source: ``--fewcams`` of the 2020 code; there the last camera gave its lowest labels, here it gives random ones.
    """
    if not cams_in_batch:
        return _whole_cameras(index, count, rng)
    limit = -(-count // cams_in_batch)
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


def _whole_cameras(index: LabelIndex, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The first ``count`` distinct labels of a random order of cameras, each camera's labels in random order."""
    order = rng.permutation(len(index.cams))
    sizes = np.diff(index.cam_starts)[order]
    totals = np.cumsum(sizes)
    wanted = count
    while True:  # labels that several cameras see make a longer prefix necessary
        used = min(int(np.searchsorted(totals, wanted)) + 1, len(order))
        cams = np.repeat(order[:used], sizes[:used])
        starts = np.repeat(index.cam_starts[order[:used]] - totals[:used] + sizes[:used], sizes[:used])
        seen = index.cam_labels[starts + np.arange(len(cams))]
        rank = np.repeat(np.arange(used), sizes[:used]) + rng.random(len(seen))
        shuffled = np.argsort(rank)
        _, first = np.unique(seen[shuffled], return_index=True)
        if len(first) >= count or used == len(order):
            kept = shuffled[np.sort(first)[:count]]
            return seen[kept].astype(np.int64), cams[kept].astype(np.int64)
        wanted = int(totals[used - 1] + count - len(first))


def _patches_in_cams(index: LabelIndex, chosen: IntArray, cam_of: IntArray, rng: np.random.Generator) -> IntArray:
    """For each chosen label, which of its patches (counted from its first) its camera took, one at random."""
    patches, sizes = _patches_of(index, chosen)
    ends = np.cumsum(sizes)
    within = np.arange(len(patches)) - np.repeat(ends - sizes, sizes)
    keys = np.where(index.patch_cams[patches] == np.repeat(cam_of, sizes), rng.random(len(patches)), -1.0)
    best = np.maximum.reduceat(keys, ends - sizes)
    columns: IntArray = within[keys == np.repeat(best, sizes)]  # keys are distinct
    return columns


def _draw_patches(
    index: LabelIndex, chosen: IntArray, npos: int, given: IntArray | None, rng: np.random.Generator
) -> IntArray:
    """``npos`` patches of each label, distinct where it has as many; the first columns are the ``given`` ones."""
    starts = index.patch_starts[chosen]
    sizes = index.patch_starts[chosen + 1] - starts
    picks = distinct_draws(sizes, npos, rng, given)
    drawn: IntArray = index.patches[starts[:, None] + picks]
    return drawn


def distinct_draws(sizes: IntArray, count: int, rng: np.random.Generator, given: IntArray | None = None) -> IntArray:
    """For each size n, ``count`` numbers of 0 … n-1 in random order, distinct as far as n goes, then again.

    Args:
        sizes: (T,) positive.
        count: columns.
        rng: source of randomness.
        given: (T, k) the numbers in the first k columns, distinct in a row; k at most ``count`` and the sizes.

    Returns:
        (T, count).
    """
    out = np.empty((len(sizes), count), dtype=np.int64)
    for column in range(count):
        done = column % sizes  # numbers of this round so far: the draw is one of the sizes - done others
        if given is not None and column < given.shape[1]:
            out[:, column] = given[:, column]
            continue
        pick = (rng.random(len(sizes)) * (sizes - done)).astype(np.int64)
        # the k-th of the numbers that are left: step over the drawn ones in ascending order
        drawn = np.where(np.arange(column) >= column - done[:, None], out[:, :column], np.iinfo(np.int64).max)
        for number in np.sort(drawn, axis=1).T:
            pick += pick >= number
        out[:, column] = pick
    return out


@dataclass(frozen=True)
class ViewIndex:
    """Places seen by fixed cameras.

    Attributes:
        labels: (L,) the labels that can be drawn, ascending.
        views: for each view the positions of its labels (l,) and its patches (l, images), -1 where there is none.
        collision_starts, collisions: positions in ``labels`` that collide with the k-th label are
            ``collisions[collision_starts[k]:collision_starts[k + 1]]``.
    """

    labels: IntArray
    views: list[tuple[IntArray, IntArray]]
    collision_starts: IntArray
    collisions: IntArray


def index_views(
    labels: NDArray[np.integer],
    image_ids: NDArray[np.integer],
    view_ids: NDArray[np.integer],
    collisions: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
    all_labels: NDArray[np.integer] | None = None,
) -> ViewIndex:
    """Group patches by view, label and image.

    Args:
        labels: (N,) of each patch that may be drawn.
        image_ids: (N,).
        view_ids: (N,).
        collisions: labels that collide with the k-th of ``all_labels``, as compressed rows.
        all_labels: ascending; the distinct ``labels`` if None.

    Raises:
        DataError: no label is seen in two images.
    """
    kept, position, counts = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True, return_counts=True)
    views = []
    for view in np.unique(view_ids):
        rows = np.flatnonzero(view_ids == view)
        images, column = np.unique(image_ids[rows], return_inverse=True)
        places, line = np.unique(position[rows], return_inverse=True)
        table = np.full((len(places), len(images)), -1, dtype=np.int64)
        table[line, column] = rows
        pairs = counts[places] >= 2
        if len(images) >= 2 and pairs.any():
            views.append((places[pairs].astype(np.int64), table[pairs]))
    if not views:
        raise DataError("no place is seen in two images of its view: there is nothing to train on")
    starts, items = np.zeros(len(kept) + 1, dtype=np.int64), np.empty(0, dtype=np.int64)
    if collisions is not None:
        names = kept if all_labels is None else np.unique(all_labels)
        source = np.repeat(names, np.diff(collisions[0]))
        both = np.isin(source, kept) & np.isin(collisions[1], kept)
        lines = np.searchsorted(kept, source[both])
        items = np.searchsorted(kept, collisions[1][both]).astype(np.int64)[np.argsort(lines, kind="stable")]
        starts[1:] = np.cumsum(np.bincount(lines, minlength=len(kept)))
    return ViewIndex(kept, views, starts, items)


def plan_view_batch(index: ViewIndex, batch_size: int, npos: int, rng: np.random.Generator) -> IntArray:
    """Patch indices of one batch, (T, npos): view by view in random order, ``npos`` images a view.

    The images are the same for all labels of a view; a label is taken where two of them show it, in random order, and
    not when it collides with one taken before. A label that only some of the images show repeats patches. T is
    smaller than ``batch_size`` when all views have been visited.

    Source: the default sampling of webcam sets in the 2020 code, which started over when all views were visited.
    """
    planned: list[IntArray] = []
    missing = batch_size
    for number in rng.permutation(len(index.views)):
        places, table = index.views[number]
        images = rng.choice(table.shape[1], size=min(npos, table.shape[1]), replace=False)
        seen = table[:, images]
        lines = rng.permutation(np.flatnonzero((seen >= 0).sum(axis=1) >= 2))
        lines = _without_collisions(index, places, lines, missing)
        seen = seen[lines]
        order = np.argsort(seen < 0, axis=1, kind="stable")  # the images that show it first
        there = (seen >= 0).sum(axis=1)
        columns = np.arange(npos) % there[:, None]
        planned.append(np.take_along_axis(np.take_along_axis(seen, order, axis=1), columns, axis=1))
        missing -= len(lines)
        if not missing:
            break
    rows = np.concatenate(planned)
    if len(rows) < 2:
        raise DataError("the images drawn show fewer than two places: there is nothing to train on")
    return rows


def _without_collisions(index: ViewIndex, places: IntArray, lines: IntArray, count: int) -> IntArray:
    """The first ``count`` of ``lines`` (rows of ``places``) that collide with no earlier one."""
    if not len(index.collisions):
        return lines[:count]
    barred = np.zeros(len(index.labels), dtype=bool)
    taken = []
    for line in lines:
        label = places[line]
        if barred[label]:
            continue
        taken.append(line)
        if len(taken) == count:
            break
        barred[index.collisions[index.collision_starts[label] : index.collision_starts[label + 1]]] = True
    return np.asarray(taken, dtype=np.int64)


def label_offsets(largest: list[int]) -> list[int]:
    """What is added to the labels of each set, so that no two sets share one: each starts after the last.

    Args:
        largest: the largest label of each set, without offset.
    """
    offsets, next_free = [], 0
    for value in largest:
        offsets.append(next_free)
        next_free += value + 1
    return offsets


def dataset_sequence(weights: list[float], num_batches: int, rng: np.random.Generator) -> IntArray:
    """Which data set each batch of an epoch is taken from: independent draws by relative frequency."""
    frequencies = np.asarray(weights, dtype=np.float64)
    if not len(frequencies) or (frequencies < 0).any() or frequencies.sum() <= 0:
        raise UsageError(f"data set weights must be positive, got {weights}")
    return rng.choice(len(frequencies), size=num_batches, p=frequencies / frequencies.sum()).astype(np.int64)
