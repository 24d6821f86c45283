"""Arrays on disk (``.npy``, ``.npz``): read when the file can hold what its header declares, never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError, MissingFileError

# What compressed data may unpack to: this much at least, and this many times its size.
_ROOM_BYTES = 64 << 20
_MOST_TIMES = 200


def may_unpack(size: int, packed: int) -> bool:
    """Whether ``packed`` bytes may honestly hold ``size`` bytes of numbers."""
    return 0 <= size <= max(_ROOM_BYTES, _MOST_TIMES * packed)


def read_npy(path: Path, mapped: bool = False) -> NDArray[Any]:
    """Read an ``.npy`` file, or map it into memory (then read-only; an empty array is read).

    Raises:
        MissingFileError: it is not there.
        DataError: it is no such file, holds objects, or is longer or shorter than its header says.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    with open(path, "rb") as file:
        shape, _, dtype = _header(file, str(path))
        declared, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    if declared != there:
        raise DataError(f"{path} is cut short or damaged: {dtype} {shape} takes {declared} bytes, it holds {there}")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped and declared else None, allow_pickle=False)
    except (ValueError, OverflowError) as error:  # no bytes, but sides that no array has
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    return array


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read named arrays of an ``.npz`` file.

    Raises:
        MissingFileError: it is not there.
        DataError: it is no such file, lacks an array, or one is not what its header says.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _member(archive, name, path) for name in names}
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib raise many types for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is damaged or no archive of arrays: {reason}") from None


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"{path} holds no array {name!r}")
    record = archive.getinfo(f"{name}.npy")
    if not may_unpack(record.file_size, record.compress_size):
        raise DataError(f"{path}: {name} unpacks to {record.file_size} bytes, which so small a file does not hold")
    with archive.open(record) as file:
        shape, order, dtype = _header(file, f"{path}: {name}")  # type: ignore[arg-type]
        content = file.read()
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path}: {name} holds {len(content)} bytes, {dtype} {shape} is declared")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Shape, order and type that a header declares."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy evaluates the header as Python and raises as that does
        raise DataError(f"{where} is no array file: {' '.join(str(error).split())[:200]}") from None
    if not all(type(side) is int and side >= 0 for side in shape):
        raise DataError(f"{where} is no array file: its shape is {shape}")
    if dtype.hasobject:
        raise DataError(f"{where} holds objects, expected plain numbers")
    return shape, "F" if fortran else "C", dtype
