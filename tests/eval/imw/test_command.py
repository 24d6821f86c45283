from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.cli import main
from eval.core.options import MATCHERS
from eval.core.results import read_results
from eval.core.trajectory import Alignment, camera_centre
from eval.imw.pictures import move_pose, ranked_pairs, true_errors_px
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoPair, StereoScene

ROOT = Path(__file__).parents[3]
QUICK = ["--keypoints", "150", "--max-iters", "2000", "--task", "stereo"]


@pytest.fixture(scope="module")
def finished(corner_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of the real command: folder and stdout."""
    out = tmp_path_factory.mktemp("runs") / "run"
    tokens = ["rootsift", "h7:untrained=true"]
    line = [sys.executable, "-m", "eval", "imw", "--data", corner_scene, "--desc", *tokens, "--out", out, *QUICK]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_table_shows_every_descriptor_with_intervals(finished: tuple[Path, str]) -> None:
    head, rootsift, untrained, *_ = finished[1].splitlines()
    assert head.split() == ["stereo", "mAA@5", "[95", "%]", "mAA@10", "[95", "%]", "matches", "inliers", "pairs"]
    assert rootsift.split()[0] == "rootsift"
    assert untrained.split()[0] == "h7:untrained=true"
    entry = read_results(finished[0] / "results.json")[0]
    score = entry["scores"]["stereo/mAA@10"]
    low, high = score["ci95"]
    assert f"{score['value']:.3f} [{low:.3f}, {high:.3f}]" in rootsift
    assert rootsift.split()[-1] == "6"


def test_the_results_file_says_all(finished: tuple[Path, str], corner_scene: Path) -> None:
    rootsift, untrained = read_results(finished[0] / "results.json")
    assert rootsift["benchmark"] == "imw"
    assert rootsift["scores"]["stereo/mAA@10"]["value"] > 0.5
    assert untrained["method"]["descriptor"] == "h7:untrained=true"
    assert rootsift["protocol"]["detector"]["num"] == 150
    assert rootsift["protocol"]["mr_size"] == 12.0
    assert rootsift["dataset"]["name"] == "corner"
    assert rootsift["dataset"]["scenes"] == {"corner": open_scene(corner_scene).fingerprint}
    assert len(rootsift["per_pair"]) == len(untrained["per_pair"]) == 6
    assert set(rootsift["timing"]) == {"describe", "match", "geometry", "depth"}
    assert rootsift["environment"]["packages"]["numpy"] == np.__version__
    for entry in (rootsift, untrained):
        errors = [np.inf if pair["error_deg"] is None else pair["error_deg"] for pair in entry["per_pair"]]
        expected = np.mean([[error < limit for limit in range(1, 11)] for error in errors])
        assert entry["scores"]["stereo/mAA@10"]["value"] == pytest.approx(expected)


def test_pictures_are_written_and_counted(finished: tuple[Path, str]) -> None:
    pictures = sorted(finished[0].rglob("*.png"))
    assert f"pictures: {len(pictures)} below {finished[0]}" in finished[1].splitlines()
    matches = [picture for picture in pictures if picture.parent.name == "matches"]
    assert sorted(p.name.split("_")[1] for p in matches) == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert len({p.name.rpartition("_view")[0] for p in matches}) == 3
    assert [p.name for p in pictures if p.parent == finished[0]] == ["corner_accuracy.png"]
    assert (finished[0] / "corner_accuracy.csv").read_text().count("\n") == 11
    for picture in pictures:
        image = cv2.imread(str(picture))
        assert image.shape[1] > 700
        assert image.std() > 10


def test_a_second_run_only_reads_and_prints_the_file(
    finished: tuple[Path, str], corner_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*.h5")}
    scores = [entry["scores"] for entry in read_results(out / "results.json")]
    tokens = ["rootsift", "h7:untrained=true"]
    line = ["imw", "--data", str(corner_scene), "--desc", *tokens, "--out", str(out), *QUICK, "--json", "--viz", "0"]
    assert main(line) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["scores"] for entry in printed["results"]] == scores
    assert {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*.h5")} == before


def test_several_scenes_are_listed_below_their_mean(
    finished: tuple[Path, str], corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(corner_scene, tmp_path / "data" / name)
    line = ["imw", "--data", str(tmp_path / "data"), "--desc", "rootsift", *QUICK, "--viz", "0"]
    assert main([*line, "--out", str(tmp_path / "run"), "--cache", str(finished[0] / "cache")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-1] == "12"
    assert [text.split()[0] for text in lines[4:6]] == ["one", "two"]
    (entry,) = read_results(tmp_path / "run" / "results.json")
    single = read_results(finished[0] / "results.json")[0]["scores"]["stereo/mAA@10"]["value"]
    assert entry["scores"]["stereo/mAA@10"]["value"] == pytest.approx(single)
    assert entry["dataset"]["name"] == "one, two"
    assert not (tmp_path / "run" / "cache").exists()


def test_flags_reach_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["imw", "--print-config", "--desc", "sift", "--keypoints", "8000", "--upright", "--mr-size", "6"]
    line += ["--matcher", "fginn", "--ratio", "0.8", "--estimator", "usac-magsac", "--threshold", "1.5", "--seed", "3"]
    assert main([*line, "--confidence", "0.99", "--max-iters", "77"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["detector"]["num"] == 8000
    assert config["detector"]["upright"] is True
    assert (config["mr_size"], config["seed"], config["desc"]) == (6.0, 3, ["sift"])
    assert config["matcher"]["filter"] == "fginn_ratio_pairwise"
    assert config["matcher"]["threshold"] == 0.8
    assert config["estimator"]["method"] == "usac-magsac"
    assert (config["estimator"]["threshold_px"], config["estimator"]["max_iters"]) == (1.5, 77)
    for matcher in MATCHERS:
        assert main(["imw", "--print-config", "--matcher", matcher]) == 0
        assert json.loads(capsys.readouterr().out)["matcher"]["filter"] == MATCHERS[matcher][0]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--desc", "rootsfit"], 2, "did you mean rootsift"),
        (["--desc", "sift", "sift"], 2, "twice"),
        (["--desc", "hardtfeat@nowhere.pth"], 1, "nowhere.pth is not there"),
        (["--desc", "sift", "--ratio", "2"], 2, "threshold in [0.1, 1.01]"),
        (["--desc", "sift", "--keypoints", "0"], 2, "at least 1"),
        (["--desc", "sift", "--confidence", "1"], 2, "confidence"),
        (["--desc", "sift", "--device", "warp"], 2, "--device warp"),
        (["--desc", "sift", "--data", "nowhere"], 1, "folder nowhere is not there"),
    ],
)
def test_wrong_usage_is_one_line(
    flags: list[str], code: int, message: str, corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["imw", "--data", str(corner_scene), "--out", str(tmp_path / "run"), *flags]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["image", "calibration", "pairs"])
def test_damaged_scenes_are_one_line_without_results(
    fault: str, corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Path(shutil.copytree(corner_scene, tmp_path / "scene"))
    file = {
        "image": "images/view_2.png",
        "calibration": "calibration/calibration_view_2.h5",
        "pairs": "new-vis-pairs/keys-th-0.1.npy",
    }[fault]
    path = scene / "set_100" / file
    path.write_bytes(path.read_bytes()[:100])
    out = tmp_path / "run"
    assert main(["imw", "--data", str(scene), "--desc", "sift", "--out", str(out), *QUICK]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert path.name in captured.err
    assert not (out / "results.json").exists()


@pytest.mark.parametrize("limit", [2_000, 40_000])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(limit: int, corner_scene: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing beyond it fails."""
    out = tmp_path / "run"
    line = [sys.executable, "-m", "eval", "imw", "--data", corner_scene, "--desc", "sift", "--out", out, *QUICK]
    done = subprocess.run(
        line,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert not (out / "results.json").exists()
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")] == []
    # what was finished before stays and is readable
    for path in (out / "cache").rglob("*.h5"):
        assert path.stat().st_size <= limit


def test_a_full_disk_leaves_no_half_scene(corner, tmp_path: Path) -> None:
    out = tmp_path / "out" / "scene"
    line = [sys.executable, "-m", "eval", "imw-scene", "--images", corner.images, "--model", corner.model, "--out", out]
    done = subprocess.run(
        line,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_pairs_to_draw_are_the_best_median_and_worst(corner_scene: Path) -> None:
    scene = open_scene(corner_scene)
    pairs = scene.pairs()
    errors = [3.0, 1.0, np.inf, 2.0, 5.0, 4.0]
    judged = [
        StereoPair(p, e, 0, 0, np.zeros((0, 2)), np.zeros(0, bool), "") for p, e in zip(pairs, errors, strict=True)
    ]
    found = StereoScene(scene, {}, judged, {})
    best_first = [pairs[k] for k in (1, 3, 0, 5, 4, 2)]
    assert ranked_pairs(found, 0) == {}
    assert ranked_pairs(found, 1) == {best_first[0]: "best", best_first[2]: "median", best_first[5]: "worst"}
    ranks = ["best", "best", "median", "median", "worst", "worst"]
    assert {k: ranked_pairs(found, 2)[k] for k in best_first} == dict(zip(best_first, ranks, strict=True))
    assert ranked_pairs(found, 99) == dict.fromkeys(best_first, "best")


def test_true_errors_are_pixels_from_the_epipolar_lines(corner_scene: Path) -> None:
    scene = open_scene(corner_scene)
    cameras = [scene.cameras[name] for name in ("view_3", "view_0")]
    points = np.array([[0.2, -0.4, 2.2], [1.0, 0.7, 3.0], [-1.1, 0.2, 3.1]])
    seen = []
    for camera in cameras:
        x = (points @ camera.R.T + camera.t) @ camera.K.T
        seen.append(x[:, :2] / x[:, 2:])
    np.testing.assert_allclose(true_errors_px(*seen, *cameras), 0, atol=1e-9)
    seen[1][:, 1] += 2.0  # the epipolar lines run nearly along x
    np.testing.assert_allclose(true_errors_px(*seen, *cameras), 2.0, rtol=0.1)


def test_a_moved_pose_sees_moved_points_in_the_same_pixels(corner_scene: Path) -> None:
    scene = open_scene(corner_scene)
    (R, t), other = ((c.R, c.t) for c in (scene.cameras["view_0"], scene.cameras["view_3"]))
    alignment = Alignment(other[0], np.array([1.0, -2.0, 3.0]), 2.5)
    points = np.array([[0.2, -0.4, 2.2], [1.0, 0.7, 3.0]])
    rotation, translation = move_pose(R, t, alignment)
    np.testing.assert_allclose(alignment(points) @ rotation.T + translation, 2.5 * (points @ R.T + t), atol=1e-9)
    np.testing.assert_allclose(camera_centre(rotation, translation), alignment(camera_centre(R, t)[None])[0])
