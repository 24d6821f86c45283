"""Numbers of the multiview task from reconstructed poses: pure functions, no COLMAP.

Source: IMW benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import relative_pose
from common.metrics import evaluate_R_t

Pose = tuple[ArrayLike, ArrayLike]
"""Rotation (3, 3) and translation (3,), world to camera."""

UNREGISTERED = (math.inf, math.inf)
"""(rotation, translation) error of a pair with an image that has no pose."""


class BagCounts(NamedTuple):
    """What one reconstructed bag holds."""

    num_images: int
    """Registered images."""
    track_lengths: Sequence[int]
    """Distinct images of every 3-D point."""


def pair_pose_error(estimated0: Pose | None, estimated1: Pose | None, true0: Pose, true1: Pose) -> tuple[float, float]:
    """Error (rotation, translation) in radians of two images of a model; :data:`UNREGISTERED` without a finite pose.

    Invariant to a similarity of the model.
    """
    for pose in (estimated0, estimated1):
        if pose is None or not all(np.isfinite(np.asarray(part, dtype=np.float64)).all() for part in pose):
            return UNREGISTERED
    assert estimated0 is not None
    assert estimated1 is not None
    dR, dt = relative_pose(*estimated0, *estimated1)
    return evaluate_R_t(*relative_pose(*true0, *true1), dR, dt)


def bag_pose_errors(
    names: Sequence[str], estimated: Mapping[str, Pose], true: Mapping[str, Pose]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Pose errors of all pairs of a bag, in the order of the bag; an empty ``estimated`` is a failed bag."""
    return {
        (a, b): pair_pose_error(estimated.get(a), estimated.get(b), true[a], true[b]) for a, b in combinations(names, 2)
    }


def best_model(models: Sequence[Sequence[Pose]]) -> int:
    """Index of the model with the most registered images, the first of equals; -1 when none has a pose.

    A model with a pose that is not finite is skipped.
    """
    best, most = -1, 0
    for index, poses in enumerate(models):
        finite = all(np.isfinite(np.asarray(part, dtype=np.float64)).all() for pose in poses for part in pose)
        if finite and len(poses) > most:
            best, most = index, len(poses)
    return best


def bag_statistics(bags: Sequence[BagCounts | None]) -> dict[str, float]:
    """Means over the bags that were reconstructed (None: failed), and the share of those; zeros when none was."""
    built = [bag for bag in bags if bag is not None]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    return {
        "avg_track_length": mean([mean(list(bag.track_lengths)) for bag in built]),
        "avg_num_cameras": mean([bag.num_images for bag in built]),
        "avg_num_3d_points": mean([len(bag.track_lengths) for bag in built]),
        "success_rate": len(built) / len(bags) if bags else 0.0,
        "num_in_bag": float(len(bags)),
    }


def covisible_pairs(
    visibility: ArrayLike, threshold: float = 100, subset: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Ordered index pairs (i, j), i != j, with more than ``threshold`` common points (the old criterion).

    Args:
        visibility: (N, N), row i = the counts of image i.
        threshold: strictly exceeded; 100, and 1 for googleurban.
        subset: rows and columns of a bag; the indices returned are positions in it.
    """
    counts: NDArray[np.float64] = np.asarray(visibility, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"visibility must be (N, N), got {counts.shape}")
    if subset is not None:
        counts = counts[np.ix_(subset, subset)]
    passes = counts > threshold
    np.fill_diagonal(passes, False)
    return [(int(i), int(j)) for i, j in np.argwhere(passes)]
