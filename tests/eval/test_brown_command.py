from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from eval.brown.amos import match_views, score_store
from eval.brown.command import describe_patches
from eval.brown.data import HEADS, PatchSet, combinations_table, find_sets, read_brown, read_store
from eval.brown.revisited import revisited_aps
from eval.cli import main
from eval.core.results import read_results
from eval.features import load
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import write_json


def views_of(count: int, noise: float, seed: int, side: int = 64) -> np.ndarray:
    """Pairs of patches (2 * count, side, side): patch 2 k and 2 k + 1 show one thing."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(count):
        base = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), 5) * 9
        for _ in range(2):
            noisy = base + noise * cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), 3) * 5
            patches.append(np.clip(128 + 40 * noisy, 0, 255))
    return np.array(patches, np.uint8)


def write_subset(folder: Path, count: int = 20, noise: float = 0.4, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    patches = views_of(count, noise, seed)
    tiles = np.zeros((256, 64, 64), np.uint8)
    tiles[: len(patches)] = patches
    mosaic = tiles.reshape(16, 16, 64, 64).swapaxes(1, 2).reshape(1024, 1024)
    Image.fromarray(mosaic).save(folder / "patches0000.bmp")
    (folder / "info.txt").write_text("".join(f"{k // 2} 0 \n" for k in range(2 * count)))
    (folder / "interest.txt").write_text("".join(f"{k // 2 % 2} 1 2 3 4 \n" for k in range(2 * count)))
    pairs = [(2 * k, k, 2 * k + 1, k) for k in range(count)]
    pairs += [(2 * k, k, 2 * ((k + 1) % count), (k + 1) % count) for k in range(count)]
    (folder / "m50_40_40_0.txt").write_text("".join(f"{a} {p} 0 {b} {q} 0 0 \n" for a, p, b, q in pairs))


@pytest.fixture(autouse=True)
def small_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty patches and pairs a subset, whatever it is called."""
    monkeypatch.setattr("common.brown.COUNTS", {})
    monkeypatch.setattr("common.brown.PAIRS", "m50_40_40_0.txt")


@pytest.fixture
def brown(tmp_path) -> Path:
    for seed, name in enumerate(("liberty", "notredame")):
        write_subset(tmp_path / "brown" / name, seed=seed)
    return tmp_path / "brown"


def cut_lines(path: Path, count: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


def test_both_protocols_on_two_subsets(brown, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["brown", "--data", str(brown), "--desc", "rootsift", "--out", str(out)]) == 0
    entry = read_results(out / "results.json")[0]
    scores = {k: v["value"] for k, v in entry["scores"].items()}
    assert 0.0 <= scores["FPR95"] < 0.3
    assert scores["AP"] > 0.9
    assert scores["revisited/mAP"] > 0.5
    assert set(entry["per_scene"]) == {"liberty", "notredame"}
    assert scores["FPR95"] == pytest.approx(np.mean([s["FPR95"] for s in entry["per_scene"].values()]))
    assert entry["scores"]["FPR95"]["n"] == 80
    assert len(entry["dataset"]["fingerprint"]) == 64
    assert "FPR95" in capsys.readouterr().out


def test_a_descriptor_is_not_tested_on_its_own_training_subset(brown, tmp_path, capsys):
    args = [
        "brown",
        "--data",
        str(brown),
        "--desc",
        "rootsift",
        "sift",
        "--task",
        "fpr95",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*args, "--trained-on", "liberty", "none"]) == 0
    trained, plain = read_results(tmp_path / "r" / "results.json")
    assert list(trained["per_scene"]) == ["notredame"]
    assert list(plain["per_scene"]) == ["liberty", "notredame"]
    assert trained["scores"]["FPR95"]["ci95"] is not None
    assert trained["dataset"] == plain["dataset"]
    assert "LIB>ND" in capsys.readouterr().out
    assert main([*args, "--trained-on", "liberty"]) == 2
    assert "1 subsets for 2 descriptors" in capsys.readouterr().err
    assert main([*args, "--trained-on", "liberty", "paris"]) == 2


def test_the_six_number_table():
    def result(train: str, values: dict[str, float]):
        return {"name": "tfeat", "trained_on": train}, {k: {"FPR95": v} for k, v in values.items()}

    runs = [
        result("liberty", {"notredame": 0.3, "yosemite": 0.5}),
        result("notredame", {"liberty": 0.1, "yosemite": 0.6}),
        result("yosemite", {"liberty": 0.2, "notredame": 0.4}),
    ]
    assert HEADS == ("ND>LIB", "YOS>LIB", "LIB>ND", "YOS>ND", "LIB>YOS", "ND>YOS", "mean")
    assert combinations_table(runs) == [["tfeat", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, pytest.approx(0.35)]]
    assert combinations_table(runs[:1]) == [["tfeat", None, None, 0.3, None, 0.5, None, None]]
    assert combinations_table([({"name": "sift", "trained_on": None}, {"liberty": {"FPR95": 0.1}})]) == []


def test_cached_files_are_read(brown, tmp_path):
    patches = read_brown(brown / "liberty")
    folder = tmp_path / "cached"
    folder.mkdir()
    arrays = [torch.from_numpy(np.array(a)) for a in (patches.patches, patches.labels, patches.pairs)]
    torch.save(tuple(arrays), folder / "liberty.pt")
    torch.save((*arrays[:2], torch.from_numpy(patches.image_ids)), folder / "yosemite.pt")
    found = {s.name: s for s in find_sets(folder)}
    np.testing.assert_array_equal(found["liberty"].pairs, patches.pairs)
    assert found["liberty"].image_ids is None
    np.testing.assert_array_equal(found["yosemite"].image_ids, patches.image_ids)
    (folder / "notredame.pt").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"notredame\.pt is damaged or no file of torch"):
        find_sets(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "patches0000.bmp").unlink(), "0 mosaics hold 0 patches, info.txt lists 40"),
        (lambda f: (f / "patches0000.bmp").write_bytes(b"BM"), "patches0000.bmp does not decode"),
        (lambda f: (f / "info.txt").write_text("a b\n"), r"info\.txt is damaged"),
        (lambda f: (f / "interest.txt").write_text("1 2\n"), "interest.txt has 1 lines, info.txt 40"),
        (lambda f: (f / "m50_40_40_0.txt").write_text("0 0 0\n"), r"m50_40_40_0\.txt is damaged"),
        (lambda f: (f / "m50_40_40_0.txt").write_text("0 0 0 77 1 0 0\n"), "names patch 77"),
        (lambda f: cut_lines(f / "m50_40_40_0.txt", 39), "holds 39 pairs, its name says 40: it is cut short"),
        (lambda f: (f / "m50_40_40_0.txt").write_text("0 0 0 2 0 0 0\n"), r"points \[0, 0\] are not those of info"),
    ],
)
def test_damaged_subsets_are_named(brown, damage, message):
    damage(brown / "liberty")
    with pytest.raises(DataError, match=message):
        find_sets(brown)


def test_places_without_patch_sets(tmp_path):
    with pytest.raises(DataError, match="holds no patch set"):
        find_sets(tmp_path)
    with pytest.raises(MissingFileError):
        find_sets(tmp_path / "nowhere")


def test_an_image_of_one_label_has_no_negative():
    descs = np.array([[0.0, 0], [1, 0], [5, 5]])
    assert revisited_aps(descs, np.array([1, 1, 2]), np.array([0, 0, 1])) == {0: 1.0}
    assert revisited_aps(descs, np.array([1, 2, 3]), np.array([0, 0, 0])) == {}


def write_store(folder: Path, **changes) -> Path:
    """Three pictures of two fixed cameras, six places each."""
    folder.mkdir()
    places, pictures = 6, 3
    rows: dict[str, list] = {"labels": [], "image_ids": [], "cam_ids": [], "frames": []}
    patches = []
    for camera in range(2):
        rng = np.random.default_rng(camera)
        base = [cv2.GaussianBlur(rng.standard_normal((64, 64)), (0, 0), 5) * 9 for _ in range(places)]
        for picture in range(pictures):
            for place in range(places):
                noisy = base[place] + 0.2 * rng.standard_normal((64, 64))
                patches.append(np.clip(128 + 40 * noisy, 0, 255).astype(np.uint8))
                rows["labels"].append(camera * places + place)
                rows["image_ids"].append(camera * pictures + picture)
                rows["cam_ids"].append(camera)
                rows["frames"].append([[10, 0, 50 * place], [0, 10, 20]])
    types = {"labels": np.int64, "image_ids": np.int32, "cam_ids": np.int32, "frames": np.float32}
    arrays = {"patches": np.stack(patches)} | {name: np.array(values, types[name]) for name, values in rows.items()}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    meta = {
        "format": "patchstore/1", "kind": "tuples", "count": len(patches), "patch_size": 64, "crop": 1.5, "mr_size": 12,
        "arrays": {name: {"shape": array.shape, "dtype": str(array.dtype)} for name, array in arrays.items()},
    }  # fmt: skip
    write_json(folder / "meta.json", meta | changes)
    return folder


def test_fixed_camera_sets_from_a_store(tmp_path):
    store = write_store(tmp_path / "store")
    args = ["brown", "--data", str(store), "--desc", "rootsift", "--task", "amos", "--out", str(tmp_path / "r")]
    assert main(args) == 0
    entry = read_results(tmp_path / "r" / "results.json")[0]
    assert len(entry["per_pair"]) == 2 * 6  # ordered pairs of 3 pictures, two cameras
    assert entry["scores"]["amos/mAP"]["value"] > 0.8
    aps = [p["ap"] for p in entry["per_pair"]]
    assert entry["scores"]["amos/mAP"]["value"] == pytest.approx(np.mean(aps))
    assert main([*args[:5], "--task", "revisited", "--out", str(tmp_path / "s")]) == 0
    assert main([*args[:5], "--task", "fpr95", "--out", str(tmp_path / "t")]) == 1


def test_a_store_is_measured_by_what_its_kind_is_for(tmp_path):
    def tasks_of(data):
        assert main(["brown", "--data", str(data), "--desc", "rootsift", "--out", str(tmp_path / "r")]) == 0
        entry = read_results(tmp_path / "r" / "results.json")[0]
        return entry["protocol"]["tasks"], {n: sorted(scores) for n, scores in entry["per_scene"].items()}

    (tmp_path / "stores").mkdir()
    amos, revisited = ["amos/correct_nn", "amos/mAP"], ["revisited/mAP"]
    views = write_store(tmp_path / "stores" / "views", kind="views")
    assert tasks_of(views) == (["amos"], {"views": amos})
    tuples = write_store(tmp_path / "stores" / "tuples", kind="tuples")
    assert tasks_of(tuples) == (["revisited"], {"tuples": revisited})
    assert tasks_of(tmp_path / "stores") == (["revisited", "amos"], {"tuples": revisited, "views": amos})
    (views / "frames.npy").unlink()
    assert main(["brown", "--data", str(views), "--out", str(tmp_path / "s")]) == 1


def test_store_faults(tmp_path):
    with pytest.raises(DataError, match=r"patches are not uint8 \(99, 64, 64"):
        read_store(write_store(tmp_path / "a", count=99))
    with pytest.raises(DataError, match="format is 'other'"):
        read_store(write_store(tmp_path / "b", format="other"))
    store = read_store(write_store(tmp_path / "c"))
    with pytest.raises(DataError, match="needs image_ids, cam_ids and frames"):
        score_store(PatchSet("x", store.patches, store.labels), torch.zeros(36, 2))


def test_the_ratio_rule_needs_a_clear_second():
    query = torch.tensor([[0.0, 0], [4, 0]])
    target = torch.tensor([[0.5, 0], [0.6, 0], [4, 0.1]])
    centres = [[0, 0], [10, 0]], [[0, 0], [1, 5], [10, 0]]
    assert match_views(query, target, *centres).right.tolist() == [True, True]
    assert match_views(query, target, *centres, ratio=0.8).right.tolist() == [False, True]
    overlap = np.eye(3, dtype=bool)
    overlap[0, 1] = overlap[1, 0] = True
    assert match_views(query, target, *centres, ratio=0.8, collides=overlap).right.tolist() == [True, True]


def test_only_the_plain_part_of_a_stored_patch_is_described():
    patches = views_of(3, 0.1, 0, side=96)
    framed = patches.copy()
    framed[:, :16] = framed[:, -16:] = 0
    framed[:, :, :16] = framed[:, :, -16:] = 255
    descriptor = load("rootsift")
    np.testing.assert_array_equal(
        describe_patches(patches, descriptor, crop=1.5), describe_patches(framed, descriptor, crop=1.5)
    )
    assert describe_patches(patches[:0], descriptor).shape == (0, 128)
