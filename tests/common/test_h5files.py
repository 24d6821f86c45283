from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.h5files import read_h5, write_h5
from kornia_hardnet8.errors import DataError, MissingFileError


def test_values(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", {"x": np.arange(3), "sub/y": np.ones((2, 2))}, {"what": "numbers"})
    arrays, attributes = read_h5(tmp_path / "a.h5")
    assert sorted(arrays) == ["sub/y", "x"]
    assert attributes == {"what": "numbers"}
    assert read_h5(tmp_path / "a.h5", ["x"])[0]["x"].tolist() == [0, 1, 2]


def test_what_a_file_does_not_hold_itself_is_not_read(tmp_path: Path) -> None:
    write_h5(tmp_path / "other.h5", {"secret": np.arange(3)})
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["far"] = h5py.ExternalLink("other.h5", "secret")
        file["group/far"] = h5py.ExternalLink("other.h5", "/")
        file["near"] = h5py.SoftLink("/real")
        file["real"] = np.arange(3)
        file["words"] = ["of any length"]
        file.create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])
        layout = h5py.VirtualLayout((3,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (1 << 40,), "f8", chunks=(1 << 10,))
    for name, message in (
        ("far", "is a link"), ("group/far/secret", "is a link"), ("near", "is a link"),
        ("raw", "stored in other files"), ("virtual", "stored in other files"), ("huge", "so small a file"),
        ("group", "is a group"), ("none", "is not there"), ("words", "expected numbers"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_h5(tmp_path / "a.h5", [name])
    assert read_h5(tmp_path / "a.h5", ["real"])[0]["real"].tolist() == [0, 1, 2]


def packed(path: Path, stream: int, chunk: tuple[int, ...] = (1024,), **settings: object) -> Path:
    """A file of one array of 1024 bytes whose only chunk unpacks to ``stream`` of them."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (1024,), "u1", maxshape=(None,), chunks=chunk, compression="gzip", **settings)
        data.id.write_direct_chunk((0,), zlib.compress(bytes(stream)))
    return path


def test_chunks_unpack_to_what_they_declare(tmp_path: Path) -> None:
    read_h5(packed(tmp_path / "a.h5", 1024))
    for path in (packed(tmp_path / "b.h5", 80 << 20), packed(tmp_path / "c.h5", 1024, (80 << 20,))):
        with pytest.raises(DataError, match="'x' declares uint8"):
            read_h5(path)


@pytest.mark.parametrize("settings", [{"compression": "gzip", "shuffle": True, "fletcher32": True},
                                      {"compression": "lzf"}])  # fmt: skip
def test_packed_arrays_are_read(settings: dict[str, object], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, 1 << 20, dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, **settings)
    np.testing.assert_array_equal(read_h5(tmp_path / "a.h5")[0]["x"], values)


def test_many_arrays_fit_into_the_file_together(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abc":
            file.create_dataset(name, (30 << 20,), "u1", chunks=(1 << 10,))
    read_h5(tmp_path / "a.h5", "ab")
    with pytest.raises(DataError, match="declares 94371840 bytes"):
        read_h5(tmp_path / "a.h5")


def test_any_damage_is_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.h5"
    write_h5(path, {"x": np.arange(300), "sub/y": np.ones((20, 20))}, {"what": "numbers"})
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 10)] = rng.integers(0, 256, 10)
        path.write_bytes(damaged[: rng.integers(1, len(whole) + 1)].tobytes())
        try:
            read_h5(path)
        except DataError as error:
            assert "\n" not in str(error)
    with pytest.raises(MissingFileError):
        read_h5(tmp_path / "nowhere.h5")
