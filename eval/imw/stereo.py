"""The stereo task: relative poses of image pairs from matches of local features."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.cache import Cache
from eval.estimators import EstimatorSettings
from eval.features import Keypoints, Method
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.geometry import relative_pose
from eval.images import read_bgr
from eval.imw.scene import Camera, Pair, Scene, pair_key
from eval.matching import MatcherSettings, official_match
from eval.poses import score_pair
from kornia_hardnet8._shell import progress
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

# Co-visibility of the pairs that the headline numbers are about.
HEADLINE = "0.1"
# Pairs in one cached file: what an interrupted run loses at most.
_BLOCK = 32


@dataclass(frozen=True)
class StereoSettings:
    """Everything that the stereo task depends on beside scene and descriptor.

    The estimator's defaults are those of the published baselines (spec of the benchmark, 7.5).
    """

    detector: DogSettings = field(default_factory=DogSettings)
    mr_size: float = DEFAULT_MR_SIZE
    matcher: MatcherSettings = field(default_factory=MatcherSettings)
    estimator: EstimatorSettings = field(
        default_factory=lambda: EstimatorSettings(threshold_px=0.5, confidence=0.999999, max_iters=100_000)
    )
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            "detector": self.detector.to_dict(),
            "mr_size": self.mr_size,
            "matcher": self.matcher.to_dict(),
            "estimator": self.estimator.to_dict(),
            "seed": self.seed,
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
    matches: NDArray[np.int64]
    """(M, 2) keypoint indices after the filter."""
    inliers: NDArray[np.bool_]
    """(M,) inliers of the model."""
    reason: str
    """Why there is no pose; empty on success."""


@dataclass(frozen=True)
class StereoScene:
    """The stereo task of one descriptor on one scene."""

    scene: Scene
    keypoints: dict[str, Keypoints]
    pairs: list[StereoPair]
    seconds: dict[str, float]


def run_stereo(scene: Scene, descriptor: Method, settings: StereoSettings, cache: Cache) -> StereoScene:
    """Match every pair of a scene's list and judge the poses; what is in the cache is not done again.

    The pairs are those of the list of the lowest threshold that is there (0.0: all of them).
    """
    if not scene.thresholds:
        raise DataError(f"scene {scene.name} has no list of pairs: {scene.root / 'new-vis-pairs'} holds none")
    cameras = scene.cameras
    features = {
        name: extract(read_bgr(scene.images[name]), descriptor, settings.detector, cache, settings.mr_size)
        for name in progress(scene.images, what=f"{scene.name} {descriptor.name}: describe", unit="image")
    }
    pairs = scene.pairs(scene.thresholds[0])
    judged: list[StereoPair] = []
    seconds = {"describe": sum(f.seconds for f in features.values()), "match": 0.0, "geometry": 0.0}
    blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
    for block in progress(blocks, what=f"{scene.name} {descriptor.name}: match", unit=f"block of {_BLOCK}"):
        configuration = _match_configuration(block, features, settings)
        matched = cache.compute("matches", configuration, partial(_match, block, features, settings.matcher))
        geometry = {
            "matches": cache.key("matches", configuration),
            "estimator": settings.estimator.to_dict(),
            "seed": settings.seed,
            "cameras": _camera_hash(block, cameras),
        }
        matches = list(_unpack(matched["matches"], matched["counts"]))
        scored = cache.compute("geometry", geometry, partial(_geometry, block, matches, features, cameras, settings))
        inliers = _unpack(scored["inliers"], matched["counts"])
        judged += [
            StereoPair(pair, float(error), float(q), float(t), found, good, reason.decode())
            for pair, error, (q, t), found, good, reason in zip(
                block, scored["error_deg"], scored["errors"], matches, inliers, scored["reasons"].tolist(), strict=True
            )
        ]
        seconds["match"] += float(matched["seconds"])
        seconds["geometry"] += float(scored["seconds"])
    return StereoScene(scene, {name: f.keypoints for name, f in features.items()}, judged, seconds)


def _match_configuration(block: Sequence[Pair], features: Mapping[str, Features], settings: StereoSettings) -> Any:
    return {
        "features": [[features[name].key for name in pair] for pair in block],
        "matcher": settings.matcher.to_dict(),
    }


def _match(block: Sequence[Pair], features: Mapping[str, Features], matcher: MatcherSettings) -> dict[str, Any]:
    """Matches of a block of pairs, one below the other, with their counts."""
    start = time.perf_counter()
    found = []
    for pair in block:
        one, two = features[pair[0]], features[pair[1]]
        kpts0, kpts1 = (torch.from_numpy(f.keypoints.xy) for f in (one, two))
        found.append(_as_int32(official_match(one.descs, two.descs, kpts0, kpts1, matcher)))
    return {
        "matches": np.concatenate(found) if found else np.zeros((0, 2), np.int32),
        "counts": np.array([len(m) for m in found], np.int64),
        "seconds": np.array(time.perf_counter() - start),
    }


def _geometry(
    block: Sequence[Pair],
    matches: Sequence[NDArray[Any]],
    features: Mapping[str, Features],
    cameras: Mapping[str, Camera],
    settings: StereoSettings,
) -> dict[str, Any]:
    """Pose errors and inliers of a block of pairs."""
    start = time.perf_counter()
    scores = []
    for (first, second), found in zip(block, matches, strict=True):
        one, two = cameras[first], cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        kpts0, kpts1 = features[first].keypoints.xy, features[second].keypoints.xy
        scores.append(score_pair(kpts0, kpts1, found, one.K, two.K, dR, dt, settings.estimator, settings.seed))
    return {
        "error_deg": np.array([s.error_deg for s in scores]),
        "errors": np.array([(s.err_q, s.err_t) for s in scores]),
        "inliers": np.concatenate([s.inliers for s in scores]),
        "reasons": np.array([s.reason.encode() for s in scores], dtype="S"),
        "seconds": np.array(time.perf_counter() - start),
    }


def _camera_hash(block: Sequence[Pair], cameras: Mapping[str, Camera]) -> str:
    digest = hashlib.sha256()
    for pair in block:
        digest.update(pair_key(pair).encode())
        for camera in (cameras[name] for name in pair):
            digest.update(np.concatenate([camera.K.ravel(), camera.R.ravel(), camera.t]).tobytes())
    return digest.hexdigest()


def _as_int32(matches: Tensor) -> NDArray[np.int32]:
    return matches.cpu().numpy().astype(np.int32).reshape(-1, 2)


def _unpack(rows: NDArray[Any], counts: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Split rows that lie one block below the other."""
    yield from np.split(rows, np.cumsum(counts)[:-1])
