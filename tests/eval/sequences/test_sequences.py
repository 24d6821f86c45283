from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch

from eval.cli import main
from eval.core.image_sequences import find_sequences, read_homography
from eval.core.results import read_results
from eval.features import WholeFeature, load_method, parse_token
from eval.features.detect import DogSettings, detect_dog
from eval.sequences.command import pair_scores
from eval.sequences.features import on_pixels, resize_image
from eval.sequences.protocols import (
    LocalFeatures,
    glue_factory_pair,
    match_pair,
    missing_official,
    superpoint_homography,
    without_large,
)
from kornia_hardnet8.errors import DataError
from rendered.planes import write_planes

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def walls(tmp_path_factory) -> Path:
    return write_planes(tmp_path_factory.mktemp("planes") / "walls", names=("i_brick", "v_hall"))


@pytest.fixture(scope="module")
def finished(walls, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("run")
    line = [sys.executable, "-m", "eval", "sequences", "--data", walls, "--desc", "rootsift", "--out", out]
    line += ["--keypoints", "300"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_results_and_pictures(finished):
    entry = read_results(finished[0] / "results.json")[0]
    scores = {k: v["value"] for k, v in entry["scores"].items()}
    for name in [*(f"MMA@{t}" for t in range(1, 11)), "HA@1", "HA@3", "HA@5", "AUC@1", "AUC@3", "AUC@5"]:
        assert 0.0 <= scores[name] <= 1.0
        assert f"i/{name}" in scores
        assert f"v/{name}" in scores
    assert scores["MMA@3"] > 0.5
    assert scores["HA@5"] > 0.5
    assert 0.2 < scores["repeatability"] < 1.0
    assert scores["MMA@3"] == pytest.approx(np.mean([s["MMA@3"] for s in entry["per_scene"].values()]))
    assert scores["v/MMA@3"] == pytest.approx(entry["per_scene"]["v_hall"]["MMA@3"])
    assert len(entry["per_pair"]) == 10
    for picture in ("mma.png", "matches/i_brick_1_4_rootsift.png"):
        assert cv2.imread(str(finished[0] / picture)) is not None
    assert "viewpoint" in finished[1]


def test_a_task_can_run_alone_and_reads_the_cache(finished, walls, tmp_path):
    args = ["sequences", "--data", walls, "--desc", "rootsift", "--keypoints", 300, "--cache", finished[0] / "cache"]
    assert main([*map(str, args), "--task", "mma", "--out", str(tmp_path), "--viz", "0"]) == 0
    again, first = (read_results(f / "results.json")[0]["scores"] for f in (tmp_path, finished[0]))
    assert again["MMA@5"] == first["MMA@5"]
    assert "HA@3" not in again


class _Corners(WholeFeature):
    """SIFT as a feature with keypoints of its own; wants colour."""

    dim = 128
    asked: ClassVar[set] = set()

    def detect_and_describe(self, image, num):
        assert image.shape[2] == 3
        self.asked.add((image.shape[:2], num))
        sift = cv2.SIFT.create()
        keypoints = detect_dog(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), DogSettings(num, 0.002, 10.0))
        _, descs = sift.compute(image, keypoints.to_opencv())
        return keypoints, torch.from_numpy(descs / np.linalg.norm(descs, axis=1, keepdims=True))


def test_whole_local_features_bring_their_own_keypoints(walls, tmp_path, monkeypatch, capsys):
    own = _Corners(parse_token("corners"))
    monkeypatch.setattr("eval.core.options.load_method", lambda text: own if text == "corners" else load_method(text))
    args = ["sequences", "--data", walls / "v_hall", "--desc", "corners", "sift", "--keypoints", 200]
    assert main([*map(str, args), "--out", str(tmp_path)]) == 0
    whole, sift = read_results(tmp_path / "results.json")
    assert whole["method"]["detector"] == "corners"
    assert whole["protocol"]["detector"] == "corners"
    assert sift["method"]["detector"] == "dog-opencv"
    # The same keypoints and descriptors by another way.
    for name in ("MMA@3", "HA@5", "AUC@5", "repeatability"):
        assert whole["scores"][name]["value"] == pytest.approx(sift["scores"][name]["value"], abs=0.03), name
    assert {num for _, num in own.asked} == {200, 1500, 1024, 2000}
    assert {shape for shape, num in own.asked if num == 1500} == {(480, 640)}
    assert "corners" in capsys.readouterr().out


def test_whole_pixels_keep_the_strongest_of_each():
    found = on_pixels(features([[3.9, 2.2], [3.1, 2.9], [4.0, 2.0]]))
    assert found.xy.tolist() == [[3, 2], [4, 2]]
    np.testing.assert_array_equal(found.descs, torch.eye(3)[[0, 2]])
    assert len(on_pixels(features(np.empty((0, 2)), torch.empty(0, 6))).xy) == 0


def test_data_is_read_with_its_classes(walls):
    sequences = find_sequences(walls)
    assert [(s.name, s.kind, len(s.targets)) for s in sequences] == [("i_brick", "i", 5), ("v_hall", "v", 5)]
    assert find_sequences(walls / "v_hall")[0].name == "v_hall"
    np.testing.assert_allclose(sequences[0].targets[0][2], np.eye(3), atol=1e-9)
    assert missing_official(sequences) == []
    renamed = [s.__class__("i_dc", s.reference, s.targets) for s in sequences[:1]] + sequences[1:]
    kept, left_out = without_large(renamed)
    assert left_out == ["i_dc"]
    assert [s.name for s in kept] == ["v_hall"]
    assert len(missing_official(renamed)) == 115


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0\n0 1 0\n0 0 0\n", "singular"),
        ("1 2 3\n2 4 6\n0 0 1\n", "singular"),
        ("1 0 0\n0 1 0\n", "3 lines of 3 numbers"),
        ("1 0\n0 1\n0 0\n", "3 lines of 3 numbers"),
        ("1 0 x\n0 1 0\n0 0 1\n", "not 3 lines of 3 numbers"),
        ("1 0 nan\n0 1 0\n0 0 1\n", "NaN or infinity"),
    ],
)
def test_bad_homographies_name_their_file(tmp_path, text, message):
    (tmp_path / "H_1_2").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_homography(tmp_path / "H_1_2")
    assert "H_1_2" in str(error.value)


def test_a_homography_without_its_image_is_left_out(walls, tmp_path, caplog):
    root = Path(shutil.copytree(walls, tmp_path / "walls"))
    complete = {sequence.name: [number for number, *_ in sequence.targets] for sequence in find_sequences(root)}
    next((root / "i_brick").glob("3.*")).unlink()
    next((root / "v_hall").glob("1.*")).unlink()
    (only,) = find_sequences(root)
    assert (only.name, [number for number, *_ in only.targets]) == (
        "i_brick", [number for number in complete["i_brick"] if number != 3],
    )  # fmt: skip
    assert [line.split(" (")[0] for line in caplog.messages] == [
        f"left out: {root / 'i_brick'} has no image 3", f"left out: {root / 'v_hall'} has no image 1",
    ]  # fmt: skip


def test_faults(walls, tmp_path, capsys):
    with pytest.raises(DataError, match="holds no folder with images"):
        find_sequences(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "H_1_2").write_text("1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(DataError, match="holds no folder with images"):
        find_sequences(tmp_path)
    assert main(["sequences", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "r")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(["sequences", "--data", str(walls), "--desc", "rootsiftt", "--out", str(tmp_path / "r")]) == 2
    assert "did you mean rootsift" in capsys.readouterr().err


def features(xy, descs=None):
    xy = np.asarray(xy, np.float32)
    if descs is None:
        descs = torch.eye(max(len(xy), 1))[: len(xy)]
    return LocalFeatures(xy, np.ones(len(xy), np.float32), descs)


def test_perfect_and_empty_pairs():
    H = np.array([[1.1, 0.1, 5.0], [-0.1, 0.9, 8.0], [1e-4, 0, 1.0]])
    points = np.array([[10, 10], [90, 15], [20, 80], [85, 85], [50, 40], [33, 61]], float)
    mapped = np.c_[points, np.ones(6)] @ H.T
    first, second = features(points), features(mapped[:, :2] / mapped[:, 2:])
    scores = match_pair(first, second, H)
    assert scores["MMA@1"] == scores["correct_nn"] == 1.0
    assert superpoint_homography(first, second, H, (100, 100), (150, 150)).corner_error_px < 1e-2
    assert glue_factory_pair(first, second, np.eye(3), (100, 100), robust())["precision@3"] < 1.0
    nothing = features(np.empty((0, 2)), torch.empty(0, 6))
    assert match_pair(nothing, second, H)["MMA@10"] == 0.0
    assert match_pair(nothing, second, H)["correct_nn"] is None
    assert superpoint_homography(nothing, second, H, (100, 100), (150, 150)).corner_error_px == np.inf
    failed = glue_factory_pair(nothing, second, H, (100, 100), robust())
    assert failed["error_robust"] == failed["error_dlt"] == np.inf
    assert failed["precision@1"] == 0.0


def robust():
    from eval.core.homography_estimators import HomographySettings

    return HomographySettings("opencv", 3.0)


def test_failures_count_in_the_scores():
    base = {f"MMA@{t}": 1.0 for t in range(1, 11)} | {"correct_nn": 1.0, "num_matches": 9}
    good = {**base, "corner_error_px": 0.5, "auc_error_robust": 0.0, "auc_error_dlt": np.inf}
    bad = {f"MMA@{t}": 0.0 for t in range(1, 11)} | {"correct_nn": None, "num_matches": 0}
    bad |= {"corner_error_px": np.inf, "auc_error_robust": np.inf, "auc_error_dlt": np.inf}
    for pair in (good, bad):
        pair |= {"auc_precision@1": 0.0, "auc_precision@3": 0.0, "repeatability": None}
    scores = pair_scores([good, bad], ["mma", "homography", "auc", "repeatability"])
    assert scores["MMA@3"].value == scores["HA@1"].value == 0.5
    assert scores["AUC@5"].value == pytest.approx(0.5)
    assert scores["AUC_dlt@5"].value == 0.0
    assert scores["correct_nn"].n == 1
    assert scores["repeatability"].value is None


@pytest.mark.parametrize(
    ("shape", "size"), [((600, 800), (640, 480)), ((1000, 700), (640, 480)), ((90, 50), (640, 480))]
)
def test_crop_fills_the_target(shape, size):
    image = np.zeros(shape, np.uint8)
    assert resize_image(image, "crop-640x480").size == (640, 480)
    assert resize_image(image, "original").scale == (1.0, 1.0)
    short = resize_image(image, "short-480")
    assert min(short.size) == 480


@pytest.mark.parametrize("how", ["original", "crop-320x240", "short-480"])
def test_colour_is_resized_channel_by_channel(how):
    colour = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    sized = resize_image(colour, how)
    for k in range(3):
        gray = resize_image(np.ascontiguousarray(colour[..., k]), how)
        assert sized.size == gray.size
        np.testing.assert_array_equal(sized.image[..., k], gray.image)
