"""``python -m eval imw`` with both tasks: tables, results files, what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cache import Cache
from common.metrics import maa
from eval.cli import main
from eval.core.estimators import EstimatorSettings
from eval.core.results import read_results
from eval.features import load
from eval.features.detect import DogSettings
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoSettings, run_stereo, stereo_pairs, stereo_scene, stereo_scores
from eval.report.compare import values_by_pair

QUICK = ["--desc", "rootsift", "--keypoints", "500", "--max-iters", "5000", "--jobs", "1"]


@pytest.fixture(scope="module")
def scene(corner_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corner with its bags of three alone."""
    copy = Path(shutil.copytree(corner_scene, tmp_path_factory.mktemp("data") / "phototourism" / "corner"))
    for path in copy.glob("set_100/sub_set/2bag*"):
        path.unlink()
    return copy


@pytest.fixture(scope="module")
def out(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["imw", "--data", str(scene), *QUICK, "--viz", "0", "--out", str(folder)]) == 0
    return folder


def test_results_of_both_tasks(out: Path) -> None:
    (entry,) = read_results(out / "results.json")
    assert entry["protocol"]["tasks"] == ["stereo", "multiview"]
    assert entry["protocol"]["matcher"]["threshold"] == 0.9
    assert entry["protocol"]["multiview"]["matcher"]["threshold"] == 0.95
    assert entry["protocol"]["multiview"]["colmap"]["mapper"]["min_model_size"] == 3
    scores = entry["scores"]
    for name in ("stereo/mAA@5", "stereo/mAA@10", "multiview/mAA@5", "multiview/mAA@10"):
        low, high = scores[name]["ci95"]
        assert 0 <= low <= scores[name]["value"] <= high <= 1
    assert scores["stereo/mAA@10"]["value"] > 0.5
    assert (scores["stereo/mAA@10"]["n"], scores["multiview/mAA@10"]["n"]) == (6, 2)
    assert scores["multiview/registered_ratio"]["value"] == 1.0
    assert scores["multiview/num_points"]["value"] > 50
    assert 2 <= scores["multiview/track_length"]["value"] <= 3
    # one of them is a mean over what per_scene lists
    assert scores["multiview/mAA@10"]["value"] == entry["per_scene"]["corner"]["multiview/mAA@10"]["value"]
    bags = [row for row in entry["per_pair"] if row["task"] == "multiview"]
    assert [row["pair"] for row in bags] == ["3bag_000", "3bag_001"]
    mean = np.mean([maa([np.inf if e is None else e for e in row["errors_deg"]]) for row in bags])
    assert scores["multiview/mAA@10"]["value"] == pytest.approx(mean)
    assert set(entry["timing"]) == {"describe", "match", "geometry", "depth", "multiview_match", "multiview_colmap"}
    assert entry["per_scene"]["corner"]["failed_bags"] == {}
    assert set(entry["per_scene"]["corner"]["left_out"]) == {"depth"}
    assert set(values_by_pair(entry)["multiview/mAA@10"]) == {
        ("corner/3bag", "3bag_000"),
        ("corner/3bag", "3bag_001"),
    }


def test_the_official_file_holds_the_same_numbers(out: Path) -> None:
    (entry,) = read_results(out / "results.json")
    (path,) = (out / "official").iterdir()
    assert path.name == "rootsift-500.json"
    official = json.loads(path.read_text())
    config = official["config"]
    assert config["config_common"] == {
        "json_label": "rootsift-500",
        "keypoint": "dog",
        "descriptor": "rootsift",
        "num_keypoints": 500,
    }
    assert config["config_phototourism_stereo"]["geom"]["method"] == "cmp-degensac-f"
    assert config["config_phototourism_multiview"]["matcher"]["filtering"]["threshold"] == 0.95
    assert official["properties"]["descriptor_size"] == 128
    results = official["phototourism"]["results"]
    stereo = results["allseq"]["stereo"]["run_avg"]
    assert stereo["qt_auc_10_th_0.1"]["mean"] == pytest.approx(entry["scores"]["stereo/mAA@10"]["value"])
    assert stereo["qt_auc_05_th_0.1"]["mean"] == pytest.approx(entry["scores"]["stereo/mAA@5"]["value"])
    assert stereo["num_matches_geom_th_0.1"]["mean"] == pytest.approx(entry["scores"]["stereo/num_inliers"]["value"])
    multiview = results["corner"]["multiview"]["run_avg"]["bag_avg"]
    assert multiview["qt_auc_colmap_10"]["mean"] == pytest.approx(entry["scores"]["multiview/mAA@10"]["value"])
    assert multiview["ratio_registered_cameras"]["mean"] == 1.0
    assert multiview["avg_ate"]["mean"] == pytest.approx(entry["scores"]["multiview/ATE"]["value"])


def test_a_second_run_reads_the_cache_and_shows_both_tasks(
    out: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "put", lambda *_: pytest.fail("something was computed again"))
    line = ["imw", "--data", str(scene), *QUICK, "--viz", "0", "--out", str(tmp_path), "--cache", str(out / "cache")]
    assert main(line) == 0
    printed = capsys.readouterr().out
    blocks = printed.split("\n\n")
    assert [block.split()[0] for block in blocks] == ["stereo", "multiview", "both"]
    assert blocks[1].splitlines()[0].split()[-4:] == ["ATE", "corrected", "failed", "bags"]
    assert blocks[1].splitlines()[1].split()[-2:] == ["0", "2"]
    assert "left out: corner: depth: no depth maps" in printed
    first, second = (read_results(folder / "results.json")[0] for folder in (out, tmp_path))
    assert first["scores"] == second["scores"]


def test_tasks_that_a_scene_does_not_have_are_left_out_and_said(
    out: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = Path(shutil.copytree(scene, tmp_path / "corner"))
    shutil.rmtree(partial / "set_100" / "sub_set")
    line = ["imw", "--data", str(partial), *QUICK, "--viz", "0", "--cache", str(out / "cache")]
    assert main([*line, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "left out: corner: multiview: no bags" in captured.out
    (entry,) = read_results(tmp_path / "run" / "results.json")
    assert "stereo/mAA@10" in entry["scores"]
    assert not any(name.startswith("multiview") for name in entry["scores"])
    assert entry["per_scene"]["corner"]["left_out"]["multiview"] == "no bags (sub_set/*bag_*.txt)"
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "none"), "--task", "multiview"]) == 2
    assert "--max-iters has no effect without the task stereo" in capsys.readouterr().err
    line = [word for word in line if word not in ("--max-iters", "5000")]
    assert main([*line, "--out", str(tmp_path / "none"), "--task", "multiview"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: there is nothing to run: corner has no parts of the tasks: multiview: no bags")
    assert not (tmp_path / "none").exists()


def test_several_runs_of_the_estimator_are_averaged(scene: Path, out: Path) -> None:
    cache, opened = Cache(out / "cache"), open_scene(scene)

    def settings(**changes: Any) -> StereoSettings:
        estimator = EstimatorSettings(threshold_px=0.5, confidence=0.99, max_iters=20)
        return StereoSettings(detector=DogSettings(num=500), estimator=estimator, **changes)

    three = run_stereo(opened, load("rootsift"), settings(runs=3, seed=4), cache)
    alone = [run_stereo(opened, load("rootsift"), settings(seed=seed), cache) for seed in (4, 5, 6)]
    for run, single in zip(three.runs, alone, strict=True):
        assert [pair.error_deg for pair in run] == [pair.error_deg for pair in single.pairs]
    assert len({tuple(pair.error_deg for pair in run) for run in three.runs}) > 1
    means = [stereo_scores([single])["stereo/mAA@10"].value for single in alone]
    assert stereo_scores([three])["stereo/mAA@10"].value == pytest.approx(np.mean(means))
    report = stereo_scene(three)
    assert report["stereo/mAA@10_runs"] == pytest.approx(means)
    assert report["stereo/by_covisibility"]["0.1"]["mAA@10"] == pytest.approx(np.mean(means))
    row = stereo_pairs(three)[0]
    assert row["errors_deg"] == [single.pairs[0].error_deg for single in alone]
    assert row["mAA@10"] == pytest.approx(np.mean([maa([error]) for error in row["errors_deg"]]))


def test_flags_of_the_tasks_reach_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["imw", "--print-config", "--task", "multiview", "--runs", "3", "--bag-timeout", "60"]
    assert main([*line, "--multiview-ratio", "0.8", "--seed", "5"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["task"], config["runs"], config["matcher"]["threshold"]) == (["multiview"], 3, 0.9)
    multiview = config["multiview"]
    assert (multiview["matcher"]["threshold"], multiview["time_limit_s"], multiview["seed"]) == (0.8, 60, 5)
    assert multiview["colmap"]["mapper"]["random_seed"] == 5
    assert main(["imw", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == ["stereo", "multiview"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--runs", "0"], 2, "--runs must be at least 1"),
        (["--bag-timeout", "0"], 2, "--bag-timeout"),
        (["--jobs", "0"], 2, "--jobs must be at least 1"),
        (["--executor", "localhost:8786"], 2, "expected dask://host:port"),
        (["--multiview-ratio", "3"], 2, "threshold in [0.1, 1.01]"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], code: int, message: str, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["imw", "--data", str(scene), "--desc", "rootsift", "--out", str(tmp_path / "run"), *flags]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
