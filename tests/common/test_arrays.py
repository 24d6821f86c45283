from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.arrays import read_npy, read_npz
from kornia_hardnet8.errors import DataError, MissingFileError

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "array", [VALUES, np.asfortranarray(VALUES), np.array(["a", "bc"]), np.zeros((0, 3)), np.array(3.5)], ids=str
)
def test_values(array: np.ndarray, mapped: bool, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(array))
    read = read_npy(tmp_path / "a.npy", mapped)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_of_archives(save, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", one=np.asfortranarray(VALUES), two=np.arange(3))
    arrays = read_npz(tmp_path / "a.npz", ["two", "one"])
    np.testing.assert_array_equal(arrays["one"], VALUES)
    np.testing.assert_array_equal(arrays["two"], [0, 1, 2])
    with pytest.raises(DataError, match="holds no array 'three'"):
        read_npz(tmp_path / "a.npz", ["three"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no array file"),
        (npy(VALUES)[:-1], "is cut short or damaged"),
        (npy(VALUES) + b"0", "is cut short or damaged"),
        (npy(VALUES).replace(b"(4, 6)", b"(4, 9)"), "is cut short or damaged"),
        (npy(VALUES).replace(b"(4, 6), }         ", b"(4, 10**12), }   "), "is no array file|cut short"),
        (npy(VALUES).replace(b"(4, 6), }            ", b"(4, 6000000000), }  "), "is no array file|cut short"),
        (npy(np.array([{"a": 1}], object)), "holds objects"),
        (npy(VALUES[:1]).replace(b"(1, 6), }   ", b"(True, 6), }"), "its shape is"),
        (npy(VALUES[:0]).replace(b"(0, 6), }".ljust(30), b"(0, 4611686018427387904, 4), }"), "is damaged"),
        (b"PK\3\4 an archive", "is no array file"),
    ],
)
def test_damage_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("one.npy", content)
    with pytest.raises(DataError):
        read_npz(tmp_path / "a.npz", ["one"])


def test_archives_that_unpack_to_more_than_they_hold(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", one=np.zeros(9 << 20))
    with pytest.raises(DataError, match="one unpacks to 75497600 bytes"):
        read_npz(tmp_path / "a.npz", ["one"])
    for content in (b"", b"PK\3\4", b"not an archive"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match="is damaged or no archive of arrays"):
            read_npz(tmp_path / "a.npz", ["one"])


def test_what_is_not_there(tmp_path: Path) -> None:
    for read in (read_npy, lambda path: read_npz(path, ["a"])):
        with pytest.raises(MissingFileError, match="nowhere is not there"):
            read(tmp_path / "nowhere")
