"""The commands as typed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, UsageError
from train.cli import main
from train.stores.info import correlations, describe, write_sheet
from train.stores.writer import create_store

ROOT = Path(__file__).parents[3]


def _run(*args: object, limit_blocks: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", *map(str, args)]
    if limit_blocks is not None:
        command = ["bash", "-c", f'ulimit -f {limit_blocks}; exec "$@"', "bash", *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def colmap_store(scene, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("commands") / "colmap"
    done = _run("build", "colmap", "--images", scene.images, "--model", scene.model, "--out", out, "--num-workers", 0)
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout
    assert "left out:" in done.stderr
    return out


def test_build_says_how_it_was_made(colmap_store) -> None:
    meta = json.loads((colmap_store / "meta.json").read_text())
    assert meta["built"]["command"] == "build colmap"
    assert meta["built"]["min_track"] == 2
    assert str(colmap_store.parent) not in json.dumps(meta)  # a store names no other file's place


def test_full_disk_leaves_nothing(scene, tmp_path: Path) -> None:
    line = ["build", "colmap", "--images", scene.images, "--model", scene.model, "--num-workers", 0]
    done = _run(*line, "--out", tmp_path / "s", limit_blocks=64)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_photos_merge_info_sheet(textures, colmap_store, tmp_path: Path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for seed in (1, 2):
        cv2.imwrite(str(tmp_path / "photos" / f"{seed}.png"), textures(240, 320, seed=seed, finest=1.5))
    out = str(tmp_path / "p")
    line = ["build", "photos", str(tmp_path / "photos"), "--out", out, "--exclude", "2.*", "--num-workers", "0"]
    assert main([*line, "--views", "3", "--max-labels", "50"]) == 0
    assert main(["merge", out, str(colmap_store), "--out", str(tmp_path / "m"), "--same-place", out]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "m"), "--json", "--sheet", str(tmp_path / "sheet.png"), "--rows", "6"]) == 0
    facts, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    both = [PatchStore.open(out), PatchStore.open(colmap_store)]
    assert facts["patches"] == sum(map(len, both))
    assert facts["optional arrays"] == ["frames", "place_ids"]
    assert facts["correlation, one label"] > facts["correlation, different labels"] + 0.3
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (6 * 67 + 3, 8 * 67 + 3, 3)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (
            ["build", "colmap", "--images", "no/where", "--model", "x", "--out", "{}/s"],
            1,
            "image folder no/where is not",
        ),
        (
            ["build", "colmap", "--images", ".", "--model", "x", "--out", "{}/s", "--descriptor", "sift"],
            2,
            "--descriptor has no effect with --model x",
        ),
        (["build", "photos", "no/where", "--out", "{}/s"], 1, "folder no/where is not there"),
        (["build", "photos", ".", "--out", "{}/s", "--crop", "fixed"], 2, "no --crop fixed"),
        (["build", "photos", ".", "--out", "{}/s", "--crop", "9"], 2, "--crop must be"),
        (["build", "amos", "no/where", "--out", "{}/s"], 1, "folder no/where is not there"),
        (["build", "photos", ".", "--out", "{}/s", "--mr-size", "0"], 2, "--mr-size must be positive"),
        (["build", "photos", ".", "--out", "{}/s", "--mr-size", "nan"], 2, "--mr-size must be positive"),
        (["merge", "{}/a", "{}/b", "--out", "{}/s"], 1, "/a is not there"),
        (["info", "{}/a"], 1, "/a is not there"),
        (["built", "photos"], 2, "did you mean build"),
    ],
)
def test_wrong_use_gets_one_line(line, code, message, tmp_path: Path, capsys) -> None:
    assert main([part.format(tmp_path) for part in line]) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("detector", "side", "kind"), [("hessian", 96, "views"), ("sift", 64, "tuples")])
def test_build_amos(detector: str, side: int, kind: str, textures, tmp_path: Path, capsys) -> None:
    (tmp_path / "views" / "1").mkdir(parents=True)
    image = textures(120, 160, seed=1, finest=1.5)
    for name, light in (("a", 1.0), ("b", 0.6)):
        cv2.imwrite(str(tmp_path / "views" / "1" / f"{name}.png"), light * image)
    line = ["build", "amos", str(tmp_path / "views"), "--out", str(tmp_path / "s"), "--num-workers", "0"]
    own = ["--base", "6"] if detector == "hessian" else ["--crop", "1.5"]
    assert main([*line, "--detector", detector, *own, "-q"]) == 0
    printed = capsys.readouterr()
    assert "1 views" in printed.out
    assert printed.err == ""
    store = PatchStore.open(tmp_path / "s")
    assert (store.patch_size, store.meta["kind"]) == (side, kind)
    assert len(store) > 20
    assert store.meta["built"]["detector"] == detector
    assert ("base" in store.meta["built"], "mr_size" in store.meta["built"]) == (kind == "views", kind == "tuples")


def test_a_view_with_few_places_is_told_of_base(textures, tmp_path: Path, capsys) -> None:
    (tmp_path / "views" / "1").mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(tmp_path / "views" / "1" / f"{name}.png"), textures(120, 160, seed=1, finest=1.5))
    line = ["build", "amos", str(tmp_path / "views"), "--num-workers", "0", "-q", "--out"]
    for flags, low, high, told in (
        (["--base", "6"], 50, 500, False), (["--base", "10"], 10, 50, True),
        (["--base", "6", "--max-sets", "40"], 10, 50, False),
    ):  # fmt: skip
        store = tmp_path / "".join(flags)
        assert main([*line, str(store), *flags]) == 0
        assert low <= len(np.unique(PatchStore.open(store).labels)) < high
        assert (f"a --base below {flags[1]} finds more" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("detector", "flags"),
    [("sift", ["--base", "6"]), ("sift", ["--threshold", "1"]), ("sift", ["--reference", "mean"]),
     ("sift", ["--patch-mask"]), ("hessian", ["--crop", "1.5"]), ("hessian", ["--mr-size", "12"])],
)  # fmt: skip
def test_settings_of_the_other_detector_are_refused(detector: str, flags: list[str], tmp_path: Path, capsys) -> None:
    line = ["build", "amos", "no/where", "--out", str(tmp_path / "s"), "--detector", detector, *flags]
    assert main(line) == 2
    assert f"{flags[0]} has no effect with --detector {detector}" in capsys.readouterr().err


def test_help_shows_defaults(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build", "colmap", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 1.5)" in text
    assert "(default: 12.0)" in text


def test_unknown_kind(capsys) -> None:
    assert main(["build", "photo", "x", "--out", "y"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: train build has no command 'photo'; did you mean photos")
    assert error.count("\n") == 1
    assert main(["build", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "build colmap" in listed
    assert "merge" not in listed
    assert main(["build"]) == 2


def _store(path: Path, patches: np.ndarray, labels: list[int], crop: float) -> PatchStore:
    ids = np.arange(len(labels))
    with create_store(path, patches.shape[1], 3 if patches.ndim == 4 else 1) as writer:
        writer.append(patches, labels=np.array(labels), image_ids=ids, cam_ids=ids)
        writer.meta = {"crop": crop, "mr_size": 12.0, "built": {}, "sources": []}
    return PatchStore.open(path)


def test_correlations_look_at_the_plain_part(tmp_path: Path) -> None:
    """Two labels: equal inside, inverted outside the plain square, so only the right inset gives exactly 1."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (2, 24, 24)).astype(np.uint8)
    twins = 255 - base
    twins[:, 4:-4, 4:-4] = base[:, 4:-4, 4:-4]
    store = _store(tmp_path / "s", np.concatenate([base, twins]), [0, 1, 0, 1], crop=1.5)
    same, other = correlations(store, count=50)
    np.testing.assert_allclose(same, 1)
    assert len(other) > 0
    assert np.abs(other).max() < 0.3


def test_sheet_rows_are_labels(tmp_path: Path) -> None:
    patches = np.stack([np.full((16, 16), v, np.uint8) for v in (10, 20, 11, 30, 21, 12)])
    store = _store(tmp_path / "s", patches, [0, 1, 0, 2, 1, 0], crop=2.0)
    write_sheet(store, tmp_path / "sheet.png", rows=5, columns=3)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 19 + 3, 3 * 19 + 3, 3)  # label 2 has nothing to compare
    assert [int(sheet[10, 3 + 19 * c + 8, 0]) for c in range(3)] == [10, 11, 12]
    assert [int(sheet[29, 3 + 19 * c + 8, 0]) for c in range(3)] == [20, 21, 255]
    # the plain half of a side is outlined just outside itself: cells 3 and 12
    assert sheet[3 + 3, 3 + 8].tolist() == sheet[3 + 12, 3 + 8].tolist() == [0, 200, 255]
    assert sheet[3 + 4, 3 + 8].tolist() == [10, 10, 10]


def test_colour_sheet_and_nothing_to_show(tmp_path: Path) -> None:
    color = np.zeros((2, 8, 8, 3), np.uint8)
    color[..., 0] = 200  # red
    store = _store(tmp_path / "c", color, [0, 0], crop=1.0)
    write_sheet(store, tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png"))[7, 7].tolist() == [0, 0, 200]
    with pytest.raises(UsageError, match=r"\.png or \.jpg"):
        write_sheet(store, tmp_path / "sheet.txt")
    single = _store(tmp_path / "single", color[:, :, :, 0], [0, 1], crop=1.0)
    assert "correlation, one label" not in describe(single)
    with pytest.raises(DataError, match="no label has two patches"):
        write_sheet(single, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def _children(process: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    waiting = [process]
    while waiting:
        parent = waiting.pop()
        children = Path(f"/proc/{parent}/task/{parent}/children")
        own = list(map(int, children.read_text().split())) if children.exists() else []
        found.update(own)
        waiting += own
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_build_leaves_no_process_and_goes_on(textures, tmp_path: Path) -> None:
    """The same bytes as a build in one go; its workers end with it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(8):
        cv2.imwrite(str(photos / f"{seed}.png"), textures(200, 260, seed=seed, finest=1.5))
    line = [sys.executable, "-m", "train", "build", "photos", str(photos), "--views", "3", "--max-labels", "60"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*line, "--out", str(whole), "--num-workers", "0", "-q"], cwd=ROOT, check=True, timeout=120)
    process = subprocess.Popen([*line, "--out", str(killed), "--num-workers", "1", "-q"], cwd=ROOT)
    journal = tmp_path / ".killed.building" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not journal.is_file() or journal.read_text().count("\n") < 3:  # two photographs are done
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = _children(process.pid)
    assert workers
    process.kill()
    process.wait()
    assert not killed.exists()
    done = _run("build", "photos", photos, "--views", 3, "--max-labels", 60, "--out", killed, "--num-workers", 0)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stderr
    for name in ("patches.npy", "labels.npy", "image_ids.npy", "frames.npy"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(f.name for f in tmp_path.iterdir()) == ["killed", "photos", "whole"]
    while any(_is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
