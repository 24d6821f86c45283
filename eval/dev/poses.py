"""Relative poses: describe, match, estimate, with the ratio threshold chosen on the other half of the pairs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.geometry import epipolar_distances, essential_from_pose, relative_pose
from common.images import read_bgr, reduce_image
from common.metrics import average_precision, maa_per_pair
from eval.core.matching import Matches, mutual_nn
from eval.core.poses import score_pair
from eval.dev.data import DevSettings, PoseScene
from eval.features import Keypoints, Method, WholeFeature
from eval.features.extract import Features, detect, extract
from eval.imw.scene import Camera

Floats = NDArray[np.float64]
# A match is taken as correct when it lies this near to the true epipolar lines of both images.
EPIPOLAR_PX = 2.0


class PreparedScene(NamedTuple):
    """A scene with its images read and its keypoints detected: the same for every descriptor."""

    scene: PoseScene
    images: dict[str, NDArray[np.uint8]]
    cameras: dict[str, Camera]
    keypoints: dict[str, Keypoints]
    keys: dict[str, str]
    """Cache keys of the keypoints."""


class PoseErrors(NamedTuple):
    """What one descriptor gives on one scene, for R ratios, S seeds and P pairs."""

    errors_deg: Floats
    """(R, S, P), infinite without a pose."""
    num_matches: NDArray[np.int64]
    """(R, P)."""
    num_inliers: NDArray[np.int64]
    """(R, S, P)."""
    average_precision: Floats
    """(P,), see :func:`ranking_quality`."""
    seconds: dict[str, float]


def prepare_scene(scene: PoseScene, settings: DevSettings, cache: Cache) -> PreparedScene:
    """Read the images that pairs need and detect their keypoints."""
    prepared = PreparedScene(scene, {}, {}, {}, {})
    for name in sorted({name for pair in scene.pairs for name in pair}):
        image, prepared.cameras[name] = scene.load(name, settings.max_side_px)
        prepared.images[name] = image
        prepared.keypoints[name], prepared.keys[name] = detect(image, settings.detector, cache)
    return prepared


def own_features(path: Path, feature: WholeFeature, settings: DevSettings, cache: Cache) -> Features:
    """What a whole local feature finds in an image file in colour, reduced as the protocol says."""
    image, _ = reduce_image(read_bgr(path), settings.max_side_px)
    return extract(image, feature, settings.detector, cache)


def judge_scene(prepared: PreparedScene, descriptor: Method, settings: DevSettings, cache: Cache) -> PoseErrors:
    """Matches and pose errors of every pair of a scene, from the cache where they are there."""
    pairs = prepared.scene.pairs
    features: dict[str, Features] = {}
    if isinstance(descriptor, WholeFeature):
        features = {n: own_features(prepared.scene.images[n], descriptor, settings, cache) for n in prepared.images}
        prepared = prepared._replace(
            keypoints={name: image.keypoints for name, image in features.items()},
            keys={name: image.key for name, image in features.items()},
        )
        identity = descriptor.identity(settings.detector.num)
    else:
        identity = descriptor.identity(settings.mr_size)
    matching = {
        "keypoints": [[prepared.keys[name] for name in pair] for pair in pairs],
        "max_ratio": max(settings.ratios),
        **identity,
    }
    matches_key, stored = cache.compute(
        "dev-matches", matching, lambda: _match(prepared, descriptor, settings, features)
    )
    ends = np.cumsum(stored["counts"])[:-1]
    matches = [
        Matches(torch.from_numpy(ratios), torch.from_numpy(rows).long())
        for ratios, rows in zip(
            np.split(stored["ratios"], ends), np.split(stored["matches"], ends, axis=0), strict=True
        )
    ]
    geometry = {
        "matches": matches_key,
        "ratios": list(settings.ratios),
        "estimator": settings.estimator.to_dict(),
        "seeds": [settings.seed, settings.ransac_seeds],
        "cameras": _camera_hash(prepared.cameras),
    }
    _, scored = cache.compute("dev-poses", geometry, lambda: _estimate(prepared, matches, settings))
    counts = np.array([[int((m.ratios <= ratio).sum()) for m in matches] for ratio in settings.ratios], np.int64)
    seconds = {
        "describe": float(stored["describe_s"]),
        "match": float(stored["match_s"]),
        "geometry": float(scored["seconds"]),
    }
    quality = [ranking_quality(prepared, pair, matched) for pair, matched in zip(pairs, matches, strict=True)]
    return PoseErrors(scored["errors_deg"], counts, scored["num_inliers"], np.array(quality), seconds)


def ranking_quality(prepared: PreparedScene, pair: tuple[str, str], matches: Matches) -> float:
    """Average precision of a pair's matches by ratio, judged by the true epipolar lines instead of by an estimate.

    Recall is counted over the keypoints of the image that has fewer, so that many correct matches count and not
    their share alone; chance has no part in it but for what lies on a line by accident.
    """
    one, two = (prepared.cameras[name] for name in pair)
    points0, points1 = (prepared.keypoints[name].xy for name in pair)
    dR, dt = relative_pose(one.R, one.t, two.R, two.t)
    F = np.linalg.inv(two.K).T @ essential_from_pose(dR, dt) @ np.linalg.inv(one.K)
    rows = matches.matches.numpy()
    correct = epipolar_distances(points0[rows[:, 0]], points1[rows[:, 1]], F).max(axis=0) <= EPIPOLAR_PX
    possible = min(len(points0), len(points1))
    return average_precision(-matches.ratios.numpy(), correct, possible)


def choose_ratios(errors_deg: Floats) -> tuple[int, int]:
    """Index of the ratio that is best on the odd pairs (it judges the even ones), and of that best on the even pairs.

    Args:
        errors_deg: (R, S, P) over all scenes.
    """
    shares = np.stack([np.mean([maa_per_pair(seed) for seed in ratio], axis=0) for ratio in errors_deg])  # (R, P)
    halves = [shares[:, start::2] for start in (0, 1)]
    best = [int(half.mean(axis=1).argmax()) if half.size else 0 for half in halves]
    return best[1], best[0]


def held_out(values: NDArray[Any], chosen: tuple[int, int]) -> NDArray[Any]:
    """Of values (R, …, P) those of the ratio chosen for each pair by the other half, (…, P)."""
    result = values[chosen[0]].copy()
    result[..., 1::2] = values[chosen[1]][..., 1::2]
    return result


def _match(
    prepared: PreparedScene, descriptor: Method, settings: DevSettings, features: Mapping[str, Features]
) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    if isinstance(descriptor, WholeFeature):
        descs, describe_s = {name: f.descs for name, f in features.items()}, sum(f.seconds for f in features.values())
    else:
        descs = {
            name: descriptor.describe_image(image, prepared.keypoints[name], settings.mr_size)
            for name, image in prepared.images.items()
        }
        describe_s = time.perf_counter() - start
    described = time.perf_counter()
    matches = [mutual_nn(descs[a], descs[b], max(settings.ratios)) for a, b in prepared.scene.pairs]
    return {
        "matches": torch.cat([m.matches for m in matches]).cpu().numpy().astype(np.int32),
        "ratios": torch.cat([m.ratios for m in matches]).cpu().numpy(),
        "counts": np.array([len(m.ratios) for m in matches], np.int64),
        "describe_s": np.array(describe_s),
        "match_s": np.array(time.perf_counter() - described),
    }


def _estimate(prepared: PreparedScene, matches: Sequence[Matches], settings: DevSettings) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    shape = (len(settings.ratios), settings.ransac_seeds, len(matches))
    errors, inliers = np.full(shape, np.inf), np.zeros(shape, np.int64)
    for k, ((first, second), matched) in enumerate(zip(prepared.scene.pairs, matches, strict=True)):
        one, two = prepared.cameras[first], prepared.cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        points = prepared.keypoints[first].xy, prepared.keypoints[second].xy
        for r, ratio in enumerate(settings.ratios):
            rows = matched.below(ratio).matches
            for s in range(settings.ransac_seeds):
                score = score_pair(*points, rows, one.K, two.K, dR, dt, settings.estimator, settings.seed + s)
                errors[r, s, k], inliers[r, s, k] = score.error_deg, score.inliers.sum()
    return {"errors_deg": errors, "num_inliers": inliers, "seconds": np.array(time.perf_counter() - start)}


def _camera_hash(cameras: Mapping[str, Camera]) -> str:
    digest = hashlib.sha256()
    for name, camera in sorted(cameras.items()):
        digest.update(name.encode() + np.concatenate([camera.K.ravel(), camera.R.ravel(), camera.t]).tobytes())
    return digest.hexdigest()
