"""Per-image matching of Brown patches ("revisited"): is the true partner nearer than the hardest negative?"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.metrics import average_precision_merged
from kornia_hardnet8.errors import UsageError

Mode = Literal["fixed", "v0.3.0"]
Distance = Literal["euclidean", "hamming"]
MODES = ("fixed", "v0.3.0")
Floats = NDArray[np.float64]

_BLOCK = 128  # anchors at once, as in the original, whose incomplete last block stays unsearched
_SEARCHED_ABOVE = 1000  # patches of an image, in mode v0.3.0
_SAME_LABEL_PENALTY = 1000.0


def revisited_aps(
    descs: NDArray[np.generic],
    labels: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    distance: Distance = "euclidean",
    mode: Mode = "fixed",
) -> dict[int, float]:
    """AP of each image that holds two patches of one label, by ascending id.

    For every ordered pair (anchor, positive) of an image, the anchor's hardest negative competes: the pair is correct
    when the positive is not farther, and ranked by 1 - (smaller / larger distance).

    Args:
        descs: (N, D).
        labels: (N,).
        image_ids: (N,).
        distance: ``hamming`` is the share of differing entries.
        mode: ``fixed`` finds the hardest negative of every anchor. ``v0.3.0`` does what the published package does:
            it searches only images of more than 1000 patches, there only whole blocks of 128 anchors, and takes patch
            0 of the image as the negative of all other anchors.

    Source: brown_phototour_revisited.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}: {' or '.join(MODES)}")
    result = {}
    for image in np.unique(image_ids):
        rows = np.flatnonzero(image_ids == image)
        pairs = _positive_pairs(labels[rows])
        if len(pairs):
            result[int(image)] = _image_ap(descs[rows], labels[rows], pairs, distance, mode)
    return result


def distance_ratio_ap(positive: ArrayLike, negative: ArrayLike) -> float:
    """AP of pairs with distances to the positive and to the hardest negative, (M,) each; 0 / 0 scores 0."""
    near, far = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    smaller, larger = np.minimum(near, far), np.maximum(near, far)
    ratio = np.divide(smaller, larger, out=np.ones_like(smaller), where=larger > 0)
    return average_precision_merged(1.0 - ratio, near <= far)


def _positive_pairs(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """All ordered pairs of different patches with one label, (P, 2), by anchor."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    pairs = [
        np.array([(a, b) for a in group for b in group if a != b], dtype=np.int64) for group in groups if len(group) > 1
    ]
    if not pairs:
        return np.empty((0, 2), dtype=np.int64)
    rows = np.concatenate(pairs)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def _image_ap(
    descs: NDArray[np.generic],
    labels: NDArray[np.int64],
    pairs: NDArray[np.int64],
    distance: Distance,
    mode: Mode,
) -> float:
    values = descs.astype(np.float64) if distance == "euclidean" else descs
    count = len(values)
    if mode == "fixed":
        searched, penalty = count, np.inf
    else:
        searched, penalty = (count // _BLOCK * _BLOCK if count > _SEARCHED_ABOVE else 0), _SAME_LABEL_PENALTY
    hardest = np.full(count, -1 if mode == "fixed" else 0, dtype=np.int64)
    for start in range(0, searched, _BLOCK):
        stop = min(start + _BLOCK, searched)
        block = _cross(values[start:stop], values, distance)
        block[labels[start:stop, None] == labels[None]] += penalty
        block[np.arange(stop - start), np.arange(start, stop)] += penalty
        hardest[start:stop] = block.argmin(axis=1)
        if mode == "fixed":
            hardest[start:stop][np.isinf(block.min(axis=1))] = -1
    anchors, positives = pairs.T
    near = _rowwise(values[anchors], values[positives], distance)
    far = _rowwise(values[anchors], values[hardest[anchors]], distance)
    far[hardest[anchors] < 0] = np.inf  # an image of one label has no negatives
    return distance_ratio_ap(near, far)


def _cross(first: NDArray[np.generic], second: NDArray[np.generic], distance: Distance) -> Floats:
    from scipy.spatial.distance import cdist

    result: Floats = cdist(first, second, distance)
    return result


def _rowwise(first: NDArray[np.generic], second: NDArray[np.generic], distance: Distance) -> Floats:
    if distance == "euclidean":
        result: Floats = np.linalg.norm(first - second, axis=1)  # type: ignore[operator]
        return result
    return (first != second).mean(axis=1)
