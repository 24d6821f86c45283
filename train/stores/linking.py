"""Which detected keypoints of several views of a plane show the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from train.stores.views import jacobians, transfer

MAX_SCALE_RATIO = 1.5
MAX_TURN = np.deg2rad(30.0)
MIN_RADIUS = 1.5  # pixels
RADIUS_PER_SIGMA = 0.7  # of the coarser keypoint


@dataclass(frozen=True)
class Detections:
    """Detections of one view: xy (n, 2) pixels, sigma (n,) pixels, angle (n,) radians from x towards y."""

    xy: np.ndarray
    sigma: np.ndarray
    angle: np.ndarray

    def take(self, keep: np.ndarray) -> Detections:
        """The rows that ``keep`` selects."""
        return Detections(self.xy[keep], self.sigma[keep], self.angle[keep])


def carry(keypoints: Detections, homography: np.ndarray) -> Detections:
    """The keypoints as ``homography`` maps them: scale by the local change of area, direction by the local map."""
    local = jacobians(homography, keypoints.xy)
    direction = np.stack([np.cos(keypoints.angle), np.sin(keypoints.angle)], axis=1)
    turned = np.einsum("nij,nj->ni", local, direction)
    area = np.abs(local[:, 0, 0] * local[:, 1, 1] - local[:, 0, 1] * local[:, 1, 0])
    return Detections(
        transfer(homography, keypoints.xy), keypoints.sigma * np.sqrt(area), np.arctan2(turned[:, 1], turned[:, 0])
    )


def turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute difference of directions in radians, 0 ... pi."""
    result: np.ndarray = np.abs((a - b + np.pi) % (2 * np.pi) - np.pi)
    return result


def mutual_links(carried: Detections, there: Detections) -> np.ndarray:
    """Pairs (m, 2) of rows of two sets of keypoints of one view that are each other's nearest compatible one.

    Compatible: within max(1.5 pixels, 0.7 sigma of the coarser one), scales within a factor 1.5, directions within
    30 degrees. Nearest: position in units of sigma, log scale and direction, each over its limit, squared and summed.
    """
    usable = np.flatnonzero(np.isfinite(carried.xy).all(axis=1) & np.isfinite(carried.sigma))
    if not len(usable) or not len(there.xy):
        return np.empty((0, 2), np.int64)
    here = carried.take(usable)
    radius = np.maximum(MIN_RADIUS, RADIUS_PER_SIGMA * MAX_SCALE_RATIO * here.sigma)
    near = cKDTree(there.xy).query_ball_point(here.xy, radius)
    rows = np.repeat(np.arange(len(here.xy)), [len(n) for n in near])
    columns = np.fromiter((j for n in near for j in sorted(n)), dtype=np.int64, count=len(rows))
    distance = np.linalg.norm(here.xy[rows] - there.xy[columns], axis=1)
    limit = np.maximum(MIN_RADIUS, RADIUS_PER_SIGMA * np.maximum(here.sigma[rows], there.sigma[columns]))
    ratio = np.abs(np.log(here.sigma[rows] / there.sigma[columns])) / np.log(MAX_SCALE_RATIO)
    turn = turn_between(here.angle[rows], there.angle[columns]) / MAX_TURN
    good = (distance <= limit) & (ratio <= 1) & (turn <= 1)
    cost = (distance / limit) ** 2 + ratio**2 + turn**2
    rows, columns, cost = rows[good], columns[good], cost[good]
    order = np.lexsort((columns, rows, cost))
    rows, columns = rows[order], columns[order]
    first_row = np.zeros(len(rows), bool)
    first_row[np.unique(rows, return_index=True)[1]] = True
    first_column = np.zeros(len(rows), bool)
    first_column[np.unique(columns, return_index=True)[1]] = True
    both = first_row & first_column
    return np.stack([usable[rows[both]], columns[both]], axis=1)


def group(keypoints: list[Detections], homographies: list[np.ndarray]) -> list[np.ndarray]:
    """Groups of keypoints of several views of a plane that show the same thing, see :func:`group_links`.

    ``homographies[k]`` maps the plane to view k.
    """
    links = []
    for a in range(len(keypoints)):
        for b in range(a + 1, len(keypoints)):
            between = homographies[b] @ np.linalg.inv(homographies[a])
            links.append((a, b, mutual_links(carry(keypoints[a], between), keypoints[b])))
    return group_links([len(k.xy) for k in keypoints], links)


def group_links(counts: list[int], links: list[tuple[int, int, np.ndarray]]) -> list[np.ndarray]:
    """Groups of linked keypoints of several views.

    A group is a keypoint with those of the other views that it is linked to; the keypoints with most links lead
    first, each keypoint is in one group at most.

    Args:
        counts: keypoints of each view.
        links: views a and b, and pairs (m, 2) of their rows, no row twice in one array.

    Returns:
        Arrays (m, 2) of (view, row), m >= 2, no view twice.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(rows + offsets[[a, b]] for a, b, rows in links)])
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(offsets[-1] + 1))
    degree = np.diff(starts)
    free = np.ones(offsets[-1], bool)
    view_of = np.repeat(np.arange(len(counts)), counts)
    groups = []
    for leader in np.argsort(-degree, kind="stable"):
        if degree[leader] == 0:
            break
        if not free[leader]:
            continue
        members = both[starts[leader] : starts[leader + 1], 1]
        members = np.sort(np.append(members[free[members]], leader))
        if len(members) < 2:
            continue
        free[members] = False
        groups.append(np.stack([view_of[members], members - offsets[view_of[members]]], axis=1))
    return groups
