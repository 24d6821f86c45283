"""``eval match`` on rendered photographs whose geometry is known."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.geometry import epipolar_squared, essential_from_pose, relative_pose
from common.metrics import evaluate_R_t
from eval.cli import main

ROOT = Path(__file__).parents[3]
K = np.array([[400.0, 0, 191.5], [0, 400.0, 143.5], [0, 0, 1]])
CALIBRATED = ["--estimator", "poselib-e", "--camera-params", "400,192,144,0"]
QUICK = ["--desc", "rootsift", "--keypoints", "600"]
ONE, TWO = "bild 1.jpg", "bild 2.jpg"


def true_fundamental(yard, one: str, two: str) -> NDArray[np.float64]:
    dR, dt = relative_pose(*yard.poses[one], *yard.poses[two])
    return np.linalg.inv(K).T @ essential_from_pose(dR, dt) @ np.linalg.inv(K)


def within(report: dict[str, Any], F: NDArray[np.float64], limit_px: float) -> float:
    """Share of the inliers near the true epipolar lines."""
    rows = np.array(report["inliers"])
    return float((np.sqrt(epipolar_squared(rows[:, :2], rows[:, 2:], F) / 2) < limit_px).mean())


def as_json(capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    assert main(["match", *line, *QUICK, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_matching_that_looks_at_the_neighbours(yard, capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, str(yard.images / ONE), str(yard.images / TWO), "--matcher", "adalam")
    assert report["matcher"] == "adalam"
    assert within(report, true_fundamental(yard, ONE, TWO), 3.0) > 0.9
    assert main(["match", str(yard.images / ONE), str(yard.images / TWO), *QUICK, "--matcher", "lightglue"]) == 1
    assert "sift_lightglue.pth" in capsys.readouterr().err


def test_a_half_turn_has_the_homography_of_a_half_turn(
    yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(yard.images / ONE) as image:
        width, height = image.size
        image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png")
    line = [str(yard.images / ONE), str(tmp_path / "turned.png"), "--homography"]

    def corner(*flags: str) -> NDArray[np.float64]:
        H = np.array(as_json(capsys, *line, *flags)["model"]["matrix"])
        return H[:2, 2] / H[2, 2]

    np.testing.assert_allclose(corner(), [width - 1, height - 1], atol=0.05)
    np.testing.assert_allclose(corner("--places", "imw2020"), [width - 0.5, height - 0.5], atol=0.1)


def test_the_command(yard, tmp_path: Path) -> None:
    picture = tmp_path / "m.png"
    done = subprocess.run(
        [sys.executable, "-m", "eval", "match", yard.images / ONE, yard.images / TWO, *QUICK, "--out", picture],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "keypoints: 600, 600"
    assert int(lines[1].removeprefix("matches: ")) > 100
    assert lines[2].endswith("of a fundamental matrix (degensac, 1 px)")
    assert lines[3] == f"picture: {picture}"
    assert lines[4] == f"page to open: {picture.with_suffix('.html')}"
    image = cv2.imread(str(picture))
    assert image.shape[1] > 700
    assert image.std() > 10


def test_inliers_lie_on_the_true_lines_and_on_those_of_the_model(yard, capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, str(yard.images / ONE), str(yard.images / TWO))
    assert report["num_inliers"] == len(report["inliers"]) > 100
    assert report["num_matches"] >= report["num_inliers"]
    assert within(report, true_fundamental(yard, ONE, TWO), 1.0) > 0.95
    assert within(report, np.array(report["model"]["matrix"]), 1.5) == 1.0
    assert as_json(capsys, str(yard.images / ONE), str(yard.images / TWO)) == report


def test_coordinates_are_those_of_the_full_upright_image(
    yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second photograph is stored turned by a quarter; features are found at 300 of 384 pixels."""
    stored = Image.open(yard.images / TWO).transpose(Image.Transpose.ROTATE_90)
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    report = as_json(capsys, str(yard.images / ONE), str(tmp_path / "turned.jpg"), "--upright", "--max-side", "300")
    assert report["num_inliers"] > 60
    assert within(report, true_fundamental(yard, ONE, TWO), 1.5) > 0.9
    assert within(report, np.array(report["model"]["matrix"]), 2.0) == 1.0


def pose_error_deg(yard, report: dict[str, Any]) -> float:
    pose = report["pose"]
    return math.degrees(max(evaluate_R_t(*relative_pose(*yard.poses[ONE], *yard.poses[TWO]), pose["R"], pose["t"])))


@pytest.mark.parametrize("method", ["poselib-e", "cv2-ransac-e", "usac-magsac-e"])
def test_calibrated_photographs_have_a_pose(method: str, yard, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(yard.images / ONE), str(yard.images / TWO), "--estimator", method, "--camera-params", "400,192,144,0"]
    line += ["--select", "response"]
    report = as_json(capsys, *line)
    assert pose_error_deg(yard, report) < 1.5
    assert pose_error_deg(yard, as_json(capsys, *line[:2], *line[4:])) < 1.5  # E is what calibrations are given for
    assert report["model"]["kind"] == "essential matrix"
    assert report["cameras"][0] == {"model": "SIMPLE_RADIAL", "params": [400, 192, 144, 0], "source": "given"}
    F = np.linalg.inv(K).T @ np.array(report["model"]["matrix"]) @ np.linalg.inv(K)
    assert within(report, F, 1.5) == 1.0
    assert main(["match", *line, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert f"of an essential matrix ({method.removeprefix('cv2-')}, 1 px)" in printed
    assert "pose: turned by " in printed


def test_focal_lengths_of_exif_and_photographs_stored_turned(
    yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, turned in ((ONE, False), (TWO, True)):
        image = Image.open(yard.images / name)
        stored = image.transpose(Image.Transpose.ROTATE_90) if turned else image
        exif = stored.getexif()
        exif[0x0112] = 6 if turned else 1
        exif.get_ifd(0x8769)[0xA405] = 36  # 35 mm equivalent; the diagonal of 480 px is 43.27 mm: 399.4 px
        stored.save(tmp_path / name, quality=95, exif=exif)
    line = [str(tmp_path / ONE), str(tmp_path / TWO), "--estimator", "poselib-e"]
    report = as_json(capsys, *line)
    assert pose_error_deg(yard, report) < 1.5
    assert [camera["source"] for camera in report["cameras"]] == ["EXIF", "EXIF"]
    assert report["cameras"][1]["params"] == pytest.approx([399.4, 144, 192], abs=1)
    assert report["pose"]["parallax_deg"] > 2


def test_a_camera_that_only_turns_is_said_so(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = cv2.imdecode(np.frombuffer((yard.images / ONE).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    R = cv2.Rodrigues(np.array([0.02, 0.15, 0.05]))[0]
    cv2.imwrite(str(tmp_path / "turned.png"), cv2.warpPerspective(image, K @ R @ np.linalg.inv(K), (384, 288)))
    line = [str(yard.images / ONE), str(tmp_path / "turned.png"), "--estimator", "poselib-e"]
    assert main(["match", *line, "--camera-params", "400,192,144,0", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "pose: turned by 9." in printed  # |(0.02, 0.15, 0.05)| = 9.1 degrees
    assert "little parallax" in printed
    assert main(["match", *line, *QUICK]) == 2
    assert "EXIF has no focal length" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--ratio", "0.8"], ["--matcher", "snn", "--homography"], ["--matcher", "mnn"], CALIBRATED]
)
def test_the_page_holds_the_matches_and_what_the_ratio_left_out(yard, tmp_path: Path, flags: list[str]) -> None:
    images = [str(yard.images / name) for name in (ONE, TWO)]
    assert main(["match", *images, *QUICK, *flags, "--out", str(tmp_path / "m.png")]) == 0
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    at, ratios, errors = (unpacked(data[name], "<f4") for name in ("at", "ratios", "errors"))
    at, agrees = at.reshape(-1, 4), unpacked(data["agrees"], "u1").astype(bool)
    matches, inliers = (
        int(n.replace(",", "")) for n in re.search(r"([\d,]+) matches; ([\d,]+) inliers", page).groups()
    )
    of_the_run = ratios <= (data["ratio"] or 1.0) + 1e-6
    assert of_the_run.sum() == matches
    assert agrees[of_the_run].sum() == inliers
    assert len(np.unique(at, axis=0)) == len(at)
    if "mnn" in flags:
        assert data["ratio"] is None
        assert of_the_run.all()
    else:
        assert (~of_the_run).sum() > 20
        assert (agrees == (errors <= data["threshold"]))[~of_the_run].all()
    if data["fundamental"] is not None:
        F = np.array(data["fundamental"])
        np.testing.assert_allclose(np.sqrt(epipolar_squared(at[:, :2], at[:, 2:], F) / 2), errors, atol=2e-2, rtol=1e-2)


def unpacked(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_homography(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = cv2.imdecode(np.frombuffer((yard.images / ONE).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    H = np.array([[0.9, 0.1, 20.0], [-0.08, 0.95, 15.0], [1e-4, 5e-5, 1.0]])
    cv2.imwrite(str(tmp_path / "warped.png"), cv2.warpPerspective(image, H, (384, 288)))
    report = as_json(capsys, str(yard.images / ONE), str(tmp_path / "warped.png"), "--homography")
    found = np.array(report["model"]["matrix"])
    corners = np.array([[0, 0, 1], [383, 0, 1], [383, 287, 1], [0, 287, 1.0]])
    there, expected = corners @ found.T, corners @ H.T
    assert np.abs(there[:, :2] / there[:, 2:] - expected[:, :2] / expected[:, 2:]).max() < 1.0


def test_a_plane_is_said_to_be_one(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = cv2.imdecode(np.frombuffer((yard.images / ONE).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    H = np.array([[0.9, 0.1, 20.0], [-0.08, 0.95, 15.0], [1e-4, 5e-5, 1.0]])
    cv2.imwrite(str(tmp_path / "warped.png"), cv2.warpPerspective(image, H, (384, 288)))
    for other, flat in ((tmp_path / "warped.png", True), (yard.images / "bild 3.jpg", False)):
        assert main(["match", str(yard.images / ONE), str(other), *QUICK]) == 0
        assert ("these agree with one homography too" in capsys.readouterr().out) == flat
    # the pose of a flat thing that two cameras look at
    R, t, normal = cv2.Rodrigues(np.array([0.0, 0.4, 0.0]))[0], np.array([-0.4, 0.02, 0.08]), np.array([0.1, 0.0, 1.0])
    H = K @ (R + np.outer(t, normal)) @ np.linalg.inv(K)
    cv2.imwrite(str(tmp_path / "moved.png"), cv2.warpPerspective(image, H, (384, 288)))
    line = [str(yard.images / ONE), str(tmp_path / "moved.png"), "--camera-model", "SIMPLE_PINHOLE"]
    line += ["--camera-params", "400,192,144"]
    assert main(["match", *line, *QUICK]) == 0
    assert "a plane can allow a second pose" in capsys.readouterr().out
    report = as_json(capsys, *line)
    assert report["is_flat"] is True
    angle = np.trace(np.array(report["pose"]["R"]) @ R.T)
    assert np.degrees(np.arccos(min(1.0, (angle - 1) / 2))) < 1
    assert np.array(report["pose"]["t"]) @ t / np.linalg.norm(t) > np.cos(np.radians(3))


def test_unrelated_and_blank_photographs_are_said_so(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((100, 150), 99, np.uint8))
    assert main(["match", str(yard.images / ONE), str(tmp_path / "noise.png"), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "unrelated photographs" in printed or "inliers: none" in printed
    picture = tmp_path / "m.png"
    assert main(["match", str(yard.images / ONE), str(tmp_path / "blank.png"), *QUICK, "--out", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "matches: 0"
    assert lines[2].startswith("inliers: none; no fundamental matrix")
    assert picture.is_file()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--out", "m.jpg"], 2, "written as .png"),
        (["--desc", "rootsfit"], 2, "did you mean rootsift"),
        (["--max-side", "3"], 2, "at least 32"),
        (["--ratio", "3"], 2, "threshold in [0.1, 1.01]"),
        (["--ratio", "0.8", "--matcher", "mnn"], 2, "--ratio has no effect with --matcher mnn"),
        (["--homography", "--estimator", "ransac"], 2, "--estimator has no effect with --homography"),
        (["--homography", "--threshold", "2"], 2, "--threshold has no effect with --homography"),
        (["--homography", "--confidence", "0.9"], 2, "--confidence has no effect with --homography"),
        (["--homography", "--max-iters", "10"], 2, "--max-iters has no effect with --homography"),
        (["--homography", "--inliers", "model"], 2, "--inliers has no effect with --homography"),
        (["--homography", "--seed", "1"], 2, "--seed has no effect with --homography"),
        (["--homography", "--camera-params", "1,2,3,4"], 2, "--camera-params has no effect with --homography"),
        (["--estimator", "lmeds", "--threshold", "2"], 2, "--threshold has no effect with --estimator lmeds"),
        (["--estimator", "8pt", "--confidence", "0.9"], 2, "--confidence has no effect with --estimator 8pt"),
        (["--estimator", "7pt", "--threshold", "2"], 2, "--threshold has no effect with --estimator 7pt"),
        (["--estimator", "poselib", "--inliers", "published"], 2, "--inliers has no effect"),
        (["--estimator", "cv2-ransac-f", "--seed", "1"], 2, "--seed has no effect with --estimator ransac"),
        (["--estimator", "degensac", "--camera-params", "1,2,3,4"], 2, "no effect with an estimator of F"),
        (["--estimator", "poselib-e", "--camera-model", "PINHOLE"], 2, "no effect without --camera-params"),
        (["--estimator", "poselib-e", "--camera-params", "1,2"], 2, "f, cx, cy, k; got 2 numbers"),
        (["--estimator", "poselib-e"], 2, "EXIF has no focal length"),
    ],
)
def test_wrong_usage_is_one_line(
    flags: list[str], code: int, message: str, yard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["match", str(yard.images / ONE), str(yard.images / TWO), *QUICK, *flags]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_bad_photographs_are_one_line(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = (yard.images / ONE).read_bytes()
    (tmp_path / "head.jpg").write_bytes(photo[:200])
    (tmp_path / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    for name, message in (
        ("head.jpg", "does not decode"),
        ("cut.jpg", "is cut short"),
        ("none.jpg", "is not there"),
    ):
        picture = tmp_path / "m.png"
        assert main(["match", str(yard.images / ONE), str(tmp_path / name), *QUICK, "--out", str(picture)]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert not picture.exists()
