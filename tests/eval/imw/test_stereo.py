from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.cache import Cache
from common.geometry import relative_pose
from common.metrics import maa, maa_per_pair
from eval.core.estimators import EstimatorSettings
from eval.core.matching import MatcherSettings, official_match
from eval.core.poses import score_pair
from eval.core.results import mean_score
from eval.features import load
from eval.features.detect import DogSettings
from eval.features.extract import extract
from eval.imw.scene import open_scene
from eval.imw.stereo import (
    StereoPair,
    StereoScene,
    StereoSettings,
    run_stereo,
    stereo_pairs,
    stereo_scene,
    stereo_scores,
)

SETTINGS = StereoSettings(
    detector=DogSettings(num=300), estimator=EstimatorSettings(threshold_px=0.5, confidence=0.9999, max_iters=5000)
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def found(corner_scene: Path, cache: Cache) -> StereoScene:
    return run_stereo(open_scene(corner_scene), load("rootsift"), SETTINGS, cache)


def test_the_poses_of_the_corner_are_found(found: StereoScene) -> None:
    assert len(found.pairs) == 6
    assert np.median([p.error_deg for p in found.pairs]) < 1.5
    assert all(p.inliers.sum() > 40 for p in found.pairs)


def test_a_pair_is_the_stages_done_by_hand(found: StereoScene, tmp_path: Path) -> None:
    scene, (first, second) = found.scene, found.pairs[3].pair
    one, two = (
        extract(scene.gray(name), load("rootsift"), SETTINGS.detector, Cache(tmp_path)) for name in (first, second)
    )
    matches = official_match(
        one.descs, two.descs, torch.from_numpy(one.keypoints.xy), torch.from_numpy(two.keypoints.xy), MatcherSettings()
    )
    np.testing.assert_array_equal(found.pairs[3].matches, matches)
    cameras = [scene.cameras[name] for name in (first, second)]
    dR, dt = relative_pose(cameras[0].R, cameras[0].t, cameras[1].R, cameras[1].t)
    score = score_pair(
        one.keypoints.xy, two.keypoints.xy, matches, cameras[0].K, cameras[1].K, dR, dt, SETTINGS.estimator, 0
    )
    assert found.pairs[3].error_deg == score.error_deg
    np.testing.assert_array_equal(found.pairs[3].inliers, score.inliers)


def test_a_second_run_reads_the_cache_and_is_the_same(
    found: StereoScene, corner_scene: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(cache.root.rglob("*.h5"))
    assert {file.parent.name for file in files} == {"keypoints", "descriptors", "matches", "geometry"}
    monkeypatch.setattr(Cache, "put", lambda *_: pytest.fail("something was computed again"))
    again = run_stereo(open_scene(corner_scene), load("rootsift"), SETTINGS, cache)
    assert [p.error_deg for p in again.pairs] == [p.error_deg for p in found.pairs]
    assert again.seconds == found.seconds
    assert sorted(cache.root.rglob("*.h5")) == files


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"seed": 1}, {"geometry"}),
        ({"estimator": EstimatorSettings(threshold_px=1.0, max_iters=5000)}, {"geometry"}),
        ({"matcher": MatcherSettings(threshold=0.8)}, {"matches", "geometry"}),
        ({"mr_size": 6.0}, set()),  # SIFT has a support of its own
        ({"detector": DogSettings(num=200)}, {"keypoints", "descriptors", "matches", "geometry"}),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(
    change: dict, stages: set[str], found: StereoScene, corner_scene: Path, cache: Cache
) -> None:
    before = set(cache.root.rglob("*.h5"))
    settings = StereoSettings(
        **{"detector": SETTINGS.detector, "estimator": SETTINGS.estimator, "matcher": SETTINGS.matcher, **change}
    )
    run_stereo(open_scene(corner_scene), load("rootsift"), settings, cache)
    assert {file.parent.name for file in set(cache.root.rglob("*.h5")) - before} == stages


def test_pairs_without_pose_count_as_failures(corner_scene: Path, tmp_path: Path) -> None:
    """With eight keypoints no pair has enough matches."""
    settings = StereoSettings(detector=DogSettings(num=8))
    scene = run_stereo(open_scene(corner_scene), load("rootsift"), settings, Cache(tmp_path))
    scores = stereo_scores([scene])
    assert (scores["stereo/mAA@10"].value, scores["stereo/mAA@10"].n) == (0.0, 6)
    assert stereo_scene(scene)["failed_pairs"] == 6
    (first, *_) = stereo_pairs(scene)
    assert first["error_deg"] == np.inf
    assert "8 needed" in first["failure"]


def test_scores_are_those_of_the_pairs_of_the_list(corner_scene: Path) -> None:
    scene = open_scene(corner_scene)
    pairs = scene.pairs("0.1")
    errors = [0.5, 3.2, 7.0, np.inf, 12.0, 4.0]
    judged = [
        StereoPair(p, e, 0.1, 0.2, np.zeros((n, 2), np.int64), np.arange(n) < n // 2, "")
        for n, (p, e) in enumerate(zip(pairs, errors, strict=True), 10)
    ]
    found = StereoScene(scene, {}, judged, {})
    scores = stereo_scores([found])
    assert scores["stereo/mAA@10"] == mean_score(maa_per_pair(errors, 10))
    assert scores["stereo/mAA@10"].value == pytest.approx(maa(errors, 10)) == pytest.approx((10 + 7 + 3 + 6) / 60)
    assert scores["stereo/mAA@5"].value == pytest.approx((5 + 2 + 0 + 1) / 30)
    assert scores["stereo/num_matches"].value == 12.5
    assert scores["stereo/num_keypoints"].n == 0
    report = stereo_scene(found)
    listed = {t: row["n"] for t, row in report["stereo/by_covisibility"].items()}
    assert listed == {t: len(scene.pairs(t)) for t in scene.thresholds}
    assert report["stereo/by_covisibility"]["0.9"]["mAA@10"] is None
    np.testing.assert_allclose(report["stereo/accuracy_1_to_10_deg"], np.array([1, 1, 1, 2, 3, 3, 3, 4, 4, 4]) / 6)
    rows = stereo_pairs(found)
    assert [row["pair"] for row in rows] == [f"{a}-{b}" for a, b in pairs]
    assert rows[0]["rotation_deg"] == pytest.approx(np.degrees(0.1))
    assert {row["covisibility"] for row in rows} == {0.2}


def test_scenes_have_the_same_weight(corner_scene: Path) -> None:
    scene = open_scene(corner_scene)
    pairs = scene.pairs("0.1")

    def judged(errors: list[float]) -> StereoScene:
        empty = np.zeros((0, 2), np.int64), np.zeros(0, bool)
        rows = [StereoPair(p, e, 0, 0, *empty, "") for p, e in zip(pairs, errors, strict=False)]
        return StereoScene(scene, {}, rows, {})

    scores = stereo_scores([judged([0.1]), judged([20.0] * 5)])
    assert (scores["stereo/mAA@10"].value, scores["stereo/mAA@10"].n) == (0.5, 6)
