"""Which keypoints are matched rightly between photographs whose poses are known: what matchability is learnt from.

A keypoint is asked about in every photograph that sees its place, as far as the model's points say, and was right
where its mutual nearest neighbour passes the ratio test, lies on the epipolar line, and meets it at a depth that the
model has nearby.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from common.images import load_cv2, read_gray
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE, lafs_from_opencv, lafs_from_similarity
from kornia_hardnet8.matchability import cut_upright
from kornia_hardnet8.patches import extract_patches
from train.stores.densify import MIN_COMMON, PosedImage, epipolar_px, open_views

log = logging.getLogger(__name__)
MAX_IMAGES, MAX_PAIRS = 8, 28  # of a model
MAX_KEYPOINTS = 6000  # of an image, the strongest
MAX_RATIO, MAX_EPIPOLAR_PX = 0.95, 2.0
MIN_RIGHT = 15  # matches of a pair; with fewer it says nothing about its keypoints
# Candidates come from detectors with thresholds and from those that take every extremum, edges too: both are learnt.
THRESHOLDS = ((0.002, 10.0), (-10000.0, -10000.0))
# A match meets at a depth between the nearest points' smallest and largest, with so much room.
_DEPTH_ROOM = 1.6
_NEIGHBOURS = 5
# Below so many degrees between its rays a match has no depth to speak of.
_MIN_ANGLE_DEG = 1.0
# What labels depend on, beside the photographs and the descriptor.
LIMITS = (MAX_IMAGES, MAX_PAIRS, MAX_KEYPOINTS, MAX_RATIO, MAX_EPIPOLAR_PX, MIN_RIGHT, _DEPTH_ROOM, _NEIGHBOURS)


class Labels(NamedTuple):
    """The keypoints of one photograph that others see."""

    patches: torch.Tensor
    """(N, 2, 16, 16) uint8, see :class:`kornia_hardnet8.matchability.Matchability`."""
    sigma: torch.Tensor
    """(N,) float32, pixels."""
    right: torch.Tensor
    """(N,) float32, photographs in which they were matched rightly."""
    seen: torch.Tensor
    """(N,) float32, at least 1: photographs that see their place."""


@dataclass(frozen=True)
class _Detected:
    """Keypoints of one view with unit descriptors, and the range of depths of the model's points near each."""

    xy: np.ndarray
    sigma: np.ndarray
    descs: np.ndarray
    depths: np.ndarray
    """(N, 3): smallest, median, largest."""


def label_model(
    images: Path, model: Path, contrast: float, edge: float, seed: int, descriptor: HardNet8 | None = None
) -> list[Labels]:
    """Labels of keypoints of a COLMAP model's photographs.

    Args:
        images: folder of the model's images.
        model: folder of the COLMAP model.
        contrast: OpenCV's contrastThreshold.
        edge: OpenCV's edgeThreshold.
        seed: of the choice of photographs and pairs.
        descriptor: whose matches count; None is RootSIFT.

    Returns:
        One entry a photograph that is in a pair with enough right matches.

    Raises:
        DataError: no model, or a photograph of another size than the model says.
    """
    views = open_views(images, model)
    rng = np.random.default_rng(seed)
    pairs = choose_pairs(views, rng)
    detected = {k: _detect(views[k], contrast, edge, descriptor) for k in sorted({k for pair in pairs for k in pair})}
    right = {k: np.zeros(len(d.xy), np.float32) for k, d in detected.items()}
    seen = {k: np.zeros(len(d.xy), np.float32) for k, d in detected.items()}
    for pair in pairs:
        rows = right_matches([views[k] for k in pair], [detected[k] for k in pair])
        if len(rows) < MIN_RIGHT:
            continue
        for column, (here, there) in enumerate((pair, pair[::-1])):
            matched = np.zeros(len(right[here]), bool)
            matched[rows[:, column]] = True
            right[here] += matched
            seen[here] += matched | _in_sight(views[here], views[there], detected[here])
    return [_labels(views[k], detected[k], right[k], seen[k]) for k in detected if seen[k].any()]


def choose_pairs(views: Sequence[PosedImage], rng: np.random.Generator) -> list[tuple[int, int]]:
    """At most ``MAX_PAIRS`` pairs among at most ``MAX_IMAGES`` views that see enough points together."""
    count = len(views)
    common = np.zeros((count, count), np.int64)
    for a, b in combinations(range(count), 2):
        common[a, b] = common[b, a] = len(np.intersect1d(views[a].ids, views[b].ids, assume_unique=True))
    linked = common >= MIN_COMMON
    chosen = [int(linked.sum(axis=1).argmax())]
    while len(chosen) < min(count, MAX_IMAGES):
        rest = np.setdiff1d(np.arange(count), chosen)
        weights = np.minimum(linked[rest][:, chosen].sum(axis=1), 3)
        if not weights.any():
            break
        chosen.append(int(rng.choice(rest, p=weights / weights.sum())))
    pairs = [(a, b) for a, b in combinations(sorted(chosen), 2) if linked[a, b]]
    return [pairs[k] for k in np.sort(rng.permutation(len(pairs))[:MAX_PAIRS])]


def right_matches(views: Sequence[PosedImage], detected: Sequence[_Detected]) -> np.ndarray:
    """Rows (M, 2) of the keypoints of two views that match each other, and are right by the geometry."""
    rows = _mutual(detected[0].descs, detected[1].descs)
    points = [d.xy[rows[:, k]] for k, d in enumerate(detected)]
    depths, angle = _meeting(views, points)
    near = np.ones(len(rows), bool)
    for k, d in enumerate(detected):
        lowest, _, highest = d.depths[rows[:, k]].T
        near &= (depths[k] > lowest / _DEPTH_ROOM) & (depths[k] < highest * _DEPTH_ROOM)
    on_line = epipolar_px(views[0], views[1], *points) <= MAX_EPIPOLAR_PX
    result: np.ndarray = rows[on_line & (near | (angle < _MIN_ANGLE_DEG))]
    return result


def _mutual(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Rows (M, 2) of unit descriptors that are each other's nearest, with the ratio test both ways."""
    if min(len(one), len(two)) < 2:
        return np.empty((0, 2), np.int64)
    similar = torch.from_numpy(one) @ torch.from_numpy(two).T
    forward, back = similar.topk(2, dim=1), similar.T.contiguous().topk(2, dim=1)
    i = torch.arange(len(one))
    j = forward.indices[:, 0]
    ratios = [_ratio(forward.values), _ratio(back.values)[j]]
    keep = (back.indices[j, 0] == i) & (torch.maximum(*ratios) <= MAX_RATIO)
    return torch.stack([i[keep], j[keep]], dim=1).numpy()


def _ratio(similarity: torch.Tensor) -> torch.Tensor:
    first, second = (2.0 - 2.0 * similarity).clamp(min=1e-12).sqrt().T
    return first / second


def _meeting(views: Sequence[PosedImage], points: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Depths (n,) in both views where the rays of matches come nearest, and the angle (n,) between them in degrees."""
    rays = [view.rays(xy) for view, xy in zip(views, points, strict=True)]
    rotation = views[1].rotation @ views[0].rotation.T
    t = views[1].translation - rotation @ views[0].translation
    p, q = rays[0] @ rotation.T, rays[1]
    pp, pq, qq = ((a * b).sum(axis=1) for a, b in ((p, p), (p, q), (q, q)))
    # the least of |z0 p + t - z1 q|
    determinant = np.maximum(pp * qq - pq * pq, 1e-12)
    depths = [(pq * (q @ t) - qq * (p @ t)) / determinant, (pp * (q @ t) - pq * (p @ t)) / determinant]
    return depths, np.degrees(np.arccos(np.clip(pq / np.sqrt(pp * qq), -1.0, 1.0)))


def _in_sight(view: PosedImage, other: PosedImage, detected: _Detected) -> np.ndarray:
    """Whether the other view has the places of keypoints (N,) in its frame, at the depth of the points near them."""
    world = (view.rays(detected.xy) * detected.depths[:, 1:2] - view.translation) @ view.rotation
    pixels = other.project(world)
    width, height = other.size
    return np.asarray(((pixels > 0) & (pixels < [width - 1, height - 1])).all(axis=1))  # NaN: behind the camera


def _detect(view: PosedImage, contrast: float, edge: float, descriptor: HardNet8 | None = None) -> _Detected:
    cv2 = load_cv2()
    image = read_gray(view.path)
    if image.shape != view.size[::-1]:
        width, height = view.size
        raise DataError(f"{view.path} is {image.shape[1]} x {image.shape[0]} pixels, the model says {width} x {height}")
    sift = cv2.SIFT_create(contrastThreshold=contrast, edgeThreshold=edge, enable_precise_upscale=True)
    keypoints = sorted(sift.detect(image, None), key=lambda k: (-k.response, k.pt, k.size, k.angle))[:MAX_KEYPOINTS]
    if descriptor is None:
        keypoints, described = sift.compute(image, keypoints)
        descs = np.zeros((0, 128), np.float32) if described is None else np.asarray(described, np.float32)
        descs = np.sqrt(descs / np.maximum(descs.sum(axis=1, keepdims=True), 1e-6))
    else:
        frames = lafs_from_opencv(keypoints, float(descriptor.metadata.get("mr_size", DEFAULT_MR_SIZE)))[0]
        with torch.no_grad():
            descs = descriptor(extract_patches(torch.from_numpy(image), frames, descriptor.patch_size)).numpy()
    rows = np.array([(*k.pt, k.size / 2) for k in keypoints], np.float64).reshape(-1, 3)
    return _Detected(rows[:, :2], rows[:, 2], descs, _depths_near(view, rows[:, :2]))


def _depths_near(view: PosedImage, xy: np.ndarray) -> np.ndarray:
    """Smallest, median and largest depth (N, 3) of the model's points nearest to pixels (N, 2)."""
    depths = (view.points @ view.rotation.T + view.translation)[:, 2]
    front = depths > 1e-9
    if not front.any():
        return np.full((len(xy), 3), np.nan)
    count = min(_NEIGHBOURS, int(front.sum()))
    _, nearest = cKDTree(view.xy[front]).query(xy, k=count)
    values = depths[front][np.asarray(nearest).reshape(len(xy), count)]
    return np.column_stack([values.min(axis=1), np.median(values, axis=1), values.max(axis=1)])


def _labels(view: PosedImage, detected: _Detected, right: np.ndarray, seen: np.ndarray) -> Labels:
    keep = seen > 0
    xy, sigma = (torch.from_numpy(a[keep].astype(np.float32)) for a in (detected.xy, detected.sigma))
    frames = lafs_from_similarity(xy, sigma, torch.zeros_like(sigma))
    _, patches = cut_upright(torch.from_numpy(read_gray(view.path)), frames, 1.0)
    rounded = patches.round().clamp(0, 255).to(torch.uint8)
    return Labels(rounded, sigma, torch.from_numpy(right[keep]), torch.from_numpy(seen[keep]))
