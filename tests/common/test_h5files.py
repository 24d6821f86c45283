from __future__ import annotations

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
        file.create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])
        layout = h5py.VirtualLayout((3,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (1 << 40,), "f8", chunks=(1 << 10,))
    for name, message in (
        ("far", "has no dataset"), ("group/far/secret", "has no dataset"), ("near", "has no dataset"),
        ("raw", "stored in other files"), ("virtual", "stored in other files"), ("huge", "so small a file"),
        ("group", "is a group"), ("none", "has no dataset"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_h5(tmp_path / "a.h5", [name])
    assert read_h5(tmp_path / "a.h5", ["real"])[0]["real"].tolist() == [0, 1, 2]


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
