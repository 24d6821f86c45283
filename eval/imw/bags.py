"""Bags: small connected sets of images that the multiview task reconstructs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

# Draws without a new bag after which the scene counts as exhausted, for each bag asked for.
_DRAWS_PER_BAG = 50


def connected_bags(
    names: Sequence[str], edges: Iterable[tuple[str, str]], size: int, count: int, seed: int
) -> list[list[str]]:
    """Draw distinct sets of ``size`` names that the edges connect.

    A bag grows from a random name by random neighbours of what it holds.

    Args:
        names: all names.
        edges: pairs of names.
        size: names in a bag, at least 2.
        count: bags wanted; fewer come back when the graph has no more (or no more are found).
        seed: of the draws.

    Returns:
        Bags in the order of drawing, each in the order of ``names``.
    """
    neighbours: dict[str, set[str]] = {name: set() for name in names}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    order = {name: index for index, name in enumerate(names)}
    rng = np.random.default_rng([seed, size])
    found: dict[tuple[str, ...], None] = {}
    wanted = min(count, math.comb(len(names), size))
    for _ in range(_DRAWS_PER_BAG * count):
        if len(found) >= wanted:
            break
        bag = {names[int(rng.integers(len(names)))]}
        while len(bag) < size:
            border = sorted(set().union(*(neighbours[name] for name in bag)) - bag, key=order.__getitem__)
            if not border:
                break
            bag.add(border[int(rng.integers(len(border)))])
        if len(bag) == size:
            found.setdefault(tuple(sorted(bag, key=order.__getitem__)))
    return [list(bag) for bag in found]
