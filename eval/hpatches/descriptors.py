"""Descriptors of HPatches strips: described, or read from and written to CSV folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.hpatches import TYPES, count_patches, read_strip
from eval.features.base import Descriptor
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import atomic_path, check_text

Floats32 = NDArray[np.float32]

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class DescriptorSet:
    """Descriptors of every patch of some sequences in one array.

    Attributes:
        names: the sequences.
        counts: number N of patches of each, int64.
        data: (16 * sum N, D) float32; sequence by sequence, within one the 16 ``TYPES``, within those the patches.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    data: Floats32

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or len(self.data) != len(TYPES) * int(self.counts.sum()):
            raise DataError(
                f"{self.data.shape} descriptors for {int(self.counts.sum())} patches of {len(TYPES)} strips each"
            )

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each sequence in ``data``."""
        return np.concatenate([[0], np.cumsum(len(TYPES) * self.counts)[:-1]]).astype(np.int64)

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each sequence in ``names``."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return int(self.data.shape[1])

    def get(self, name: str, type_index: int) -> Floats32:
        """The (N, D) descriptors of one strip, a view."""
        i = self.index[name]
        start = int(self.starts[i] + type_index * self.counts[i])
        return self.data[start : start + int(self.counts[i])]

    def rows(
        self, sequences: NDArray[np.int64], type_indices: NDArray[np.int64], patches: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rows of ``data`` for patches given by index of sequence, index of strip and index of patch, each (M,)."""
        rows: NDArray[np.int64] = self.starts[sequences] + type_indices * self.counts[sequences] + patches
        return rows

    def map(self, transform: Callable[[Floats32], Floats32], names: Iterable[str]) -> DescriptorSet:
        """The set of ``names`` with ``transform`` applied to each strip by itself."""
        chosen = tuple(names)
        counts = {name: int(self.counts[self.index[name]]) for name in chosen}
        return from_blocks(counts, (transform(self.get(name, t)) for name in chosen for t in range(len(TYPES))))


def from_blocks(counts: Mapping[str, int], blocks: Iterable[Floats32]) -> DescriptorSet:
    """A set from blocks (M, D) of its rows in the order of storage: held in memory once, whatever the blocks.

    Args:
        counts: sequence -> number of patches.
        blocks: at least one.

    Raises:
        DataError: blocks of another number of rows in all, or of different lengths D.
    """
    total = len(TYPES) * sum(counts.values())
    data: Floats32 | None = None
    at = 0
    for block in blocks:
        if data is None:
            data = np.empty((total, block.shape[1]), dtype=np.float32)
        if block.shape[1] != data.shape[1] or at + len(block) > total:
            raise DataError(f"{block.shape} descriptors do not fit: {total - at} of {data.shape[1]} values are missing")
        data[at : at + len(block)] = block
        at += len(block)
    if data is None or at < total:
        raise DataError(f"{at} descriptors for {total} patches")
    return DescriptorSet(tuple(counts), np.array(list(counts.values()), dtype=np.int64), data)


def from_arrays(sequences: Mapping[str, NDArray[np.generic]]) -> DescriptorSet:
    """A set from arrays (16, N, D), one a sequence."""
    counts = {name: array.shape[1] for name, array in sequences.items()}
    arrays = (np.asarray(array, dtype=np.float32) for array in sequences.values())
    return from_blocks(counts, (array.reshape(-1, array.shape[2]) for array in arrays))


def describe(
    folders: Mapping[str, Path], descriptor: Descriptor, each: Callable[[Sequence[str]], Iterable[str]] = iter
) -> DescriptorSet:
    """Describe the 16 strips of each sequence.

    Patches are resized from 65 to the descriptor's side by OpenCV's bilinear interpolation without antialiasing, as
    the published HardNet figures were made.

    Args:
        folders: sequence -> folder with its strips.
        descriptor: describes (N, 1, S, S) patches in [0, 1].
        each: iterates over the names (a progress bar).
    """

    def blocks() -> Iterable[Floats32]:
        for name in each(tuple(folders)):
            for strip in TYPES:
                patches = resize_patches(read_strip(folders[name] / f"{strip}.png"), descriptor.patch_size)
                yield descriptor.describe(torch.from_numpy(patches)[:, None] / 255.0).numpy()

    return from_blocks({name: count_patches(folder) for name, folder in folders.items()}, blocks())


def resize_patches(patches: NDArray[np.uint8], side: int) -> Floats32:
    """Resize (N, S, S) patches to (N, side, side) float32, range kept: OpenCV bilinear, no antialiasing."""
    import cv2

    if patches.shape[1] == side:
        return patches.astype(np.float32)
    resized = [cv2.resize(p, (side, side), interpolation=cv2.INTER_LINEAR) for p in patches]
    return np.stack(resized).astype(np.float32) if resized else np.empty((0, side, side), np.float32)


# --- CSV -------------------------------------------------------------------------------------------------------------


def read_csv_set(root: str | Path, names: Sequence[str] | None = None, packed: bool = False) -> DescriptorSet:
    """Read ``<root>/<sequence>/<type>.csv`` for ``names`` (default: every folder that has a ``ref.csv``).

    Args:
        root: folder of one descriptor.
        names: sequences to read.
        packed: each byte holds 8 binary values, most significant bit first.

    Raises:
        MissingFileError, DataError: a missing file, strips of unequal length or dimension, text, NaN.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of descriptor CSV files")
    if names is None:
        names = csv_sequences(root)
    counts = {name: len(read_descriptor_csv(root / name / "ref.csv", packed)) for name in names}

    def blocks() -> Iterable[Floats32]:
        length = None
        for name in names:
            for strip in TYPES:
                path = root / name / f"{strip}.csv"
                block = read_descriptor_csv(path, packed)
                length = block.shape[1] if length is None else length
                if block.shape != (counts[name], length):
                    raise DataError(
                        f"{path} holds {len(block)} descriptors of {block.shape[1]} values, "
                        f"expected {counts[name]} of {length}"
                    )
                yield block

    return from_blocks(counts, blocks())


def csv_sequences(root: Path) -> list[str]:
    """Names of the folders below ``root`` that hold a ``ref.csv``, sorted.

    Raises:
        DataError: none.
    """
    names = sorted(path.parent.name for path in root.glob("*/ref.csv"))
    if not names:
        raise DataError(f"{root} holds no <sequence>/ref.csv")
    return names


def read_descriptor_csv(path: Path, packed: bool = False) -> Floats32:
    """Read one CSV of descriptors, (N, D) float32.

    The delimiter is found from the first line: blanks, or whatever one character stands between its numbers
    (and maybe after the last one).
    ``packed``: each value is a byte of 8 binary ones.

    Raises:
        MissingFileError, DataError: no such file; not a table of finite numbers with two columns or more.
    """
    check_text(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), None)
        if first is None:
            raise DataError(f"{path} is empty")
        delimiter = find_delimiter(first, path)
        file.seek(0)
        lines = (line.rstrip() for line in file)
        if delimiter is not None and first.rstrip().endswith(delimiter):  # after the last number too
            lines = (line.removesuffix(delimiter) for line in lines)
        try:
            values = np.loadtxt(lines, dtype=np.float32, delimiter=delimiter, ndmin=2, comments=None)
        except ValueError as error:
            raise DataError(f"{path} is not a table of numbers: {' '.join(str(error).split())[:160]}") from None
    if values.shape[1] < 2 and not packed:
        raise DataError(f"{path} has one column, descriptors have two or more: is a delimiter missing?")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(f"{path}: line {bad[0][0] + 1}, column {bad[0][1] + 1} is not a finite number")
    if packed:
        if (values < 0).any() or (values > 255).any() or (values % 1).any():
            raise DataError(f"{path}: packed binary descriptors are whole numbers 0 … 255")
        return np.unpackbits(values.astype(np.uint8), axis=1).astype(np.float32)
    return values


def find_delimiter(line: str, path: Path) -> str | None:
    """The character between the numbers of a line; None: blanks.

    Raises:
        DataError: several candidates, a decimal comma among them.
    """
    delimiters = sorted(set(_NUMBER.sub("", line).replace(" ", "")) - {"\n", "\r"})
    if len(delimiters) > 1:
        marks = " and ".join(map(repr, delimiters[:4]))
        raise DataError(f"{path}: the first line holds {marks}: expected numbers and one delimiter between them")
    return delimiters[0] if delimiters else None


def write_csv_set(descriptors: DescriptorSet, root: str | Path) -> None:
    """Write ``<root>/<sequence>/<type>.csv``: commas, ``%.9g`` (float32 comes back exactly)."""
    for name in descriptors.names:
        for t, strip in enumerate(TYPES):
            with atomic_path(Path(root) / name / f"{strip}.csv") as temporary:
                np.savetxt(temporary, descriptors.get(name, t), fmt="%.9g", delimiter=",")
