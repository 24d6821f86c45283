"""The pairs, queries and distractors of the HPatches tasks: read from the official files or drawn again.

Indices are 0-based; image 0 is the reference strip, image k the strip k of the level that is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import check_text

Ints = NDArray[np.int64]

SEED = 42
OFFICIAL_PAIRS = 1_000_000
OFFICIAL_QUERIES = 10_000
OFFICIAL_DISTRACTORS = 20_000
_DRAWN_IMAGES = 5  # images 0 … 4: target 5 is never drawn for verification
VERIFICATION_HEADER = "s1,t1,idx1,s2,t2,idx2"
RETRIEVAL_HEADER = "s,idx"


@dataclass(frozen=True)
class PatchPairs:
    """Rows (s1, t1, idx1, s2, t2, idx2); s1 and s2 index into ``names``, each (M,) int64."""

    names: tuple[str, ...]
    s1: Ints
    t1: Ints
    idx1: Ints
    s2: Ints
    t2: Ints
    idx2: Ints

    def __len__(self) -> int:
        return len(self.s1)

    def keep(self, rows: NDArray[np.bool_]) -> PatchPairs:
        """The rows where ``rows`` is true."""
        return PatchPairs(self.names, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


@dataclass(frozen=True)
class VerificationTask:
    """Positive pairs, and negatives from the same and from another sequence, row by row with one first patch."""

    positives: PatchPairs
    intra: PatchPairs
    inter: PatchPairs


@dataclass(frozen=True)
class PatchList:
    """Reference patches (s, idx); s indexes into ``names``, each (M,) int64."""

    names: tuple[str, ...]
    s: Ints
    idx: Ints

    def __len__(self) -> int:
        return len(self.s)


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, and the distractors in file order."""

    queries: PatchList
    distractors: PatchList


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw_verification(
    test: Sequence[str], counts: Mapping[str, int], num_pairs: int = OFFICIAL_PAIRS
) -> VerificationTask:
    """Draw verification pairs exactly as the official files were drawn.

    Args:
        test: sequences in the split's order.
        counts: patches of each; at least 2.
        num_pairs: number of positives, and of each kind of negatives.

    Source: HPatches benchmark; numpy's legacy generator (MT19937), seed 42.
    """
    names = tuple(test)
    n = np.array([counts[name] for name in names], dtype=np.int64)
    for name, count in zip(names, n, strict=True):
        if count < 2:
            raise DataError(f"sequence {name} has {count} patch(es): verification needs two")
    rng = np.random.RandomState(SEED)
    s = rng.choice(len(names), num_pairs)
    # choice without replacement is the head of a permutation; calling that directly halves the time.
    # Copied row by row: a kept slice would hold its whole permutation in memory.
    patches, images = np.empty((num_pairs, 2), dtype=np.int64), np.empty((num_pairs, 2), dtype=np.int64)
    for row, count in enumerate(n[s].tolist()):
        patches[row] = rng.permutation(count)[:2]
    for row in range(num_pairs):
        images[row] = rng.permutation(_DRAWN_IMAGES)[:2]
    other = rng.choice(len(names), num_pairs)
    other_patch = np.array([rng.randint(count) for count in n[other].tolist()], dtype=np.int64)
    first = (s, images[:, 0], patches[:, 0])
    return VerificationTask(
        PatchPairs(names, *first, s, images[:, 1], patches[:, 0]),
        PatchPairs(names, *first, s, images[:, 1], patches[:, 1]),
        PatchPairs(names, *first, other, images[:, 1], other_patch),
    )


def draw_retrieval(
    test: Sequence[str],
    counts: Mapping[str, int],
    low_contrast: Mapping[str, NDArray[np.bool_]],
    num_queries: int = OFFICIAL_QUERIES,
    num_distractors: int = OFFICIAL_DISTRACTORS,
) -> RetrievalTask:
    """Draw queries and distractors exactly as the official files were drawn; small sets may give fewer.

    Args:
        test: sequences in the split's order.
        counts: patches of each.
        low_contrast: for each sequence which reference patches have a standard deviation of at most 10, (N,).
        num_queries: how many are wanted.
        num_distractors: how many are wanted.

    Source: HPatches benchmark; numpy's legacy generator (MT19937), seed 42.
    """
    names = tuple(test)
    n = np.array([counts[name] for name in names], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(n)[:-1]])
    usable = ~np.concatenate([np.asarray(low_contrast[name], dtype=bool) for name in names])
    queries_drawn, distractors_drawn = draw_patches(n, num_queries, num_distractors)
    queries = _first_new(starts[queries_drawn[0]] + queries_drawn[1], usable, num_queries)
    free = usable.copy()
    free[queries] = False
    distractors = _first_new(starts[distractors_drawn[0]] + distractors_drawn[1], free, num_distractors)
    return RetrievalTask(_unpack(names, starts, queries), _unpack(names, starts, distractors))


def draw_patches(counts: Ints, num_queries: int, num_distractors: int) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
    """The raw draws of queries and distractors, each (index of sequence, index of patch), before any is refused."""
    rng = np.random.RandomState(SEED)
    draws = []
    for wanted in (4 * num_queries, 10 * num_distractors):
        s = rng.choice(len(counts), wanted)
        patch = np.array([rng.randint(count) for count in counts[s].tolist()], dtype=np.int64)
        draws.append((s.astype(np.int64), patch))
    return draws[0], draws[1]


def _first_new(drawn: Ints, usable: NDArray[np.bool_], wanted: int) -> Ints:
    """Usable draws without repetition, in order of their first appearance."""
    kept = drawn[usable[drawn]]
    _, first = np.unique(kept, return_index=True)
    result: Ints = kept[np.sort(first)][:wanted]
    return result


def _unpack(names: tuple[str, ...], starts: Ints, flat: Ints) -> PatchList:
    s = np.searchsorted(starts, flat, side="right") - 1
    return PatchList(names, s, flat - starts[s])


# --- files -----------------------------------------------------------------------------------------------------------


def verification_paths(folder: Path, split: str) -> dict[str, Path]:
    """Where the verification files of a split lie, by the field of :class:`VerificationTask`."""
    stems = {"positives": "verif_pos", "intra": "verif_neg_intra", "inter": "verif_neg_inter"}
    return {field: folder / f"{stem}_split-{split}.csv" for field, stem in stems.items()}


def retrieval_paths(folder: Path, split: str) -> dict[str, Path]:
    """Where the retrieval files of a split lie, by the field of :class:`RetrievalTask`."""
    return {field: folder / f"retr_{field}_split-{split}.csv" for field in ("queries", "distractors")}


def read_verification(
    folder: Path, split: str, known: Sequence[str], counts: Mapping[str, int]
) -> tuple[VerificationTask, int]:
    """Read the three files of a split; rows of sequences that are not there are left out.

    Args:
        folder: where the files lie.
        split: its name.
        known: every sequence that the split may name (the official list and those that are there).
        counts: patches of each sequence that is there.

    Returns:
        The task, and the number of rows in the files.

    Raises:
        DataError: sequences of another split, indices outside their strip, files that do not belong together.
    """
    tables = {}
    for field, path in verification_paths(folder, split).items():
        columns = _read_columns(path, VERIFICATION_HEADER)
        s1, s2 = (_look_up(columns[c], known, path, split) for c in (0, 3))
        t1, i1, t2, i2 = (_whole_numbers(columns[c], path, c) for c in (1, 2, 4, 5))
        if len(t1) and (min(t1.min(), t2.min()) < 0 or max(t1.max(), t2.max()) > 5):
            raise DataError(f"{path}: images are 0 … 5")
        tables[field] = (PatchPairs(tuple(known), s1, t1, i1, s2, t2, i2), path)
    sizes = {str(path): len(pairs) for pairs, path in tables.values()}
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{Path(path).name} {size}" for path, size in sizes.items())
        raise DataError(f"{folder}: the verification files of split {split} have unequal lengths: {listing}")
    n = np.array([counts.get(name, -1) for name in known], dtype=np.int64)
    positives, intra, inter = (tables[field][0] for field in ("positives", "intra", "inter"))
    there = (n[positives.s1] >= 0) & (n[intra.s2] >= 0) & (n[inter.s2] >= 0)
    kept = []
    for pairs, path in tables.values():
        part = pairs.keep(there)
        _check_indices(path, part.names, [(part.s1, part.idx1), (part.s2, part.idx2)], n)
        kept.append(part)
    return VerificationTask(*kept), len(positives)


def read_retrieval(
    folder: Path, split: str, known: Sequence[str], counts: Mapping[str, int]
) -> tuple[RetrievalTask, int]:
    """Read the two files of a split; rows of sequences that are not there are left out.

    Returns the task, and the number of queries in the file. See :func:`read_verification`.
    """
    n = np.array([counts.get(name, -1) for name in known], dtype=np.int64)
    lists = []
    total = 0
    for field, path in retrieval_paths(folder, split).items():
        columns = _read_columns(path, RETRIEVAL_HEADER)
        s, idx = _look_up(columns[0], known, path, split), _whole_numbers(columns[1], path, 1)
        total = len(s) if field == "queries" else total
        there = n[s] >= 0
        _check_indices(path, tuple(known), [(s[there], idx[there])], n)
        lists.append(PatchList(tuple(known), s[there], idx[there]))
    return RetrievalTask(*lists), total


def _read_columns(path: Path, header: str) -> list[tuple[str, ...]]:
    check_text(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.readline().strip()
        if head != header:
            raise DataError(f"{path}: the first line is {head[:60]!r}, expected {header!r}")
        width = header.count(",") + 1
        rows = [line.rstrip("\n").split(",") for line in file if line.strip()]
    for number, row in enumerate(rows, 2):
        if len(row) != width:
            raise DataError(f"{path}: line {number} has {len(row)} fields, expected {width}")
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _look_up(column: Sequence[str], known: Sequence[str], path: Path, split: str) -> Ints:
    index = {name: i for i, name in enumerate(known)}
    try:
        return np.array([index[name] for name in column], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"{path} names sequence {error.args[0]!r}, which split {split} does not hold") from None


def _whole_numbers(column: Sequence[str], path: Path, number: int) -> Ints:
    try:
        return np.array(column, dtype=np.int64) if column else np.empty(0, dtype=np.int64)
    except ValueError:
        bad = next(text for text in column if not text.strip().lstrip("+-").isdecimal())
        raise DataError(f"{path}: column {number + 1} holds {bad!r}, expected whole numbers") from None


def _check_indices(path: Path, names: tuple[str, ...], columns: list[tuple[Ints, Ints]], counts: Ints) -> None:
    for s, idx in columns:
        bad = np.flatnonzero((idx < 0) | (idx >= counts[s]))
        if len(bad):
            name, count = names[s[bad[0]]], counts[s[bad[0]]]
            raise DataError(
                f"{path} names patch {idx[bad[0]]} of {name}, which has {count}: task files of other strips?"
            )
