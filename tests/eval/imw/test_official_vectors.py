"""Official names, limits, configurations, files, keypoints and patches: the vectors of this part of the benchmark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch

from common.cache import Cache
from eval.features import load
from eval.features.baseline_patches import extract_baseline_patches, patch_matrices
from eval.features.detect import DogSettings, select
from eval.features.extract import detector_of, extract
from eval.features.keypoints import Keypoints
from eval.features.sift import root_normalise
from eval.imw.official import keypoint_category
from eval.imw.scene import open_scene, without_deprecated
from eval.imw.submission.config import check_method, parse_config
from eval.imw.submission.files import check_scene
from eval.imw.submission.findings import Findings
from eval.imw.submission.validate import validate
from kornia_hardnet8.errors import DataError
from tests.eval.imw_vector_cases import CASES, NOT_REPRODUCED
from tests.official import descriptor_category, geometry_folder, matching_folder

Case = dict[str, Any]


def cases(prefix: str, *without: str) -> list[str]:
    return [n for n in CASES if n.startswith(prefix) and n not in NOT_REPRODUCED and not any(w in n for w in without)]


def keypoints_of(rows: list[list[float]]) -> Keypoints:
    """Rows x, y, size, angle[, response, octave]."""
    columns = np.array([[*row, 0, 0][:6] for row in rows], np.float32).reshape(-1, 6)
    xy, (size, angle, response, octave) = columns[:, :2], columns[:, 2:].T
    return Keypoints(xy, size, angle, response, octave.astype(np.int32))


@pytest.mark.parametrize("name", cases("submission_", "_files_"))
def test_configurations(name: str) -> None:
    inputs, findings = CASES[name]["inputs"], Findings()
    check_method(inputs["config"], inputs["is_challenge"], findings)
    refused = [str(finding) for finding in findings if finding.official]
    assert (not refused) == CASES[name]["expected"]["valid"], refused


@pytest.mark.parametrize("name", [n for n in cases("submission_") if "_files_" in n])
def test_files(name: str, tmp_path: Path) -> None:
    inputs, findings = CASES[name]["inputs"], Findings()
    if not isinstance(inputs["files"], dict):  # the folder of the dataset or of the scene is missing
        (tmp_path / "data" / "phototourism" / "scene").mkdir(parents=True)
        for image in inputs["images"]:
            cv2.imwrite(str(tmp_path / "data" / "phototourism" / "scene" / f"{image}.png"), np.zeros((9, 9)))
        (tmp_path / "folder" / ("phototourism" if inputs["files"] else "")).mkdir(parents=True)
        found = validate(tmp_path / "folder", tmp_path / "data")
        kinds = Counter(finding.kind for finding in found if finding.official)
        assert kinds == {"config_missing": 1, **CASES[name]["expected"]["messages"]}
        return
    for file, entries in inputs["files"].items():
        with h5py.File(tmp_path / file, "w") as stored:
            for key, entry in entries.items():
                stored[key] = np.zeros(entry["shape"], entry.get("dtype", "float32"))
    check_scene(tmp_path, "scene", inputs["images"], findings)
    official = Counter(finding.kind for finding in findings if finding.official)
    assert official == CASES[name]["expected"]["messages"], [str(f) for f in findings]


@pytest.mark.parametrize("name", cases("parse_json_"))
def test_configuration_texts(name: str) -> None:
    text, expected = CASES[name]["inputs"]["text"], CASES[name]["expected"]["value"]
    assert parse_config(text, compat=True) == expected
    if name == "parse_json_comma_in_string":
        assert parse_config(text) == {"a": "x,}"}
    else:
        assert parse_config(text) == expected


@pytest.mark.parametrize("name", cases("category_"))
def test_categories(name: str) -> None:
    case = CASES[name]
    category, values = {
        "max_keypoints": (keypoint_category, case["inputs"].get("max_keypoints")),
        "bytes": (descriptor_category, case["inputs"].get("bytes")),
    }[next(iter(case["inputs"]))]
    if isinstance(case["expected"], dict):
        with pytest.raises(DataError, match="at most 8000"):
            category(values)
    else:
        assert [category(value) for value in values] == case["expected"]


@pytest.mark.parametrize("name", cases("folder_name_"))
def test_folder_names(name: str) -> None:
    entry, expected = CASES[name]["inputs"]["entry"], CASES[name]["expected"]
    assert {"match": matching_folder(entry), "geom": geometry_folder(entry)} == expected


def test_deprecated_images_are_told_by_their_whole_names(corner_scene: Path) -> None:
    """The original drops what contains such a name anywhere: of b-a, c-a, c-b and ab it leaves c-b."""
    assert "deprecated_remove_keys" in NOT_REPRODUCED
    scene = open_scene(corner_scene)
    names = sorted(scene.images)
    dropped = without_deprecated(scene, {(scene.dataset, scene.name): frozenset([names[0], names[1][:-1]])})
    assert dropped.pairs() == [pair for pair in scene.pairs() if names[0] not in pair]
    assert len(dropped.pairs()) < len(scene.pairs())


@pytest.mark.parametrize("name", cases("feature_rows"))
def test_keypoint_rows(name: str) -> None:
    """x, y, radius, angle, response, octave, ellipse, frame: all of them follow from our keypoints."""
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    found = keypoints_of(inputs["keypoints_x_y_size_angle_response_octave"])
    kept = select(found, inputs["num_kp"], upright=False)
    radius = kept.size / 2
    linear = kept.lafs(1.0)[:, :, :2].double().numpy()
    zero, ellipse = np.zeros(len(kept)), 1 / radius**2
    rows = np.column_stack(
        [
            kept.xy, radius, kept.angle, kept.response, kept.octave, ellipse, zero, ellipse,
            linear[:, 0, 0], linear[:, 1, 0], linear[:, 0, 1], linear[:, 1, 1],
        ]
    )  # fmt: skip
    np.testing.assert_allclose(rows, expected["rows"], atol=CASES[name]["tolerance"])
    order = [next(i for i, xy in enumerate(found.xy.tolist()) if xy == row) for row in kept.xy.tolist()]
    assert [inputs["descriptors"][i] for i in order] == expected["desc"]


@pytest.mark.parametrize("name", cases("feature_rootsift"))
def test_rootsift(name: str) -> None:
    case = CASES[name]
    found = root_normalise(np.array(case["inputs"]["descriptors"], np.float32))
    np.testing.assert_allclose(found, case["expected"], atol=case["tolerance"])


@pytest.mark.parametrize("name", cases("dedup_upright_"))
def test_upright_points(name: str) -> None:
    points = CASES[name]["inputs"]["keypoints"]
    found = keypoints_of([[x, y, 1, 90, len(points) - i, i] for i, (x, y) in enumerate(points)])
    kept = select(found, len(points), upright=True)
    assert kept.octave.tolist() == CASES[name]["expected"]
    assert kept.angle.tolist() == [0.0] * len(kept)


def test_upright_points_that_we_keep_on_purpose() -> None:
    for name, expected in (("dedup_upright_more_points_shared_x", [0, 1, 2]), ("dedup_upright_no_dups", [0, 1, 3])):
        assert name in NOT_REPRODUCED
        points = CASES[name]["inputs"]["keypoints"]
        found = keypoints_of([[x, y, 1, 90, len(points) - i, i] for i, (x, y) in enumerate(points)])
        assert select(found, len(points), upright=True).octave.tolist() == expected
        if name.endswith("no_dups"):  # the same points, in another order
            assert sorted(expected) == sorted(CASES[name]["expected"])


@pytest.mark.parametrize("name", cases("patch_matrix_"))
def test_patch_matrices(name: str) -> None:
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    found = keypoints_of(inputs["keypoints"])
    matrices, levels = patch_matrices(found, inputs["PS"], inputs["mag_factor"], compat=True)
    np.testing.assert_allclose(matrices, expected["M"], atol=CASES[name]["tolerance"])
    assert levels.tolist() == expected["level"]
    _, levels = patch_matrices(found, inputs["PS"], inputs["mag_factor"])
    assert levels.tolist() == [max(0, level) for level in expected["level"]]


@pytest.mark.parametrize("name", cases("patch_pixels_"))
def test_patch_pixels(name: str) -> None:
    inputs, case = CASES[name]["inputs"], CASES[name]
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    image = ((3 * x + 2 * y) % 256).astype(np.uint8)
    found = extract_baseline_patches(image, keypoints_of(inputs["keypoints"]), inputs["PS"], inputs["mag_factor"])
    np.testing.assert_allclose(found[:, 0], case["expected"], atol=case["tolerance"])


def test_descriptors_are_made_of_baseline_patches_when_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.normal(128, 300, (120, 140)).astype(np.float32), (0, 0), 2).clip(0, 255)
    image = image.astype(np.uint8)
    method, settings = load("h7:untrained=true"), DogSettings(num=20)
    plain = extract(image, method, settings, Cache(tmp_path))
    assert "patches" not in detector_of(method, settings)
    method.patches = "baseline"
    found = extract(image, method, settings, Cache(tmp_path))
    patches = extract_baseline_patches(image, found.keypoints, method.patch_size, 12.0)
    torch.testing.assert_close(found.descs, method.describe(patches / 255))
    assert not torch.allclose(found.descs, plain.descs, atol=1e-3)
    assert detector_of(method, settings)["patches"] == "baseline"


def test_baseline_patches_are_kornias_half_a_cell_off() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.normal(128, 500, (200, 220)).astype(np.float32), (0, 0), 6).clip(0, 255)
    image = image.astype(np.uint8)
    from kornia_hardnet8.patches import extract_patches

    found = keypoints_of([[100, 90, 4, 0], [80.5, 110.25, 5, 40], [120, 100, 3, 250]])
    baseline = extract_baseline_patches(image, found, 32, 12.0)
    lafs = found.lafs(12.0)
    kornia = extract_patches(torch.from_numpy(image), lafs, 32)
    lafs[:, :, 2] -= lafs[:, :, :2] @ torch.full((2,), 1 / 32)  # half a cell along both axes
    shifted = extract_patches(torch.from_numpy(image), lafs, 32)
    assert (baseline - kornia).abs().mean() > 1.5
    assert (baseline - shifted).abs().mean() < 0.8
    assert extract_baseline_patches(image, found[:0], 32, 12.0).shape == (0, 1, 32, 32)
