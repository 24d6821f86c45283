import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.images import gray_from_bgr
from common.metrics import maa_per_pair
from eval.core.benchmark import Benchmark
from eval.core.matching import Matches
from eval.core.results import Result
from eval.dev.command import dataset_of, scores_of, table
from eval.dev.command import evaluate as judge
from eval.dev.data import DevSettings, find_data
from eval.dev.poses import PreparedScene, choose_ratios, held_out, ranking_quality
from eval.features import Descriptor, Keypoints, Method, Token, WholeFeature, load
from eval.features.detect import DogSettings, detect_dog
from eval.imw.scene import Camera
from kornia_hardnet8.errors import UsageError

REPOSITORY = Path(__file__).parents[3]
SMALL = DevSettings(detector=DogSettings(num=1200, contrast=0.002, edge=10.0))


def evaluate(root: Path, methods: Sequence[Method], settings: DevSettings, cache: Cache) -> list[Result]:
    data = find_data(root)
    benchmark = Benchmark("dev", cache.root, cache, dataset_of(root, data))
    judge(benchmark, data, methods, settings)
    return benchmark.results


def row_of(result: Any, task: str, pair: str) -> dict[str, Any]:
    return next(row for row in result.per_pair if row["task"] == task and row["pair"] == pair)


@pytest.fixture(scope="module")
def judged(dev_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return evaluate(dev_folder, [load("rootsift"), load("sift")], SMALL, Cache(cache)), cache


def test_ratio_is_chosen_on_the_other_half() -> None:
    good, bad = 0.5, 99.0
    # ratio 0 is right on even pairs, ratio 1 on odd ones
    errors = np.array([[[good, bad, good, bad, good]], [[bad, good, bad, good, bad]]])
    chosen = choose_ratios(errors)
    assert chosen == (1, 0)
    np.testing.assert_array_equal(held_out(errors, chosen), [[bad] * 5])
    np.testing.assert_array_equal(held_out(np.array([[1, 2, 3], [4, 5, 6]]), (1, 0)), [4, 2, 6])


def test_mean_over_ratios_has_no_choice_in_it(dev_folder: Path, judged: tuple[Any, Path]) -> None:
    rows = [row for row in judged[0][0].per_pair if row["task"] == "poses"]
    cache = Cache(judged[1])
    alone = []
    for ratio in SMALL.ratios:
        settings = replace(SMALL, ratios=(ratio,))
        (result,) = evaluate(dev_folder / "poses", [load("rootsift")], settings, cache)
        assert result.scores["poses/mAA@10_mean"] == result.scores["poses/mAA@10"]
        alone.append([row["mAA@10"] for row in result.per_pair])
    np.testing.assert_allclose([row["mAA@10_mean"] for row in rows], np.mean(alone, axis=0))


def test_accuracy_of_seeds_is_averaged_before_choosing() -> None:
    errors = np.array([[[0.5, 0.5], [99, 99]], [[4.5, 4.5], [4.5, 4.5]]])  # 0.5 on average against 0.6
    assert choose_ratios(errors) == (1, 1)


def test_poses_of_a_rendered_scene_are_found(judged: tuple[Any, Path]) -> None:
    (rootsift, sift), _ = judged
    for result in (rootsift, sift):
        rows = [row for row in result.per_pair if row["task"] == "poses"]
        assert [row["pair"] for row in rows] == ["v1-v2", "v1-v3", "v2-v3"]
        assert max(row["error_deg"] for row in rows) < 4
        assert rows[0]["num_matches"] >= rows[0]["num_inliers"] > 50
        for row in rows:
            assert row["mAA@10"] == maa_per_pair([row["error_deg"]], 10)[0]
        assert result.scores["poses/mAA@10"].value == pytest.approx(np.mean([row["mAA@10"] for row in rows]))
        assert result.scores["poses/mAA@10"].n == 3
    assert rootsift.per_pair != sift.per_pair


def test_ranking_of_matches_is_judged_by_the_true_epipolar_lines() -> None:
    # pure translation along x: epipolar lines are the rows
    cameras = {"a": Camera(np.eye(3), np.eye(3), np.zeros(3)), "b": Camera(np.eye(3), np.eye(3), np.array([1.0, 0, 0]))}
    places = np.array([[10.0, 10], [20, 30], [30, 50], [40, 70]])
    moved = places + np.array([[5.0, 0], [0, 3], [-7, 1.5], [0, 0]])  # right, 3 px off, 1.5 px off
    keypoints = {name: Keypoints(xy, *np.ones((4, 4))) for name, xy in (("a", places), ("b", moved))}
    scene = PreparedScene(None, {}, cameras, keypoints, {})  # type: ignore[arg-type]
    matches = Matches(torch.tensor([0.5, 0.6, 0.7]), torch.tensor([[0, 0], [1, 1], [2, 2]]))
    # of 4 keypoints two are found, at precisions 1 and 2/3; the trapezoids: (1 + 1) / 2 / 4 + (1/2 + 2/3) / 2 / 4
    assert ranking_quality(scene, ("a", "b"), matches) == pytest.approx(0.25 + 7 / 48)
    assert ranking_quality(scene, ("a", "b"), matches.below(0.1)) == 0.0


def test_true_homography_explains_the_matches(judged: tuple[Any, Path]) -> None:
    row = row_of(judged[0][0], "homography", "1-2")
    assert row["MMA@3"] > 0.8
    assert row["MMA@1"] <= row["MMA@3"] <= row["MMA@10"]
    assert row["correct_nn"] > 0.6
    assert row["corner_error_px"] < 3
    assert row["HA@3"] == 1.0


def test_identical_pictures_are_matched_without_a_mistake(judged: tuple[Any, Path]) -> None:
    result = judged[0][0]
    assert row_of(result, "webcam", "a.png-b.png")["correct_nn"] == 1.0
    assert row_of(result, "webcam", "a.png-b.png")["mAP"] == 1.0
    assert 0.7 < row_of(result, "webcam", "a.png-c.png")["correct_nn"] <= 1.0


def test_summary_is_the_mean_of_the_headline_numbers(judged: tuple[Any, Path]) -> None:
    scores = judged[0][0].scores
    parts = [scores[name].value for name in ("poses/mAA@10", "homography/MMA@3", "webcam/mAP")]
    assert scores["dev"].value == pytest.approx(np.mean(parts))
    assert scores["dev"].ci95[0] <= scores["dev"].value <= scores["dev"].ci95[1]
    assert judged[0][0].protocol["summary"] == "mean of poses/mAA@10, homography/MMA@3, webcam/mAP"


def test_cache_spares_everything(dev_folder: Path, judged: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    results, cache = judged
    descriptor = load("rootsift")

    def refuse(*_: object) -> Tensor:
        raise AssertionError("described again")

    monkeypatch.setattr(descriptor, "describe_image", refuse)
    (again,) = evaluate(dev_folder, [descriptor], SMALL, Cache(cache))
    assert again.scores == results[0].scores
    assert again.per_pair == results[0].per_pair
    other = DevSettings(detector=DogSettings(num=1000, contrast=0.002, edge=10.0))
    with pytest.raises(AssertionError, match="described again"):
        evaluate(dev_folder, [descriptor], other, Cache(cache))


def test_failures_count(tmp_path: Path, dev_folder: Path) -> None:
    folder = tmp_path / "data" / "poses" / "blank"
    (folder / "images").mkdir(parents=True)
    (folder / "cameras_KRt.txt").write_bytes((dev_folder / "poses/yard/cameras_KRt.txt").read_bytes())
    for k in (1, 2, 3):
        cv2.imwrite(str(folder / "images" / f"v{k}.png"), np.full((240, 320), 90, np.uint8))
    camera = tmp_path / "data" / "webcam" / "blank"
    camera.mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(camera / f"{name}.png"), np.full((240, 320), 90, np.uint8))
    (result,) = evaluate(tmp_path / "data", [load("rootsift")], SMALL, Cache(tmp_path / "cache"))
    assert [row["error_deg"] for row in result.per_pair[:3]] == [np.inf] * 3
    assert (result.scores["poses/mAA@10"].value, result.scores["poses/mAA@10"].n) == (0.0, 3)
    assert (result.scores["webcam/mAP"].value, result.scores["webcam/mAP"].n) == (0.0, 1)
    assert "homography/MMA@3" not in result.scores


def test_several_ransac_seeds_average_the_accuracy(dev_folder: Path, judged: tuple[Any, Path]) -> None:
    settings = DevSettings(detector=SMALL.detector, ransac_seeds=2)
    (result,) = evaluate(dev_folder / "poses", [load("rootsift")], settings, Cache(judged[1]))
    row = result.per_pair[0]
    assert len(row["error_deg"]) == 2
    assert row["mAA@10"] == pytest.approx(np.mean(maa_per_pair(row["error_deg"], 10)))


def test_scores_of_rows() -> None:
    rows = [{"task": "webcam", "correct_nn": 0.25, "mAP": 0.5}, {"task": "webcam", "correct_nn": 0.75, "mAP": 0.5}]
    scores = scores_of(rows, seed=0)
    assert scores["webcam/correct_nn"].value == 0.5
    assert scores["webcam/mAP"].ci95 == (0.5, 0.5)
    assert scores["dev"].value == 0.5


def test_settings_refuse_what_makes_no_sense() -> None:
    for wrong in ({"ransac_seeds": 0}, {"pose_pairs": 0}, {"ratios": ()}):
        with pytest.raises(UsageError):
            DevSettings(**wrong)  # type: ignore[arg-type]


def test_command_writes_results_and_compares_them(dev_folder: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "eval", "dev", "--data", str(dev_folder), "--keypoints", "300", "--upright"]
    run += ["--desc", "rootsift", "sift", "--out", str(tmp_path / "run")]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "poses/mAA@10" in done.stdout
    assert "planes/wall" in done.stdout
    entries = json.loads((tmp_path / "run/results.json").read_text())["results"]
    assert [entry["method"]["descriptor"] for entry in entries] == ["rootsift", "sift"]
    detector = entries[0]["protocol"]["detector"]
    assert (detector["num"], detector["upright"]) == (300, True)
    again = [sys.executable, "-m", "eval", "compare", str(tmp_path / "run"), str(tmp_path / "run")]
    compared = subprocess.run(
        [*again, "--desc-a", "rootsift", "--desc-b", "sift", "--json"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert compared.returncode == 0, compared.stderr
    found = {d["metric"]: d for d in json.loads(compared.stdout)[0]["differences"]}
    for metric in ("dev", "poses/mAA@10", "homography/MMA@3", "webcam/mAP"):
        values = [entry["scores"][metric]["value"] for entry in entries]
        assert found[metric]["difference"] == pytest.approx(values[0] - values[1])


def test_command_answers_wrong_usage_in_one_line(tmp_path: Path) -> None:
    for arguments, code, text in (
        (["--data", str(tmp_path / "no"), "--desc", "rootsift"], 1, "is not there"),
        (["--data", str(tmp_path), "--desc", "rootsfit"], 2, "did you mean rootsift"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "eval", "dev", *arguments, "--out", str(tmp_path / "out")],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code
        assert done.stderr.startswith("error: ")
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1


class _Broken(Descriptor):
    dim = 2

    def describe(self, patches: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_broken_descriptor_leaves_no_half_result(dev_folder: Path, tmp_path: Path) -> None:
    from eval.features import parse_token

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(dev_folder, [_Broken(parse_token("broken"))], SMALL, Cache(tmp_path))
    stages = {path.parent.name for path in tmp_path.rglob("*.h5")}
    assert stages == {"keypoints"}


class _OwnKeypoints(WholeFeature):
    """RootSIFT as a whole local feature: it detects what the protocol's detector does."""

    dim = 128

    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        gray = gray_from_bgr(image)
        keypoints = detect_dog(gray, DogSettings(num=num, contrast=0.002, edge=10.0))
        return keypoints, load("rootsift").describe_image(gray, keypoints)


def test_whole_features_are_judged_on_their_own_keypoints(judged: tuple[Any, Path], dev_folder: Path) -> None:
    (rootsift, _), cache = judged
    whole = _OwnKeypoints(Token("own", "own"))
    (result,) = evaluate(dev_folder, [whole], SMALL, Cache(cache))
    assert result.method["detector"] == {"detector": "own", "num": 1200}
    assert "dev" not in result.scores
    assert {row["task"] for row in result.per_pair} == {"poses", "homography"}
    for row in result.per_pair:
        # the homography pair is stored in colour: the two roads to gray agree
        same = row_of(rootsift, row["task"], row["pair"])
        assert {k: v for k, v in row.items() if k != "seconds"} == pytest.approx(same)
    text = table([result, rootsift])
    assert "webcam/mAP" in text
    assert "own" in text
