"""Which images are matched with which."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from eval.core.pairs import IMAGES_IN_MEMORY, Pair
from kornia_hardnet8.errors import DataError, closest
from kornia_hardnet8.files import read_text

# Separators that may stand beside another one in a line.
_REPEATED = 16


def exhaustive_pairs(names: Sequence[str]) -> list[Pair]:
    """Every pair, in the order of the names: group by group of images, whose descriptors fit into memory together."""
    size = IMAGES_IN_MEMORY // 2
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    pairs: list[Pair] = []
    for first, group in enumerate(groups):
        pairs += itertools.combinations(group, 2)
        for other in groups[first + 1 :]:
            pairs += itertools.product(group, other)
    return pairs


def read_pairs(path: Path, names: Sequence[str], unreadable: Sequence[str] = ()) -> list[Pair]:
    """Pairs of a text file, one a line: two names with a tab or a space between them, as COLMAP and hloc write them.

    Names may hold spaces themselves, and what follows them, as a score, is not read. Empty lines and lines that start
    with ``#`` are skipped, repeated pairs (in either order) count once, pairs with an image of ``unreadable`` are left
    out.

    Raises:
        MissingFileError: no such file.
        DataError: not text, a line that is not two names of images, or no pair.
    """
    order = {name: index for index, name in enumerate([*names, *unreadable])}
    left_out = set(unreadable)
    pairs: dict[Pair, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        first, second = _split(line, order, f"{path}, line {number}")
        if first == second:
            raise DataError(f"{path}, line {number}: {first!r} is paired with itself")
        if left_out.isdisjoint((first, second)):
            pairs[(first, second) if order[first] < order[second] else (second, first)] = None
    if not pairs:
        raise DataError(f"{path} holds no pair of images that can be read")
    return sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]]))


def _split(line: str, known: dict[str, int], where: str) -> Pair:
    """The two names of a line."""
    text = line.strip()
    separator = "\t" if "\t" in text else " "
    parts = text.split(separator)
    longest = 1 + max((name.count(separator) for name in known), default=0)  # parts of a name
    for end in range(min(len(parts), 2 * longest + _REPEATED), 1, -1):
        for at in range(1, end):
            first, second = separator.join(parts[:at]).strip(), separator.join(parts[at:end]).strip()
            if first in known and second in known:
                return first, second
    if len(parts) != 2:
        raise DataError(f"{where}: {text[:80]!r} does not begin with two names of images below the folder")
    unknown = next(part for part in parts if part.strip() not in known)
    raise DataError(f"{where}: there is no image {unknown[:80]!r} in the folder{closest(unknown, known)}")
