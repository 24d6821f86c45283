"""HDF5 files of named arrays: written whole or not at all, read with errors of one line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import may_unpack
from kornia_hardnet8.errors import DataError, MissingFileError, need
from kornia_hardnet8.files import atomic_path

Arrays = dict[str, NDArray[Any]]


def write_h5(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str] | None = None) -> None:
    """Write arrays and text attributes to ``path``, whole or not at all; ``/`` in a name makes groups."""
    h5py = need("h5py", "eval")
    # Built in memory: the HDF5 library reports a full disk late, and then cannot close its file.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
        for name, text in (attributes or {}).items():
            file.attrs[name] = text
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_h5(path: Path, names: Iterable[str] | None = None) -> tuple[Arrays, dict[str, str]]:
    """Read the named arrays (all when None) and the text attributes.

    Raises:
        MissingFileError: no such file.
        DataError: damaged, a name that is not there, or a dataset that the file does not hold itself.
    """
    h5py = need("h5py", "eval")
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    try:
        with h5py.File(path, "r") as file:
            if names is None:
                found: list[str] = []
                file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
                names = found
            arrays = {}
            for name in names:
                arrays[name] = np.asarray(named_dataset(file, name, path)[()])
            return arrays, {key: str(value) for key, value in file.attrs.items()}
    except DataError:
        raise
    except Exception as error:  # h5py raises many types for damaged files
        raise DataError(f"{path} is damaged or no HDF5 file: {' '.join(str(error).split())}") from None


def named_dataset(file: Any, name: str, path: Path) -> Any:
    """A dataset of an open file; no link is followed and no other file is read.

    Raises:
        DataError: it is not there, is linked from elsewhere or stored elsewhere, or declares more than the file holds.
    """
    h5py = need("h5py", "eval,train")
    parts = name.strip("/").split("/")
    for length in range(1, len(parts) + 1):
        if not isinstance(file.get("/".join(parts[:length]), getlink=True), h5py.HardLink):
            raise DataError(f"{path} has no dataset {name!r}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {name!r} is a group, expected a dataset")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {name!r} is stored in other files, which are not read")
    if not may_unpack(dataset.size * dataset.dtype.itemsize, path.stat().st_size):
        raise DataError(
            f"{path}: {name!r} declares {dataset.dtype} {dataset.shape}, which so small a file does not hold"
        )
    return dataset
