"""The plain loops that the stereo task is timed against say the same; no speed is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.imw import _neighbours, _stages, compare, table
from benchmarks.plain import PlainPair, plain_pair
from common.cache import Cache
from eval.core.estimators import EstimatorSettings
from eval.core.matching import MatcherSettings
from eval.features import load_method
from eval.features.detect import DogSettings
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoSettings, describe_scene, judge_pairs


def test_plain_loops_give_the_same_numbers(corner_scene: Path, tmp_path: Path) -> None:
    scene, cache, matcher = open_scene(corner_scene), Cache(tmp_path), MatcherSettings(threshold=0.85)
    estimator = EstimatorSettings(threshold_px=0.5, max_iters=2000)
    settings = StereoSettings(detector=DogSettings(num=200), matcher=matcher, estimator=estimator)
    features = describe_scene(scene, load_method("rootsift"), settings, cache)
    pairs = scene.pairs("0.1")
    found = judge_pairs(scene, pairs, features, settings, cache)
    plain = [plain_pair(scene, pair, features, settings, matcher) for pair in pairs]
    assert min(len(p.matches) for p in plain) > 10
    assert compare(found, plain) == {"pairs_with_other_matches": 0, "largest_difference_deg": 0.0}
    changed = [PlainPair(plain[0].matches[1:], plain[0].error_deg + 0.5), *plain[1:]]
    assert compare(found, changed)["pairs_with_other_matches"] == 1
    assert np.isclose(compare(found, changed)["largest_difference_deg"], 0.5)
    lost = [replace_error(plain[0]), *plain[1:]]
    assert compare(found, lost)["largest_difference_deg"] == np.inf
    stages = _stages(scene, pairs[:1], features, replace(settings, seed=1), matcher)
    assert set(stages) == {"match", "RANSAC", "scoring"}
    assert stages["match"] > 0
    neighbours = _neighbours(pairs[:2], features, matcher)
    assert set(neighbours) == {"mutual_nn_ms", "match_smnn_ms"}
    assert min(neighbours.values()) > 0


def replace_error(pair: PlainPair) -> PlainPair:
    return PlainPair(pair.matches, np.inf)


def test_the_table_shows_rates_shares_and_differences() -> None:
    found = {
        "scene": "square", "keypoints": 2048.0, "pairs": 64, "cores": 2, "ratio": 4.0, "cpu_ratio": 3.0,
        "ours": {"pairs_s": 8.0, "cpu_s_a_pair": 0.25, "share": {"match": 0.6, "RANSAC": 0.3, "scoring": 0.1}},
        "plain": {"pairs_s": 2.0, "cpu_s_a_pair": 0.75},
        "pairs_with_other_matches": 1, "largest_difference_deg": 0.25, "mutual_nn_ms": 50.0, "match_smnn_ms": 400.0,
    }  # fmt: skip
    lines = table([found]).splitlines()
    assert " ".join(lines[2].split()) == "2048 8.00 2.00 4.00 0.250 0.750 3.00 60 % 30 % 10 %"
    assert "1 pairs with other matches" in lines[3]
    assert "2.5e-01 degrees" in lines[3]
    assert lines[4].endswith("mutual_nn 50.0 ms a pair on one thread, kornia's match_smnn 400.0: 8.0 times")
