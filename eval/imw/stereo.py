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
from common.metrics import accuracy_curve, maa, maa_per_pair
from common.shell import progress
from eval.core.estimators import BASELINE, EstimatorSettings
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.core.pairs import BLOCK, MatchedPairs, Pair, match_pairs, split_rows
from eval.core.poses import score_pair
from eval.core.reprojection import matching_score, mean_repeatability
from eval.core.results import Score, mean_over_scenes
from eval.features import Keypoints, Method
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.imw.depth import PairDepth, judge_depth
from eval.imw.scene import HEADLINE, THRESHOLDS, Camera, Scene, camera_hash
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
    for block, of_block, key in zip(matched.blocks, matched.matches, matched.keys, strict=True):
        names = {name for pair in block for name in pair}
        configuration = {
            "matches": key,
            "estimator": settings.estimator.to_dict(),
            "seed": seed,
            "cameras": camera_hash(block, cameras),
        }
        keypoints = {name: features[name].keypoints.xy for name in names}
        chosen = {name: cameras[name] for name in names}
        work.append((configuration, _GeometryJob(block, of_block, keypoints, chosen, settings.estimator, seed)))
    scored = compute_all(cache, "geometry", work, _geometry, executor, f"{label}: geometry", f"block of {BLOCK}")
    judged, seconds = [], 0.0
    for block, of_block, arrays in zip(matched.blocks, matched.matches, scored, strict=True):
        inliers = split_rows(arrays["inliers"], np.array([len(m) for m in of_block]))
        rows = zip(
            block, arrays["error_deg"], arrays["errors"], of_block, inliers, arrays["reasons"].tolist(), strict=True
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
    for (first, second), rows in zip(job.pairs, job.matches, strict=True):
        one, two = job.cameras[first], job.cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        kpts0, kpts1 = job.keypoints[first], job.keypoints[second]
        scores.append(score_pair(kpts0, kpts1, rows, one.K, two.K, dR, dt, job.estimator, job.seed))
    return {
        "error_deg": np.array([s.error_deg for s in scores]),
        "errors": np.array([(s.err_q, s.err_t) for s in scores]),
        "inliers": np.concatenate([s.inliers for s in scores]),
        "reasons": np.array([s.reason.encode() for s in scores], dtype="S"),
        "seconds": np.array(time.perf_counter() - start),
    }


MAA_DEGREES = (5, 10)
# Pixels of the repeatability and matching score that stand in the tables.
DEPTH_PX = 3


def stereo_scores(scenes: Sequence[StereoScene], seed: int = 0) -> dict[str, Score]:
    """Scores over scenes, every scene with the same weight, on pairs of co-visibility 0.1 and more.

    Every number of a pair is the mean over the runs.
    """
    rows = [[row for row in stereo_pairs(result) if row["covisibility"] >= float(HEADLINE)] for result in scenes]

    def mean(name: str) -> Score:
        return mean_over_scenes([[row[name] for row in of_scene if name in row] for of_scene in rows], seed)

    names = [f"mAA@{degrees}" for degrees in MAA_DEGREES] + ["num_matches", "num_inliers"]
    if any(result.depth for result in scenes):
        names += [f"{kind}@{DEPTH_PX}" for kind in ("repeatability", "matching_score_pre", "matching_score")]
    counts = [[len(keypoints) for keypoints in result.keypoints.values()] for result in scenes]
    return {f"stereo/{name}": mean(name) for name in names} | {
        "stereo/num_keypoints": mean_over_scenes(counts, seed),
    }


def stereo_scene(result: StereoScene, seed: int = 0) -> dict[str, Any]:
    """What is reported of one scene: its scores, the accuracy curve, mAA by co-visibility threshold."""
    by_threshold = {}
    for threshold in result.scene.thresholds:
        runs = [_errors(pairs) for pairs in runs_at(result, threshold)]
        by_threshold[threshold] = {
            "n": len(runs[0]),
            **{
                f"mAA@{degrees}": float(np.mean([maa(errors, degrees) for errors in runs])) if runs[0] else None
                for degrees in MAA_DEGREES
            },
        }
    headline = [_errors(pairs) for pairs in runs_at(result, HEADLINE)]
    return {
        **stereo_scores([result], seed),
        "stereo/accuracy_1_to_10_deg": np.mean([accuracy_curve(errors) for errors in headline], axis=0),
        "stereo/by_covisibility": by_threshold,
        **_depth_curves(result),
        **_runs(result),
        "failed_pairs": sum(not np.isfinite(pair.error_deg) for pair in result.pairs),
    }


def stereo_pairs(result: StereoScene) -> list[dict[str, Any]]:
    """One dictionary a pair; ``covisibility`` is the highest threshold whose list holds it, errors are degrees.

    With several runs the errors are those of the first, ``errors_deg`` lists all, and ``mAA@k`` and the counts of
    inliers are means.
    """
    reached: dict[Pair, str] = {}
    for threshold in sorted(result.scene.thresholds, key=THRESHOLDS.index):
        reached |= dict.fromkeys(result.scene.pairs(threshold), threshold)
    rows = []
    for runs in zip(*result.runs, strict=True):
        judged, errors = runs[0], [run.error_deg for run in runs]
        rows.append(
            {
                "task": "stereo",
                "scene": result.scene.name,
                "pair": f"{judged.pair[0]}-{judged.pair[1]}",
                "covisibility": float(reached[judged.pair]),
                "error_deg": judged.error_deg,
                **({"errors_deg": errors} if len(runs) > 1 else {}),
                "rotation_deg": float(np.rad2deg(judged.err_q)),
                "translation_deg": float(np.rad2deg(judged.err_t)),
                **{f"mAA@{degrees}": float(maa_per_pair(errors, degrees).mean()) for degrees in MAA_DEGREES},
                "num_matches": len(judged.matches),
                "num_inliers": _number(np.mean([run.inliers.sum() for run in runs])),
                **_depth_row(result, runs),
                **({"failure": judged.reason} if judged.reason else {}),
            }
        )
    return rows


def headline_pairs(result: StereoScene) -> list[StereoPair]:
    """The pairs that the headline numbers are about, in the first run."""
    return runs_at(result, HEADLINE)[0]


def runs_at(result: StereoScene, threshold: str) -> list[list[StereoPair]]:
    """The judged pairs of the list of a co-visibility threshold, run by run."""
    listed = set(result.scene.pairs(threshold))
    return [[judged for judged in run if judged.pair in listed] for run in result.runs]


def depth_curves(result: StereoScene, pairs: Sequence[StereoPair], official: bool = False) -> dict[str, Any]:
    """Repeatability and matching scores (before and after the estimator) at 1 … 10 px, means over pairs.

    The denominators are those of the original: pairs without repeatability are left out, pairs without a match that
    has depth count as 0 in the matching scores. Empty without depth maps.

    Args:
        result: the task on one scene.
        pairs: of one run.
        official: repeatability as the original counts visible keypoints.
    """
    judged = [(pair, result.depth[pair.pair]) for pair in pairs if pair.pair in result.depth]
    if not judged:
        return {}
    curves = [depth.repeatability_official if official else depth.repeatability for _, depth in judged]
    return {
        "repeatability": mean_repeatability(curves),
        "matching_score_pre": matching_score([depth.chosen() for _, depth in judged]),
        "matching_score": matching_score([depth.chosen(pair.inliers) for pair, depth in judged]),
    }


def _depth_curves(result: StereoScene) -> dict[str, NDArray[np.float64]]:
    runs = [depth_curves(result, pairs) for pairs in runs_at(result, HEADLINE)]
    return {f"stereo/{name}_1_to_10_px": np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def _depth_row(result: StereoScene, runs: Sequence[StereoPair]) -> Mapping[str, float]:
    """Repeatability and matching score of one pair at :data:`DEPTH_PX`."""
    depth = result.depth.get(runs[0].pair)
    if depth is None:
        return {}
    after = [_share(depth.chosen(run.inliers)) for run in runs]
    return {
        f"repeatability@{DEPTH_PX}": float(depth.repeatability[DEPTH_PX - 1]),
        f"matching_score_pre@{DEPTH_PX}": _share(depth.chosen()),
        f"matching_score@{DEPTH_PX}": float(np.mean(after)),
    }


def _share(distances: NDArray[np.float64]) -> float:
    return float(matching_score([distances], [DEPTH_PX])[0])


def _runs(result: StereoScene) -> dict[str, Any]:
    """MAA of every run, where there are several."""
    if len(result.runs) < 2:
        return {}
    runs = [_errors(pairs) for pairs in runs_at(result, HEADLINE)]
    return {f"stereo/mAA@{degrees}_runs": [maa(errors, degrees) for errors in runs] for degrees in MAA_DEGREES}


def _errors(pairs: Sequence[StereoPair]) -> list[float]:
    return [judged.error_deg for judged in pairs]


def _number(value: np.floating) -> int | float:
    """A mean of counts, as an integer where it is one."""
    return int(value) if float(value).is_integer() else float(value)
