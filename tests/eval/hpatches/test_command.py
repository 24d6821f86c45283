"""The real command on small sets of strips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.hpatches import TYPES, count_patches, official_test, read_strip, write_strip
from eval.cli import main
from eval.core.results import read_results
from eval.hpatches import tasks
from rendered.planes import write_planes
from tests import official

ROOT = Path(__file__).parents[3]
COUNTS = {"i_table": 14, "v_wall": 12, "v_boat": 13}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def strips(tmp_path_factory) -> Path:
    """Three sequences of smooth random patches; the more noise, the harder the level."""
    root = tmp_path_factory.mktemp("strips")
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (root / name).mkdir()
        base = [cv2.GaussianBlur(rng.standard_normal((65, 65)), (0, 0), 5) for _ in range(count)]
        base = [(p - p.mean()) / p.std() for p in base]
        for strip in TYPES:
            noise = {"r": 0.0, "e": 0.2, "h": 2.5, "t": 5.0}[strip[0]]
            noisy = [p + noise * cv2.GaussianBlur(rng.standard_normal(p.shape), (0, 0), 4) * 7 for p in base]
            patches = np.clip(128 + 40 * np.stack(noisy), 0, 255).astype(np.uint8)
            write_strip(root / name / f"{strip}.png", patches)
    return root


@pytest.fixture(scope="module")
def finished(strips, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("run")
    line = [sys.executable, "-m", "eval", "hpatches", "--data", strips, "--desc", "rootsift", "--out", out]
    line += ["--pairs", "300", "--write-csv", out / "csv"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def scores_of(out: Path, index: int = 0) -> dict:
    return {k: v["value"] for k, v in read_results(out / "results.json")[index]["scores"].items()}


def run(*args) -> int:
    return main(["hpatches", *map(str, args)])


def fails(capsys, code: int, message: str, *args) -> None:
    capsys.readouterr()
    assert run(*args) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_results_hold_the_named_scores(finished):
    entry = read_results(finished[0] / "results.json")[0]
    scores = scores_of(finished[0])
    for name in ("verification/mAP", "matching/mAP", "retrieval/mAP"):
        assert 0.0 < scores[name] < 1.0
        assert 0.0 < scores[f"{name}_vl"] <= 1.0
    assert entry["benchmark"] == "hpatches"
    assert entry["method"]["descriptor"] == "rootsift"
    assert entry["protocol"]["sequences"] == ["i_table", "v_boat", "v_wall"]
    assert len(entry["protocol"]["missing"]) == 113
    assert not entry["protocol"]["official"]
    per_scene = [s["matching/mAP"] for s in entry["per_scene"].values()]
    assert scores["matching/mAP"] == pytest.approx(np.mean(per_scene))
    levels = [scores[f"matching/{level}/mAP"] for level in ("easy", "hard", "tough")]
    assert levels[0] >= levels[1] > levels[2]
    assert scores["matching/mAP"] == pytest.approx(np.mean(levels))
    six = [scores[f"verification/{lv}/{k}/mAP"] for lv in ("easy", "hard", "tough") for k in ("inter", "intra")]
    assert scores["verification/mAP"] == pytest.approx(np.mean(six))
    assert scores["retrieval/mAP"] == pytest.approx(scores["retrieval/mean/mAP@20000"])


def test_the_tables_are_printed_by_noise_level(finished):
    text = finished[1]
    for words in (
        "verification/mAP",
        "inter AP",
        "illumination",
        "retrieval, pool",
        "3 of 116 sequences of split full",
    ):
        assert words in text


def test_written_csv_scores_the_same(finished, strips, tmp_path, capsys):
    folder = finished[0] / "csv" / "rootsift"
    assert sorted(p.name for p in (folder / "v_wall").iterdir()) == sorted(f"{t}.csv" for t in TYPES)
    assert run("--data", strips, "--csv", folder, "--out", tmp_path / "a", "--pairs", 300) == 0
    assert scores_of(tmp_path / "a") == scores_of(finished[0])
    # Without strips retrieval cannot be drawn; the rest is the same.
    assert run("--csv", folder, "--out", tmp_path / "b", "--pairs", 300) == 0
    scores = scores_of(tmp_path / "b")
    assert scores["retrieval/mAP"] is None
    assert scores["matching/mAP"] == scores_of(finished[0])["matching/mAP"]
    assert scores["verification/mAP"] == scores_of(finished[0])["verification/mAP"]
    assert "give --data or --tasks" in capsys.readouterr().out


def test_one_sequence_gives_null_with_the_reason(strips, tmp_path, capsys):
    assert run("--data", strips / "v_wall", "--desc", "rootsift", "--out", tmp_path / "r", "--pairs", 100) == 0
    entry = read_results(tmp_path / "r" / "results.json")[0]
    for name in ("verification/mAP", "retrieval/mAP", "verification/easy/inter/mAP"):
        assert entry["scores"][name] == {"value": None, "ci95": None, "n": 0}
        assert "one sequence" in entry["protocol"]["not_measured"][name]
    assert entry["scores"]["verification/easy/intra/mAP"]["value"] > 0.5
    assert entry["scores"]["matching/mAP"]["value"] > 0.1
    assert "not measured (–)" in capsys.readouterr().out


def test_task_files_are_used_when_present(strips, tmp_path):
    counts = {name: count_patches(strips / name) for name in COUNTS}
    test = ["i_table", "v_boat", "v_wall"]
    folder = tmp_path / "tasks"
    official.write_verification(tasks.draw_verification(test, counts, 300), folder, "full")
    low = {name: np.zeros(n, bool) for name, n in counts.items()}
    official.write_retrieval(tasks.draw_retrieval(test, counts, low, 13), folder, "full")
    common = ("--data", strips, "--desc", "rootsift", "--cache", tmp_path / "cache")
    assert run(*common, "--tasks", folder, "--out", tmp_path / "a") == 0
    assert run(*common, "--pairs", 300, "--out", tmp_path / "b") == 0
    first, second = (read_results(tmp_path / n / "results.json")[0] for n in "ab")
    assert first["protocol"]["verification"] == {"source": "files", "rows": 300, "rows_used": 300}
    assert first["scores"] == second["scores"]


def test_rows_of_absent_sequences_are_left_out(strips, tmp_path):
    sequences = [*official_test("full")[:5], "v_wall", "i_table"]
    counts = {name: 12 for name in sequences}
    official.write_verification(tasks.draw_verification(sequences, counts, 2000), tmp_path / "tasks", "full")
    args = ("--data", strips, "--desc", "rootsift", "--tasks", tmp_path / "tasks", "--task", "verification")
    assert run(*args, "--out", tmp_path / "r") == 0
    protocol = read_results(tmp_path / "r" / "results.json")[0]["protocol"]["verification"]
    assert protocol["rows"] == 2000
    assert 0 < protocol["rows_used"] < 500


def test_splits_pick_their_sequences(strips, tmp_path, capsys):
    args = ("--data", strips, "--desc", "rootsift", "--task", "matching", "--cache", tmp_path / "cache")
    assert run(*args, "--split", "view", "--out", tmp_path / "v") == 0
    assert read_results(tmp_path / "v" / "results.json")[0]["protocol"]["sequences"] == ["v_boat", "v_wall"]
    assert "2 of 59 sequences of split view" in capsys.readouterr().out
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "v_wall").symlink_to(strips / "v_wall")
    (tmp_path / "more" / "my_house").symlink_to(strips / "v_boat")
    assert run("--data", tmp_path / "more", *args[2:], "--out", tmp_path / "m") == 0
    assert "1 of 116 sequences of split full are there, with 1 others" in capsys.readouterr().out


def test_normalised_variants(strips, tmp_path, capsys):
    # Split a tests some of these and trains on others.
    for name in ("i_table", "i_melon", "v_boat", "v_abstract"):
        target = tmp_path / "data" / name
        target.mkdir(parents=True)
        for strip in TYPES:
            source = strips / ("i_table" if name[0] == "i" else "v_boat") / f"{strip}.png"
            write_strip(target / f"{strip}.png", read_strip(source))
    args = ["--data", tmp_path / "data", "--desc", "rootsift", "--task", "matching", "--split", "a"]
    assert run(*args, "--normalise", "none", "zca:0.2", "--out", tmp_path / "r") == 0
    assert [e["method"]["descriptor"] for e in read_results(tmp_path / "r" / "results.json")] == [
        "rootsift",
        "rootsift_zca:0.2",
    ]
    protocol = read_results(tmp_path / "r" / "results.json")[1]["protocol"]
    assert set(protocol["normalised_on"]) == {"i_melon", "v_boat"}
    assert set(protocol["sequences"]) == {"i_table", "v_abstract"}
    fails(capsys, 2, "only splits a, b and c", *args[:-1], "full", "--normalise", "pcapl")
    fails(capsys, 2, "expected zca:SHARE", *args, "--normalise", "zca:2")
    fails(capsys, 2, "--normalise pcapll", *args, "--normalise", "pcapll")


def test_faults_are_one_clear_line(strips, finished, tmp_path, capsys):
    out = ("--out", tmp_path / "r")
    fails(capsys, 2, "--data DIR is needed", "--desc", "rootsift", *out)
    fails(capsys, 1, "is not a folder", "--data", tmp_path / "nowhere", "--desc", "rootsift", *out)
    fails(capsys, 1, "no sequence of split a", "--data", strips / "v_wall", "--split", "a", "--desc", "rootsift", *out)
    fails(capsys, 2, "twice", "--data", strips, "--desc", "rootsift", "rootsift", *out)
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(capsys, 1, "holds no folder with strips", "--data", empty, "--desc", "rootsift", *out)
    fails(capsys, 1, "no task files of split full", "--data", strips, "--desc", "rootsift", "--tasks", empty, *out)
    csv = finished[0] / "csv" / "rootsift"
    wrong = tmp_path / "wrong"
    for name in COUNTS:
        (wrong / name).mkdir(parents=True)
        for strip in TYPES:
            lines = (csv / name / f"{strip}.csv").read_text().splitlines()
            (wrong / name / f"{strip}.csv").write_text("\n".join(lines[:-1]) + "\n")
    fails(capsys, 1, "13 descriptors for 14 patches", "--data", strips, "--csv", wrong, *out, "--task", "matching")


@pytest.mark.slow
def test_the_demo_needs_no_data(tmp_path):
    args = ("--data", "demo", "--desc", "rootsift", "--pairs", 2000, "--cache", tmp_path / "cache")
    assert run(*args, "--out", tmp_path / "a") == 0
    (folder,) = (tmp_path / "home" / "kornia-hardnet8").iterdir()
    made = (folder / "v_hall" / "ref.png").stat().st_mtime_ns
    assert run(*args, "--out", tmp_path / "b") == 0
    assert (folder / "v_hall" / "ref.png").stat().st_mtime_ns == made
    first, second = (read_results(tmp_path / n / "results.json")[0] for n in "ab")
    assert first["scores"] == second["scores"]
    assert first["dataset"]["name"] == "demo"
    scores = scores_of(tmp_path / "a")
    levels = [scores[f"matching/{level}/mAP"] for level in ("easy", "hard", "tough")]
    assert levels[0] > levels[1] > levels[2] > 0.02
    assert 0.3 < scores["verification/mAP"] < 1.0
    assert 0.3 < scores["retrieval/mAP"] < 1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: write_strip(f / "h2.png", read_strip(f / "h2.png")[:-1]), "h2.png holds 11 patches, ref.png 12"),
        (lambda f: (f / "t5.png").unlink(), "t5.png is not there: a sequence has the 16 strips"),
        (lambda f: (f / "ref.png").unlink(), "ref.png is not there: a sequence has the 16 strips"),
        (lambda f: cv2.imwrite(str(f / "e1.png"), np.zeros((768, 64), np.uint8)), "e1.png is 64 x 768 pixels"),
    ],
)
def test_damaged_strips_are_one_clear_line(strips, tmp_path, capsys, damage, message):
    shutil.copytree(strips / "v_wall", tmp_path / "data" / "v_wall")
    damage(tmp_path / "data" / "v_wall")
    fails(capsys, 1, message, "--data", tmp_path / "data", "--desc", "rootsift", "--out", tmp_path / "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda t: t.replace(",", ";", 1), "holds ',' and ';': expected numbers and one delimiter"),
        (lambda t: t.replace(",", "."), "ref.csv"),
        (lambda t: "nan" + t[t.index(",") :], "line 1, column 1 is not a finite number"),
        (lambda t: t[: len(t) // 2], "ref.csv"),
    ],
)
def test_damaged_csv_is_one_clear_line(strips, finished, tmp_path, capsys, text, message):
    shutil.copytree(finished[0] / "csv" / "rootsift", tmp_path / "csv")
    path = tmp_path / "csv" / "v_wall" / "ref.csv"
    path.write_text(text(path.read_text()))
    fails(capsys, 1, message, "--csv", tmp_path / "csv", "--out", tmp_path / "r", "--task", "matching")


def test_a_singular_homography_is_one_clear_line(tmp_path, capsys):
    write_planes(tmp_path / "walls", names=("v_hall",))
    (tmp_path / "walls" / "v_hall" / "H_1_4").write_text("1 2 3\n2 4 6\n0 0 1\n")
    for command, flag in (("hpatches-build", "--sequences"), ("sequences", "--data")):
        assert main([command, flag, str(tmp_path / "walls"), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert "H_1_4: the homography is singular" in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_csv_folders_of_others_are_named_by_their_folder(strips, finished, tmp_path):
    """Semicolons and packed bits, two descriptors side by side."""
    for name, pack in (("theirs", False), ("bits", True)):
        for sequence in COUNTS:
            (tmp_path / name / sequence).mkdir(parents=True)
            for strip in TYPES:
                values = np.loadtxt(finished[0] / "csv" / "rootsift" / sequence / f"{strip}.csv", delimiter=",")
                values = np.packbits(values > 0.05, axis=1) if pack else values
                np.savetxt(
                    tmp_path / name / sequence / f"{strip}.csv", values, fmt="%d" if pack else "%.9g", delimiter=";"
                )
    common = ("--task", "matching", "--out")
    assert run("--csv", tmp_path / "theirs", *common, tmp_path / "a") == 0
    assert run("--csv", tmp_path / "bits", "--packed", "--distance", "L1", *common, tmp_path / "b") == 0
    first, second = (read_results(tmp_path / n / "results.json")[0] for n in "ab")
    assert first["scores"]["matching/mAP"]["value"] == scores_of(finished[0])["matching/mAP"]
    assert first["method"] == {**first["method"], "descriptor": "theirs", "dim": 128}
    assert first["dataset"]["name"] == tmp_path.name
    assert first["dataset"] == second["dataset"]
    assert second["method"]["dim"] == 128
    assert 0.0 < second["scores"]["matching/mAP"]["value"] < 1.0


def test_task_files_of_another_split_or_set_are_refused(strips, tmp_path, capsys):
    counts = {name: count_patches(strips / name) for name in COUNTS}
    folder = tmp_path / "tasks"
    official.write_verification(tasks.draw_verification(["i_table", "v_wall"], counts, 50), folder, "view")
    common = (
        "--data",
        strips,
        "--desc",
        "rootsift",
        "--tasks",
        folder,
        "--task",
        "verification",
        "--out",
        tmp_path / "r",
    )
    fails(capsys, 1, "names sequence 'i_table', which split view does not hold", *common, "--split", "view")
    large = {name: 99 for name in COUNTS}
    official.write_verification(tasks.draw_verification(["v_boat", "v_wall"], large, 50), folder, "view")
    fails(capsys, 1, "task files of other strips?", *common, "--split", "view")
    path = folder / "verif_pos_split-view.csv"
    path.write_text(path.read_text().replace("s1,t1,idx1", "a,b,c"))
    fails(capsys, 1, "the first line is", *common, "--split", "view")


def test_build_makes_strips_that_the_benchmark_takes(tmp_path, capsys):
    write_planes(tmp_path / "walls", names=("v_hall",))
    line = ["hpatches-build", "--sequences", tmp_path / "walls", "--out", tmp_path / "strips", "--patches", 25]
    line += ["--detections", 100]
    assert main([str(part) for part in line]) == 0
    table = capsys.readouterr().out
    assert "calibrated" in table
    folder = tmp_path / "strips" / "v_hall"
    count = count_patches(folder)
    assert 3 < count <= 25
    assert len((folder / "e3.overlaps").read_text().split()) == count
    assert set((folder / "ref.rotjitter").read_text().split()) == {"0"}
    assert np.loadtxt(folder / "H_ref_2").shape == (3, 3)
    assert json.loads((tmp_path / "strips" / "build.json").read_text())["settings"]["max_patches"] == 25
    out = tmp_path / "r"
    assert run("--data", tmp_path / "strips", "--desc", "rootsift", "--out", out, "--task", "matching") == 0
    assert scores_of(out)["matching/easy/mAP"] > 0.5
    assert main([str(part) for part in line]) == 1  # never overwrites
    assert "exists already" in capsys.readouterr().err
