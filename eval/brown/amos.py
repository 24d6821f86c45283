"""The matching test on patches of fixed cameras: find a place again in another picture of the same view."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from common.metrics import average_precision
from eval.brown.data import PatchSet
from eval.core.nearest import nearest
from kornia_hardnet8.errors import DataError

IMAGES_PER_VIEW = 10
KEEP_WITHIN_PX = 2.0


class PairScore(NamedTuple):
    """One ordered pair of pictures of a view."""

    right: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    ap: float


def match_views(
    query: torch.Tensor,
    target: torch.Tensor,
    query_centres: ArrayLike,
    target_centres: ArrayLike,
    ratio: float | None = None,
    collides: NDArray[np.bool_] | None = None,
) -> PairScore:
    """Match the places of one picture to those of another picture of the same fixed camera.

    A query is kept when some centre of the target lies within 2 px; its nearest descriptor is right when it belongs to
    the target place with the nearest centre. AP (trapezoid) of the ranking by distance, with the kept queries as
    positives.

    Args:
        query: (N, D) descriptors.
        target: (M, D), M >= 1.
        query_centres: (N, 2) pixels.
        target_centres: (M, 2) pixels.
        ratio: "right" also needs the distance to be at most this times that of the second nearest target that does
            not collide with the nearest.
        collides: (M, M), for ``ratio``: target places that overlap.

    Source: AMOS patches, matching test.
    """
    from scipy.spatial.distance import cdist

    gaps = cdist(np.asarray(query_centres, np.float64), np.asarray(target_centres, np.float64))
    kept = gaps.min(axis=1) <= KEEP_WITHIN_PX
    neighbours = nearest(query, target, 1)
    index, distance = neighbours.idx[:, 0].numpy(), neighbours.dists[:, 0].numpy().astype(np.float64)
    right = index == gaps.argmin(axis=1)
    if ratio is not None:
        full = torch.cdist(query.double(), target.double()).numpy()
        hidden = collides[index] if collides is not None else np.zeros_like(full, dtype=bool)
        hidden = hidden | (np.arange(len(target)) == index[:, None])
        second = np.where(hidden, np.inf, full).min(axis=1)
        right &= distance <= ratio * second
    ap = average_precision(-distance[kept], right[kept], int(kept.sum()))
    return PairScore(right, kept, ap)


def score_store(
    patches: PatchSet, descs: torch.Tensor, ratio: float | None = None
) -> dict[int, list[tuple[int, int, float, float]]]:
    """Judge all ordered pairs of the first 10 pictures of every view.

    Args:
        patches: a set with image ids, cameras and frames.
        descs: (N, D) of its patches.
        ratio: see :func:`match_views`.

    Returns:
        camera -> [(image a, image b, share right, AP)].
    """
    if patches.image_ids is None or patches.cam_ids is None or patches.frames is None:
        raise DataError(f"{patches.name}: the fixed-camera matching test needs image_ids, cam_ids and frames")
    centres = patches.frames[:, :, 2]
    result: dict[int, list[tuple[int, int, float, float]]] = {}
    for camera in np.unique(patches.cam_ids):
        of_camera = patches.cam_ids == camera
        images = np.unique(patches.image_ids[of_camera])[:IMAGES_PER_VIEW]
        rows = {int(i): np.flatnonzero(of_camera & (patches.image_ids == i)) for i in images}
        scores = []
        for a, first in rows.items():
            for b, second in rows.items():
                if a == b:
                    continue
                overlap = None if ratio is None else _collisions(patches, second)
                pair = match_views(descs[first], descs[second], centres[first], centres[second], ratio, overlap)
                scores.append((a, b, float(pair.right[pair.kept].mean()) if pair.kept.any() else 0.0, pair.ap))
        if scores:
            result[int(camera)] = scores
    if not result:
        raise DataError(f"{patches.name}: no camera has two pictures")
    return result


def _collisions(patches: PatchSet, rows: NDArray[np.intp]) -> NDArray[np.bool_] | None:
    """(M, M): which of these patches have labels that collide; None for a set without that information."""
    if patches.collisions is None:
        return None
    starts, items = patches.collisions
    labels = patches.labels[rows]
    position = np.searchsorted(np.unique(patches.labels), labels)
    return np.stack([np.isin(labels, items[starts[k] : starts[k + 1]]) for k in position])
