from __future__ import annotations

import cv2
import numpy as np
import pytest

from eval.cli import main
from eval.core.results import read_results
from eval.features import Keypoints, load
from eval.features.keypoints import spread_places
from eval.webcam.command import WebcamSettings, choose_pairs, find_cameras, judge_pair, places_of
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError


def picture(seed: int = 0, shape: tuple[int, int] = (160, 220)) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    return np.clip(128 + 400 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


@pytest.fixture
def camera(tmp_path):
    folder = tmp_path / "cams" / "tower"
    folder.mkdir(parents=True)
    base = picture()
    for k, gain in enumerate((1.0, 0.6, 0.3)):
        noise = np.random.default_rng(k).normal(0, 3 + 6 * k, base.shape)
        cv2.imwrite(str(folder / f"{k}.png"), np.clip(base * gain + noise, 0, 255).astype(np.uint8))
    return tmp_path / "cams"


def test_results_of_one_camera(camera, tmp_path, capsys):
    args = ["webcam", "--data", str(camera), "--desc", "rootsift", "--keypoints", "80", "--out", str(tmp_path / "r")]
    assert main(args) == 0
    entry = read_results(tmp_path / "r" / "results.json")[0]
    assert entry["benchmark"] == "webcam"
    assert len(entry["per_pair"]) == 3
    assert 0.5 < entry["scores"]["correct_nn"]["value"] <= 1.0
    assert entry["scores"]["mAP"]["value"] <= entry["scores"]["correct_nn"]["value"] + 1e-9
    assert entry["per_scene"]["tower"]["mAP"] == pytest.approx(entry["scores"]["mAP"]["value"])
    assert "correct NN" in capsys.readouterr().out


def test_the_same_picture_is_matched_perfectly_and_noise_is_not():
    image = picture()
    places = places_of(image, WebcamSettings(keypoints=60))
    assert 20 < len(places) <= 60
    descriptor = load("rootsift")
    assert judge_pair(image, image, places, descriptor) == {"correct_nn": 1.0, "ap": 1.0}
    assert judge_pair(image, picture(9), places, descriptor)["correct_nn"] < 0.2
    assert judge_pair(image, image, places[:0], descriptor) == {"correct_nn": 0.0, "ap": 0.0}


def test_places_keep_their_distance_and_one_orientation():
    xy = np.array([[0, 0], [0, 0], [3.9, 0], [4.0, 0], [20, 20]], np.float32)
    ones = np.ones(5, np.float32)
    keypoints = Keypoints(xy, ones, np.arange(5, dtype=np.float32), ones, np.zeros(5, np.int32))
    assert spread_places(keypoints, 4.0, 10).angle.tolist() == [0, 3, 4]
    assert spread_places(keypoints, 4.0, 2).angle.tolist() == [0, 3]


def test_pairs_are_few_and_repeatable():
    assert choose_pairs(3, 40, 0) == [(0, 1), (0, 2), (1, 2)]
    chosen = choose_pairs(12, 40, 0)
    assert len(chosen) == len(set(chosen)) == 40
    assert all(i < j for i, j in chosen)
    assert chosen == choose_pairs(12, 40, 0) != choose_pairs(12, 40, 1)


def test_faults(camera, tmp_path, capsys):
    assert find_cameras(camera / "tower").keys() == {"tower"}
    with pytest.raises(MissingFileError):
        find_cameras(tmp_path / "nowhere")
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match="two or more pictures"):
        find_cameras(tmp_path / "one")
    with pytest.raises(UsageError):
        WebcamSettings(keypoints=0)
    (camera / "tower" / "3.png").write_bytes((camera / "tower" / "0.png").read_bytes()[:900])
    assert [path.name for path in find_cameras(camera)["tower"]] == ["0.png", "1.png", "2.png"]  # it costs itself alone
    cv2.imwrite(str(camera / "tower" / "3.png"), picture(1, (100, 100)))
    assert main(["webcam", "--data", str(camera), "--desc", "rootsift", "--out", str(tmp_path / "r")]) == 1
    assert "differ in size (100 x 100, 220 x 160)" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
