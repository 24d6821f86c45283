"""Which homography sequences the protocols take, and which are missing of the official ones."""

from __future__ import annotations

from eval.core.image_sequences import ImageSequence
from eval.hpatches.splits import excluded_large, official_test


def without_large(sequences: list[ImageSequence]) -> tuple[list[ImageSequence], list[str]]:
    """The sequences that the matching protocols use, and the names of the (up to 8) that they leave out."""
    large = set(excluded_large())
    kept = [s for s in sequences if s.name not in large]
    return kept, [s.name for s in sequences if s.name in large]


def missing_official(sequences: list[ImageSequence]) -> list[str]:
    """Official sequences that are not there, when at least one is; empty for a set of another kind."""
    names = {s.name for s in sequences}
    official = official_test("full")
    return [name for name in official if name not in names] if names & set(official) else []
