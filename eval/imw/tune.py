"""Choice of inlier threshold and ratio on one scene, for results on others."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple

from eval.cache import Cache
from eval.features import Method
from eval.features.extract import Features
from eval.imw.scene import Scene
from eval.imw.stereo import StereoSettings, describe_scene, run_stereo
from eval.imw.stereo_results import stereo_scores
from eval.matching import MatcherSettings

# Grids of the published baselines (spec of the benchmark, 7.5).
THRESHOLDS_PX = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
RATIOS = (0.8, 0.85, 0.9, 0.95, 0.99)


class Trial(NamedTuple):
    """One setting that was tried."""

    threshold_px: float
    ratio: float | None
    """None for a matcher without a ratio."""
    score: float
    """Stereo mAA at 10 degrees."""


def tune(
    scene: Scene, method: Method, settings: StereoSettings, cache: Cache, executor: Executor | None = None
) -> tuple[StereoSettings, list[Trial]]:
    """Choose the inlier threshold with the ratio as it is, then the ratio with that threshold.

    By the stereo mAA at 10 degrees of one scene; of equals the first, the smallest. Features are found once, matches
    once a ratio.

    Returns:
        the settings with both choices, and all that was tried.
    """
    features = describe_scene(scene, method, settings, cache)
    trials: list[Trial] = []

    def best(candidates: list[StereoSettings]) -> StereoSettings:
        scored = [(_score(scene, method, candidate, cache, executor, features), candidate) for candidate in candidates]
        trials.extend(Trial(c.estimator.threshold_px, _ratio(c), score) for score, c in scored)
        return max(scored, key=lambda pair: pair[0])[1]

    chosen = best([replace(settings, estimator=replace(settings.estimator, threshold_px=t)) for t in THRESHOLDS_PX])
    if isinstance(chosen.matcher, MatcherSettings) and chosen.matcher.threshold is not None:
        chosen = best([replace(chosen, matcher=replace(chosen.matcher, threshold=ratio)) for ratio in RATIOS])
    return chosen, trials


def _score(
    scene: Scene,
    method: Method,
    settings: StereoSettings,
    cache: Cache,
    executor: Executor | None,
    features: Mapping[str, Features],
) -> float:
    found = run_stereo(scene, method, settings, cache, executor, features)
    return stereo_scores([found])["stereo/mAA@10"].value or 0.0


def _ratio(settings: StereoSettings) -> float | None:
    return settings.matcher.threshold if isinstance(settings.matcher, MatcherSettings) else None
