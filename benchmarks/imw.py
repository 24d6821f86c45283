"""``eval bench imw``: pairs a second that the stereo task judges, where the time goes, and the same by plain ways."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kornia.feature as KF
import numpy as np
import torch

from benchmarks.plain import PlainPair, plain_pair
from common.cache import Cache
from common.geometry import relative_pose
from common.jobs import open_executor
from common.machine import available_cores
from common.shell import positive_number
from eval.core.estimators import estimate_fundamental
from eval.core.matching import MatcherSettings, mutual_nn, official_match
from eval.core.pairs import Pair
from eval.core.poses import score_pair
from eval.core.results import format_table
from eval.features import load_method
from eval.features.detect import DogSettings
from eval.features.extract import Features
from eval.imw.demo import cached_scene
from eval.imw.scene import HEADLINE, Scene, find_scenes
from eval.imw.stereo import StereoPair, StereoSettings, describe_scene, judge_pairs
from kornia_hardnet8.errors import UsageError

_NEIGHBOUR_PAIRS = 8  # whose neighbours are sought in both ways


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this bench."""
    parser.add_argument("--keypoints", type=positive_number, nargs="+", default=[2048, 8000], help="of an image")
    parser.add_argument("--pairs", type=positive_number, default=64, help="of the built-in scene")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the stereo task both ways and print a table; returns what was measured."""
    if min(args.keypoints) < 8:
        raise UsageError("--keypoints must be at least 8")
    results = [measure(count, args.pairs) for count in args.keypoints]
    print(table(results))
    return {"imw": results}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Rates, processor seconds and shares by number of keypoints; what differs; the nearest neighbours alone."""
    rows = []
    for result in results:
        ours, plain = result["ours"], result["plain"]
        shares = [f"{100 * share:.0f} %" for share in ours["share"].values()]
        rates = [f"{ours['pairs_s']:.2f}", f"{plain['pairs_s']:.2f}", f"{result['ratio']:.2f}"]
        seconds = [f"{ours['cpu_s_a_pair']:.3f}", f"{plain['cpu_s_a_pair']:.3f}", f"{result['cpu_ratio']:.2f}"]
        rows.append([f"{result['keypoints']:.0f}", *rates, *seconds, *shares])
    head = ("keypoints", "pairs/s", "plain", "ratio", "CPU s/pair", "plain", "ratio", *results[0]["ours"]["share"])
    first = results[0]
    lines = [f"stereo, {first['scene']}, {first['pairs']} pairs, {first['cores']} cores", format_table(head, rows)]
    lines += [
        f"{result['keypoints']:.0f} keypoints: {result['pairs_with_other_matches']} pairs with other matches than "
        f"the plain loop, largest difference of a pose error {result['largest_difference_deg']:.1e} degrees"
        for result in results
    ]
    for result in results:
        ours, theirs = result["mutual_nn_ms"], result["match_smnn_ms"]
        lines.append(
            f"{result['keypoints']:.0f} keypoints: mutual_nn {ours:.1f} ms a pair on one thread, kornia's match_smnn "
            f"{theirs:.1f}: {theirs / ours:.1f} times"
        )
    return "\n".join(lines)


def measure(num_keypoints: int, num_pairs: int, seed: int = 0) -> dict[str, Any]:
    """Time the stereo task on pairs of the built-in scene, with RootSIFT, both ways.

    Ours runs as ``eval imw`` runs it: jobs on all cores with their caches, started before. The plain loop does one pair
    after the other, OpenCV's matcher with all cores.

    Returns:
        ``ours`` and ``plain``: pairs a second and processor seconds a pair, ours with the share of each stage;
        ``ratio`` of the pairs a second; how many pairs have other matches, and the largest difference of pose errors;
        ``mutual_nn_ms`` and ``match_smnn_ms``: of the nearest neighbours alone.
    """
    scene = find_scenes(cached_scene())[0]
    matcher = MatcherSettings()
    settings = StereoSettings(detector=DogSettings(num=num_keypoints), matcher=matcher, seed=seed)
    listed = scene.pairs(HEADLINE)
    rows = np.linspace(0, len(listed) - 1, min(num_pairs, len(listed))).round().astype(int)
    pairs = [listed[row] for row in rows.tolist()]
    with tempfile.TemporaryDirectory() as folder, open_executor() as executor:
        cache = Cache(Path(folder))
        features = describe_scene(scene, load_method("rootsift"), settings, cache)
        if executor is not None:  # start the workers, and let them import what they need
            list(executor.map(_warm, range(2 * available_cores())))
        start = time.perf_counter()
        judged = judge_pairs(scene, pairs, features, settings, cache, executor)
        ours_s = time.perf_counter() - start
    clock, processor = time.perf_counter(), time.process_time()
    plain = [plain_pair(scene, pair, features, settings, matcher) for pair in pairs]
    plain_s, plain_cpu_s = time.perf_counter() - clock, time.process_time() - processor
    with _one_thread():
        stages = _stages(scene, pairs, features, settings, matcher)
        neighbours = _neighbours(pairs[:_NEIGHBOUR_PAIRS], features, matcher)
    cpu_s = sum(stages.values())
    return {
        "scene": scene.name,
        "keypoints": float(np.mean([len(f.keypoints) for f in features.values()])),
        "pairs": len(pairs),
        "cores": available_cores(),
        "ours": {
            "pairs_s": len(pairs) / ours_s,
            "cpu_s_a_pair": cpu_s / len(pairs),
            "share": {name: seconds / cpu_s for name, seconds in stages.items()},
        },
        "plain": {"pairs_s": len(pairs) / plain_s, "cpu_s_a_pair": plain_cpu_s / len(pairs)},
        "ratio": plain_s / ours_s,
        "cpu_ratio": plain_cpu_s / cpu_s,
        **compare(judged, plain),
        **neighbours,
    }


def compare(judged: Sequence[StereoPair], plain: Sequence[PlainPair]) -> dict[str, Any]:
    """Pairs with other matches, and the largest difference of the pose errors that both have, degrees."""
    differing, largest = 0, 0.0
    for ours, theirs in zip(judged, plain, strict=True):
        differing += not np.array_equal(ours.matches, theirs.matches)
        if np.isfinite(ours.error_deg) or np.isfinite(theirs.error_deg):
            largest = max(largest, abs(ours.error_deg - theirs.error_deg))
    return {"pairs_with_other_matches": differing, "largest_difference_deg": largest}


def _warm(_: int) -> None:
    """Let a worker import what it needs, long enough for the others to get their turn."""
    import pydegensac  # noqa: F401

    torch.ones(8, 8) @ torch.ones(8, 8)
    time.sleep(0.2)


def _stages(
    scene: Scene,
    pairs: Sequence[Pair],
    features: Mapping[str, Features],
    settings: StereoSettings,
    matcher: MatcherSettings,
) -> dict[str, float]:
    """Processor seconds of each stage in this process."""
    seconds = {"match": 0.0, "RANSAC": 0.0, "scoring": 0.0}
    for pair in pairs:
        one, two = (features[name] for name in pair)
        kpts0, kpts1 = one.keypoints.xy, two.keypoints.xy
        marks = [time.process_time()]
        matches = official_match(
            one.descs, two.descs, torch.from_numpy(kpts0), torch.from_numpy(kpts1), matcher
        ).numpy()
        marks.append(time.process_time())
        points0, points1 = (k[matches[:, c]].astype(np.float64) for c, k in enumerate((kpts0, kpts1)))
        estimate_fundamental(points0, points1, settings.estimator, settings.seed)
        marks.append(time.process_time())
        camera0, camera1 = (scene.cameras[name] for name in pair)
        dR, dt = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
        score_pair(kpts0, kpts1, matches, camera0.K, camera1.K, dR, dt, settings.estimator, settings.seed)
        marks.append(time.process_time())
        match, ransac, both = np.diff(marks).tolist()
        seconds["match"] += match
        seconds["RANSAC"] += ransac
        seconds["scoring"] += max(0.0, both - ransac)
    return seconds


def _neighbours(pairs: Sequence[Pair], features: Mapping[str, Features], matcher: MatcherSettings) -> dict[str, float]:
    """Milliseconds a pair of the mutual nearest neighbours with the ratio test, by ours and by kornia."""
    ratio = matcher.threshold or 1.0
    ways = {
        "mutual_nn_ms": lambda one, two: mutual_nn(one, two, ratio),
        "match_smnn_ms": lambda one, two: KF.match_smnn(one, two, ratio),
    }
    seconds = dict.fromkeys(ways, 0.0)
    for number, pair in enumerate([pairs[0], *pairs]):
        one, two = (features[name].descs for name in pair)
        for name, way in ways.items():
            start = time.process_time()
            way(one, two)
            seconds[name] += time.process_time() - start if number else 0.0  # the first call warms up
    return {name: 1000.0 * value / len(pairs) for name, value in seconds.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
