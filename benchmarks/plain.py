"""The tasks of the benchmarks by plain loops, pair by pair and query by query, as the originals do.

Slow on purpose: what the fast paths are timed against and must agree with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from common.geometry import relative_pose
from common.hpatches import LEVELS, NUM_TARGETS, type_index
from common.metrics import trapezoid
from eval.core.matching import MatcherSettings
from eval.core.pairs import Pair
from eval.core.poses import score_pair
from eval.features.extract import Features
from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.retrieval import POOL_SIZES
from eval.hpatches.tasks import PatchPairs, RetrievalTask, VerificationTask
from eval.imw.scene import Scene
from eval.imw.stereo import StereoSettings


def curve_area(scores: NDArray[np.floating], labels: NDArray[np.bool_], num_positives: int | None = None) -> float:
    """Trapezoid AP of one list; ties keep their order."""
    positives = int(labels.sum()) if num_positives is None else num_positives
    order = np.argsort(-scores, kind="stable")
    tp = np.concatenate([[0], np.cumsum(labels[order])])
    fp = np.concatenate([[0], np.cumsum(~labels[order])])
    precision = np.maximum(tp, 1e-10) / np.maximum(tp + fp, 1e-10)
    return trapezoid(precision, tp / max(positives, 1e-10))


def verification(descriptors: DescriptorSet, task: VerificationTask) -> dict[str, float]:
    """Imbalanced AP by ``level/kind``."""
    results = {}
    for level in LEVELS:
        positive = _pairs(descriptors, task.positives, level)
        few = positive[: int(0.2 * len(positive))]
        for kind in ("inter", "intra"):
            negative = _pairs(descriptors, getattr(task, kind), level)
            scores = -np.concatenate([negative, few])
            results[f"{level}/{kind}"] = curve_area(scores, np.arange(len(scores)) >= len(negative))
    return results


def _pairs(descriptors: DescriptorSet, pairs: PatchPairs, level: str) -> NDArray[np.float32]:
    distances = np.empty(len(pairs), np.float32)
    for i in range(len(pairs)):
        first = descriptors.get(pairs.names[pairs.s1[i]], type_index(level, pairs.t1[i]))[pairs.idx1[i]]
        second = descriptors.get(pairs.names[pairs.s2[i]], type_index(level, pairs.t2[i]))[pairs.idx2[i]]
        distances[i] = np.linalg.norm(first - second)
    return distances


def matching(descriptors: DescriptorSet, test: Sequence[str]) -> float:
    """Mean AP over sequences, levels and images."""
    values = []
    for name in test:
        reference = descriptors.get(name, 0)
        for level in LEVELS:
            for image in range(1, NUM_TARGETS + 1):
                full = cdist(reference, descriptors.get(name, type_index(level, image)))
                index = full.argmin(axis=1)
                scores = -full[np.arange(len(full)), index]
                values.append(curve_area(scores, index == np.arange(len(full)), len(full)))
    return float(np.mean(values))


def retrieval(descriptors: DescriptorSet, task: RetrievalTask) -> NDArray[np.float64]:
    """APs (3 levels, Q, pool sizes)."""
    queries, distractors = task.queries, task.distractors
    negatives = np.stack(
        [descriptors.get(distractors.names[s], 0)[i] for s, i in zip(distractors.s, distractors.idx, strict=True)]
    )
    result = np.empty((len(LEVELS), len(queries), len(POOL_SIZES)))
    for q in range(len(queries)):
        name, index = queries.names[queries.s[q]], queries.idx[q]
        query = descriptors.get(name, 0)[index][None]
        away = cdist(query, negatives[distractors.s != queries.s[q]])[0]
        for k, level in enumerate(LEVELS):
            views = [descriptors.get(name, type_index(level, image))[index] for image in range(1, NUM_TARGETS + 1)]
            distances = np.concatenate([[cdist(query, view[None])[0, 0] for view in views], away])
            labels = np.arange(len(distances)) < NUM_TARGETS
            for p, size in enumerate(POOL_SIZES):
                result[k, q, p] = curve_area(-distances[:size], labels[:size])
    return result


class PlainPair(NamedTuple):
    """What the plain loop says about one pair."""

    matches: NDArray[np.int64]
    error_deg: float


def plain_pair(
    scene: Scene, pair: Pair, features: Mapping[str, Features], settings: StereoSettings, matcher: MatcherSettings
) -> PlainPair:
    """One pair the plain way: OpenCV's brute force in both directions, a loop for every rule, the same estimator."""
    one, two = (features[name] for name in pair)
    assert matcher.threshold is not None
    forward = _one_way(one, two, matcher.threshold)
    backward = dict(_one_way(two, one, matcher.threshold))
    mutual = [(i, j) for i, j in forward if backward.get(j) == i]
    unique: dict[tuple[float, ...], tuple[int, int]] = {}
    for i, j in mutual:
        unique.setdefault((*one.keypoints.xy[i].tolist(), *two.keypoints.xy[j].tolist()), (i, j))
    matches = np.array([unique[place] for place in sorted(unique)], np.int64).reshape(-1, 2)
    camera0, camera1 = (scene.cameras[name] for name in pair)
    dR, dt = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
    score = score_pair(
        one.keypoints.xy, two.keypoints.xy, matches, camera0.K, camera1.K, dR, dt, settings.estimator, settings.seed
    )
    return PlainPair(matches, score.error_deg)


def _one_way(queries: Features, database: Features, max_ratio: float) -> list[tuple[int, int]]:
    import cv2

    neighbours = cv2.BFMatcher(cv2.NORM_L2).knnMatch(queries.descs.numpy(), database.descs.numpy(), k=2)
    return [
        (best.queryIdx, best.trainIdx) for best, second in neighbours if best.distance <= max_ratio * second.distance
    ]
