"""The stereo task: relative poses of image pairs from matches of local features."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.geometry import relative_pose
from common.h5files import Arrays
from common.images import read_bgr
from common.jobs import compute_all
from common.shell import progress
from eval.core.estimators import BASELINE, EstimatorSettings
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.core.pairs import BLOCK, MatchedPairs, Pair, match_pairs, split_rows
from eval.core.poses import score_pair
from eval.features import Keypoints, Method
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.imw.depth import PairDepth, judge_depth
from eval.imw.scene import Camera, Scene, camera_hash
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE


@dataclass(frozen=True)
class StereoSettings:
    """Everything that the stereo task depends on beside scene and descriptor.

    The estimator's defaults are those of the published baselines. Run r of several uses
    the seed ``seed + r``: only the estimator is run again.
    """

    detector: DogSettings = field(default_factory=DogSettings)
    mr_size: float = DEFAULT_MR_SIZE
    matcher: Matcher = field(default_factory=MatcherSettings)
    estimator: EstimatorSettings = BASELINE
    seed: int = 0
    runs: int = 1

    def __post_init__(self) -> None:
        """Check the number of runs."""
        if self.runs < 1:
            raise UsageError(f"--runs must be at least 1, got {self.runs}")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            "detector": self.detector.to_dict(),
            "mr_size": self.mr_size,
            "matcher": self.matcher.to_dict(),
            "estimator": self.estimator.to_dict(),
            "seed": self.seed,
            "runs": self.runs,
        }


class StereoPair(NamedTuple):
    """What became of one pair."""

    pair: Pair
    error_deg: float
    """Larger of the errors of rotation and translation; infinite without a pose."""
    err_q: float
    """Rotation error, radians."""
    err_t: float
    """Error of the direction of translation, radians."""
    matches: NDArray[np.integer]
    """(M, 2) keypoint indices after the filter."""
    inliers: NDArray[np.bool_]
    """(M,) inliers of the model."""
    reason: str
    """Why there is no pose; empty on success."""


@dataclass(frozen=True)
class StereoScene:
    """The stereo task of one descriptor on one scene.

    Attributes:
        scene: the scene.
        keypoints: of every image.
        pairs: what became of every pair in the first run.
        seconds: by stage.
        further_runs: what became of every pair in the other runs, in the same order.
        depth: what the depth maps say of the pairs that have them.
    """

    scene: Scene
    keypoints: dict[str, Keypoints]
    pairs: list[StereoPair]
    seconds: dict[str, float]
    further_runs: list[list[StereoPair]] = field(default_factory=list)
    depth: dict[Pair, PairDepth] = field(default_factory=dict)

    @property
    def runs(self) -> list[list[StereoPair]]:
        """What became of every pair, run by run."""
        return [self.pairs, *self.further_runs]


def describe_scene(scene: Scene, method: Method, settings: StereoSettings, cache: Cache) -> dict[str, Features]:
    """Keypoints and descriptors of every image, found or from the cache."""
    return {
        name: extract(read_bgr(scene.images[name]), method, settings.detector, cache, settings.mr_size)
        for name in progress(scene.images, what=f"{scene.name} {method.name}: describe", unit="image")
    }


def run_stereo(
    scene: Scene,
    descriptor: Method,
    settings: StereoSettings,
    cache: Cache,
    executor: Executor | None = None,
    features: Mapping[str, Features] | None = None,
    device: torch.device | None = None,
) -> StereoScene:
    """Match every pair of a scene's list and judge the poses; what is in the cache is not done again.

    The pairs are those of the list of the lowest threshold that is there (0.0: all of them).

    Args:
        scene: where to run.
        descriptor: descriptor or whole local feature.
        settings: everything else.
        cache: of all stages.
        executor: where blocks of pairs are matched and judged; None: here, one after the other.
        features: of every image, when they are there already.
        device: where descriptors are compared; default: the CPU.
    """
    if not scene.thresholds:
        raise DataError(f"scene {scene.name} has no list of pairs: {scene.root / 'new-vis-pairs'} holds none")
    features = features if features is not None else describe_scene(scene, descriptor, settings, cache)
    label = f"{scene.name} {descriptor.name}"
    pairs = scene.pairs(scene.thresholds[0])
    matched = match_pairs(pairs, features, settings.matcher, cache, executor, f"{label}: match", device)
    seconds = {"describe": sum(f.seconds for f in features.values()), "match": matched.seconds, "geometry": 0.0}
    runs = []
    for run in range(settings.runs):
        judged, spent = _judge(scene, matched, features, settings, settings.seed + run, cache, executor, label)
        runs.append(judged)
        seconds["geometry"] += spent
    keypoints = {name: f.keypoints for name, f in features.items()}
    depth, seconds["depth"] = judge_depth(scene, matched, keypoints, cache, executor, f"{label}: depth")
    return StereoScene(scene, keypoints, runs[0], seconds, runs[1:], depth)


def judge_pairs(
    scene: Scene,
    pairs: Sequence[Pair],
    features: Mapping[str, Features],
    settings: StereoSettings,
    cache: Cache,
    executor: Executor | None = None,
) -> list[StereoPair]:
    """Match some pairs of a scene and judge their poses, in one run, as :func:`run_stereo` does for a whole list."""
    matched = match_pairs(pairs, features, settings.matcher, cache, executor)
    return _judge(scene, matched, features, settings, settings.seed, cache, executor, scene.name)[0]


class _GeometryJob(NamedTuple):
    """What a worker needs to judge one block."""

    pairs: list[Pair]
    matches: list[NDArray[np.int32]]
    keypoints: dict[str, NDArray[np.floating]]
    cameras: dict[str, Camera]
    estimator: EstimatorSettings
    seed: int


def _judge(
    scene: Scene,
    matched: MatchedPairs,
    features: Mapping[str, Features],
    settings: StereoSettings,
    seed: int,
    cache: Cache,
    executor: Executor | None,
    label: str,
) -> tuple[list[StereoPair], float]:
    """One run of the estimator over all pairs, and what it took."""
    cameras, work = scene.cameras, []
    for block, found, key in zip(matched.blocks, matched.matches, matched.keys, strict=True):
        names = {name for pair in block for name in pair}
        configuration = {
            "matches": key,
            "estimator": settings.estimator.to_dict(),
            "seed": seed,
            "cameras": camera_hash(block, cameras),
        }
        keypoints = {name: features[name].keypoints.xy for name in names}
        chosen = {name: cameras[name] for name in names}
        work.append((configuration, _GeometryJob(block, found, keypoints, chosen, settings.estimator, seed)))
    scored = compute_all(cache, "geometry", work, _geometry, executor, f"{label}: geometry", f"block of {BLOCK}")
    judged, seconds = [], 0.0
    for block, found, arrays in zip(matched.blocks, matched.matches, scored, strict=True):
        inliers = split_rows(arrays["inliers"], np.array([len(m) for m in found]))
        rows = zip(
            block, arrays["error_deg"], arrays["errors"], found, inliers, arrays["reasons"].tolist(), strict=True
        )
        judged += [
            StereoPair(pair, float(error), float(q), float(t), matches, good, reason.decode())
            for pair, error, (q, t), matches, good, reason in rows
        ]
        seconds += float(arrays["seconds"])
    return judged, seconds


def _geometry(job: _GeometryJob) -> Arrays:
    """Pose errors and inliers of a block of pairs."""
    start = time.perf_counter()
    scores = []
    for (first, second), found in zip(job.pairs, job.matches, strict=True):
        one, two = job.cameras[first], job.cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        kpts0, kpts1 = job.keypoints[first], job.keypoints[second]
        scores.append(score_pair(kpts0, kpts1, found, one.K, two.K, dR, dt, job.estimator, job.seed))
    return {
        "error_deg": np.array([s.error_deg for s in scores]),
        "errors": np.array([(s.err_q, s.err_t) for s in scores]),
        "inliers": np.concatenate([s.inliers for s in scores]),
        "reasons": np.array([s.reason.encode() for s in scores], dtype="S"),
        "seconds": np.array(time.perf_counter() - start),
    }
