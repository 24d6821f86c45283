"""The stereo task judged by depth maps: repeatability of keypoints and reprojection distances of matches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache
from common.geometry import relative_pose
from common.h5files import Arrays
from common.jobs import compute_all
from eval.core.pairs import BLOCK, MatchedPairs, Pair, split_rows
from eval.core.reprojection import matching_distances, score_depth
from eval.features import Keypoints
from eval.imw.scene import Camera, Scene, camera_hash, read_depth

_NO_DEPTH = -1.0


class PairDepth(NamedTuple):
    """What the depth maps of a pair say."""

    repeatability: NDArray[np.float64]
    """(10,) share of visible keypoints that are found again within 1 … 10 px, mean of both directions."""
    repeatability_official: NDArray[np.float64]
    """(10,) the same as the original counts it: projections above or left of the image, or behind it, are visible."""
    distances: NDArray[np.float64]
    """(M,) reprojection distance in the first image of every match, pixels; -1 without depth in both images."""

    def chosen(self, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Distances of the matches that have depth, of those in ``mask`` (M,)."""
        distances = self.distances if mask is None else self.distances[mask]
        return distances[distances != _NO_DEPTH]


class _DepthJob(NamedTuple):
    """What a worker needs for one block."""

    pairs: list[Pair]
    matches: list[NDArray[np.int32]]
    keypoints: dict[str, NDArray[np.floating]]
    cameras: dict[str, Camera]
    depth_maps: dict[str, Path]


def judge_depth(
    scene: Scene,
    matched: MatchedPairs,
    keypoints: Mapping[str, Keypoints],
    cache: Cache,
    executor: Executor | None = None,
    what: str = "depth",
) -> tuple[dict[Pair, PairDepth], float]:
    """Judge all matched pairs whose images both have a depth map; returns what was found and the seconds spent."""
    maps, work, kept = scene.depth_maps, [], []
    for block, found, key in zip(matched.blocks, matched.matches, matched.keys, strict=True):
        rows = [row for row, pair in enumerate(block) if pair[0] in maps and pair[1] in maps]
        if not rows:
            continue
        pairs = [block[row] for row in rows]
        names = sorted({name for pair in pairs for name in pair})
        configuration = {
            "matches": key,
            "rows": rows,
            "depth": {name: scene.depth_hashes[name] for name in names},
            "cameras": camera_hash(pairs, scene.cameras),
        }
        job = _DepthJob(
            pairs,
            [found[row] for row in rows],
            {name: keypoints[name].xy for name in names},
            {name: scene.cameras[name] for name in names},
            {name: maps[name].resolve() for name in names},
        )
        kept.append(job)
        work.append((configuration, job))
    results = compute_all(cache, "depth", work, _judge, executor, what, f"block of {BLOCK}")
    judged: dict[Pair, PairDepth] = {}
    for job, arrays in zip(kept, results, strict=True):
        distances = split_rows(arrays["distances"], np.array([len(m) for m in job.matches]))
        rows_of = zip(arrays["repeatability"], arrays["repeatability_official"], distances, strict=True)
        judged |= {pair: PairDepth(*row) for pair, row in zip(job.pairs, rows_of, strict=True)}
    return judged, sum(float(arrays["seconds"]) for arrays in results)


def _judge(job: _DepthJob) -> Arrays:
    """Repeatability and distances of a block of pairs."""
    start = time.perf_counter()
    maps = {name: read_depth(path) for name, path in job.depth_maps.items()}
    ours, official, distances = [], [], []
    for (first, second), found in zip(job.pairs, job.matches, strict=True):
        one, two = job.cameras[first], job.cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        arguments = job.keypoints[first], job.keypoints[second], maps[first], maps[second], one.K, two.K, dR, dt
        scores = score_depth(*arguments)
        ours.append(scores.repeatability)
        official.append(score_depth(*arguments, compat=True).repeatability)
        has_depth = scores.has_depth0[found[:, 0]] & scores.has_depth1[found[:, 1]]
        every = np.full(len(found), _NO_DEPTH)
        every[has_depth] = matching_distances(found, job.keypoints[first], scores)
        distances.append(every)
    return {
        "repeatability": np.array(ours),
        "repeatability_official": np.array(official),
        "distances": np.concatenate(distances),
        "seconds": np.array(time.perf_counter() - start),
    }
