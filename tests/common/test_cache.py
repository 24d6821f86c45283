from __future__ import annotations

import multiprocessing
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.cache import Cache, canonical_json
from common.h5files import read_h5, write_h5
from kornia_hardnet8.errors import DataError, MissingFileError


def test_a_result_is_made_once_and_found_again(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(3), "group/b": np.eye(2, dtype=np.float32)}

    for _ in range(2):
        key, arrays = cache.compute("matches", {"x": 1, "y": [1.5, "z"]}, make)
        assert key == cache.key("matches", {"x": 1, "y": [1.5, "z"]})
        np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
        np.testing.assert_array_equal(arrays["group/b"], np.eye(2))
    assert len(calls) == 1
    assert cache.get("matches", {"y": [1.5, "z"], "x": 1}) is not None
    for stage, configuration in (("matches", {"x": 2, "y": [1.5, "z"]}), ("geometry", {"x": 1, "y": [1.5, "z"]})):
        assert cache.get(stage, configuration) is None


def test_the_configuration_inside_is_compared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("matches", {"ratio": 0.8}, {"a": np.zeros(1)})
    other = cache.path("matches", {"ratio": 0.9})
    cache.path("matches", {"ratio": 0.8}).rename(other)
    with pytest.raises(DataError, match=rf"{other.name} was made with another configuration"):
        cache.get("matches", {"ratio": 0.9})


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("matches", {}, {"a": np.zeros(1000)})
    path = cache.path("matches", {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=rf"{path.name} is damaged.*remove it"):
        cache.get("matches", {})


@pytest.mark.parametrize("name", ["a", "seconds"])
def test_other_numbers_and_missing_ones_are_damage(name: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("matches", {}, {"a": np.zeros(1000), "seconds": np.array(1.5), "flags": np.ones(3, bool)})
    assert cache.get("matches", {}) is not None
    with h5py.File(cache.path("matches", {}), "r+") as file:
        if name == "a":
            file["a"][17] = 1.0
        else:
            del file[name]
    with pytest.raises(DataError, match="is damaged; remove it and it is computed again"):
        cache.get("matches", {})


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail() -> dict[str, np.ndarray]:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cache.compute("matches", {}, fail)
    assert list(tmp_path.rglob("*")) == []


def _work(root: Path) -> None:
    cache = Cache(root)
    for index in range(30):
        _, arrays = cache.compute("s", {"i": index}, lambda i=index: {"a": np.full(2000, i)})
        assert (arrays["a"] == index).all()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.rglob("*"))) == 31


def test_canonical_json_does_not_depend_on_order_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [True, None]}) == '{"a":[true,null],"b":1}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_h5_files_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_h5(path, {"K": np.eye(3), "n": np.array(3)}, {"about": "ünïcode"})
    arrays, attributes = read_h5(path, ["n"])
    assert list(arrays) == ["n"]
    assert arrays["n"] == 3
    assert attributes == {"about": "ünïcode"}
    with pytest.raises(DataError, match=r"a\.h5: 'R' is not there"):
        read_h5(path, ["K", "R"])
    with h5py.File(path, "a") as file:
        file.create_group("R")
    with pytest.raises(DataError, match=r"a\.h5: 'R' is a group"):
        read_h5(path, ["R"])
    with pytest.raises(MissingFileError, match=r"b\.h5 is not there"):
        read_h5(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_text("text")
    with pytest.raises(DataError, match=r"c\.h5 is damaged or no HDF5 file"):
        read_h5(tmp_path / "c.h5")


def test_a_cache_without_a_folder_keeps_nothing() -> None:
    cache, made = Cache(None), []
    for _ in range(2):
        key, arrays = cache.compute("s", {"i": 1}, lambda: made.append(1) or {"a": np.ones(2)})
        assert key == cache.key("s", {"i": 1})
        assert arrays["a"].tolist() == [1, 1]
    assert len(made) == 2
    assert cache.get("s", {"i": 1}) is None
