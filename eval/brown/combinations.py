"""The field's table of FPR95: two training subsets for each of the three test subsets, and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHORT = {"liberty": "LIB", "notredame": "ND", "yosemite": "YOS"}
PAIRS = tuple((train, test) for test in _SHORT for train in _SHORT if train != test)
HEADS = (*(f"{_SHORT[train]}>{_SHORT[test]}" for train, test in PAIRS), "mean")


def combinations_table(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]]) -> list[list[Any]]:
    """One row for each descriptor name that says what it was trained on: the name, then a value for each of ``HEADS``.

    Args:
        runs: ``method`` and ``per_scene`` of results.

    Returns:
        Rows; None for a combination that was not measured, and for the mean unless all six were.
    """
    rows: list[list[Any]] = []
    for name in dict.fromkeys(method["name"] for method, _ in runs if method.get("trained_on")):
        found = {
            (method["trained_on"], test): scores.get("FPR95")
            for method, per_scene in runs
            if method.get("name") == name
            for test, scores in per_scene.items()
        }
        values = [found.get(pair) for pair in PAIRS]
        known = [value for value in values if value is not None]
        rows.append([name, *values, sum(known) / len(known) if len(known) == len(PAIRS) else None])
    return rows
