"""Stores from patch sets as published: Brown's mosaics, HPatches' strips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.brown import read_first_column, read_mosaic, read_pairs
from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from train.batches import BatchSource
from train.cli import main
from train.config import TrainConfig
from train.stores import brown
from train.stores.brown import build_brown
from train.stores.hpatches import build_hpatches
from train.stores.writer import Built

VECTORS = Path(__file__).parents[2] / "vectors" / "vectors_hpatches.json"
NUM_PATCHES = 300


@pytest.fixture(scope="module")
def cases() -> dict[str, dict]:
    return {case["name"]: case for case in json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]}


@pytest.fixture(scope="module")
def subset(tmp_path_factory) -> Path:
    """300 patches in two mosaics, three a point, from 20 images; 40 test pairs, half of them matches."""
    folder = tmp_path_factory.mktemp("brown") / "village"
    folder.mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (512, 64, 64), dtype=np.uint8)
    for number, tiles in enumerate(patches.reshape(2, 16, 16, 64, 64)):
        mosaic = tiles.swapaxes(1, 2).reshape(1024, 1024)
        Image.fromarray(mosaic).save(folder / f"patches{number:04d}.bmp")
    np.save(folder / "patches.npy", patches[:NUM_PATCHES])
    labels, images = np.arange(NUM_PATCHES) // 3 * 2, np.arange(NUM_PATCHES) * 7 % 20
    (folder / "info.txt").write_text("".join(f"{label} 0 \n" for label in labels))
    (folder / "interest.txt").write_text("".join(f"{image} 1.5 2.5 0.1 3.2 \n" for image in images))
    pairs = [(3 * k, 3 * k + 1 + 3 * (k % 2)) for k in range(40)]
    lines = "".join(f"{a} {labels[a]} 0 {b} {labels[b]} 0 0 \n" for a, b in pairs)
    (folder / "m50_40_40_0.txt").write_text(lines)
    return folder


def test_brown_as_published(subset: Path, tmp_path: Path) -> None:
    built = build_brown(subset, tmp_path / "s", pairs=subset / "m50_40_40_0.txt")
    assert built == Built(NUM_PATCHES, 100, {"images": 20, "test pairs": 40})
    store = PatchStore.open(tmp_path / "s")
    np.testing.assert_array_equal(store.patches, np.load(subset / "patches.npy"))
    np.testing.assert_array_equal(store.labels, np.arange(NUM_PATCHES) // 3 * 2)
    np.testing.assert_array_equal(store.cam_ids, np.arange(NUM_PATCHES) * 7 % 20)
    assert store.pairs[:3].tolist() == [[0, 1, 1], [3, 7, 0], [6, 7, 1]]
    assert (store.meta["crop"], store.meta["mr_size"], store.meta["has_cams"]) == (1.0, 12.0, True)
    names = [source["name"] for source in store.meta["sources"]]
    assert names == ["info.txt", "interest.txt", "m50_40_40_0.txt", "patches0000.bmp", "patches0001.bmp"]
    batch = BatchSource([(store, 1.0)], TrainConfig("x", bs=8, tuples=80, fewcams=True)).batch(0)
    assert batch.labels[0::2].tolist() == batch.labels[1::2].tolist()


def test_the_command_finds_the_inner_folder_and_works_in_processes(subset: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(subset, tmp_path / "outer" / "village")
    (tmp_path / "outer" / "village" / "m50_40_40_0.txt").rename(tmp_path / "pairs.txt")
    line = ["build", "brown", str(tmp_path / "outer"), "--out", str(tmp_path / "s"), "--num-workers", "1"]
    assert main([*line, "--pairs", str(tmp_path / "pairs.txt")]) == 0
    assert "300 patches, 100 labels, 20 images, 40 test pairs" in capsys.readouterr().out
    np.testing.assert_array_equal(PatchStore.open(tmp_path / "s").patches, np.load(subset / "patches.npy"))


def test_without_reference_images_there_are_no_cameras(subset: Path, tmp_path: Path) -> None:
    shutil.copytree(subset, tmp_path / "raw")
    (tmp_path / "raw" / "interest.txt").unlink()
    assert build_brown(tmp_path / "raw", tmp_path / "s") == Built(NUM_PATCHES, 100, {"images": 0, "test pairs": 0})
    store = PatchStore.open(tmp_path / "s")
    assert store.pairs is None
    with pytest.raises(DataError, match="has no cam_ids"):
        BatchSource([(store, 1.0)], TrainConfig("x", bs=8, tuples=80, fewcams=True))


def test_published_counts_are_checked(subset: Path, tmp_path: Path) -> None:
    assert brown.COUNTS == {
        "liberty": 450092, "notredame": 468159, "yosemite": 633587, "liberty_harris": 379587,
        "notredame_harris": 325295, "yosemite_harris": 450912,
    }  # fmt: skip
    shutil.copytree(subset, tmp_path / "liberty")
    with pytest.raises(DataError, match="lists 300 patches, liberty has 450092"):
        build_brown(tmp_path / "liberty", tmp_path / "s")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("info.txt", "0 0 \n" * 299, "interest.txt has 300 lines, info.txt 299"),
        ("info.txt", "0 0 \n" * 600, "2 mosaics hold 512 patches, info.txt lists 600"),
        ("info.txt", "0 0 \n" * 200, "2 mosaics, 1 hold all 200 patches"),
        ("info.txt", "a 0 \n", r"info\.txt is damaged"),
        ("info.txt", "", r"info\.txt is empty"),
        ("info.txt", None, r"holds no info\.txt"),
        ("m50_40_40_0.txt", "0 0 0 1 0 0 0 \n", "holds 1 pairs, its name says 40"),
        ("m50_40_40_0.txt", "0 0 0 1 0 0 0 \n" * 40, "40 of 40 pairs match"),
        ("m50_40_40_0.txt", "0 0 0 3 0 0 0 \n", r"pair 1: points \[0, 0\] are not those"),
        ("m50_40_40_0.txt", "0 0 0 300 200 0 0 \n", "names patch 300, there are 0 … 299"),
        ("m50_40_40_0.txt", "7 3 0 -1 0 0 0 \n", "names patch -1, there are 0 … 299"),
        ("patches0001.bmp", "no picture", "does not decode"),
    ],
)
def test_incomplete_files_are_refused(file: str, content: str | None, message: str, subset: Path, tmp_path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(subset, raw)
    (raw / file).unlink()
    if content is not None:
        (raw / file).write_text(content)
    with pytest.raises((DataError, MissingFileError), match=message):
        build_brown(raw, tmp_path / "s", pairs=raw / "m50_40_40_0.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_parsing_of_the_published_files(cases: dict[str, dict], tmp_path: Path) -> None:
    for name, key in (("info", "labels"), ("interest", "image_ids")):
        case = cases[f"brown_parse_{name}"]
        (tmp_path / name).write_text(case["inputs"][f"{name}.txt"])
        assert read_first_column(tmp_path / name).tolist() == case["expected"][key]
    labels = np.array(cases["brown_parse_info"]["expected"]["labels"])
    case = cases["brown_parse_matches"]
    (tmp_path / "pairs").write_text(case["inputs"]["m50"])
    assert read_pairs(tmp_path / "pairs", labels).tolist() == case["expected"]["matches"]
    expected = cases["brown_parse_bmp"]["expected"]["first_pixel_of_patch"]
    gray = np.arange(256).reshape(16, 16)
    parts = []
    for number, tiles in enumerate((gray, 255 - gray)):
        Image.fromarray(np.kron(tiles, np.ones((64, 64))).astype(np.uint8)).save(tmp_path / f"{number}.bmp")
        parts.append(read_mosaic(tmp_path / f"{number}.bmp")[0])
    patches = np.concatenate(parts)
    assert {key: int(patches[int(key), 0, 0]) for key in expected} == expected


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Two sequences of 3 and 5 patches; the gray value of a patch tells strip and number."""
    folder = tmp_path_factory.mktemp("hpatches")
    for base, (name, count) in enumerate((("v_wall", 5), ("i_door", 3))):
        (folder / name).mkdir()
        for strip, kind in enumerate(["ref", *(f"{level}{k}" for level in "eht" for k in range(1, 6))]):
            gray = np.repeat(100 * base + 6 * strip + np.arange(count), 65)
            Image.fromarray(np.tile(gray[:, None], 65).astype(np.uint8)).save(folder / name / f"{kind}.png")
        (folder / name / "e1.overlaps").write_text("1.0\n")
    return folder


def test_strips_become_labels(release: Path, tmp_path: Path, capsys) -> None:
    line = ["build", "hpatches", str(release), "--out", str(tmp_path / "s"), "--num-workers", "0"]
    assert main(line) == 0
    assert "128 patches, 8 labels, 2 sequences" in capsys.readouterr().out
    store = PatchStore.open(tmp_path / "s")
    assert store.patch_size == 65
    # i_door is the first by name; its reference strip comes first
    assert store.patches[:6, 7, 9].tolist() == [100, 101, 102, 106, 107, 108]
    assert store.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert store.labels[3 * 16 : 3 * 16 + 6].tolist() == [3, 4, 5, 6, 7, 3]
    assert np.unique(store.labels, return_counts=True)[1].tolist() == [16] * 8
    assert len(np.unique(store.image_ids)) == 32
    batch = BatchSource([(store, 1.0)], TrainConfig("x", bs=4, tuples=80, holdout=0.0)).batch(0)
    drawn = batch.parts[0].patches  # two different strips of each label, whole patches of one gray value
    gray = drawn[:, 0, 0].int()
    assert torch.equal(drawn.int(), gray[:, None, None].expand(8, 65, 65))
    sequence, rest = gray // 100, gray % 100
    label = 100 * sequence + rest % 6
    assert torch.equal(label[0::2], label[1::2])
    assert len(label.unique()) == 4
    assert (rest[0::2] // 6 != rest[1::2] // 6).all()


def test_levels_and_sequences_are_chosen(release: Path, tmp_path: Path) -> None:
    built = build_hpatches(release, tmp_path / "s", levels=["e"], sequences=["v_*"])
    assert built == Built(30, 5, {"sequences": 1})
    assert PatchStore.open(tmp_path / "s").patches[:, 0, 0].max() == 6 * 5 + 4
    assert build_hpatches(release, tmp_path / "t", exclude=["v_*"]).labels == 3
    with pytest.raises(UsageError, match="--levels takes e, h, t, got x"):
        build_hpatches(release, tmp_path / "u", levels=["x"])
    with pytest.raises(DataError, match=r"holds 2 sequences, but none that --sequences z takes"):
        build_hpatches(release, tmp_path / "u", sequences=["z"])
    with pytest.raises(DataError, match=r"holds 2 sequences, .* --sequences \* takes and --exclude i_\* v_\* leaves"):
        build_hpatches(release, tmp_path / "u", exclude=["i_*", "v_*"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no folder with strips \(ref\.png"):
        build_hpatches(tmp_path / "empty", tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_damaged_strips_are_refused(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    Image.fromarray(np.zeros((65, 65), np.uint8)).save(copy / "i_door" / "h2.png")
    with pytest.raises(DataError, match=r"h2\.png holds 1 patches, ref\.png 3"):
        build_hpatches(copy, tmp_path / "s")
    Image.fromarray(np.zeros((66, 65), np.uint8)).save(copy / "i_door" / "h2.png")
    with pytest.raises(DataError, match="expected a column of 65 x 65"):
        build_hpatches(copy, tmp_path / "s")
    (copy / "i_door" / "h2.png").unlink()
    with pytest.raises(MissingFileError, match=r"h2\.png is not there"):
        build_hpatches(copy, tmp_path / "s")
    assert build_hpatches(copy, tmp_path / "s", levels=["e"]).source == {"sequences": 2}
