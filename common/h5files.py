"""HDF5 files of named arrays: written whole or not at all, read with errors of one line."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import may_unpack
from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError, need
from kornia_hardnet8.files import atomic_path

Arrays = dict[str, NDArray[Any]]

# HDF5's numbers of filters: deflate, shuffle, a checksum, and h5py's lzf. What one deflated byte unpacks to at most;
# of lzf it is 90, less than what `may_unpack` allows.
_DEFLATE = 1
_FILTERS = {_DEFLATE, 2, 3, 32000}
_MOST_DEFLATED = 1032


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
        temporary.write_bytes(buffer.getvalue())


def read_h5(path: Path, names: Iterable[str] | None = None) -> tuple[Arrays, dict[str, str]]:
    """Read the named arrays (all when None) and the text attributes.

    Raises:
        MissingFileError: no such file.
        DataError: damaged, a name that is not there, or data that the file does not hold itself.
    """
    with open_h5(path) as file:
        datasets = {name: named_dataset(file, name, path) for name in (_names(file) if names is None else names)}
        total = sum(dataset.nbytes for dataset in datasets.values())
        if not may_unpack(total, path.stat().st_size):
            raise DataError(f"{path} declares {total} bytes of numbers, which so small a file does not hold")
        arrays = {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}
        return arrays, {key: str(value) for key, value in file.attrs.items()}


@contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """An open ``h5py.File``; whatever h5py raises in the block becomes one line.

    Raises:
        MissingFileError: no such file.
        DataError: damaged, or no HDF5 file.
    """
    h5py = need("h5py", "eval,train")
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except HardNet8Error:
        raise
    except Exception as error:  # h5py raises many types for damaged files
        raise DataError(f"{path} is damaged or no HDF5 file: {' '.join(str(error).split())}") from None


def named_dataset(file: Any, name: str, path: Path) -> Any:
    """A dataset of numbers (or of bytes) of an open file that may be read.

    Raises:
        DataError: see :func:`refusal`.
    """
    refused = refusal(file, name, path)
    if refused is not None:
        raise DataError(f"{path}: {name!r} {refused[1]}")
    return file[name]


def refusal(file: Any, name: str, path: Path, kinds: str = "fiubS") -> tuple[str, str] | None:
    """Why a dataset is not read, as a kind (link, group, type, huge) and words; None when it may be.

    ``kinds`` are numpy's of the types that are taken. No link is followed, no other file is read, nothing unpacks to
    more than the file can honestly hold.
    """
    h5py = need("h5py", "eval,train")
    parts = name.strip("/").split("/")
    for length in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:length]), getlink=True)
        if link is None:
            return "missing", "is not there"
        if not isinstance(link, h5py.HardLink):
            return "link", "is a link: only data of the file itself is taken"
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        return "group", "is a group, expected a dataset"
    if dataset.external or dataset.is_virtual:
        return "link", "is stored in other files, which are not read"
    if dataset.shape is None or dataset.dtype.kind not in kinds:
        return "type", f"holds {dataset.dtype}, expected numbers"
    size = path.stat().st_size
    if not may_unpack(dataset.nbytes, size) or not _chunks_are_honest(dataset, size):
        return "huge", f"declares {dataset.dtype} {dataset.shape}, which so small a file does not hold"
    return None


def _chunks_are_honest(dataset: Any, size: int) -> bool:
    """Whether the chunks of a dataset unpack to what they declare: HDF5 inflates whatever a stream holds."""
    if dataset.chunks is None:
        return True
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    raw = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if not set(filters) <= _FILTERS or filters.count(_DEFLATE) > 1 or not may_unpack(raw, size):
        return False
    stored: list[Any] = []
    if _DEFLATE in filters:
        dataset.id.chunk_iter(stored.append)
    for chunk in stored:
        if may_unpack(_MOST_DEFLATED * chunk.size, size):
            continue
        content = dataset.id.read_direct_chunk(chunk.chunk_offset)[1]
        if len(zlib.decompressobj().decompress(content, raw + 1)) > raw:
            return False
    return True


def _names(file: Any) -> list[str]:
    """The names of all datasets."""
    h5py = need("h5py", "eval")
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
