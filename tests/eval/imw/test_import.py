from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common.cache import Cache
from common.images import read_bgr
from eval.cli import main
from eval.core.matching import MatcherSettings
from eval.core.pairs import match_pairs
from eval.features import load_method
from eval.features.detect import DogSettings
from eval.features.extract import extract
from eval.features.imported import write_imported
from eval.imw.import_features import import_hloc, import_submission
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoSettings, describe_scene
from eval.imw.submission.files import check_scene
from eval.imw.submission.findings import Findings
from kornia_hardnet8.errors import DataError

NUM = 150


@pytest.fixture(scope="module")
def described(corner_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Features and matches of a scene by our own pipeline, which others hand in."""
    scene, cache = open_scene(corner_scene), Cache(tmp_path_factory.mktemp("cache"))
    method = load_method("rootsift")
    features = describe_scene(scene, method, StereoSettings(detector=DogSettings(num=NUM)), cache)
    matched = match_pairs(scene.pairs(), features, MatcherSettings(), cache)
    return scene, features, matched.by_pair()


def run_imw(data: Path, token: str, out: Path, *flags: str) -> dict[str, Any]:
    line = ["imw", "--data", str(data), "--desc", token, "--task", "stereo", "--out", str(out), "--jobs", "1"]
    line += ["--keypoints", str(NUM), "--viz", "0", "-q", *flags]
    line += [] if "8pt" in flags else ["--max-iters", "2000"]
    assert main(line) == 0
    entry: dict[str, Any] = json.loads((out / "results.json").read_text())["results"][0]
    return entry


def write_hloc(folder: Path, described: Any, **changes: Any) -> tuple[Path, Path]:
    """``features.h5`` and ``matches.h5`` as hloc writes them."""
    scene, features, matches = described
    files = {name: f"images/{scene.images[name].name}" for name in features}
    with h5py.File(folder / "features.h5", "w") as file:
        for name, found in features.items():
            group = file.create_group(files[name])
            group["keypoints"] = found.keypoints.xy.astype(changes.get("dtype", np.float32))
            group["descriptors"] = found.descs.numpy().T
            group["scores"] = found.keypoints.response
    with h5py.File(folder / "matches.h5", "w") as file:
        for (one, two), rows in matches.items():
            targets = np.full(len(features[one].keypoints), -1, np.int16)
            targets[rows[:, 0]] = rows[:, 1]
            pair = f"{files[one].replace('/', '-')}/{files[two].replace('/', '-')}"
            file[f"{pair}/matches0"] = targets
    return folder / "features.h5", folder / "matches.h5"


def test_features_of_hloc_score_as_where_they_were_made(
    described: Any, corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, matches = write_hloc(tmp_path, described)
    line = ["imw-import", "--data", str(corner_scene), "--features", str(features), "--matches", str(matches)]
    assert main([*line, "--out", str(tmp_path / "own.h5")]) == 0
    out = capsys.readouterr().out
    assert f"4 images with at most {NUM} keypoints, matches of 6 pairs" in out
    assert "--matcher imported" in out
    own = run_imw(corner_scene, "rootsift", tmp_path / "a")
    token = f"imported@{tmp_path / 'own.h5'}"
    imported = run_imw(corner_scene, token, tmp_path / "b", "--matcher", "imported")
    again = run_imw(corner_scene, token, tmp_path / "c")
    for entry in (imported, again):
        for ours, theirs in zip(own["per_pair"], entry["per_pair"], strict=True):
            assert theirs["num_matches"] == ours["num_matches"]
            assert (theirs["error_deg"] is None) == (ours["error_deg"] is None)
    assert again["scores"] == own["scores"]
    assert imported["method"]["detector"] == {"detector": "imported", "num": NUM}


def test_a_submission_comes_back(described: Any, corner_scene: Path, tmp_path: Path) -> None:
    scene, *_ = described
    data = tmp_path / "raw" / "phototourism"
    data.mkdir(parents=True)
    (data / "corner").symlink_to(scene.root / "images", target_is_directory=True)
    zip_path, imported = tmp_path / "s.zip", tmp_path / "s.h5"
    line = ["imw-submit", "--data", str(tmp_path / "raw"), "--desc", "rootsift", "--track", "2k", "--jobs", "1", "-q"]
    assert main([*line, "--custom-matches", "--max-iters", "2000", "--out", str(zip_path)]) == 0
    assert main(["imw-import", "--data", str(corner_scene), "--submission", str(zip_path), "--out", str(imported)]) == 0
    found = load_method(f"imported@{imported}")
    name = next(iter(scene.images))
    image = read_bgr(scene.images[name])
    again = extract(image, found, DogSettings(num=2048), Cache(tmp_path / "cache"))
    direct = extract(image, load_method("rootsift"), DogSettings(num=2048), Cache(tmp_path / "cache"))
    for column in ("xy", "size", "angle", "response"):
        np.testing.assert_array_equal(getattr(again.keypoints, column), getattr(direct.keypoints, column))
    assert torch.equal(again.descs, direct.descs)


def test_keypoints_of_pairs_score_as_the_same_matches_of_images(
    described: Any, corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, *_ = described
    data = tmp_path / "raw" / "phototourism"
    data.mkdir(parents=True)
    (data / "corner").symlink_to(scene.root / "images", target_is_directory=True)
    line = ["imw-submit", "--data", str(tmp_path / "raw"), "--desc", "rootsift", "--track", "2k", "--jobs", "1", "-q"]
    line += ["--custom-matches", "--max-iters", "2000", "--cache", str(tmp_path / "cache")]
    entries = []
    for name, flags in (("images", []), ("pairs", ["--pairwise-keypoints"])):
        zip_path, imported = tmp_path / f"{name}.zip", tmp_path / f"{name}.h5"
        assert main([*line, *flags, "--out", str(zip_path)]) == 0
        given = ["--data", str(corner_scene), "--submission", str(zip_path), "--out", str(imported)]
        assert main(["imw-import", *given]) == 0
        flags = ["--matcher", "imported", "--estimator", "8pt", "--keypoints", "8000"]
        entries.append(run_imw(corner_scene, f"imported@{imported}", tmp_path / name, *flags))
    assert "--matcher imported --task stereo" in capsys.readouterr().out
    rows = [[(pair["pair"], pair["num_matches"], pair["error_deg"]) for pair in e["per_pair"]] for e in entries]
    assert rows[0] == rows[1]
    assert entries[0]["scores"]["stereo/mAA@10"]["value"] > 0.1


def test_the_strongest_are_kept_where_nothing_is_matched(described: Any, tmp_path: Path) -> None:
    scene, features, _ = described
    path, _ = write_hloc(tmp_path, described)
    found = import_hloc(path, None, [scene])
    write_imported(tmp_path / "f.h5", found.images, {})
    name = next(iter(scene.images))
    image = read_bgr(scene.images[name])
    keypoints, descs = load_method(f"imported@{tmp_path / 'f.h5'}").detect_and_describe(image, 20)
    order = np.argsort(-features[name].keypoints.response, kind="stable")[:20]
    np.testing.assert_array_equal(keypoints.xy, features[name].keypoints.xy[order])
    assert torch.equal(descs, features[name].descs[torch.from_numpy(order)])
    with pytest.raises(DataError, match="holds nothing of this 30 x 20 image"):
        load_method(f"imported@{tmp_path / 'f.h5'}").detect_and_describe(np.zeros((20, 30), np.uint8), 20)


def test_matches_forbid_to_leave_keypoints_out(described: Any, tmp_path: Path) -> None:
    scene, *_ = described
    features, matches = write_hloc(tmp_path, described)
    found = import_hloc(features, matches, [scene])
    write_imported(tmp_path / "f.h5", found.images, found.matches)
    image = read_bgr(next(iter(scene.images.values())))
    with pytest.raises(DataError, match="--keypoints must be at least that"):
        load_method(f"imported@{tmp_path / 'f.h5'}").detect_and_describe(image, NUM - 1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no image", "holds nothing of the image 'view_2'"),
        ("nan", "not finite"),
        ("counts", "descriptors .* for 150 keypoints"),
        ("columns", r"expected \(N, 2\)"),
        ("index", "does not fit"),
        ("no matches", "holds no <image 0>/<image 1>/matches0"),
        ("no matches0", "matches0' is not there"),
        ("matches0 of a batch", r"matches0, int16 \(1, 150\), does not fit"),
        ("matches0 of floats", r"matches0, float32 \(150,\), does not fit"),
        ("group", "scores' is a group"),
        ("width", "unequal width"),
        ("cut", "damaged or no HDF5 file"),
    ],
)
def test_faults_of_hloc_files_are_one_line(
    fault: str, message: str, described: Any, corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, matches = write_hloc(tmp_path, described)
    with h5py.File(features, "a") as file, h5py.File(matches, "a") as pairs:
        group = file["images/view_2.png"]
        pair = next(iter(pairs))
        other = next(iter(pairs[pair]))
        if fault == "no image":
            del file["images/view_2.png"]
        elif fault == "nan":
            group["keypoints"][3] = np.nan
        elif fault == "counts":
            del group["descriptors"]
            group["descriptors"] = np.zeros((128, 149), np.float32)
        elif fault == "columns":
            del group["keypoints"]
            group["keypoints"] = np.zeros(150)
        elif fault == "index":
            pairs[f"{pair}/{other}/matches0"][0] = 1000
        elif fault == "no matches0":
            pairs.move(f"{pair}/{other}/matches0", f"{pair}/{other}/matches1")
        elif fault.startswith("matches0 of"):
            targets = pairs[f"{pair}/{other}/matches0"][()]
            del pairs[f"{pair}/{other}/matches0"]
            pairs[f"{pair}/{other}/matches0"] = targets[None] if "batch" in fault else targets + np.float32(0.5)
        elif fault == "group":
            del group["scores"]
            group.create_group("scores")
        elif fault == "no matches":
            for name in list(pairs):
                del pairs[name]
        elif fault == "width":
            del group["descriptors"]
            group["descriptors"] = np.zeros((64, 150), np.float32)
    if fault == "cut":
        features.write_bytes(features.read_bytes()[:3000])
    line = ["imw-import", "--data", str(corner_scene), "--features", str(features), "--matches", str(matches)]
    assert main([*line, "--out", str(tmp_path / "own.h5")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert not (tmp_path / "own.h5").exists()


def test_half_precision_is_told(described: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, _ = write_hloc(tmp_path, described, dtype=np.float16)
    with caplog.at_level("WARNING"):
        import_hloc(features, None, [described[0]])
    assert "half precision" in caplog.text


def test_folders_of_hloc_are_part_of_the_names_in_a_scene(described: Any, tmp_path: Path) -> None:
    """``imw-scene`` makes ``view_2`` of ``view/2.png``; ``query/view/2.png`` would be ``query_view_2``."""
    scene, kept, _ = described
    features, _ = write_hloc(tmp_path, described)
    with h5py.File(features, "a") as file:
        file.move("images/view_2.png", "view/2.png")
        file["query/view/2.png/keypoints"] = np.zeros((3, 2), np.float32)
    found = import_hloc(features, None, [scene])
    assert [len(image.keypoints) for image in found.images.values()] == [len(f.keypoints) for f in kept.values()]


def test_links_in_hloc_files_are_not_followed(described: Any, tmp_path: Path) -> None:
    features, _ = write_hloc(tmp_path, described)
    (tmp_path / "other").mkdir()
    other, _ = write_hloc(tmp_path / "other", described)
    with h5py.File(features, "a") as file:
        del file["images/view_2.png"]["keypoints"]
        file["images/view_2.png"]["keypoints"] = h5py.ExternalLink(str(other), "images/view_2.png/keypoints")
    with pytest.raises(DataError, match=r"view_2\.png/keypoints' is a link"):
        import_hloc(features, None, [described[0]])


def test_descriptors_that_cannot_be_handed_in_are_scored(described: Any, tmp_path: Path) -> None:
    scene, features, _ = described
    wide = {name: np.tile(f.descs.numpy(), (1, 4)).astype(np.float16) for name, f in features.items()}
    with h5py.File(tmp_path / "keypoints.h5", "w") as keypoints, h5py.File(tmp_path / "descriptors.h5", "w") as descs:
        for name, found in features.items():
            keypoints[name], descs[name] = found.keypoints.xy, wide[name]
    found = import_submission(tmp_path, [scene])
    for image, expected in zip(found.images.values(), wide.values(), strict=True):
        assert image.descs is not None and image.descs.shape[1] == 512
        np.testing.assert_array_equal(image.descs, expected.astype(np.float32))
    findings = Findings()
    check_scene(tmp_path, "corner", sorted(scene.images), findings)
    assert {finding.kind for finding in findings.errors} >= {"descriptors_type", "descriptors_need_matches"}


def test_a_submission_with_a_fault_is_refused_with_its_place(described: Any, tmp_path: Path) -> None:
    scene, features, _ = described
    with h5py.File(tmp_path / "keypoints.h5", "w") as file:
        for name, found in features.items():
            file[name] = found.keypoints.xy
    with h5py.File(tmp_path / "descriptors.h5", "w") as file:
        for name, found in features.items():
            file[name] = found.descs.numpy()[:-1]
    with pytest.raises(DataError, match=r"^[^:]*: [^:]*descriptors\.h5 \[view_0\]: 149 rows, but 150 keypoints"):
        import_submission(tmp_path, [scene])


def test_wrong_usage_of_the_command(tmp_path: Path, corner_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["imw-import", "--data", str(corner_scene), "--out", str(tmp_path / "x.h5")]
    assert main(line) == 2
    assert main([*line, "--submission", "a.zip", "--matches", "b.h5"]) == 2
    assert main(["imw", "--data", str(corner_scene), "--desc", "imported", "--out", str(tmp_path)]) == 2
    assert "imported@FILE.h5" in capsys.readouterr().err
