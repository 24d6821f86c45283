"""The real command on a rendered yard: poses against the truth, files, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from common.colmap import load_pycolmap
from common.geometry import relative_pose
from common.images import read_gray
from common.metrics import evaluate_R_t
from eval.cli import main
from eval.core.multiview_metrics import bag_pose_errors
from eval.core.trajectory import align, camera_centre
from eval.features.detect import DogSettings, detect_dog
from eval.reconstruct.describe import move_lafs
from eval.reconstruct.photos import compose, enlarging
from eval.reconstruct.pipeline import reconstruct
from eval.reconstruct.settings import CameraSettings, ReconstructSettings
from kornia_hardnet8.errors import DataError, UsageError

ROOT = Path(__file__).parents[3]
QUICK = ["--desc", "rootsift", "--keypoints", "600", "--cameras", "single"]
FOCAL = 400.0


@pytest.fixture(scope="module")
def finished(yard, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of the real command: folder and stdout."""
    out = tmp_path_factory.mktemp("runs") / "yard"
    done = subprocess.run(
        [sys.executable, "-m", "eval", "reconstruct", yard.images, *QUICK, "--out", out],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("6 photograph(s) without a focal length in EXIF (bild 0.jpg, ")
    assert line.endswith("1.2 times the longer side is assumed and refined")  # --cameras single is given
    return out, done.stdout


def poses_of(model: pycolmap.Reconstruction) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for index in model.reg_image_ids():
        pose = model.image(index).cam_from_world()
        found[model.image(index).name] = (pose.rotation.matrix(), pose.translation)
    return found


def rotation_error_deg(found: dict[str, Any], true: dict[str, Any]) -> float:
    """Largest error of a relative rotation; infinite with an image that has no pose."""
    errors = bag_pose_errors(list(true), found, true)
    return float(np.rad2deg(max(rotation for rotation, _ in errors.values())))


def centre_error(found: dict[str, Any], true: dict[str, Any]) -> float:
    """Largest distance of an aligned camera centre to its true place."""
    one, two = (np.array([camera_centre(*poses[name]) for name in found]) for poses in (found, true))
    return float(np.linalg.norm(align(one, two)(one) - two, axis=1).max())


def test_poses_and_focal_length_are_those_of_the_scene(yard, finished: tuple[Path, str]) -> None:
    model = pycolmap.Reconstruction(finished[0] / "sparse" / "0")
    found = poses_of(model)
    assert found.keys() == yard.poses.keys()
    assert rotation_error_deg(found, yard.poses) < 0.5
    assert centre_error(found, yard.poses) < 0.05  # of 9 m
    (camera,) = model.cameras.values()
    assert camera.focal_length == pytest.approx(FOCAL, rel=0.02)
    assert model.compute_mean_reprojection_error() < 0.5


def test_the_database_holds_our_keypoints_in_colmaps_pixels(yard, finished: tuple[Path, str]) -> None:
    with pycolmap.Database.open(finished[0] / "database.db") as database:
        images = {image.name: image.image_id for image in database.read_all_images()}
        assert set(images) == set(yard.poses)
        assert database.num_frames() == len(images)
        for name, index in images.items():
            kept = detect_dog(read_gray(yard.images / name), DogSettings(num=600, select="matchability"))
            rows = database.read_keypoints(index)
            np.testing.assert_allclose(rows[:, :2], kept.xy + 0.5, atol=1e-3)
            scales = np.sqrt(np.linalg.det(rows[:, 2:].reshape(-1, 2, 2)))
            np.testing.assert_allclose(scales, kept.size / 2, rtol=1e-3)
        assert database.num_matched_image_pairs() == 15
        matches = database.read_matches(*sorted(images.values())[:2])
        assert 0 < matches.max() < 600


def test_summary_table_and_picture(finished: tuple[Path, str]) -> None:
    out, printed = finished
    summary = json.loads((out / "summary.json").read_text())
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    (entry,) = summary["models"]
    assert entry["registered"] == 6
    assert entry["points"] == model.num_points3D()
    assert entry["mean_track_length"] == pytest.approx(model.compute_mean_track_length())
    assert entry["mean_reprojection_error_px"] == pytest.approx(model.compute_mean_reprojection_error())
    assert summary["complete"] is True
    assert summary["not_registered"] == []
    assert summary["settings"]["detector"]["num"] == 600
    assert summary["pairs"]["matched"] == 15
    assert set(summary["seconds"]) == {"describe", "pairs", "match", "verify", "map"}
    line = printed.splitlines()[1].split()
    assert line[:3] == ["sparse/0", "6/6", str(entry["points"])]
    assert cv2.imread(str(out / "model.png")).std() > 10
    assert printed.splitlines()[-1] == f"page to open: {out / 'model.html'}"
    page = (out / "model.html").read_text(encoding="utf-8")
    assert f"6 of 6 photographs, {entry['points']:,} points" in page
    assert f"element vertex {entry['points']}\n".encode() in (out / "points.ply").read_bytes()


def test_a_second_run_reads_the_cache_and_gives_the_same_bytes(
    yard, finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[0]
    names = [f"sparse/0/{name}.bin" for name in ("cameras", "images", "points3D")]
    before = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*.h5")}
    content = [(out / name).read_bytes() for name in names]
    assert main(["reconstruct", str(yard.images), *QUICK, "--out", str(out), "--json", "--no-picture"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["registered"] == 6
    assert {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*.h5")} == before
    assert [(out / name).read_bytes() for name in names] == content


def test_two_threads_give_the_same_bytes(yard, finished: tuple[Path, str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the first run had one
    try:
        assert main(["reconstruct", str(yard.images), *QUICK, "--out", str(tmp_path / "out"), "--no-picture"]) == 0
    finally:
        torch.set_num_threads(threads)
    for name in ("cameras", "images", "points3D"):
        model = Path("sparse", "0", f"{name}.bin")
        assert (tmp_path / "out" / model).read_bytes() == (finished[0] / model).read_bytes()


def test_given_intrinsics_stay(yard, finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["reconstruct", str(yard.images), *QUICK, "--out", str(out), "--cache", str(finished[0] / "cache")]
    given = ["--focal", "400", "--no-refine", "--camera-model", "SIMPLE_PINHOLE"]
    assert main([*line, *given, "--no-picture", "--undistort"]) == 0
    assert sorted(path.name for path in (out / "undistorted" / "images").iterdir())[0] == "bild 0.jpg"
    (camera,) = pycolmap.Reconstruction(out / "sparse" / "0").cameras.values()
    assert camera.model_name == "SIMPLE_PINHOLE"
    assert camera.params.tolist() == [400.0, 192.0, 144.0]
    assert not (out / "model.png").exists()
    assert not (out / "model.html").exists()
    found = poses_of(pycolmap.Reconstruction(out / "sparse" / "0"))
    assert rotation_error_deg(found, yard.poses) < 0.3
    assert centre_error(found, yard.poses) < 0.03


def test_turned_photographs_are_seen_upright_and_reconstructed_as_stored(
    yard, finished: tuple[Path, str], tmp_path: Path
) -> None:
    """Two photographs are stored turned by a quarter, as telephones do: upright features still match."""
    images = Path(shutil.copytree(yard.images, tmp_path / "images"))
    quarter = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # stored x = upright y, stored y = -upright x
    true = dict(yard.poses)
    for name in ("bild 1.jpg", "bild 2.jpg"):
        upright = Image.open(images / name)
        stored = upright.transpose(Image.Transpose.ROTATE_90)
        exif = stored.getexif()
        exif[0x0112] = 6
        stored.save(images / name, quality=95, exif=exif)
        assert stored.size == (288, 384)
        true[name] = (quarter @ true[name][0], quarter @ true[name][1])
    out = tmp_path / "out"
    line = ["reconstruct", str(images), "--desc", "rootsift", "--keypoints", "600", "--upright", "--focal", "400"]
    assert main([*line, "--out", str(out), "--no-picture"]) == 0
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert model.num_reg_images() == 6
    assert rotation_error_deg(poses_of(model), true) < 0.5
    assert centre_error(poses_of(model), true) < 0.05


def test_a_list_of_pairs_and_images_without_matches(
    yard, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(yard.images, tmp_path / "images"))
    noise = np.random.default_rng(0).integers(0, 255, (288, 384), dtype=np.uint8)
    cv2.imwrite(str(images / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    cv2.imwrite(str(images / "blank.png"), np.full((100, 150), 128, np.uint8))
    (images / "broken.jpg").write_bytes((images / "bild 0.jpg").read_bytes()[:300])
    Image.new("1", (15_000, 14_000)).save(images / "huge.png")
    mirrored = Image.open(images / "bild 0.jpg")
    mirrored.getexif()[0x0112] = 2
    mirrored.save(images / "mirrored.jpg", exif=mirrored.getexif())
    names = ["bild 0.jpg", "bild 1.jpg", "bild 2.jpg", "bild 3.jpg", "noise.png", "blank.png", "broken.jpg"]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{a} {b}\n" for k, a in enumerate(names) for b in names[k + 1 :]))
    out = tmp_path / "out"
    line = ["reconstruct", str(images), "--desc", "rootsift", "--keypoints", "600", "--focal", "400"]
    assert main([*line, "--out", str(out), "--pairs", str(pairs), "--no-picture"]) == 0
    captured = capsys.readouterr()
    assert "left out: image" in captured.err
    assert "broken.jpg" in captured.err
    assert "huge.png has 15000 x 14000 pixels, at most 200 million are read" in captured.err
    assert "mirrored.jpg is stored mirrored (EXIF orientation 2)" in captured.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"]["unreadable"] == ["broken.jpg", "huge.png", "mirrored.jpg"]
    assert summary["pairs"]["matched"] == 15
    assert summary["models"][0]["registered"] == 4
    assert set(summary["not_registered"]) == {
        "noise.png", "blank.png", "zweite Straße/bild 4.jpg", "zweite Straße/bild 5.jpg",
    }  # fmt: skip
    assert "not in sparse/0: blank.png" in captured.out
    assert "unreadable: broken.jpg, huge.png, mirrored.jpg" in captured.out
    with pycolmap.Database.open(out / "database.db") as database:
        assert database.num_images() == 8


def test_two_photographs_make_a_model(yard, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in (1, 3):
        shutil.copy(yard.images / f"bild {k}.jpg", images / f"{k}.jpg")
    line = ["reconstruct", str(images), "--desc", "rootsift", "--keypoints", "1500", "--focal", "400"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    assert model.num_reg_images() == 2
    assert model.num_points3D() > 100
    poses = {image.name: image.cam_from_world() for image in (model.image(i) for i in model.reg_image_ids())}
    relative = poses["3.jpg"] * poses["1.jpg"].inverse()
    true = relative_pose(*yard.poses["bild 1.jpg"], *yard.poses["bild 3.jpg"])
    assert np.degrees(max(evaluate_R_t(*true, relative.rotation.matrix(), relative.translation))) < 2.0


def test_formats_that_colmap_does_not_read_are_converted(
    yard, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for k, name in enumerate(("a.jpg", "below/b.webp", "c.webp")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "c.webp":
            (images / name).write_bytes(b"RIFF")
        elif name.endswith("webp"):
            image = Image.open(yard.images / f"bild {2 * k + 1}.jpg")
            image.getexif()[0x0112] = 1
            image.save(images / name, lossless=True, exif=image.getexif())
        else:
            shutil.copy(yard.images / "bild 1.jpg", images / name)
    flags = ["--desc", "rootsift", "--keypoints", "1500", "--undistort"]
    assert main(["reconstruct", str(images), *flags, "--out", str(out)]) == 0
    captured = capfd.readouterr()
    assert "2 photograph(s) without a focal length in EXIF (a.jpg, below/b.webp.jpg)" in captured.err
    assert "--cameras single lets them share it" in captured.err
    assert "left out: image" in captured.err
    assert "unreadable: c.webp" in captured.out
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert {model.image(i).name for i in model.reg_image_ids()} == {"a.jpg", "below/b.webp.jpg"}
    difference = read_gray(out / "converted/below/b.webp.jpg").astype(int) - read_gray(images / "below/b.webp")
    assert np.abs(difference).mean() < 1.5
    assert Image.open(out / "converted/below/b.webp.jpg").getexif()[0x0112] == 1
    assert (out / "undistorted/images/below/b.webp.jpg").is_file()
    assert sorted(p.name for p in images.rglob("*.*")) == ["a.jpg", "b.webp", "c.webp"]
    assert main(["reconstruct", str(out / "converted"), *flags, "--out", str(out / "again"), "-q"]) == 0
    shutil.copy(images / "below/b.webp", out / "converted/d.webp")
    assert main(["reconstruct", str(out / "converted"), *flags, "--out", str(out)]) == 2
    assert "choose another --out" in capfd.readouterr().err
    assert (out / "converted/d.webp").is_file()


def test_colmap_says_nothing_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.webp")
    quiet = load_pycolmap()
    quiet.Database.open(tmp_path / "a.db").close()
    quiet.import_images(tmp_path / "a.db", tmp_path, quiet.CameraMode.AUTO, ["a.webp"])
    assert capfd.readouterr().err == ""


def test_python_takes_plain_strings(yard, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(yard.images / "bild 1.jpg", tmp_path / "images")
    with pytest.raises(DataError, match="at least 2 readable photographs, got 1"):
        reconstruct(str(tmp_path / "images"), "rootsift", str(tmp_path / "out"), pairs_file=str(tmp_path / "pairs.txt"))
    with pytest.raises(UsageError, match="did you mean rootsift"):
        reconstruct(str(tmp_path / "images"), "rootsfit", str(tmp_path / "out"))


def fault(kind: str, yard, folder: Path) -> tuple[list[str], int, str]:
    """Arguments, exit code and message of one kind of bad input."""
    images, out = folder / "images", folder / "out"
    images.mkdir()
    one, two = (yard.images / f"bild {k}.jpg" for k in (0, 1))
    shutil.copy(one, images / "one.jpg")
    base = [str(images), "--desc", "rootsift", "--keypoints", "100", "--out", str(out)]
    if kind == "single image":
        return base, 1, "at least 2 readable photographs, got 1"
    if kind == "no folder":
        return [str(folder / "no"), *base[1:]], 1, "folder"
    if kind == "video":
        (folder / "walk.mp4").touch()
        return [str(folder / "walk.mp4"), *base[1:]], 1, "ffmpeg -i"
    if kind == "unknown feature":
        return [*base, "--desc", "rootsfit"], 2, "did you mean rootsift"
    if kind == "strange out":
        (out / "sparse").mkdir(parents=True)
        (out / "summary.json").write_text('{"format": "of another tool"}')
        return base, 2, "not from this command"
    if kind == "no model":
        noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
        cv2.imwrite(str(images / "noise.png"), noise)
        return [*base, "--focal", "400"], 1, "no model: 0 of 1 pairs"
    if kind == "little parallax":  # a camera that only turns
        K = np.array([[400.0, 0, 191.5], [0, 400.0, 143.5], [0, 0, 1]])
        turned = K @ cv2.Rodrigues(np.array([0.0, 0.1, 0.05]))[0] @ np.linalg.inv(K)
        cv2.imwrite(
            str(images / "turned.png"), cv2.warpPerspective(cv2.imread(str(images / "one.jpg")), turned, (384, 288))
        )
        return (
            [*base, "--focal", "400", "--keypoints", "1500"],
            1,
            "too little parallax, or one flat thing alone",
        )
    shutil.copy(two, images / "two.jpg")
    if kind == "mixed sizes":
        cv2.imwrite(str(images / "small.png"), np.zeros((30, 40), np.uint8))
        return [*base, "--cameras", "single"], 1, "one.jpg is 384 x 288 and small.png is 40 x 30"
    if kind == "parameters":
        return [*base, "--camera-params", "400,192"], 2, "SIMPLE_RADIAL has the parameters f, cx, cy, k; got 2"
    if kind == "no numbers":
        return [*base, "--camera-params", "f,cx"], 2, "expected numbers"
    assert kind == "pairs"
    (folder / "pairs.txt").write_text("one.jpg three.jpg\n")
    return [*base, "--pairs", str(folder / "pairs.txt")], 1, "no image 'three.jpg'"


@pytest.mark.parametrize(
    "kind",
    [
        "single image", "no folder", "video", "unknown feature", "strange out", "no model", "little parallax",
        "mixed sizes", "parameters", "no numbers", "pairs",
    ],
)  # fmt: skip
def test_bad_input_is_one_line(kind: str, yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, message = fault(kind, yard, tmp_path)
    assert main(["reconstruct", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out" / "sparse" / "0").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["reconstruct", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "out is a file, a folder is needed" in capsys.readouterr().err


def test_python_and_the_command_have_the_same_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "somewhere", "--out", "x", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert {name: config[name] for name in ReconstructSettings().to_dict()} == ReconstructSettings().to_dict()


def test_settings(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reconstruct", "somewhere", "--out", "x", "--keypoints", "123", "--matcher", "mnn", "--max-side", "900"]
    assert main([*line, "--camera-model", "OPENCV", "--cameras", "per-image", "--seed", "5", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["detector"]["num"] == 123
    assert config["matcher"]["filter"] == "none"
    assert (config["max_side_px"], config["seed"]) == (900, 5)
    assert (config["camera"]["model"], config["camera"]["mode"]) == ("OPENCV", "per-image")
    for wrong in ({"model": "OPENCVX"}, {"focal_px": 0.0}, {"params": (1.0, 2.0, 3.0, 0.0), "focal_px": 3.0}):
        with pytest.raises(UsageError):
            CameraSettings(**wrong)
    for wrong in ({"seed": -1}, {"max_side_px": 3}, {"num_threads": -2}):
        with pytest.raises(UsageError):
            ReconstructSettings(**wrong)


def test_points_of_a_shrunk_image_return_to_their_place() -> None:
    there = np.array([[0.5, 0, 0.25 - 0.5], [0, 0.25, 0.125 - 0.5]])  # s (x + 0.5) - 0.5
    np.testing.assert_allclose(compose(enlarging((0.5, 0.25)), there), [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    lafs = torch.tensor([[[2.0, 0.0, 10.0], [0.0, 2.0, 20.0]]])
    moved = move_lafs(lafs, enlarging((0.5, 0.25)))
    assert moved.tolist() == [[[4.0, 0.0, 20.5], [0.0, 8.0, 81.5]]]
