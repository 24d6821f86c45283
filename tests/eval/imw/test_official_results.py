"""The official results file: the cases ``results_`` of the vectors, and a whole scene."""

from __future__ import annotations

import json
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common.cache import Cache
from common.h5files import write_h5
from eval.core.estimators import EstimatorSettings
from eval.core.matching import MatcherSettings
from eval.core.results import strict
from eval.features import Keypoints
from eval.features.extract import Features
from eval.imw import stereo as stereo_task
from eval.imw.build import write_lines
from eval.imw.multiview import Bag, MultiviewScene
from eval.imw.official_results import (
    average_bags,
    average_multiview,
    average_stereo,
    descriptor_properties,
    num_matches,
    pack,
    pack_multiview,
    pack_stereo,
)
from eval.imw.scene import open_scene, without_deprecated
from eval.imw.stereo import StereoScene, StereoSettings
from kornia_hardnet8.errors import DataError
from tests.eval.imw_vector_cases import CASES

Case = dict[str, Any]


def named(prefix: str) -> list[str]:
    return [name for name in CASES if name.startswith(prefix)]


def close(got: Any, expected: Any, tolerance: float) -> None:
    """Nested dictionaries of numbers and lists agree; the same keys on every level."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            close(got[key], expected[key], tolerance)
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", named("results_avg_stereo"))
def test_averages_over_runs_and_scenes(name: str) -> None:
    case = CASES[name]
    close(average_stereo(case["inputs"]["scenes"], compat=True), case["expected"], case["tolerance"])


def test_a_metric_that_a_scene_does_not_have_leaves_the_scene_out() -> None:
    scenes = CASES["results_avg_stereo_metric_missing_in_scene"]["inputs"]["scenes"]
    assert average_stereo(scenes)["allseq"]["extra"] == {"mean": 1.0, "std_scenes": 0.0, "std_runs": 0.0}


@pytest.mark.parametrize("name", named("results_avg_bags"))
def test_average_over_bag_sizes(name: str) -> None:
    case = CASES[name]
    if "raises" in case["expected"]:
        with pytest.raises(DataError, match="new_metric is no metric"):
            average_bags(case["inputs"]["per_bag_size"])
    else:
        close(average_bags(case["inputs"]["per_bag_size"]), case["expected"], case["tolerance"])


def test_averages_of_the_multiview_task() -> None:
    (name,) = named("results_avg_multiview")
    case = CASES[name]
    close(average_multiview(case["inputs"]["scenes"]), case["expected"], case["tolerance"])


def test_numbers_of_matches() -> None:
    case = CASES["results_num_matches"]
    counts = {
        stage: {key: shape[1] if len(shape) > 1 else 0 for key, shape in shapes.items()}
        for stage, shapes in case["inputs"]["array_shapes"].items()
    }
    close(num_matches(case["inputs"]["pairs_per_threshold"], counts), case["expected"], case["tolerance"])


def test_properties_of_a_descriptor() -> None:
    case = CASES["results_descriptor_properties"]
    descs = np.zeros(case["inputs"]["shape"], case["inputs"]["dtype"])
    assert list(descriptor_properties(descs)) == case["expected"]
    assert descriptor_properties(descs[:0]) == ("none", 0, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StereoScene:
    """The scene of ``results_e2e_stereo`` as files, through the stereo task."""
    inputs = CASES["results_e2e_stereo"]["inputs"]
    scene, config = inputs["scene"], inputs["config"]["config_phototourism_stereo"]
    root = tmp_path_factory.mktemp("e2e") / "phototourism" / "small" / "set_100"
    for folder in ("images", "calibration", "depth_maps", "visibility", "new-vis-pairs"):
        (root / folder).mkdir(parents=True)
    width, height = scene["image_size_wh"]
    cache, features = Cache(root.parent / "cache"), {}
    for row, name in zip(scene["visibility"], scene["images_txt"], strict=True):
        image = scene["images"][name]
        depth = np.zeros((height, width), np.float32)
        for y, x, value in image["depth_sparse_y_x_value"]:
            depth[y, x] = value
        cv2.imwrite(str(root / "images" / f"{name}.jpg"), np.zeros((height, width), np.uint8))
        camera = {"K": np.array(scene["K"]), "R": np.array(image["R"]), "T": np.array(image["T"])}
        write_h5(root / "calibration" / f"calibration_{name}.h5", camera)
        write_h5(root / "depth_maps" / f"{name}.h5", {"depth": depth})
        write_lines(root / "visibility" / f"{name}.txt", [str(count) for count in row])
        descs = np.array(image["descriptors"], np.float32)
        cache.put("descriptors", {"image": name}, {"descs": descs})
        xy = np.array(image["keypoints"])
        keypoints = Keypoints.from_points(xy, np.ones(len(xy)))
        object.__setattr__(keypoints, "xy", xy)  # in double precision, as the vectors are
        key = cache.key("descriptors", {"image": name})
        features[name] = Features(keypoints, torch.from_numpy(descs), key, 0.0)
    write_lines(root / "images.txt", [f"images/{name}.jpg" for name in scene["images_txt"]])
    (root / "scene.json").write_text(json.dumps({"visibility_threshold": inputs["vis_th"]}))
    for threshold, keys in scene["keys_per_threshold"].items():
        np.save(root / "new-vis-pairs" / f"keys-th-{threshold}.npy", np.array(keys, dtype=np.str_))
    settings = StereoSettings(
        matcher=MatcherSettings.from_official(config["matcher"], compat=True),
        estimator=EstimatorSettings.from_official(config["geom"]),
    )
    opened = open_scene(root)
    pairs = opened.pairs()
    matched = stereo_task.match_pairs(pairs, features, settings.matcher, cache)
    judged, _ = stereo_task._judge(opened, matched, features, settings, 0, cache, None, "")
    keypoints = {name: f.keypoints for name, f in features.items()}
    depth, _ = stereo_task.judge_depth(opened, matched, keypoints, cache)
    return StereoScene(opened, keypoints, judged, {"match": 3.0, "geometry": 6.0}, [], depth)


def test_a_whole_scene_is_packed_as_by_the_original(whole: StereoScene) -> None:
    case = CASES["results_e2e_stereo"]
    expected = case["expected"]["packed_run"]
    packed = pack_stereo(whole, 0, 33.0)
    assert {name for name in packed if "_th_" not in name} - set(expected) == {"match_cost", "filter_cost", "geom_cost"}
    for name, value in expected.items():
        # the original keeps the histogram of the previous list where a list is empty
        np.testing.assert_allclose(packed[name], value, rtol=0, atol=case["tolerance"], err_msg=name)
    assert packed["match_cost"] == pytest.approx(3.0 / 6)
    assert packed["geom_cost"] == pytest.approx(1.0)


def bag(name: str, images: list[str], errors_deg: list[float], ate: float | None, status: str = "ok") -> Bag:
    errors = np.deg2rad(np.column_stack([errors_deg, errors_deg]))
    poses = {image: (np.eye(3), np.zeros(3)) for image in (images if status == "ok" else [])}
    return Bag(name, images, status, errors, poses, np.array([2, 3, 4], np.int32), 0.5, ate, 0.0, 40.0, 1.0)


def test_the_file_of_both_tasks(whole: StereoScene) -> None:
    names = list(whole.scene.images)
    bags = [
        bag("2bag_000", names[:2], [0.5], None),
        bag("2bag_001", names[1:3], [np.inf], None, "no model"),
        bag("3bag_000", names[:3], [0.5, 1.5, 20.0], 0.25),
    ]
    multiview = MultiviewScene(whole.scene, bags, {"match": 0.0, "colmap": 0.0})
    values = pack_multiview(multiview, 33.0)
    assert list(values) == ["bag_avg", "2bag", "3bag"]
    assert values["2bag"]["qt_auc_colmap_10"] == 0.5
    assert values["3bag"]["qt_auc_colmap_10"] == pytest.approx((1 + 2 * 9) / 30)
    assert values["2bag"]["success_rate"] == 0.5
    assert values["2bag"]["avg_num_cameras"] == 2.0
    assert math.isnan(values["2bag"]["avg_ate"])
    assert values["bag_avg"]["avg_ate"] == 0.25
    assert values["bag_avg"]["ratio_registered_cameras"] == 1.0
    assert values["bag_avg"]["num_input_matches"] == 40.0
    packed = strict(pack({"config_common": {}}, ("float32", 128, 512), [whole], [multiview], {"small": 33.0}))
    json.dumps(packed, allow_nan=False)
    assert list(packed) == ["config", "properties", "phototourism"]
    assert packed["properties"]["descriptor_nbytes"] == 512
    dataset = packed["phototourism"]
    assert (dataset["num_runs_stereo"], dataset["num_runs_multiview"]) == (1, 1)
    results = dataset["results"]
    assert list(results) == ["allseq", "small"]
    headline = results["allseq"]["stereo"]["run_avg"]["qt_auc_10_th_0.1"]
    assert headline["mean"] == results["small"]["stereo"]["run_0"]["qt_auc_10_th_0.1"]
    assert set(headline) == {"mean", "std_scenes", "std_runs"}
    assert set(results["small"]["stereo"]["run_avg"]["qt_auc_10_th_0.1"]) == {
        "mean",
        "std_runs",
        "min_runs",
        "max_runs",
    }
    assert results["small"]["multiview"]["run_0"]["2bag"]["avg_ate"] is None
    mean = results["allseq"]["multiview"]["run_avg"]["bag_avg"]["qt_auc_colmap_10"]["mean"]
    assert mean == pytest.approx((0.5 + 19 / 30) / 2)


def test_images_can_be_dropped_by_their_whole_name(whole: StereoScene) -> None:
    """The case ``deprecated_``: the original compares parts of names, so that `a` would take `ab` with it."""
    scene = whole.scene
    assert len(scene.pairs()) == 6
    dropped = without_deprecated(scene, {("phototourism", "small"): frozenset({"img_d", "img"})})
    assert sorted(dropped.pairs()) == [("img_b", "img_a"), ("img_c", "img_a"), ("img_c", "img_b")]
    assert dropped.fingerprint != scene.fingerprint
    assert without_deprecated(scene).pairs() == scene.pairs()
