from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from eval.cli import main
from eval.imw.submission.config import PLACEHOLDERS, check_method, parse_config
from eval.imw.submission.findings import Finding, Findings
from eval.imw.submission.validate import official_scenes, validate, verdict
from kornia_hardnet8.errors import DataError, MissingFileError
from tests.eval.imw_vector_cases import CASES

ROOT = Path(__file__).parents[4]
KEYPOINTS, DESCRIPTORS = "phototourism/two/keypoints.h5", "phototourism/two/descriptors.h5"
STEREO = "phototourism/two/matches_stereo.h5"


def kinds(findings: Findings) -> list[str]:
    return [finding.kind for finding in findings]


def only(findings: Findings) -> Finding:
    assert len(findings.items) == 1, [str(finding) for finding in findings]
    return findings.items[0]


def test_sound_submissions_are_ready(submission: Any, with_matches: Any, tmp_path: Path) -> None:
    assert kinds(validate(with_matches.pack(tmp_path / "custom"), with_matches.data)) == []


def test_the_command_says_where_and_answers_by_its_exit_code(submission: Any, tmp_path: Path) -> None:
    good = submission.pack(tmp_path / "good")
    submission.files[KEYPOINTS]["img_b"][3, 0] = np.nan
    bad = submission.pack(tmp_path / "bad")
    lines = {}
    for path in (good, bad):
        line = [sys.executable, "-m", "eval", "imw-validate", path, "--data", submission.data]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        lines[path] = (done.returncode, done.stdout.splitlines())
        assert done.stderr == ""
    code, out = lines[good]
    assert code == 0
    assert out[-1].startswith(f"{good}: 0 errors, 0 warnings: no fault in what was checked, but not ready to hand in: ")
    assert "0 of 29 official scenes were checked, phototourism/british_museum was not" in out[-1]
    code, out = lines[bad]
    assert code == 1
    assert "error: phototourism/two/keypoints.h5 [img_b]: 1 numbers are NaN or infinite" in out[0]


def test_ready_is_what_holds_every_official_scene(submission: Any, tmp_path: Path) -> None:
    findings = validate(submission.write(tmp_path / "s"), submission.data)
    assert findings.checked == ["phototourism/one", "phototourism/two"]
    findings.checked = official_scenes()
    assert len(findings.checked) == 29
    assert verdict(findings) == "ready to hand in"
    findings.checked = findings.checked[:-1]
    assert "28 of 29 official scenes were checked, googleurban/zurich was not" in verdict(findings)
    findings.add("config.json", "is missing", "config_missing")
    assert verdict(findings) == "not ready to hand in"


@pytest.mark.parametrize("key", [key for key, value in PLACEHOLDERS.items() if isinstance(value, str)])
def test_placeholders_are_errors(key: str, submission: Any, tmp_path: Path) -> None:
    submission.config[0]["metadata"][key] = PLACEHOLDERS[key]
    finding = only(validate(submission.write(tmp_path / "s"), submission.data))
    assert (finding.kind, finding.level, finding.official) == ("placeholder", "error", False)
    assert f"{key} is {PLACEHOLDERS[key]!r}: fill it in" in finding.message


def test_json_and_official_list(submission: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = submission.pack(tmp_path / "s")
    line = ["imw-validate", str(path), "--data", str(submission.data), "--json"]
    assert main(line) == 0
    assert {entry["level"] for entry in json.loads(capsys.readouterr().out)} <= {"warning"}
    assert main([*line, "--official"]) == 1
    found = json.loads(capsys.readouterr().out)
    missing = [entry["where"] for entry in found if entry["level"] == "error"]
    assert len(missing) == 9 + 3 + 17
    assert "phototourism/british_museum" in missing


def test_a_smaller_category_is_a_warning(submission: Any, tmp_path: Path) -> None:
    submission.config[0]["config_common"]["num_keypoints"] = 8000
    finding = only(validate(submission.write(tmp_path / "s"), submission.data))
    assert finding.level == "warning"
    assert "no image has more than 9" in finding.message


# what is changed -> (kind, where, seen by the official validator)
CHANGES: dict[str, tuple[str, str, bool]] = {
    "nan in descriptors": ("not_finite", f"{DESCRIPTORS} [img_c]", False),
    "infinite score": ("not_finite", "phototourism/two/scores.h5 [img_a]", False),
    "fewer descriptors": ("unequal_counts", f"{DESCRIPTORS} [img_b]", False),
    "fewer scores": ("unequal_counts", "phototourism/two/scores.h5 [img_b]", False),
    "double descriptors": ("descriptors_type", f"{DESCRIPTORS} [img_a]", False),
    "unequal width": ("descriptors_unequal", f"{DESCRIPTORS} [img_b]", False),
    "wide descriptors": ("descriptors_need_matches", f"{DESCRIPTORS} [img_a]", True),
    "outside": ("keypoints_outside", f"{KEYPOINTS} [img_a]", False),
    "second shape": ("keypoints_shape", f"{KEYPOINTS} [img_b]", False),
    "first shape": ("keypoints_shape", f"{KEYPOINTS} [img_a]", True),
    "too many": ("keypoints_too_many", f"{KEYPOINTS} [img_c]", True),
    "missing image": ("keypoints_keys", KEYPOINTS, True),
    "no keypoints": ("keypoints_missing", KEYPOINTS, True),
    "score shape": ("side_shape", "phototourism/two/scores.h5 [img_a]", False),
    "unknown match file": ("unknown_file", "phototourism/two/matches_own.h5", False),
    "texts": ("h5_type", f"{KEYPOINTS} [img_a]", False),
    "first descriptors one number": ("descriptors_shape", "phototourism/one/descriptors.h5 [img_a]", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_fault_is_found_where_it_is(change: str, submission: Any, tmp_path: Path) -> None:
    files = submission.files
    kpts, descs, scores = files[KEYPOINTS], files[DESCRIPTORS], files["phototourism/two/scores.h5"]
    match change:
        case "nan in descriptors":
            descs["img_c"][2, 5] = np.nan
        case "infinite score":
            scores["img_a"][0] = np.inf
        case "fewer descriptors":
            descs["img_b"] = descs["img_b"][:-1]
        case "fewer scores":
            scores["img_b"] = scores["img_b"][:-1]
        case "double descriptors":
            descs |= {name: values.astype(np.float64)[:, :64] for name, values in descs.items()}
        case "unequal width":
            descs["img_b"] = descs["img_b"][:, :100]
        case "wide descriptors":
            descs |= {name: np.tile(values, 2) for name, values in descs.items()}
        case "outside":
            kpts["img_a"][1] = [70, 10]
        case "second shape":
            kpts["img_b"] = np.zeros((9, 4))
        case "first shape":
            kpts["img_a"] = np.zeros((7, 4))
        case "too many":
            kpts["img_c"] = np.random.default_rng(0).uniform(0, 39, (8001, 2))
            descs["img_c"] = np.zeros((8001, 128), np.float32)
            scores["img_c"] = np.zeros(8001)
        case "missing image":
            del kpts["img_a"]
        case "no keypoints":
            del files[KEYPOINTS]
        case "score shape":
            scores["img_a"] = np.zeros((7, 2))
        case "unknown match file":
            files["phototourism/two/matches_own.h5"] = {"img_b-img_a": np.zeros((2, 0), np.int32)}
        case "first descriptors one number":
            files["phototourism/one/descriptors.h5"]["img_a"] = np.float32(1)
        case "texts":
            kpts["img_a"] = np.array([b"x", b"y"])
    found = [f for f in validate(submission.write(tmp_path / "s"), submission.data) if f.kind == CHANGES[change][0]]
    _, where, official = CHANGES[change]
    assert [(f.where, f.official) for f in found] == [(where, official)]


def test_matches_are_checked_against_keypoints_and_pairs(with_matches: Any, tmp_path: Path) -> None:
    matches = with_matches.files[STEREO]
    matches["img_b-img_a"] = np.array([[0, 1], [2, 7]], np.int32)  # img_a has 7 keypoints
    matches["img_c-img_a"] = np.array([[0, -1], [2, 1]], np.int32)
    matches["img_c-img_b"] = np.array([[1, 1], [2, 2]], np.int32)
    found = {f.kind: f for f in validate(with_matches.write(tmp_path / "s"), with_matches.data)}
    assert set(found) == {"matches_index", "matches_repeated"}
    assert found["matches_index"].where == f"{STEREO} [img_b-img_a]"
    assert "indices 2 … 7, but img_a has 7 keypoints (and 1 more of 3 entries)" in found["matches_index"].message
    assert found["matches_repeated"].level == "warning"
    with_matches.files[STEREO] = {pair: values.astype(float) for pair, values in matches.items()}
    assert "matches_type" in kinds(validate(with_matches.write(tmp_path / "floats"), with_matches.data))
    with_matches.files[STEREO] = {"img_b-img_a": matches["img_b-img_a"]}
    assert "matches_key_count" in kinds(validate(with_matches.write(tmp_path / "few"), with_matches.data))


def test_configuration_and_files_must_agree(with_matches: Any, tmp_path: Path) -> None:
    config = with_matches.config[0]
    builtin = json.loads(json.dumps(config))
    del with_matches.files[STEREO]
    del with_matches.files["phototourism/two/matches_multiview.h5"]
    found = validate(with_matches.write(tmp_path / "no-files"), with_matches.data)
    assert {(f.kind, f.where) for f in found} == {("custom_without_files", "phototourism/two")}
    config["config_common"]["num_keypoints"] = 8
    found = validate(with_matches.write(tmp_path / "few"), with_matches.data)
    assert "num_keypoints" in kinds(found)
    assert builtin["config_phototourism_stereo"]["use_custom_matches"]


def test_scores_are_needed_where_keypoints_must_be_left_out(submission: Any, tmp_path: Path) -> None:
    submission.config[0]["config_common"]["num_keypoints"] = 8
    assert kinds(validate(submission.write(tmp_path / "with"), submission.data)) == []
    del submission.files["phototourism/two/scores.h5"]
    del submission.files["phototourism/one/scores.h5"]
    found = only(validate(submission.write(tmp_path / "without"), submission.data))
    assert (found.kind, found.where) == ("scores_missing", "phototourism/one/scores.h5")


def test_descriptors_are_needed_where_nothing_is_matched_yet(with_matches: Any, tmp_path: Path) -> None:
    with_matches.config[0]["config_phototourism_stereo"] = _builtin("stereo")
    with_matches.config[0]["config_phototourism_multiview"] = _builtin("multiview")
    del with_matches.files[DESCRIPTORS]
    found = validate(with_matches.write(tmp_path / "s"), with_matches.data)
    assert {(f.kind, f.where) for f in found.errors} == {("descriptors_unmatched", DESCRIPTORS)}
    assert {f.kind for f in found if f.level == "warning"} == {"matches_unused"}


def _builtin(task: str) -> dict[str, Any]:
    config: dict[str, Any] = CASES["submission_valid_base_challenge"]["inputs"]["config"]
    return dict(config[f"config_phototourism_{task}"])


def test_hamming_needs_binary_descriptors(submission: Any, tmp_path: Path) -> None:
    for task in ("stereo", "multiview"):
        submission.config[0][f"config_phototourism_{task}"]["matcher"]["distance"] = "Hamming"
    submission.config[0]["config_common"]["num_keypoints"] = 8
    found = validate(submission.write(tmp_path / "s"), submission.data)
    assert {f.kind for f in found} == {"distance_dtype"}
    assert {f.level for f in found} == {"error"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[{]", "config_parse"),
        ('{"a": 1}', "config_list"),
        ("[NaN]", "config_parse"),
        ("[" * 100_000, "config_parse"),
        ('[{"config_common": 1, "config_common": 2}]', "config_parse"),
        ("[1]", "schema"),
        ("[]", "config_methods"),
        ('[{"config_common": null}]', "value"),
    ],
)
def test_configurations_that_do_not_read(text: str, kind: str, submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    (folder / "config.json").write_text(text)
    assert kind in kinds(validate(folder, submission.data))
    (folder / "config.json").write_bytes(b"\xff\xfe")
    assert "config_parse" in kinds(validate(folder, submission.data))


def test_a_folder_in_the_zip_is_named(submission: Any, tmp_path: Path) -> None:
    submission.write(tmp_path / "outer" / "mine")
    found = validate(tmp_path / "outer", submission.data)
    assert any("it lies in mine/" in finding.message for finding in found)


def test_two_methods_are_one_too_many(submission: Any, tmp_path: Path) -> None:
    submission.config = submission.config * 2
    assert "config_methods" in kinds(validate(submission.write(tmp_path / "s"), submission.data))


def test_links_and_foreign_data_in_h5_files_are_not_followed(submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((7, 2))
    with h5py.File(folder / KEYPOINTS, "a") as file:
        for name in ("img_a", "img_b", "img_c"):
            del file[name]
        file["img_a"] = h5py.ExternalLink(str(secret), "x")
        (tmp_path / "raw").write_bytes(bytes(9 * 16))
        file.create_dataset("img_b", (9, 2), "f8", external=[(str(tmp_path / "raw"), 0, 9 * 16)])
        layout = h5py.VirtualLayout((8, 2), "f8")
        layout[:7] = h5py.VirtualSource(str(secret), "x", (7, 2))
        file.create_virtual_dataset("img_c", layout)
    found = [f for f in validate(folder, submission.data) if f.where.startswith(KEYPOINTS)]
    assert {f.kind for f in found} == {"h5_link", "keypoints_empty"}


def test_huge_entries_and_groups_are_refused_unread(submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    with h5py.File(folder / KEYPOINTS, "a") as file:
        del file["img_a"], file["img_b"]
        file.create_dataset("img_a", (1 << 40, 2), "f8", chunks=(1 << 16, 2), compression="gzip")
        file["img_b/inner"] = np.zeros((9, 2))
    found = {f.kind for f in validate(folder, submission.data) if f.where.startswith(KEYPOINTS)}
    assert found == {"h5_huge", "h5_group", "keypoints_keys"}


@pytest.mark.parametrize("damage", [50, 900])
def test_damaged_h5_files_are_findings(damage: int, submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    content = (folder / DESCRIPTORS).read_bytes()
    (folder / DESCRIPTORS).write_bytes(content[:damage])
    found = [f for f in validate(folder, submission.data) if f.where.startswith(DESCRIPTORS)]
    assert [f.kind for f in found] == ["descriptors_damaged"]


def test_a_chunk_that_does_not_decode_is_a_finding(submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    with h5py.File(folder / KEYPOINTS, "a") as file:
        del file["img_b"]
        file.create_dataset("img_b", data=np.random.default_rng(0).uniform(0, 39, (9, 2)), compression="gzip")
        start = file["img_b"].id.get_chunk_info(0).byte_offset
    content = bytearray((folder / KEYPOINTS).read_bytes())
    content[start : start + 20] = bytes(20)
    (folder / KEYPOINTS).write_bytes(content)
    found = [f for f in validate(folder, submission.data) if f.kind == "h5_damaged"]
    assert [f.where for f in found] == [f"{KEYPOINTS} [img_b]"]


def test_data_that_is_none_is_one_line(submission: Any, tmp_path: Path) -> None:
    path = submission.pack(tmp_path / "s")
    with pytest.raises(MissingFileError):
        validate(path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="DATASET is one of"):
        validate(path, tmp_path / "empty")
    (submission.data / "phototourism/one/img_b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="does not decode"):
        validate(path, submission.data)
    (submission.data / "phototourism/one/img_b.png").rename(submission.data / "phototourism/one/img-b.png")
    with pytest.raises(DataError, match="holds '-'"):
        validate(path, submission.data)


def test_unknown_folders_are_named(submission: Any, tmp_path: Path) -> None:
    folder = submission.write(tmp_path / "s")
    (folder / "phototourism" / "three").mkdir()
    (folder / "notes.txt").write_text("x")
    found = validate(folder, submission.data)
    assert {(f.where, f.kind) for f in found if f.kind in ("not_checked", "unknown_file")} == {
        ("phototourism/three", "not_checked"),
        ("notes.txt", "unknown_file"),
    }


def test_commas_that_the_official_reader_deletes_are_told(submission: Any, tmp_path: Path) -> None:
    submission.config[0]["metadata"]["method_description"] = "matches [a,b,]"
    assert "config_comma" in kinds(validate(submission.write(tmp_path / "s"), submission.data))
    assert parse_config("[1, /* two, ] */ 2, // three\n]") == [1, 2]


def test_rules_of_the_challenge_are_warnings() -> None:
    config = json.loads(json.dumps(CASES["submission_valid_base_challenge"]["inputs"]["config"]))
    config["config_phototourism_stereo"]["geom"]["max_iter"] = 200_000
    findings = Findings()
    check_method(config, True, findings)
    assert [(f.kind, f.level) for f in findings] == [("rules", "warning")]
    config["config_phototourism_stereo"]["geom"]["degeneracy_check"] = False
    findings = Findings()
    check_method(config, True, findings)
    assert kinds(findings) == []
    config["config_phototourism_stereo"]["geom"] = {"method": "cv2-ransac-e", "threshold": 1, "confidence": 0.9}
    findings = Findings()
    check_method(config, True, findings)
    assert kinds(findings) == ["rules"]


def test_keypoints_of_pairs(submission: Any, tmp_path: Path) -> None:
    common = submission.config[0]["config_common"]
    common |= {"pairwise_keypoints": True, "num_keypoints": -1}
    custom = {"use_custom_matches": True, "custom_matches_name": "own", "geom": {"method": "cv2-8pt"}}
    submission.config[0]["config_phototourism_stereo"] = custom
    del submission.config[0]["config_phototourism_multiview"]
    rng = np.random.default_rng(0)
    pairs = ("img_b-img_a", "img_c-img_a", "img_c-img_b")
    submission.files = {}
    for scene in ("phototourism/one", "phototourism/two"):
        both = [*pairs, *("-".join(pair.split("-")[::-1]) for pair in pairs)]
        submission.files[f"{scene}/keypoints.h5"] = {key: rng.uniform(0, 39, (5, 2)) for key in both}
        rows = np.tile(np.arange(5, dtype=np.int32), (2, 1))
        submission.files[f"{scene}/matches.h5"] = dict.fromkeys(pairs, rows)
    good = validate(submission.write(tmp_path / "good"), submission.data)
    assert kinds(good) == ["keypoints_of_pairs"] * 2
    assert good.errors == []
    submission.files[f"{scene}/keypoints.h5"]["img_a-img_c"] = rng.uniform(0, 39, (4, 2))
    (finding,) = validate(submission.write(tmp_path / "bad"), submission.data).errors
    assert (finding.kind, finding.where) == ("matches_index", "phototourism/two/matches.h5 [img_c-img_a]")


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_findings_or_one_error(seed: int, submission: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    folder = submission.write(tmp_path / "s")
    path = folder / KEYPOINTS
    sound = path.read_bytes()
    for _ in range(15):
        content = bytearray(sound)
        for place in rng.integers(0, len(sound), rng.choice([1, 5, 30])):
            content[place] = int(rng.integers(256))
        path.write_bytes(content)
        for finding in validate(folder, submission.data):
            assert "\n" not in str(finding)
