"""What a batch says of tuples that must not be negatives of each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.patchstore import PatchStore
from train.batches import BatchSource
from train.config import TrainConfig
from train.stores.merge import merge_stores
from train.stores.writer import create_store


def _store(path: Path, num_labels: int, collisions: list[list[int]] | None = None) -> PatchStore:
    labels = np.repeat(np.arange(num_labels) * 10, 2)
    with create_store(path, 32) as writer:
        patches = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32), dtype=np.uint8)
        writer.append(patches, labels=labels, image_ids=np.arange(len(labels)), cam_ids=np.zeros(len(labels), int))
        if collisions is not None:
            writer.set_collisions(np.cumsum([0, *map(len, collisions)]), np.concatenate(collisions))
        writer.meta = {
            "kind": "tuples", "crop": 1.0, "mr_size": 12.0, "built": {"command": "test"}, "sources": [],
        }  # fmt: skip
    return PatchStore.open(path)


def _source(*stores: PatchStore, **more: object) -> BatchSource:
    config = TrainConfig("x", bs=6, tuples=60, holdout=0.0, **more)  # type: ignore[arg-type]
    return BatchSource([(store, 1.0) for store in stores], config)


def test_colliding_labels_are_excluded_both_ways(tmp_path: Path) -> None:
    store = _store(tmp_path / "a", 8, [[10, 30], [0], [], [0], [], [], [], [999]])
    for step in range(10):
        batch = _source(store).batch(step)
        labels = batch.labels[0::2].tolist()
        expected = [[{a, b} in ({0, 10}, {0, 30}) for b in labels] for a in labels]
        assert batch.exclude is not None
        assert batch.exclude.tolist() == expected
    assert _source(_store(tmp_path / "b", 8)).batch(0).exclude is None


@pytest.mark.parametrize("combine", ["random", "inbatch"])
def test_labels_of_one_place_from_different_sources_are_excluded(tmp_path: Path, combine: str) -> None:
    parts = [_store(tmp_path / name, 5) for name in "abc"]
    merge_stores([part.path for part in parts], tmp_path / "all", same_place=[[parts[0].path, parts[1].path]])
    merged = PatchStore.open(tmp_path / "all")
    source = _source(merged, _store(tmp_path / "d", 7), combine=combine)
    starts = [part["labels"][0] for part in merged.meta["parts"]]
    seen = 0
    for step in range(20):
        if combine == "random" and source.sets(step) != [0]:
            continue
        batch = source.batch(step)
        labels = batch.labels[0::2].numpy()
        of = np.where(labels < source.offsets[1], np.searchsorted(starts, labels, side="right") - 1, 9)
        expected = [[{a, b} == {0, 1} for b in of.tolist()] for a in of.tolist()]
        assert batch.exclude is not None
        assert batch.exclude.tolist() == expected
        seen += 1
    assert seen > 3
