"""Merging stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, UsageError
from train.batches import BatchSource
from train.config import TrainConfig
from train.stores.merge import merge_stores
from train.stores.writer import create_store


def _store(
    path: Path, labels, images, cams, fill: int, *, collisions=None, pairs=None, crop=1.5, kind="tuples", **more
):
    with create_store(path, 8) as writer:
        patches = np.full((len(labels), 8, 8), fill, np.uint8)
        writer.append(patches, labels=np.array(labels), image_ids=np.array(images), cam_ids=np.array(cams), **more)
        if collisions is not None:
            writer.set_collisions(*map(np.array, collisions))
        if pairs is not None:
            writer.set_pairs(np.array(pairs))
        writer.meta = {
            "kind": kind, "crop": crop, "mr_size": 12.0, "built": {"command": "test"},
            "sources": [{"name": "x.jpg", "sha256": "00"}],
        }  # fmt: skip
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    a = _store(tmp_path / "a", [7, 3, 7], [5, 5, 9], [5, 5, 9], 1, collisions=([0, 1, 2], [7, 3]), pairs=[[0, 2, 1]])
    b = _store(tmp_path / "b", [0, 0], [0, 1], [4, 4], 2, pairs=[[1, 0, 1]])
    c = _store(tmp_path / "c", [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], 3)
    return [a, b, c]


def test_ids_are_renumbered_and_offset(stores, tmp_path: Path) -> None:
    store = merge_stores(stores, tmp_path / "out")
    assert store.labels.tolist() == [1, 0, 1, 2, 2, 3, 4, 3, 4]
    assert store.image_ids.tolist() == [0, 0, 1, 2, 3, 4, 4, 5, 5]
    assert store.cam_ids.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert store.patches[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert store.pairs.tolist() == [[0, 2, 1], [4, 3, 1]]
    starts, items = store.collisions
    assert starts.tolist() == [0, 1, 2, 2, 2, 2]  # label 0 was 3 and collides with 7, which is 1 now
    assert items.tolist() == [1, 0]
    assert store.place_ids is None
    assert store.frames is None
    assert [part["name"] for part in store.meta["parts"]] == ["a", "b", "c"]
    assert [part["labels"] for part in store.meta["parts"]] == [[0, 2], [2, 3], [3, 5]]
    assert [part["patches"] for part in store.meta["parts"]] == [[0, 3], [3, 5], [5, 9]]
    assert [part["cam_ids"] for part in store.meta["parts"]] == [[0, 2], [2, 3], [3, 5]]
    assert [source["name"] for source in store.meta["sources"]] == ["a/x.jpg", "b/x.jpg", "c/x.jpg"]


def test_same_place(stores, tmp_path: Path) -> None:
    store = merge_stores(stores, tmp_path / "out", same_place=[[stores[0], stores[2]]])
    places = np.asarray(store.place_ids)
    assert places[:3].tolist() == places[5:8].tolist() == [places[0]] * 3
    assert places[3] == places[4] != places[0]


def test_places_of_a_merged_store_stay_apart(stores, tmp_path: Path) -> None:
    inner = merge_stores(stores[:2], tmp_path / "inner", same_place=[stores[:2]])
    assert set(inner.place_ids) == {0}
    store = merge_stores([stores[2], inner.path], tmp_path / "outer")
    assert store.place_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def _tell_apart(store: PatchStore) -> list[list[bool]]:
    """Which labels may be negatives of each other, by a batch of all of them."""
    num_labels = int(store.meta["num_labels"])
    batch = BatchSource([(store, 1.0)], TrainConfig("x", bs=num_labels, tuples=num_labels, holdout=0.0)).batch(0)
    assert batch.exclude is not None
    order = batch.labels[::2].argsort()
    return (~batch.exclude[order][:, order]).tolist()


def test_a_merged_store_keeps_its_protections_when_it_is_merged_again(tmp_path: Path) -> None:
    a, b, d = (_store(tmp_path / name, [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], 1) for name in "abd")
    inner = merge_stores([a, b], tmp_path / "c", same_place=[[a, b]])
    one_place = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)  # labels of a and of b: not across
    assert _tell_apart(inner) == one_place.tolist()
    outer = merge_stores([inner.path, d], tmp_path / "e")
    expected = np.ones((6, 6), bool)
    expected[:4, :4] = one_place
    assert _tell_apart(outer) == expected.tolist()
    assert [part["name"] for part in outer.meta["parts"]] == ["c/a", "c/b", "d"]
    assert [part["labels"] for part in outer.meta["parts"]] == [[0, 2], [2, 4], [4, 6]]
    assert [part["patches"] for part in outer.meta["parts"]] == [[0, 4], [4, 8], [8, 12]]
    assert [part["cam_ids"] for part in outer.meta["parts"]] == [[0, 2], [2, 4], [4, 6]]
    behind = merge_stores([d, inner.path], tmp_path / "f")
    assert [part["labels"] for part in behind.meta["parts"]] == [[0, 2], [2, 4], [4, 6]]
    assert _tell_apart(behind) == expected[::-1, ::-1].tolist()


def test_a_merged_store_knows_that_cameras_are_missing(stores, tmp_path: Path) -> None:
    meta = json.loads((stores[1] / "meta.json").read_text())
    (stores[1] / "meta.json").write_text(json.dumps({**meta, "has_cams": False}))
    merged = merge_stores(stores, tmp_path / "out")
    with pytest.raises(DataError, match="has no cam_ids: leave out --fewcams"):
        BatchSource([(merged, 1.0)], TrainConfig("x", bs=2, tuples=4, fewcams=True))
    assert merge_stores([stores[0], stores[2]], tmp_path / "known").meta["has_cams"]


def test_frames_and_visible(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    a = _store(tmp_path / "a", [0, 0], [0, 1], [0, 0], 1, frames=frames, visible=np.array([True, False]))
    b = _store(tmp_path / "b", [0, 0], [0, 1], [0, 0], 1, frames=2 * frames)
    store = merge_stores([a, b], tmp_path / "out")
    np.testing.assert_array_equal(store.frames, np.concatenate([frames, 2 * frames]))
    assert store.visible.tolist() == [True, False, True, True]


def test_stores_that_do_not_fit(stores, tmp_path: Path) -> None:
    other = _store(tmp_path / "other", [0], [0], [0], 1, crop=2.0)
    with pytest.raises(DataError, match=r"crop 2\.0, .* has 1\.5"):
        merge_stores([stores[0], other], tmp_path / "out")
    views = _store(tmp_path / "views", [0], [0], [0], 1, kind="views")
    with pytest.raises(DataError, match="kind views"):
        merge_stores([stores[0], views], tmp_path / "out")
    with pytest.raises(UsageError, match="named twice"):
        merge_stores([stores[0], stores[0]], tmp_path / "out")
    with pytest.raises(UsageError, match="not among the merged stores"):
        merge_stores(stores[:2], tmp_path / "out", same_place=[[stores[2]]])
    with pytest.raises(UsageError, match="in two groups"):
        merge_stores(stores, tmp_path / "out", same_place=[stores[:2], stores[1:]])
    with pytest.raises(UsageError, match="no store"):
        merge_stores([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(PatchStore.open(stores[0])) == 3
