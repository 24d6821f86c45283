"""PatchStore: what goes in comes out, and what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError
from train.stores.writer import create_store


def build(path: Path, count: int = 10, seed: int = 0, **meta) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = {
        "labels": rng.integers(0, 4, count),
        "image_ids": rng.integers(0, 3, count),
        "cam_ids": rng.integers(0, 3, count),
        "frames": rng.normal(size=(count, 2, 3)),
        "place_ids": rng.integers(0, 2, count),
        "visible": rng.random(count) < 0.5,
    }
    patches = rng.integers(0, 256, (count, 16, 16)).astype(np.uint8)
    with create_store(path, 16) as writer:
        half = count // 2
        for part in (slice(0, half), slice(half, count)):
            writer.append(patches[part], **{k: v[part] for k, v in rows.items()})
        writer.set_pairs(np.array([[0, 1, 1], [2, 3, 0]]))
        writer.set_collisions(np.array([0, 1, 2, 2, 2]), np.array([1, 0]))
        writer.meta = {"crop": 1.5, "mr_size": 12.0, "sources": [], "built": {}, **meta}
    return {"patches": patches, **rows}


def test_round_trip(tmp_path: Path) -> None:
    rows = build(tmp_path / "s")
    store = PatchStore.open(tmp_path / "s")
    assert len(store) == 10
    assert store.patch_size == 16
    assert isinstance(store.patches, np.memmap)
    for name, values in rows.items():
        np.testing.assert_array_equal(getattr(store, name), values.astype(getattr(store, name).dtype), err_msg=name)
    assert (store.labels.dtype, store.cam_ids.dtype, store.frames.dtype) == (np.int64, np.int32, np.float32)
    np.testing.assert_array_equal(store.pairs, [[0, 1, 1], [2, 3, 0]])
    starts, items = store.collisions
    np.testing.assert_array_equal(starts, [0, 1, 2, 2, 2])
    np.testing.assert_array_equal(items, [1, 0])
    assert store.meta["num_labels"] == len(np.unique(rows["labels"]))
    assert store.meta["kind"] == "tuples"
    with pytest.raises(ValueError, match="read-only"):
        store.patches[0, 0, 0] = 1


def test_colour_and_optional_arrays(tmp_path: Path) -> None:
    patches = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    with create_store(tmp_path / "s", 8, channels=3) as writer:
        writer.append(patches, labels=np.zeros(2), image_ids=np.arange(2), cam_ids=np.arange(2))
        writer.meta = {"crop": 1.0, "mr_size": None, "sources": []}
    store = PatchStore.open(tmp_path / "s")
    np.testing.assert_array_equal(store.patches, patches)
    assert store.frames is None
    assert store.collisions is None


def test_empty_store(tmp_path: Path) -> None:
    with create_store(tmp_path / "s", 8) as writer:
        writer.meta = {"crop": 1.0, "mr_size": None, "sources": []}
    store = PatchStore.open(tmp_path / "s")
    assert store.patches.shape == (0, 8, 8)
    assert store.labels.shape == (0,)


@pytest.mark.parametrize("name", ["patches", "labels", "image_ids", "cam_ids", "frames", "pairs", "visible"])
def test_truncated_array_is_named(tmp_path: Path, name: str) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{name}\.npy is cut short"):
        PatchStore.open(tmp_path / "s")


@pytest.mark.parametrize("name", ["patches.npy", "labels.npy", "collisions.npz", "meta.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    build(tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        PatchStore.open(tmp_path / "s")


def test_damaged_collisions_are_named(tmp_path: Path) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / "collisions.npz"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"collisions\.npz is damaged"):
        PatchStore.open(tmp_path / "s")


def test_array_of_another_shape_or_type(tmp_path: Path) -> None:
    build(tmp_path / "s")
    np.save(tmp_path / "s" / "labels.npy", np.zeros(9, np.int64))
    with pytest.raises(DataError, match=r"labels\.npy is int64 \(9,\), meta\.json says int64 \(10,\)"):
        PatchStore.open(tmp_path / "s")
    build(tmp_path / "t")
    np.save(tmp_path / "t" / "labels.npy", np.zeros(10, np.float32))
    with pytest.raises(DataError, match="float32"):
        PatchStore.open(tmp_path / "t")


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "pictures"), ("kind", []), ("crop", "big"), ("crop", 0.5), ("mr_size", -1), ("mr_size", True),
     ("count", "10"), ("patch_size", 16.0), ("arrays", ["labels"]), ("arrays", {"labels": 3}),
     ("arrays", {"labels": {"shape": 10, "dtype": "int64"}}), ("arrays", {"labels": {"shape": [10], "dtype": "?!"}})],
)  # fmt: skip
def test_meta_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / "meta.json"
    meta = json.loads(file.read_text())
    meta[key] = {**meta["arrays"], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(meta))
    named = "labels" if isinstance(value, dict) else key
    with pytest.raises(DataError, match=rf"meta\.json: {named} is .*, expected"):
        PatchStore.open(tmp_path / "s")


def test_labels_that_are_not_those_of_the_meta(tmp_path: Path) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / "labels.npy"
    np.save(file, np.full_like(np.load(file), 3))
    with pytest.raises(DataError, match=r"labels\.npy holds 1 labels, meta\.json says"):
        PatchStore.open(tmp_path / "s")


def test_meta_that_lies_about_the_count(tmp_path: Path) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / "meta.json"
    meta = json.loads(file.read_text())
    meta["count"] = 11
    file.write_text(json.dumps(meta))
    with pytest.raises(DataError, match="patches are not uint8"):
        PatchStore.open(tmp_path / "s")


def test_wrong_format_and_no_store(tmp_path: Path) -> None:
    build(tmp_path / "s")
    file = tmp_path / "s" / "meta.json"
    file.write_text(file.read_text().replace("patchstore/1", "patchstore/9"))
    with pytest.raises(DataError, match="patchstore/9"):
        PatchStore.open(tmp_path / "s")
    with pytest.raises(MissingFileError, match="nowhere"):
        PatchStore.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"meta\.json"):
        PatchStore.open(tmp_path / "empty")


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    rows = {"labels": np.zeros(2), "image_ids": np.zeros(2), "cam_ids": np.zeros(2)}
    with pytest.raises(RuntimeError, match="stop"), create_store(tmp_path / "s", 8) as writer:
        writer.append(np.zeros((2, 8, 8), np.uint8), **rows)
        raise RuntimeError("stop")
    with pytest.raises(DataError, match=r"cannot write .*: No space left"), create_store(tmp_path / "s", 8) as writer:
        writer.append(np.zeros((2, 8, 8), np.uint8), **rows)
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_existing_store_is_kept(tmp_path: Path) -> None:
    rows = build(tmp_path / "s")
    with pytest.raises(DataError, match="exists already"):
        build(tmp_path / "s", seed=1)
    np.testing.assert_array_equal(PatchStore.open(tmp_path / "s").patches, rows["patches"])


def test_writer_refuses_rows_that_do_not_fit(tmp_path: Path) -> None:
    ids = {"labels": np.zeros(2), "image_ids": np.zeros(2), "cam_ids": np.zeros(2)}
    with pytest.raises(DataError, match="uint8"), create_store(tmp_path / "s", 8) as writer:
        writer.append(np.zeros((2, 8, 8), np.float32), **ids)
    with pytest.raises(DataError, match="labels must have shape"), create_store(tmp_path / "s", 8) as writer:
        writer.append(np.zeros((2, 8, 8), np.uint8), **{**ids, "labels": np.zeros(3)})
    with pytest.raises(DataError, match="differ from the first"), create_store(tmp_path / "s", 8) as writer:
        writer.append(np.zeros((2, 8, 8), np.uint8), **ids)
        writer.append(np.zeros((2, 8, 8), np.uint8), **ids, visible=np.ones(2))


def _items(seed: int = 0) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    items = []
    for number in range(5):
        count = int(rng.integers(0, 4)) if number else 2
        ids = np.full(count, number)
        rows = {"labels": ids * 2, "image_ids": ids, "cam_ids": ids, "frames": rng.normal(size=(count, 2, 3))}
        items.append((rng.integers(0, 256, (count, 8, 8)).astype(np.uint8), rows))
    return items


def _write(path: Path, stop_after: int | None = None, error: type[BaseException] = KeyboardInterrupt, **key) -> int:
    """Build from the items, perhaps stopping in the middle of one; returns how many were done before."""
    items = _items()
    with create_store(path, 8, key=key) as writer:
        before = len(writer.records)
        assert writer.records == [{"item": number} for number in range(before)]
        for number in range(before, len(items)):
            patches, rows = items[number]
            half = len(patches) // 2
            for part in (slice(0, half), slice(half, None)):
                writer.append(patches[part], **{k: v[part] for k, v in rows.items()})
                if number == stop_after and part.start == half:
                    raise error
            writer.commit({"item": number})
        writer.meta = {"crop": 1.0, "mr_size": 1.0, "sources": []}
    return before


def _files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != "meta.json"}


@pytest.mark.parametrize("stop_after", range(5))
def test_an_interrupted_build_goes_on(tmp_path: Path, stop_after: int) -> None:
    assert _write(tmp_path / "whole", a=1) == 0
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", stop_after, a=1)
    assert [f.name for f in tmp_path.iterdir() if f.name != "whole"] == [".s.building"]
    assert _write(tmp_path / "s", a=1) == stop_after
    assert _files(tmp_path / "s") == _files(tmp_path / "whole")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["s", "whole"]
    PatchStore.open(tmp_path / "s")


def test_other_settings_start_over_and_errors_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", 3, a=1)
    assert _write(tmp_path / "s", a=2) == 0
    with pytest.raises(RuntimeError):
        _write(tmp_path / "t", 3, RuntimeError, a=1)
    assert [f.name for f in tmp_path.iterdir()] == ["s"]
    with pytest.raises(DataError, match="exists already"):
        _write(tmp_path / "s", a=2)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_link_stays_a_link(is_there: bool, tmp_path: Path) -> None:
    """A folder cannot be renamed onto it: the store goes to where it leads."""
    (tmp_path / "s").symlink_to("elsewhere")
    if is_there:
        (tmp_path / "elsewhere").mkdir()
    _write(tmp_path / "s", a=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["elsewhere", "s"]
    assert (tmp_path / "s").is_symlink()
    PatchStore.open(tmp_path / "elsewhere")


def test_what_appears_during_the_build_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"), create_store(tmp_path / "s", 8, key=1) as writer:
        patches, rows = _items()[0]
        writer.append(patches, **rows)
        writer.meta = {"crop": 1.0, "mr_size": 1.0, "sources": []}
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "mine").touch()
    assert [f.name for f in tmp_path.rglob("*")] == ["s", "mine"]


def test_the_line_that_a_killed_build_was_writing_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", 4, a=1)
    journal = tmp_path / ".s.building" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    assert _write(tmp_path / "s", a=1) == 3
    assert _write(tmp_path / "whole", a=1) == 0
    assert _files(tmp_path / "s") == _files(tmp_path / "whole")


@pytest.mark.parametrize(
    "line", ["[]", '{"count": "x", "rows": [], "record": {}}', '{"count": 3, "rows": ["x"], "record": {}}']
)
def test_a_journal_of_other_lines_starts_over(line: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", 4, a=1)
    with open(tmp_path / ".s.building" / "journal.jsonl", "a") as file:
        file.write(line + "\n")
    assert _write(tmp_path / "s", a=1) == 0
    PatchStore.open(tmp_path / "s")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("key", [None, {}])
def test_a_full_disk_names_the_store_and_leaves_nothing(key: object, tmp_path: Path) -> None:
    patches, rows = _items()[3]
    with (
        pytest.raises(DataError, match=r"cannot write .*/s: No space left on device"),
        create_store(tmp_path / "s", 8, key=key) as writer,
    ):
        writer._patches._file = open("/dev/full", "r+b")  # noqa: SIM115
        writer.append(patches, **rows)
        writer.commit({})
        writer._patches.flush()
    assert list(tmp_path.iterdir()) == []


def test_files_shorter_than_the_journal_are_not_filled_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", 4, a=1)
    patches = tmp_path / ".s.building" / "patches.npy"
    patches.write_bytes(patches.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"remove .*building to start over"):
        _write(tmp_path / "s", a=1)


def test_two_builds_of_one_store_at_a_time_are_refused(tmp_path: Path) -> None:
    with (
        create_store(tmp_path / "s", 8, key={}),
        pytest.raises(DataError, match="being written by another process"),
        create_store(tmp_path / "s", 8, key={}),
    ):
        pass
