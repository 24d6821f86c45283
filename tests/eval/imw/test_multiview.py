from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.cache import Cache
from common.h5files import write_h5
from common.metrics import max_error_deg
from eval.features import Keypoints
from eval.features.extract import Features
from eval.imw import colmap_bag
from eval.imw.build import write_lines, write_pair_lists
from eval.imw.multiview import (
    NO_MODEL,
    OK,
    Bag,
    MultiviewScene,
    MultiviewSettings,
    bag_maa,
    bag_pairs,
    multiview_bags,
    multiview_scene,
    multiview_scores,
    run_multiview,
)
from eval.imw.scene import Scene, all_pairs, open_scene
from kornia_hardnet8.errors import DataError, UsageError

ROOT = Path(__file__).parents[3]
SIZE = (640, 480)
NAMES = list("abcd")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, dict[str, Features], Cache]:
    """A cloud of 300 points before four cameras of the focal length that COLMAP guesses; features are its points."""
    root = tmp_path_factory.mktemp("cloud") / "set_100"
    for folder in ("images", "calibration", "visibility", "new-vis-pairs", "sub_set"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (300, 3))
    focal = 1.2 * SIZE[0]
    K = np.array([[focal, 0, SIZE[0] / 2], [0, focal, SIZE[1] / 2], [0, 0, 1]])
    cache, features = Cache(root.parent / "cache"), {}
    descs = rng.normal(size=(len(points), 16)).astype(np.float32)
    for index, name in enumerate(NAMES):
        angle = 0.25 * (index - 1.5)
        center = np.array([5 * np.sin(angle), 0.4 * index, -5 * np.cos(angle)])
        forward = -center / np.linalg.norm(center)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        R = np.stack([right, np.cross(forward, right), forward])
        x = (points - center) @ R.T @ K.T
        xy = (x[:, :2] / x[:, 2:] + rng.normal(0, 0.2, (len(points), 2))).astype(np.float32)
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.zeros(SIZE[::-1], np.uint8))
        write_h5(root / "calibration" / f"calibration_{name}.h5", {"K": K, "R": R, "T": -R @ center})
        write_lines(root / "visibility" / f"{name}.txt", [str(300 if j < index else -1) for j in range(4)])
        keypoints = Keypoints.from_points(xy, np.ones(len(xy), np.float32))
        cache.put("descriptors", {"image": name}, {"descs": descs})
        key = cache.key("descriptors", {"image": name})
        features[name] = Features(keypoints, torch.from_numpy(descs), key, 0.0)
    write_lines(root / "images.txt", [f"images/{name}.png" for name in NAMES])
    write_lines(root / "sub_set" / "4bag_000.txt", [f"images/{name}.png" for name in "cadb"])
    write_lines(root / "sub_set" / "3bag_000.txt", [f"images/{name}.png" for name in "abd"])
    write_pair_lists(root / "new-vis-pairs", dict.fromkeys(all_pairs(NAMES), 0.5))
    return open_scene(root), features, cache


@pytest.fixture(scope="module")
def found(cloud: tuple[Scene, dict[str, Features], Cache]) -> MultiviewScene:
    return run_multiview(*cloud[:2], MultiviewSettings(), cloud[2])


def test_the_poses_of_the_cloud_are_found(found: MultiviewScene) -> None:
    assert [(bag.name, bag.status, bag.size) for bag in found.bags] == [("3bag_000", OK, 3), ("4bag_000", OK, 4)]
    for bag in found.bags:
        assert sorted(bag.poses) == sorted(bag.images)
        assert np.rad2deg(bag.errors[:, 0]).max() < 0.2
        assert np.rad2deg(bag.errors[:, 1]).max() < 1.5
        assert len(bag.track_lengths) > 280
        assert bag.track_lengths.max() == bag.size
        assert bag.num_matches == 300
        assert bag.reprojection_px < 0.5
    assert found.bags[1].images == list("cadb")
    assert len(found.bags[1].errors) == 6


def test_the_trajectory_fits_by_a_similarity_but_not_by_the_originals_alignment(found: MultiviewScene) -> None:
    bag = found.bags[1]
    assert bag.ate_corrected == pytest.approx(0, abs=0.05)
    assert bag.ate is not None
    assert bag.ate > 0.5  # the model has a scale of its own


def test_the_same_seed_gives_the_same_poses_and_a_finished_bag_is_not_done_again(
    found: MultiviewScene, cloud: tuple[Scene, dict[str, Features], Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, features, cache = cloud
    bag = cache.root / "bags"
    (path, *_) = bag.iterdir()
    path.unlink()
    again = run_multiview(scene, features, MultiviewSettings(), cache)
    for one, two in zip(found.bags, again.bags, strict=True):
        np.testing.assert_array_equal(one.errors, two.errors)
        assert one.ate == two.ate
    monkeypatch.setattr(Cache, "put", lambda *_: pytest.fail("something was computed again"))
    assert run_multiview(scene, features, MultiviewSettings(time_limit_s=99), cache).bags[0].seconds > 0


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import time\ntime.sleep(60)", "stopped after 0.5 s"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crashed: SIGSEGV"),
        ("raise RuntimeError('the mapper has\\na problem')", "failed: a problem"),
    ],
)
def test_a_bag_that_hangs_or_crashes_is_a_failed_bag_and_tried_again(
    program: str,
    status: str,
    cloud: tuple[Scene, dict[str, Features], Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_mapper.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(colmap_bag, "__name__", "broken_mapper")
    scene, features, cache = cloud
    settings = MultiviewSettings(seed=7, time_limit_s=0.5 if "sleep" in program else 60)
    found = run_multiview(scene, features, settings, cache)
    assert [bag.status for bag in found.bags] == [status] * 2
    assert all(np.isinf(bag.errors).all() and bag.ate is None for bag in found.bags)
    scores = multiview_scores([found])
    assert (scores["multiview/mAA@10"].value, scores["multiview/mAA@10"].n) == (0.0, 2)
    assert scores["multiview/registered_ratio"].value == scores["multiview/success_rate"].value == 0.0
    assert scores["multiview/num_points"].n == 0
    assert multiview_scene(found)["failed_bags"] == {status: 2}
    job = {"features": [features[name].key for name in "abd"], "colmap": colmap_bag.settings(7)}
    assert cache.get("bags", job) is None


def test_matches_that_fit_no_model_are_a_failed_bag(
    cloud: tuple[Scene, dict[str, Features], Cache], tmp_path: Path
) -> None:
    scene, features, _ = cloud
    cache, rng = Cache(tmp_path), np.random.default_rng(1)
    scattered = {}
    for name in NAMES:
        xy = rng.uniform(0, 400, (300, 2)).astype(np.float32)
        cache.put("descriptors", {"image": name}, {"descs": features[name].descs.numpy()})
        scattered[name] = features[name]._replace(keypoints=Keypoints.from_points(xy, np.ones(300, np.float32)))
    found = run_multiview(scene, scattered, MultiviewSettings(), cache)
    assert [bag.status for bag in found.bags] == [NO_MODEL] * 2
    assert len(list((tmp_path / "bags").iterdir())) == 2


def test_a_model_of_two_images_is_dropped(cloud: tuple[Scene, dict[str, Features], Cache], tmp_path: Path) -> None:
    scene, features, _ = cloud
    cache, rng = Cache(tmp_path), np.random.default_rng(1)
    for name in NAMES:
        cache.put("descriptors", {"image": name}, {"descs": features[name].descs.numpy()})
    given = dict(features)
    for name in "cd":  # only a and b fit together
        xy = rng.uniform(0, 400, (300, 2)).astype(np.float32)
        given[name] = features[name]._replace(keypoints=Keypoints.from_points(xy, np.ones(300, np.float32)))
    found = run_multiview(scene, given, MultiviewSettings(), cache)
    assert [bag.status for bag in found.bags] == [NO_MODEL] * 2
    assert all(np.isinf(bag.errors).all() and not bag.poses for bag in found.bags)


def test_the_process_of_a_bag_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = "import sys, time, eval.imw.colmap_bag as c; c.np.load = lambda *_, **__: time.sleep(60)"
    code += "; c.main(*map(c.Path, sys.argv[1:]))"
    line = [sys.executable, "-c", code, folder / "job.npz", folder / "result.npz", folder]
    done = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == 1
    assert not folder.exists()
    line = [sys.executable, "-m", "eval.imw.colmap_bag", tmp_path / "none.npz", tmp_path / "result.npz"]
    by_hand = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=30, check=False, capture_output=True)
    assert by_hand.returncode == 1
    assert b"none.npz" in by_hand.stderr
    assert tmp_path.exists()


def test_every_option_is_known_to_this_colmap() -> None:
    import pycolmap

    options = colmap_bag.settings(3)
    pipeline, verification = pycolmap.IncrementalPipelineOptions(), pycolmap.TwoViewGeometryOptions()
    pipeline.mergedict(options["mapper"])
    verification.mergedict(options["verification"])
    assert pipeline.todict()["mapper"]["init_min_num_inliers"] == 100
    assert (pipeline.min_model_size, pipeline.structure_less_registration_fallback) == (3, False)
    assert pipeline.random_seed == pipeline.mapper.random_seed == pipeline.triangulation.random_seed == 3
    assert (verification.ransac.max_error, verification.ransac.random_seed) == (4.0, 3)


def test_pairs_of_a_bag_need_more_common_points_than_the_threshold_on_either_side(
    cloud: tuple[Scene, dict[str, Features], Cache],
) -> None:
    scene = cloud[0]
    counts = np.full((4, 4), -1.0)
    counts[0, 1] = counts[3, 0] = 101  # a-b above the diagonal, d-a below
    counts[2, 0] = 100
    other = Scene(scene.name, scene.root, scene.images)
    object.__setattr__(other, "visibility", counts)
    assert other.visibility_threshold == 100
    assert bag_pairs(other, list("cadb")) == [("d", "a"), ("b", "a")]
    assert bag_pairs(other, list("bc")) == []


def _bag(name: str, errors_deg: list[float], registered: int, points: int, status: str = OK) -> Bag:
    images = NAMES[: next(n for n in (2, 3, 4) if n * (n - 1) / 2 == len(errors_deg))]
    errors = np.deg2rad(np.column_stack([errors_deg, np.zeros(len(errors_deg))]))
    poses = {image: (np.eye(3), np.zeros(3)) for image in images[:registered]}
    ate = None if registered < 3 else 0.5
    return Bag(name, images, status, errors, poses, np.full(points, 3, np.int32), 0.4, ate, ate, 10.0, 1.5)


def test_scores_weigh_bag_sizes_and_scenes_alike(cloud: tuple[Scene, dict[str, Features], Cache]) -> None:
    inf = np.inf
    bags = [
        _bag("2bag_000", [0.5], 2, 10),
        _bag("2bag_001", [inf], 0, 0, "no model"),
        _bag("3bag_000", [0.5, 4.5, inf], 2, 20),
    ]
    assert [bag_maa(bag) for bag in bags] == pytest.approx([1.0, 0.0, (10 + 6) / 30])
    found = MultiviewScene(cloud[0], bags, {"match": 1.0, "colmap": 2.0})
    scores = multiview_scores([found])
    assert scores["multiview/mAA@10"].value == pytest.approx((0.5 + 16 / 30) / 2)
    assert scores["multiview/mAA@5"].value == pytest.approx((0.5 + (5 + 1) / 15) / 2)
    assert scores["multiview/2bag/mAA@10"].value == pytest.approx(0.5)
    assert scores["multiview/registered_ratio"].value == pytest.approx((0.5 + 2 / 3) / 2)
    assert scores["multiview/num_points"].value == 15  # of the bags that were reconstructed, size by size
    assert scores["multiview/track_length"].value == 3
    assert scores["multiview/success_rate"].value == pytest.approx(0.75)
    assert scores["multiview/ATE"].value is None
    assert scores["multiview/mAA@10"].n == 3
    other = MultiviewScene(cloud[0], [_bag("2bag_000", [20.0], 2, 5)], {"match": 0.0, "colmap": 0.0})
    both = multiview_scores([found, other])["multiview/mAA@10"]
    assert both.value == pytest.approx((0.5 + 16 / 30) / 4)
    low, high = both.ci95 or (1, 0)
    assert low <= both.value <= high
    report = multiview_scene(found)
    assert report["failed_bags"] == {"no model": 1}
    assert report["multiview/by_bag_size"]["2"]["official"]["avg_num_cameras"] == 2.0
    assert report["multiview/by_bag_size"]["2"]["official"]["num_in_bag"] == 2.0
    rows = multiview_bags(found)
    assert [row["pair"] for row in rows] == ["2bag_000", "2bag_001", "3bag_000"]
    assert rows[2]["mAA@10"] == pytest.approx(16 / 30)
    assert max_error_deg(bags[2].errors).tolist() == pytest.approx([0.5, 4.5, inf])
    assert len(rows[2]["errors_deg"]) == len(list(combinations(range(3), 2)))


def test_a_scene_without_its_parts_is_refused(cloud: tuple[Scene, dict[str, Features], Cache], tmp_path: Path) -> None:
    scene = Scene("x", tmp_path, cloud[0].images)
    with pytest.raises(DataError, match=r"scene x has no bags \(sub_set"):
        run_multiview(scene, cloud[1], MultiviewSettings(), Cache(tmp_path))
    with pytest.raises(UsageError, match="--bag-timeout"):
        MultiviewSettings(time_limit_s=0)
