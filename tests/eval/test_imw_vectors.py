"""Every case of ``imw.json`` is reproduced here or elsewhere, or named with the reason why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.geometry import eval_essential, normalize_keypoints, relative_pose, skew_matrix, unnormalize_keypoints
from common.metrics import (
    FAILED_POSE,
    accuracy_histogram,
    bag_accuracy_histogram,
    evaluate_R_t,
    maa,
    maa_from_histogram,
    max_error_deg,
    quaternion_from_matrix,
)
from eval.core.estimators import EstimatorSettings
from eval.core.matching import MatcherSettings, deduplicate_matches, official_match
from eval.core.multiview_metrics import (
    BagCounts,
    bag_statistics,
    best_model,
    covisible_pairs,
    pair_pose_error,
)
from eval.core.poses import score_pair
from eval.core.reprojection import (
    DepthScores,
    matching_distances,
    matching_score,
    mean_repeatability,
    project_with_depth,
    repeatability_curve,
    score_depth,
)
from eval.core.trajectory import Alignment, align, align_ransac, half_diagonal, spread
from eval.imw.build import covisibility
from eval.imw.scene import read_keys
from kornia_hardnet8.errors import UsageError
from tests.eval.imw_vector_cases import CASES, ELSEWHERE, NOT_REPRODUCED, ROOT
from tests.official import (
    affine_frames,
    matched_points,
    mean_trajectory_error,
    rotation_from_quaternion,
    symmetric_epipolar_squared,
)

Case = dict[str, Any]
TESTS: dict[str, Callable[..., None]] = {}


def reproduces(*prefixes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the check of all cases with a prefix."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        for prefix in prefixes:
            TESTS[prefix] = check
        return check

    return register


def owner(name: str, table: Any) -> str | None:
    return max((prefix for prefix in table if name.startswith(prefix)), key=len, default=None)


def close(got: Any, expected: Any, case: Case) -> None:
    np.testing.assert_allclose(
        np.asarray(got, float).ravel(), np.asarray(expected, float).ravel(), rtol=0, atol=case["tolerance"]
    )


@reproduces("maa_stereo_")
def maa_stereo(case: Case) -> None:
    errors = max_error_deg(case["inputs"]["errors_rad"])
    expected = case["expected"]
    close(accuracy_histogram(errors), expected["qt_01_10"], case)
    close([maa(errors, 5), maa(errors, 10)], [expected["qt_auc_05"], expected["qt_auc_10"]], case)


@reproduces("maa_multiview_")
def maa_multiview(case: Case) -> None:
    inputs, expected = case["inputs"], case["expected"]
    bags = [max_error_deg(bag) for bag, valid in zip(inputs["bags"], inputs["bag_is_valid"], strict=True) if valid]
    histogram = bag_accuracy_histogram(bags)
    close(histogram, expected["qt_colmap_01_10"], case)
    values = [maa_from_histogram(histogram, 5), maa_from_histogram(histogram, 10)]
    close(values, [expected["qt_auc_colmap_05"], expected["qt_auc_colmap_10"]], case)


@reproduces("evaluate_R_t_")
def pose_error(case: Case) -> None:
    close(evaluate_R_t(**case["inputs"]), case["expected"], case)


@reproduces("quaternion_")
def quaternion(case: Case) -> None:
    got = quaternion_from_matrix(case["inputs"]["matrix"])
    if abs(case["expected"][0]) < 1e-12:  # the sign is open when w is 0
        got = got * np.sign(got @ np.array(case["expected"]))
    close(got, case["expected"], case)


@reproduces("quaternion_qvec2rotmat")
def rotation(case: Case) -> None:
    close(rotation_from_quaternion(case["inputs"]["qvec"]), case["expected"], case)


@reproduces("eval_essential_")
def essential(case: Case) -> None:
    i = case["inputs"]
    arguments = i["p1n"], i["p2n"], i["E"], i["dR"], i["dt"]
    if case["expected"] == {"raises": "RuntimeError"}:
        with pytest.raises(ValueError, match="points in image 0 but"):
            eval_essential(*arguments)
    else:
        close(eval_essential(*arguments), case["expected"], case)


@reproduces("normalize_")
def normalisation(case: Case) -> None:
    function = unnormalize_keypoints if "undo" in case["name"] else normalize_keypoints
    got = function(case["inputs"]["keypoints"], case["inputs"]["K"])
    assert got.shape == (len(case["expected"]), 2)
    close(got, case["expected"], case)


@reproduces("relative_pose_")
def relative(case: Case) -> None:
    i = case["inputs"]
    dR, dt = relative_pose(i["R1"], i["T1"], i["R2"], i["T2"])
    close(dR, case["expected"]["dR"], case)
    close(dt, case["expected"]["dT"], case)


def keypoints(values: Any) -> torch.Tensor:
    return torch.tensor(np.array(values, np.float64).reshape(-1, 2))


@reproduces("match_")
def matching(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    descs = [np.array(i[f"descriptors{k}"], i["descriptor_dtype"]) for k in (1, 2)]
    width = max(d.shape[1] for d in descs if d.ndim == 2)
    descs0, descs1 = (torch.tensor(d.reshape(-1, width)) for d in descs)

    def match() -> list[list[int]]:
        settings = MatcherSettings.from_official(i["matcher"], compat=True)
        found = official_match(descs0, descs1, keypoints(i["keypoints1"]), keypoints(i["keypoints2"]), settings)
        assert found.dtype == torch.int64
        return found.tolist()

    if "raises" in expected:
        with pytest.raises(UsageError):
            match()
    else:
        assert match() == expected["pairs"]


@reproduces("dedup_")
def deduplication(case: Case) -> None:
    i = case["inputs"]
    matches = torch.tensor(i["matches"]).reshape(2, -1).T
    got = deduplicate_matches(matches, torch.tensor(i["keypoints1"]), torch.tensor(i["keypoints2"]))
    assert got.T.tolist() == case["expected"]["matches"]


@reproduces("epipolar_")
def epipolar(case: Case) -> None:
    i = case["inputs"]
    close(symmetric_epipolar_squared(i["x1n"], i["x2n"], i["dR"], i["dt"]), case["expected"], case)


@reproduces("epipolar_skew")
def skew(case: Case) -> None:
    close([skew_matrix(v) for v in case["inputs"]["v"]], case["expected"], case)


@reproduces("epipolar_project_")
def projection(case: Case) -> None:
    i = case["inputs"]
    R, t = np.array(i["dR"]), np.array(i["dT"])
    close(project_with_depth(i["x1n"], i["d1"], R, t)[0], case["expected"][0], case)
    close(project_with_depth(i["x2n"], i["d2"], R.T, -R.T @ t)[0], case["expected"][1], case)


@reproduces("repeatability_")
def repeatability(case: Case) -> None:
    i = case["inputs"]
    close(repeatability_curve(i["projected"], i["keypoints"], i["thresholds"]), case["expected"], case)


@reproduces("repeatability_pack")
def repeatability_pack(case: Case) -> None:
    close(mean_repeatability(list(case["inputs"]["repeatability"].values())), case["expected"], case)


@reproduces("matching_score_pack")
def matching_score_pack(case: Case) -> None:
    i = case["inputs"]
    close(matching_score(list(i["distances"].values()), i["thresholds"]), case["expected"], case)


@reproduces("matching_score_truesym_")
def matching_score_one_sided(case: Case) -> None:
    i = case["inputs"]
    ones = np.ones(len(i["x1"]), bool)
    scores = DepthScores(np.zeros(10), np.array(i["x2_projected_into_1"], float).reshape(-1, 2), ones, ones)
    matches = np.tile(np.arange(len(i["x1"]))[:, None], 2)
    close(matching_distances(matches, i["x1"], scores), case["expected"], case)


@reproduces("matching_score_full_", "repeatability_full_")
def depth_metrics(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    dR, dt = relative_pose(i["R1"], i["T1"], i["R2"], i["T2"])
    kpts0, kpts1 = np.array(i["keypoints1"]), np.array(i["keypoints2"])
    inliers = np.array(i["matches_geom"], int).T.reshape(-1, 2)
    pose = eval_essential(
        normalize_keypoints(kpts0[inliers[:, 0]], i["K1"]),
        normalize_keypoints(kpts1[inliers[:, 1]], i["K2"]),
        i["E"],
        dR,
        dt,
    )
    close(pose, [expected["err_q"], expected["err_t"]], case)
    if i["dataset"] == "googleurban":  # no depth maps: nothing else is computed
        assert expected["repeatability"] == expected["reprojection_px"] == expected["epipolar_sq"] == []
        return
    scores = score_depth(kpts0, kpts1, i["depth1"], i["depth2"], i["K1"], i["K2"], dR, dt, compat=True)
    if i["num_keypoints"] != -1:
        close(scores.repeatability, expected["repeatability"], case)
    stages = "matches", "matches_filtered", "matches_geom"
    for stage, distances, epipolar_sq in zip(stages, expected["reprojection_px"], expected["epipolar_sq"], strict=True):
        matches = np.array(i[stage], int).T.reshape(-1, 2)
        close(matching_distances(matches, kpts0, scores), distances, case)
        x0 = normalize_keypoints(kpts0[matches[:, 0]], i["K1"])
        x1 = normalize_keypoints(kpts1[matches[:, 1]], i["K2"])
        close(symmetric_epipolar_squared(x0, x1, dR, dt), epipolar_sq, case)


@reproduces("ate_align_")
def trajectory_alignment(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    found = align(np.array(i["model"]).T, np.array(i["data"]).T, compat=True)
    close(found.R, expected["rot"], case)
    close(found.t, found.scale * np.array(expected["trans"]), case)
    close(found.scale, expected["scale"], case)


@reproduces("ate_align_model")
def trajectory_alignment_applied(case: Case) -> None:
    i = case["inputs"]
    alignment = Alignment(np.array(i["rot"]), i["scale"] * np.ravel(i["trans"]), i["scale"])
    close(alignment(np.array(i["model"]).T).T, case["expected"], case)


@reproduces("ate_ransac_")
def trajectory_ransac(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    rng = np.random.RandomState(i["seed"])
    found = align_ransac(np.array(i["model"]).T, np.array(i["data"]).T, i["num_iter"], i["threshold"], rng, True)
    close(found.alignment.R, expected["rot"], case)
    close(found.alignment.scale, expected["scale"], case)
    close(found.alignment.t, expected["scale"] * np.array(expected["trans"]), case)
    close(found.mean_inlier_error, expected["mean_inlier_error"], case)
    assert found.num_inliers == expected["num_inlier"]


@reproduces("ate_std")
def trajectory_spread(case: Case) -> None:
    close(spread(np.array(case["inputs"]["xyz"]).T), case["expected"], case)


@reproduces("ate_max_error")
def trajectory_box(case: Case) -> None:
    close(half_diagonal(np.array(case["inputs"]["xyz"]).T), case["expected"], case)


@reproduces("ate_bags_")
def trajectory_bags(case: Case) -> None:
    i = case["inputs"]
    bags = [None if bag is None else (bag["model"], bag["gt"]) for bag in i["bags"]]
    close(mean_trajectory_error(bags, i["seed"], compat=True), case["expected"], case)


@reproduces("covis_pairs_")
def covisibility_pairs(case: Case) -> None:
    i = case["inputs"]
    found = covisible_pairs(i["visibility"], i["threshold"], i["subset"])
    assert [list(pair) for pair in found] == case["expected"]


@reproduces("covis_bbox_")
def covisibility_boxes(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    points1, points2 = (np.array(i[key], float).reshape(-1, 2) for key in ("points1", "points2"))
    close(covisibility(points1, points2, i["size1"], i["size2"]), expected["covisibility"], case)
    close(min(expected["ratio1"], expected["ratio2"]), expected["covisibility"], case)


@reproduces("covis_keys_files")
def covisibility_files(case: Case, tmp_path: Path) -> None:
    for name, keys in case["inputs"]["files"].items():
        np.save(tmp_path / name, np.array(keys, dtype=str))
    found = {t: read_keys(tmp_path / f"keys-th-{t}.npy") for t in case["expected"]}
    assert found == case["expected"]


@reproduces("best_bag_")
def choice_of_model(case: Case) -> None:
    models = [
        [(rotation_from_quaternion(image["qvec"]), image["tvec"]) for image in model]
        for model in case["inputs"]["models"].values()
    ]
    assert best_model(models) == case["expected"]


@reproduces("multiview_pose_")
def multiview_pose(case: Case) -> None:
    i = case["inputs"]
    model = i["models"][str(i["best_index"])]
    poses = {image["name"]: (rotation_from_quaternion(image["qvec"]), image["tvec"]) for image in model}
    true = (i["R1"], i["T1"]), (i["R2"], i["T2"])
    close(pair_pose_error(poses.get(i["image1"]), poses.get(i["image2"]), *true), case["expected"], case)


@reproduces("multiview_stats_")
def multiview_statistics(case: Case) -> None:
    bags = [
        bag and BagCounts(bag["num_images"], [len(set(t)) for t in bag["tracks"]]) for bag in case["inputs"]["bags"]
    ]
    found = bag_statistics(bags)
    assert found.keys() == case["expected"].keys()
    close(list(found.values()), [case["expected"][key] for key in found], case)


@reproduces("geom_preprocess_")
def preparation(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    found = matched_points(np.array(i["matches"]).T, i["keypoints1"], i["keypoints2"], i["minimum"])
    assert (found is not None) == expected["ok"]
    if found is not None:
        close(found, [expected["points1"], expected["points2"]], case)


@reproduces("geom_laf_")
def frames(case: Case) -> None:
    i = case["inputs"]
    close(affine_frames(i["keypoints"], i["scales"], i["angles"], i.get("A")), case["expected"], case)


@reproduces("geom_")
def estimators(case: Case) -> None:
    i, expected = case["inputs"], case["expected"]
    matches = np.array(i["matches"]).T
    settings = EstimatorSettings.from_official(i["geom"])
    cameras = i["K1"], i["K2"], i["dR"], i["dT"]
    score = score_pair(i["keypoints1"], i["keypoints2"], matches, *cameras, settings, seed=0)
    if expected.get("E_shape") == [0]:
        assert score.E is None
        assert score.error_deg == math.inf
        assert (score.err_q, score.err_t) == FAILED_POSE == (expected["err_q"], expected["err_t"])
        assert "8 needed" in score.reason
        return
    close([score.err_q, score.err_t], [expected["err_q"], expected["err_t"]], case)
    # an outlier may join by chance, an exact match may not stay outside
    assert set(map(tuple, expected["inliers"])) <= set(map(tuple, matches[score.inliers].tolist()))


@reproduces("results_e2e_stereo")
def whole_stereo(case: Case) -> None:
    scene, expected = case["inputs"]["scene"], case["expected"]
    config, images, packed = (
        case["inputs"]["config"]["config_phototourism_stereo"],
        scene["images"],
        expected["packed_run"],
    )
    width, height = scene["image_size_wh"]
    matcher = MatcherSettings.from_official(config["matcher"], compat=True)
    estimator = EstimatorSettings.from_official(config["geom"])
    depths = {}
    for name, image in images.items():
        depths[name] = np.zeros((height, width))
        for y, x, value in image["depth_sparse_y_x_value"]:
            depths[name][y, x] = value
    errors, counts, distances, repeatabilities = {}, {}, {}, {}
    for key in scene["keys_per_threshold"]["0.0"]:
        name0, name1 = key.split("-")
        one, two = images[name0], images[name1]
        kpts0, kpts1 = np.array(one["keypoints"]), np.array(two["keypoints"])
        descs0, descs1 = (torch.tensor(np.array(x["descriptors"], np.float32)) for x in (one, two))
        matches = official_match(descs0, descs1, torch.tensor(kpts0), torch.tensor(kpts1), matcher)
        assert matches.T.tolist() == expected["matches"][key]
        dR, dt = relative_pose(one["R"], one["T"], two["R"], two["T"])
        score = score_pair(kpts0, kpts1, matches, scene["K"], scene["K"], dR, dt, estimator)
        close([score.err_q, score.err_t], expected["pose_errors"][key], case)
        depth = score_depth(kpts0, kpts1, depths[name0], depths[name1], scene["K"], scene["K"], dR, dt, compat=True)
        errors[key] = score.error_deg
        counts[key] = len(matches)
        distances[key] = matching_distances(matches, kpts0, depth)
        repeatabilities[key] = depth.repeatability
    order = scene["images_txt"]
    old = covisible_pairs(scene["visibility"], case["inputs"]["vis_th"])
    lists = {"": [f"{order[a]}-{order[b]}" for a, b in old if f"{order[a]}-{order[b]}" in errors]}
    lists |= {f"_th_{threshold}": keys for threshold, keys in scene["keys_per_threshold"].items()}
    judged = [suffix for suffix in lists if f"qt_auc_10{suffix}" in packed]
    assert judged == ["", "_th_0.0", "_th_0.1", "_th_0.3", "_th_0.9"]
    for suffix in judged:
        keys = lists[suffix]
        errors_deg = [errors[key] for key in keys]
        close([maa(errors_deg, 5), maa(errors_deg)], [packed[f"qt_auc_{k}{suffix}"] for k in ("05", "10")], case)
        # the original stores the histogram of the previous list for an empty one: here it was all zeros
        close(accuracy_histogram(errors_deg), packed[f"qt_01_10{suffix}"], case)
        score_curve = matching_score([distances[key] for key in keys])
        for stage in ("pre", "refined", "final"):  # nothing is filtered, and the 8-point algorithm keeps every match
            close(score_curve, packed[f"matching_scores_depth_projection_{stage}_match{suffix}"], case)
        curve = mean_repeatability([repeatabilities[key] for key in keys])
        close(np.zeros(10) if curve is None else curve, packed[f"repeatability{suffix}"], case)
        if suffix:
            mean_count = np.mean([counts[key] for key in keys]) if keys else 0.0
            close(mean_count, packed[f"num_matches_matcher{suffix}"], case)


HERE = sorted(
    name
    for name in CASES
    if name not in NOT_REPRODUCED and len(owner(name, TESTS) or "") > len(owner(name, ELSEWHERE) or "")
)


@pytest.mark.parametrize("name", HERE)
def test_case(name: str, tmp_path: Path) -> None:
    prefix = owner(name, TESTS)
    assert prefix is not None
    check = TESTS[prefix]
    check(CASES[name], tmp_path) if check is covisibility_files else check(CASES[name])


def test_every_case_belongs_somewhere() -> None:
    prefixes = [*TESTS, *ELSEWHERE]
    assert [name for name in CASES if name not in NOT_REPRODUCED and owner(name, prefixes) is None] == []
    assert set(NOT_REPRODUCED) <= set(CASES)
    assert len(prefixes) == len(set(prefixes)), "a prefix stands in two tables"
    idle = [prefix for prefix in prefixes if not any(owner(name, prefixes) == prefix for name in CASES)]
    assert idle == [], "prefixes without a case"


def test_the_page_lists_what_is_not_reproduced_with_its_reason() -> None:
    text = (ROOT / "docs" / "imw.md").read_text(encoding="utf-8")
    rows = dict(
        line.strip("|").split(" | ", 1) for line in text.splitlines() if line.startswith("| `") and " | " in line
    )
    listed = {name.strip(" `"): reason.strip(" |") for name, reason in rows.items()}
    assert {name: listed.get(name) for name in NOT_REPRODUCED} == NOT_REPRODUCED


def test_the_named_files_reproduce_their_cases() -> None:
    for prefix, file in ELSEWHERE.items():
        assert prefix in (ROOT / file).read_text(encoding="utf-8")


def test_what_is_not_reproduced_is_answered_as_its_reason_says() -> None:
    i = CASES["match_single_train_flann"]["inputs"]
    settings = MatcherSettings.from_official(i["matcher"], compat=True)
    descs = [torch.tensor(np.array(i[f"descriptors{k}"], np.float32)) for k in (1, 2)]
    assert len(official_match(*descs, keypoints(i["keypoints1"]), keypoints(i["keypoints2"]), settings)) == 0
    assert accuracy_histogram([]).tolist() == [0.0] * 10
    assert maa([]) == 0.0
    assert bag_accuracy_histogram([[]]).tolist() == [0.0] * 10
    i = CASES["normalize_three_columns"]["inputs"]
    assert normalize_keypoints(i["keypoints"], i["K"]).tolist() == normalize_keypoints([[1.0, 2.0]], i["K"]).tolist()
    case = CASES["quaternion_m4_precise"]
    close(quaternion_from_matrix(case["inputs"]["matrix"]), case["expected"], case)
    negative_trace = np.array(CASES["quaternion_precise_negative_trace"]["inputs"]["matrix"])[:3, :3]
    np.testing.assert_allclose(
        rotation_from_quaternion(quaternion_from_matrix(negative_trace)), negative_trace, atol=1e-9
    )
    assert repeatability_curve([[1, 1]], []).tolist() == [0.0] * 10
