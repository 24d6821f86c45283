"""The image matching task: nearest neighbour of each reference patch among the patches of a target image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from common.hpatches import LEVELS, NUM_TARGETS, type_index
from common.jobs import map_on_threads
from eval.core.distances import apply_mask, check_metric, identity_matching
from eval.hpatches.descriptors import DescriptorSet

MatchingScores = dict[str, dict[str, dict[str, list[float]]]]


def score_matching(
    descriptors: DescriptorSet,
    test: Sequence[str],
    metric: str = "L2",
    each: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> MatchingScores:
    """Scores by sequence, noise level and target image 1 … 5.

    ``ap`` (trapezoid) and ``ap_vl`` (VLFeat) with as many positives as patches; ``success``: share of right nearest
    neighbours. The first of equally near patches counts.

    Returns:
        sequence -> level -> {"ap", "ap_vl", "success"} -> 5 values.

    Source: HPatches benchmark, task matching.
    """
    check_metric(metric, descriptors.dim)

    def score(name: str) -> dict[str, dict[str, list[float]]]:
        reference = apply_mask(descriptors.get(name, 0), metric)
        rows: dict[str, dict[str, list[float]]] = {}
        for level in LEVELS:
            rows[level] = {"ap": [], "ap_vl": [], "success": []}
            for image in range(1, NUM_TARGETS + 1):
                target = apply_mask(descriptors.get(name, type_index(level, image)), metric)
                for key, value in identity_matching(reference, target, metric).items():
                    rows[level][key].append(value)
        return rows

    return dict(zip(each(test), map_on_threads(score, test), strict=True))


def level_means(scores: MatchingScores, key: str = "ap") -> dict[str, float]:
    """Mean over sequences and images for each level; every sequence weighs the same."""
    return {level: float(np.mean([row[level][key] for row in scores.values()])) for level in LEVELS}


def headline(scores: MatchingScores, key: str = "ap") -> float:
    """Mean of the three level means."""
    return float(np.mean(list(level_means(scores, key).values())))


def article_headline(scores: MatchingScores, key: str = "ap_vl") -> float | None:
    """The article's mean: 3 levels x {illumination, viewpoint}, both kinds with equal weight; None without both."""
    kinds = [{n: row for n, row in scores.items() if n.startswith(prefix)} for prefix in ("i_", "v_")]
    return float(np.mean([headline(kind, key) for kind in kinds])) if all(kinds) else None
