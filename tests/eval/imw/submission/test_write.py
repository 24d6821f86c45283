from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from common.images import read_gray
from eval.cli import main
from eval.core.estimators import EstimatorSettings
from eval.core.matchers import AdalamSettings
from eval.core.matching import MatcherSettings
from eval.features import load_method
from eval.features.detect import DogSettings, detect_dog
from eval.imw.submission.config import PLACEHOLDERS
from eval.imw.submission.findings import Finding
from eval.imw.submission.validate import validate
from eval.imw.submission.write import _pack, keypoint_name, official_geom, official_matcher, official_name
from kornia_hardnet8.errors import UsageError

ROOT = Path(__file__).parents[4]


@pytest.fixture
def raw(corner: Any, tmp_path: Path) -> Path:
    """Two scenes of two datasets, of images alone; names without ``-``."""
    for scene in ("phototourism/one", "pragueparks/two"):
        folder = tmp_path / "raw" / scene
        folder.mkdir(parents=True)
        for image in sorted(corner.images.iterdir())[:3]:
            (folder / image.name.replace("-", "_")).write_bytes(image.read_bytes())
    return tmp_path / "raw"


def submit(raw: Path, out: Path, *flags: str, desc: str = "rootsift", track: str = "2k") -> int:
    line = ["imw-submit", "--data", str(raw), "--desc", desc, "--track", track, "--out", str(out), "--jobs", "1"]
    return main([*line, "--max-iters", "2000", *flags])


def content(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The method and the arrays by file."""
    files = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".h5"):
                with h5py.File(BytesIO(archive.read(name)), "r") as file:
                    files[name] = {key: np.asarray(file[key]) for key in file}
        (method,) = json.loads(archive.read("config.json"))
    return method, files


def faults(out: Path, raw: Path) -> list[Finding]:
    """What the validator finds, but for the placeholders that only an author can fill in."""
    return [finding for finding in validate(out, raw) if finding.kind != "placeholder"]


def test_the_command_makes_what_the_validator_takes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zip"
    line = [sys.executable, "-m", "eval", "imw-submit", "--data", raw, "--desc", "rootsift", "--track", "2k"]
    done = subprocess.run([*line, "--out", out, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "placeholders for authors" in done.stderr
    assert "dog-rootsift-2k, 2 scenes, 6 images" in done.stdout
    assert [f.kind for f in validate(out, raw).errors] == ["placeholder"] * 4  # nothing is handed in with them
    assert faults(out, raw) == []
    method, files = content(out)
    names = ["view_0", "view_1", "view_2"]
    for scene in ("phototourism/one", "pragueparks/two"):
        keypoints, descriptors = files[f"{scene}/keypoints.h5"], files[f"{scene}/descriptors.h5"]
        assert sorted(keypoints) == names
        assert {values.dtype for values in keypoints.values()} == {np.dtype(np.float64)}
        assert {values.dtype for values in descriptors.values()} == {np.dtype(np.float32)}
    gray = read_gray(raw / "phototourism/one/view_0.png")
    found = detect_dog(gray, DogSettings(num=2048))
    np.testing.assert_array_equal(files["phototourism/one/keypoints.h5"]["view_0"], found.xy)
    np.testing.assert_array_equal(files["phototourism/one/scales.h5"]["view_0"], found.size)
    expected = load_method("rootsift").describe_image(gray, found)  # type: ignore[union-attr]
    np.testing.assert_array_equal(files["phototourism/one/descriptors.h5"]["view_0"], expected)
    assert method["metadata"] == PLACEHOLDERS
    assert MatcherSettings.from_official(method["config_phototourism_stereo"]["matcher"]) == MatcherSettings()
    assert method["config_pragueparks_multiview"]["matcher"]["filtering"]["threshold"] == 0.95
    geom = EstimatorSettings.from_official(method["config_pragueparks_stereo"]["geom"])
    assert geom == EstimatorSettings(threshold_px=0.5, confidence=0.999999, max_iters=100_000)


def test_a_second_time_only_reads_the_cache(raw: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert submit(raw, tmp_path / "a.zip", "--cache", str(cache)) == 0
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.h5")}
    assert submit(raw, tmp_path / "b.zip", "--cache", str(cache)) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.h5")} == before
    assert content(tmp_path / "a.zip")[0] == content(tmp_path / "b.zip")[0]


def test_custom_matches_are_the_estimators_inliers(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zip"
    assert submit(raw, out, "--custom-matches") == 0
    assert faults(out, raw) == []
    method, files = content(out)
    assert method["config_phototourism_stereo"]["geom"] == {"method": "cv2-8pt"}
    assert method["config_phototourism_multiview"]["use_custom_matches"] is True
    assert method["config_common"]["json_label"] == "dog-rootsift-custom-2k"
    stereo, multiview = (files[f"phototourism/one/matches_{task}.h5"] for task in ("stereo", "multiview"))
    assert sorted(stereo) == ["view_1-view_0", "view_2-view_0", "view_2-view_1"]
    for key, rows in stereo.items():
        assert rows.dtype == np.int32
        assert rows.shape[0] == 2
        assert 10 < rows.shape[1] < multiview[key].shape[1]
        pairs = {tuple(column) for column in rows.T.tolist()}
        assert len(pairs) == rows.shape[1]


def test_keypoints_of_pairs_are_the_places_of_the_inliers(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    assert submit(raw, tmp_path / "s.zip", "--pairwise-keypoints", *cache) == 2
    assert "give --custom-matches too" in capsys.readouterr().err
    assert submit(raw, tmp_path / "s.zip", "--custom-matches", "--pairwise-keypoints", *cache) == 0
    assert submit(raw, tmp_path / "images.zip", "--custom-matches", *cache) == 0
    found = faults(tmp_path / "s.zip", raw)
    assert [(f.kind, f.level) for f in found] == [("keypoints_of_pairs", "warning")] * 2
    method, files = content(tmp_path / "s.zip")
    assert method["config_common"]["pairwise_keypoints"] is True
    assert method["config_common"]["num_keypoints"] == -1
    assert sorted(key for key in method if key.startswith("config_")) == [
        "config_common",
        "config_phototourism_stereo",
        "config_pragueparks_stereo",
    ]
    assert {name.rpartition("/")[2] for name in files} == {"keypoints.h5", "matches.h5"}
    _, by_image = content(tmp_path / "images.zip")
    keypoints, matches = (by_image[f"phototourism/one/{name}.h5"] for name in ("keypoints", "matches_stereo"))
    for key, rows in matches.items():
        one, two = key.split("-")
        pairs = files["phototourism/one/keypoints.h5"]
        np.testing.assert_array_equal(pairs[f"{one}-{two}"], keypoints[one][rows[0]])
        np.testing.assert_array_equal(pairs[f"{two}-{one}"], keypoints[two][rows[1]])
        assert files["phototourism/one/matches.h5"][key].tolist() == [list(range(rows.shape[1]))] * 2


def test_matchers_of_others_are_handed_in_as_matches(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.zip"
    assert submit(raw, out, "--matcher", "adalam") == 2
    assert "no matcher adalam: with --custom-matches" in capsys.readouterr().err
    assert submit(raw, out, "--estimator", "poselib") == 2
    assert "no estimator poselib" in capsys.readouterr().err
    assert not out.exists()
    assert submit(raw, out, "--matcher", "adalam", "--custom-matches") == 0
    assert [f for f in faults(out, raw) if f.level == "error"] == []


def test_the_category_is_what_the_images_hold(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.zip"
    for scene in ("phototourism/one", "pragueparks/two"):
        for image in (raw / scene).iterdir():
            cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), None, fx=0.4, fy=0.4))
    assert submit(raw, out, track="8k") == 0
    method, files = content(out)
    most = max(len(values) for name, arrays in files.items() if "keypoints" in name for values in arrays.values())
    assert most <= 2048
    assert method["config_common"]["num_keypoints"] == 2048
    assert method["config_common"]["json_label"].endswith("-2k")
    assert "an entry of the 2048 category" in capsys.readouterr().err


def test_metadata_is_taken_or_refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, out = tmp_path / "m.json", tmp_path / "s.zip"
    mine = {**PLACEHOLDERS, "authors": "A. Author", "link_to_pdf": "https://example.org/a.pdf"}
    metadata.write_text(json.dumps(mine))
    assert submit(raw, out, "--metadata", str(metadata)) == 0
    assert "placeholders" not in capsys.readouterr().err
    assert content(out)[0]["metadata"] == mine
    out.unlink()
    for wrong, message in (
        ({**mine, "author": "x"}, "unknown key 'author'"),
        ({"authors": "x"}, "'publish_anonymously' is missing"),
        ([1], "must hold a dictionary"),
    ):
        metadata.write_text(json.dumps(wrong))
        assert submit(raw, out, "--metadata", str(metadata)) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "desc", "message", "code"),
    [
        ((), "h8E512:untrained=true,dim=256", "1024 bytes a descriptor", 2),
        ((), "h7:untrained=true,dim=32", "the benchmark takes 64 to 2048", 2),
        (("--out", "x.tar"), "rootsift", "a submission is a .zip file", 2),
        (("--data", "nowhere"), "rootsift", "folder nowhere is not there", 1),
        ((), "rootsfit", "did you mean rootsift", 2),
    ],
)
def test_what_the_benchmark_does_not_take(
    flags: tuple[str, ...],
    desc: str,
    message: str,
    code: int,
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit(raw, tmp_path / "s.zip", *flags, desc=desc) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.zip")) == []


def test_images_without_keypoints_still_make_a_submission(raw: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(raw / "phototourism/one/view_1.png"), np.full((60, 80), 128, np.uint8))
    assert submit(raw, tmp_path / "s.zip", "--custom-matches") == 0
    assert [f for f in faults(tmp_path / "s.zip", raw) if f.level == "error"] == []
    files = content(tmp_path / "s.zip")[1]
    assert files["phototourism/one/keypoints.h5"]["view_1"].shape == (0, 2)
    assert files["phototourism/one/matches_stereo.h5"]["view_1-view_0"].shape == (2, 0)


def test_names_and_settings_in_official_terms() -> None:
    assert official_name("h8E512") == "h8e512"
    assert official_name("My_Net v1.2") == "my-net-v1.2"
    dog = DogSettings(upright=True)
    assert keypoint_name(load_method("rootsift"), dog) == "dog-upright"
    for settings in (
        MatcherSettings(filter="fginn_ratio_pairwise", threshold=0.8, fginn_radius=10.0, symmetric="any", num_nn=2),
        MatcherSettings(filter="none", threshold=None, symmetric="none", distance="hamming"),
        MatcherSettings(max_distance=0.7),
    ):
        assert MatcherSettings.from_official(official_matcher(settings)) == settings
    with pytest.raises(UsageError, match="no matcher adalam"):
        official_matcher(AdalamSettings())
    for estimator in (
        EstimatorSettings("usac-magsac", 1.0, 0.99, 500),
        EstimatorSettings("degensac", error_type="symm_epipolar", degeneracy_check=False),
    ):
        assert EstimatorSettings.from_official(official_geom(estimator)) == estimator


def test_full_scenes_are_taken_as_images(corner_scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "googleurban"
    folder.mkdir(parents=True)
    (folder / "corner").symlink_to(corner_scene, target_is_directory=True)
    assert submit(tmp_path / "raw", tmp_path / "s.zip") == 0
    assert [f for f in faults(tmp_path / "s.zip", tmp_path / "raw") if f.level == "error"] == []
    method, files = content(tmp_path / "s.zip")
    assert "config_googleurban_stereo" in method
    assert sorted(files["googleurban/corner/keypoints.h5"]) == [f"view_{k}" for k in range(4)]


def test_a_zip_does_not_tell_the_time(tmp_path: Path) -> None:
    for folder, seconds in (("a", 1_700_000_000), ("b", -1_000_000)):  # the second one before 1980
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("[]")
        os.utime(tmp_path / folder / "config.json", (seconds, seconds))
        _pack(tmp_path / folder, tmp_path / f"{folder}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
