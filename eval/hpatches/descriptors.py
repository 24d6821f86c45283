"""Descriptors of HPatches strips: described, or read from and written to CSV folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval.features.base import Descriptor
from eval.hpatches.strips import TYPES, count_patches, read_strip
from kornia_hardnet8._files import atomic_path
from kornia_hardnet8.errors import DataError, MissingFileError

Floats32 = NDArray[np.float32]


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
        starts = np.concatenate([[0], np.cumsum(len(TYPES) * self.counts)[:-1]]).astype(np.int64)
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "index", {name: i for i, name in enumerate(self.names)})

    starts: NDArray[np.int64] = None  # type: ignore[assignment]
    index: dict[str, int] = None  # type: ignore[assignment]

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
        parts = [transform(self.get(name, t)) for name in chosen for t in range(len(TYPES))]
        return DescriptorSet(chosen, self.counts[[self.index[n] for n in chosen]], np.concatenate(parts))


def from_arrays(sequences: Mapping[str, NDArray[np.generic]]) -> DescriptorSet:
    """A set from arrays (16, N, D), one a sequence."""
    arrays = {name: np.asarray(a, dtype=np.float32) for name, a in sequences.items()}
    counts = np.array([a.shape[1] for a in arrays.values()], dtype=np.int64)
    return DescriptorSet(tuple(arrays), counts, np.concatenate([a.reshape(-1, a.shape[2]) for a in arrays.values()]))


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
    names = tuple(folders)
    counts = np.array([count_patches(folders[name]) for name in names], dtype=np.int64)
    data = np.empty((len(TYPES) * int(counts.sum()), descriptor.dim), dtype=np.float32)
    at = 0
    for name in each(names):
        for strip in TYPES:
            patches = resize_patches(read_strip(folders[name] / f"{strip}.png"), descriptor.patch_size)
            described = descriptor.describe(torch.from_numpy(patches)[:, None] / 255.0).numpy()
            data[at : at + len(described)] = described
            at += len(described)
    return DescriptorSet(names, counts, data)


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
        names = sorted(p.parent.name for p in root.glob("*/ref.csv"))
        if not names:
            raise DataError(f"{root} holds no <sequence>/ref.csv")
    strips: list[Floats32] = []
    counts = []
    for name in names:
        arrays = [read_descriptor_csv(root / name / f"{t}.csv", packed) for t in TYPES]
        for strip, array in zip(TYPES, arrays, strict=True):
            first = strips[0] if strips else arrays[0]
            if len(array) != len(arrays[0]) or array.shape[1] != first.shape[1]:
                raise DataError(
                    f"{root / name / strip}.csv holds {len(array)} descriptors of {array.shape[1]} values, "
                    f"expected {len(arrays[0])} of {first.shape[1]}"
                )
        strips += arrays
        counts.append(len(arrays[0]))
    return DescriptorSet(tuple(names), np.array(counts, dtype=np.int64), np.concatenate(strips))


def read_descriptor_csv(path: Path, packed: bool = False) -> Floats32:
    """Read one CSV of descriptors, (N, D) float32; delimiter ``,``, ``;``, tab or blanks, found from the first line."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline()
        found = {mark for mark in ",;\t" if mark in first}
        if len(found) > 1:
            raise DataError(f"{path}: the first line mixes the delimiters {' '.join(map(repr, sorted(found)))}")
        file.seek(0)
        try:
            values = np.loadtxt(file, dtype=np.float32, delimiter=found.pop() if found else None, ndmin=2)
        except ValueError as error:
            raise DataError(f"{path} is not a table of numbers: {' '.join(str(error).split())[:160]}") from None
    if values.size == 0:
        raise DataError(f"{path} is empty")
    if values.shape[1] < 2 and not packed:
        raise DataError(f"{path} has one column: wrong delimiter (known: comma, semicolon, tab, blank)?")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(f"{path}: line {bad[0][0] + 1}, column {bad[0][1] + 1} is not a finite number")
    if packed:
        if (values < 0).any() or (values > 255).any() or (values % 1).any():
            raise DataError(f"{path}: packed binary descriptors are whole numbers 0 … 255")
        return np.unpackbits(values.astype(np.uint8), axis=1).astype(np.float32)
    return values


def write_csv_set(descriptors: DescriptorSet, root: str | Path) -> None:
    """Write ``<root>/<sequence>/<type>.csv``: commas, ``%.9g`` (float32 comes back exactly)."""
    for name in descriptors.names:
        for t, strip in enumerate(TYPES):
            with atomic_path(Path(root) / name / f"{strip}.csv") as temporary:
                np.savetxt(temporary, descriptors.get(name, t), fmt="%.9g", delimiter=",")
