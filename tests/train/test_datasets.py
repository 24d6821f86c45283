"""Data set strings: every token of 2020, its files read in place, and the generated set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.patchfiles import open_2020
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from train.batches import BatchSource
from train.checkpoint import load_checkpoint
from train.cli import main
from train.config import TrainConfig
from train.datasets import find_store, open_mix, parse_mix
from train.recipes2020.catalogue import ALIASES, MIXES, TOKENS

SIX = ["liberty", "liberty_harris", "notredame", "notredame_harris", "yosemite", "yosemite_harris"]
SCENES = [
    "buckingham_palace", "st_peters_square", "trevi_fountain", "hagia_sophia_interior", "brandenburg_gate",
    "colosseum_exterior", "prague_old_town_square",
]  # fmt: skip
# every string that the 2020 code took for --ds -> the tokens and weights that it means here, None: it is answered
PUBLISHED: dict[str, list[tuple[str, float]] | None] = {
    **{name: [(name, 1.0)] for name in (*SIX, *SCENES)},
    **{f"yosemite_{part}": [(f"yosemite_{part}", 1.0)] for part in ("small", "cl", "cl_times2", "cl_times8")},
    "liberty48": None, "liberty64": None, "v4noshift": None, "v4crop": None, "PS": None, "PS+lib": None,
    "lib+colo+notre_RGB": None, "HPs_illum_all-crop": None,
    "v3": [("v3", 1.0)], "v4": [("v4", 1.0)], "v5": [("v5", 1.0)], "TILDE": [("TILDE", 1.0)],
    "v4+lib": [("v4", 1.0), ("lib", 1.0)],
    "lib+v4": [("lib", 1.0), ("v4", 1.0)],
    "lib+colo": [("lib", 1.0), ("colo", 1.0)],
    "lib+notre": [("lib", 1.0), ("notre", 1.0)],
    "lib+colo+notre": [("lib", 1.0), ("colo", 1.0), ("notre", 1.0)],
    "v4+lib+colo": [("v4", 1.0), ("lib", 1.0), ("colo", 1.0)],
    "v4+lib+colo+trevi": [("v4", 1.0), ("lib", 1.0), ("colo", 1.0), ("trevi", 1.0)],
    "lib+sofia+AMOS": [("lib", 1.0), ("sofia", 1.0), ("AMOS", 1.0)],
    "mix_good": [("hpatches_illum-view_easy", 1.0), ("liberty", 1.0), ("hagia_sophia_interior_middleedges", 1.0)],
    "brown": [(name, 1.0) for name in SIX],
    "AB": [(name, 1.0) for name in SIX] + [("v4", 6.0)],
    "mix": [(name, 1.0) for name in SIX] + [("hpatches_split_view_train", 6.0), ("v3", 6.0)],
    **{name: [(name, 1.0)] for name in ("HP_easy", "HP_hard", "HP_tough", "HPs_illum_all")},
    **{f"{name}_p1600000": [(f"{name}_p1600000", 1.0)] for name in SCENES},
    **{f"trevi_fountain_p{n}": [(f"trevi_fountain_p{n}", 1.0)] for n in (25_000, 6_400_000)},
    **{f"{name}_{part}": [(f"{name}_{part}", 1.0)] for name in SCENES for part in ("lower", "upper", "RGB")},
}  # fmt: skip


@pytest.mark.parametrize("text", PUBLISHED)
def test_every_string_of_2020_is_taken_or_answered(text: str, tmp_path: Path) -> None:
    expected = PUBLISHED[text]
    if expected is None:
        was = r"every file of .*: name them as paths" if text.startswith("PS") else ""
        with pytest.raises(UsageError, match=rf"of the 2020 code was {was}"):
            parse_mix(text)
        return
    items = parse_mix(text)
    assert [(item.token, item.weight) for item in items] == expected
    for item in items:
        known = TOKENS[ALIASES.get(item.token, item.token)]
        with pytest.raises(MissingFileError) as error:
            find_store(item.token, tmp_path)
        assert str(tmp_path / known.path) in str(error.value)
        assert known.origin.format(root=tmp_path, flag=f" --data-root {tmp_path}") in str(error.value)


def test_any_other_mix_has_weights(tmp_path: Path) -> None:
    items = parse_mix("lib*2 + colo+ /data/a b.store *0.5")
    assert [(item.token, item.weight) for item in items] == [("lib", 2.0), ("colo", 1.0), ("/data/a b.store", 0.5)]
    assert set(ALIASES.values()) <= set(TOKENS)
    assert all(item.token in TOKENS for name in MIXES for item in parse_mix(name))
    for wrong in ("a++b", "a*0", "a*x", "*2", ""):
        with pytest.raises(UsageError):
            parse_mix(wrong)


def test_where_a_token_is_looked_for(tiny_store: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_store, tmp_path / "liberty")
    assert find_store("liberty", tmp_path) == tmp_path / "liberty"
    shutil.copytree(tiny_store, tmp_path / "6Brown" / "liberty")
    assert find_store("lib", tmp_path) == find_store("liberty", tmp_path) == tmp_path / "6Brown" / "liberty"
    _save_brown(tmp_path / "6Brown" / "liberty.pt")
    assert find_store("lib", tmp_path) == tmp_path / "6Brown" / "liberty.pt"
    assert find_store(str(tiny_store), tmp_path) == tiny_store
    with pytest.raises(MissingFileError, match="did you mean liberty"):
        find_store("libertee", tmp_path)
    # webcam sets lay in their folder, under a name that told all settings
    folder = tmp_path / "AMOS-views" / "AMOS-views-v4"
    _save_views(folder / "AMOS-views-v4_maxsets:2000_PG:new.pt")
    (folder / "12_a").mkdir()
    assert find_store("v4", tmp_path) == folder / "AMOS-views-v4_maxsets:2000_PG:new.pt"
    (folder / "AMOS-views-v4_maxsets:1000_PG:new.pt").touch()
    with pytest.raises(UsageError, match=r"which of .*1000.*2000.* as a path"):
        find_store("v4", tmp_path)
    usual = folder / "AMOS-views-v4_maxsets:2000_sigmas-v:e011_thr:0.00016_WF:Hessian_PG:new_masks:AMOS-masks.pt"
    usual.touch()
    assert find_store("v4", tmp_path) == usual


def _save_brown(path: Path, colour: bool = False, legacy: bool = False, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (40, 64, 64, 3) if colour else (40, 64, 64)
    content = {
        "patches": torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
        "labels": torch.arange(40) // 2 * 5,
        "cam_ids": torch.arange(40, dtype=torch.int32) % 4,
        "matches": torch.tensor([[0, 1, 1], [0, 2, 0]]),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return content


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_a_brown_file_of_2020_is_read_in_place(tmp_path: Path, colour: bool, legacy: bool) -> None:
    content = _save_brown(tmp_path / "x.pt", colour, legacy)
    store = open_2020(tmp_path / "x.pt")
    assert torch.equal(torch.from_numpy(np.asarray(store.patches)), content["patches"])
    assert store.labels.tolist() == content["labels"].tolist()
    assert store.cam_ids.tolist() == content["cam_ids"].tolist()
    assert store.pairs.tolist() == [[0, 1, 1], [0, 2, 0]]
    config = TrainConfig("x", bs=8, tuples=80, holdout=0.0, fewcams=True)
    part = BatchSource([(store, 1.0)], config).batch(0).parts[0]
    assert part.patches.shape == (16, 64, 64)
    if colour:
        gray = (content["patches"].double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).round()
        assert any(torch.equal(part.patches[0].double(), g) for g in gray)


def _save_views(path: Path) -> np.ndarray:
    sets = np.random.default_rng(0).integers(0, 256, (6, 5, 1, 96, 96), dtype=np.uint8)
    mask = np.ones((6, 5), bool)
    mask[2, 3] = False
    content = {
        "patch_sets": torch.from_numpy(sets), "LAFs": torch.zeros(6, 2, 3),
        "cam_idxs": torch.tensor([0, 0, 0, 1, 1, 1]), "view_names": ["a", "b"], "patches_mask": mask,
        "collisions": [np.array([0, 1]), np.array([0, 1]), np.array([2]), np.array([3]), np.array([4]), np.array([5])],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return sets


def test_a_webcam_file_of_2020_is_read_in_place(tmp_path: Path) -> None:
    sets = _save_views(tmp_path / "v4.pt")
    store = open_2020(tmp_path / "v4.pt")
    assert store.meta["kind"] == "views"
    assert store.meta["crop"] == 1.5
    assert np.array_equal(store.patches[7], sets[1, 2, 0])
    assert store.labels[7] == 1
    assert not store.visible[2 * 5 + 3]
    assert store.collisions[0].tolist() == [0, 1, 2, 2, 2, 2, 2]
    assert store.collisions[1].tolist() == [1, 0]
    source = BatchSource([(store, 1.0)], TrainConfig("x", bs=4, tuples=80, holdout=0.0))
    for step in range(20):
        labels = source.batch(step).labels[0::2].tolist()
        assert not {0, 1} <= set(labels)
        assert len(labels) == 4


def test_the_published_command_trains_on_the_files_of_2020(tmp_path: Path, fast: list[str]) -> None:
    _save_views(tmp_path / "AMOS-views" / "AMOS-views-v4.pt")
    _save_brown(tmp_path / "6Brown" / "liberty.pt")
    published = ["--ds=v4+lib", "--loss=tripletMargin++"]
    small = [*fast, "--data-root", str(tmp_path), "--bs", "5", "--steps", "4", "--tuples", "20", "--holdout", "0"]
    assert main([*published, *small, "--schedule", "onecycle", "--lr", "3", "--out", str(tmp_path / "run")]) == 0
    content = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert content["step"] == 4
    assert all(torch.isfinite(value).all() for value in content["features"].values())


def test_tuples_of_the_older_loaders_have_no_cameras(tmp_path: Path) -> None:
    content = _save_brown(tmp_path / "x.pt")
    torch.save((content["patches"], content["labels"], content["matches"]), tmp_path / "old.pt")
    store = open_2020(tmp_path / "old.pt")
    assert len(store) == 40
    BatchSource([(store, 1.0)], TrainConfig("x", bs=8, tuples=80))
    with pytest.raises(DataError, match="has no cam_ids"):
        BatchSource([(store, 1.0)], TrainConfig("x", bs=8, tuples=80, fewcams=True))


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


@pytest.mark.parametrize("damage", ["cut", "text", "code", "other", "shape"])
def test_files_that_are_no_data_are_refused(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fast: list[str]
) -> None:
    path = tmp_path / "x.pt"
    _save_brown(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "code":
        _save_brown(path, extra=_Evil())
    elif damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        _save_brown(path, labels=torch.arange(7))
    assert main(["--ds", str(path), *fast, "--steps", "1", "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert str(path) in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "must not run" not in captured.out
    assert "weights_only" not in captured.err
    assert not (tmp_path / "run").exists()


_ODD = {
    "brown": [
        ({"labels": torch.arange(40) / 2}, "labels must be whole numbers, got float32"),
        ({"labels": "abc"}, "labels must be whole numbers"),
        ({"labels": None}, "labels must be whole numbers"),
        ({"cam_ids": torch.zeros(40)}, "cam_ids must be whole numbers"),
        ({"matches": torch.tensor([[0, 40, 1]])}, "matches must be"),
        ({"matches": torch.tensor([0, 1])}, "matches must be"),
        ({"patches": [[1], [2, 3]]}, "no data file"),
    ],
    "views": [
        ({"cam_idxs": Ellipsis}, "has no cam_idxs"),
        ({"cam_idxs": ["a"] * 6}, "cam_idxs must be whole numbers"),
        ({"patches_mask": np.ones(7, bool)}, "a patches_mask of 7"),
        ({"collisions": [[0]]}, "collisions must be 6 lists"),
        ({"collisions": [[9]] * 6}, "collisions must be 6 lists"),
        ({"collisions": 3}, "no data file"),
        ({"collisions": [[0.5]] * 6}, "collisions must be lists of whole numbers"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "odd"), [(kind, odd) for kind, cases in _ODD.items() for odd in cases])
def test_files_of_2020_with_odd_content_are_named(tmp_path: Path, kind: str, odd: tuple[dict[str, Any], str]) -> None:
    path = tmp_path / "x.pt"
    (_save_brown if kind == "brown" else _save_views)(path)
    content = torch.load(path, weights_only=False) | odd[0]
    torch.save({name: value for name, value in content.items() if value is not Ellipsis}, path)
    with pytest.raises(DataError, match=odd[1]) as error:
        open_2020(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["brown", "colour", "views"])
def test_info_shows_a_file_of_2020(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sheet = tmp_path / "x.pt", tmp_path / "sheet.png"
    _save_views(path) if kind == "views" else _save_brown(path, colour=kind == "colour")
    assert main(["info", str(path), "--json", "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed[: printed.rindex("}") + 1])
    assert facts["kind"] == ("views" if kind == "views" else "tuples")
    assert (facts["patches"], facts["labels"]) == ((30, 6) if kind == "views" else (40, 20))
    assert sheet.is_file()


def test_merge_takes_no_file(tmp_path: Path, tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save_brown(tmp_path / "x.pt")
    assert main(["merge", str(tiny_store), str(tmp_path / "x.pt"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "x.pt is a file, a patch store is a folder" in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_file_inside_a_store_is_answered_with_the_store(
    tiny_store: Path, capsys: pytest.CaptureFixture[str], fast: list[str]
) -> None:
    path = tiny_store / "labels.npy"
    for line in (["--ds", str(path), *fast], ["info", str(path)]):
        assert main(line) == 2
        assert f"is a file of the patch store {tiny_store}: name the folder" in capsys.readouterr().err


def test_the_generated_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("train.demo.NUM_PICTURES", 2)
    ((store, weight),) = open_mix("demo", tmp_path)
    assert weight == 1.0
    assert len(np.unique(store.labels)) > 100
    assert store.patches.std() > 20
    before = store.path
    assert open_mix("demo", tmp_path)[0][0].path == before  # built once


def test_what_fetch_says_to_build_is_what_a_token_names(tmp_path: Path) -> None:
    """The commands that are printed after a download, and those that a missing token is answered with."""
    from train.fetch import SOURCES

    for token, source in (("lib", "liberty"), ("HP_easy", "hpatches"), ("v3", "amos-v3")):
        place = tmp_path / SOURCES[source].folder
        said = SOURCES[source].then.format(place=place, root=tmp_path)
        with pytest.raises(MissingFileError) as error:
            find_store(token, tmp_path)
        assert f"python -m train fetch {source} --data-root {tmp_path}, then python -m {said}" in str(error.value)
        out = Path(said.split()[said.split().index("--out") + 1])
        out.mkdir(parents=True)
        (out / "meta.json").write_text("{}")
        assert find_store(token, tmp_path) == out
    assert SOURCES["hpatches"].then.endswith("--levels e")
    command = f"--out {tmp_path}/HPatches/hpatches_illum-view_tough --levels t"
    with pytest.raises(MissingFileError, match=f"{command} .*not known"):
        find_store("HP_tough", tmp_path)
    for token in ("v4", "TILDE", "colo"):
        with pytest.raises(MissingFileError) as error:
            find_store(token, tmp_path)
        out = Path(str(error.value).split("--out ")[1])
        out.mkdir(parents=True)
        (out / "meta.json").write_text("{}")
        assert find_store(token, tmp_path) == out


def test_all_sets_that_are_missing_are_named_at_once(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--ds", f"v4+{tiny_store}+lib*2+nothing+lib", "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "python -m train build amos DIR --out Datasets/v4;" in error
    assert "train fetch liberty, then python -m train build brown Datasets/6Brown/published/liberty --out" in error
    assert "data set 'nothing'" in error
    assert error.count("data set ") == 3
    assert not list(tmp_path.iterdir())


def test_the_name_of_the_demo_store_follows_all_that_makes_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed source of any of these would be another hash: all of them are read for it."""
    from common import cache
    from train import demo

    read: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or original(path))
    monkeypatch.setattr(cache.Path, "is_dir", lambda path: True)
    demo.demo_store()
    assert {"demo.py", "photos.py", "views.py", "linking.py", "frames.py", "images.py", "patches.py"} <= {*read}
