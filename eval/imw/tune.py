"""Choice of inlier threshold and ratio on one scene, for results on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import torch

from common.cache import Cache
from eval.core.estimators import PARAMETERS
from eval.core.matching import MatcherSettings
from eval.features import Method
from eval.features.extract import Features
from eval.imw.scene import Scene
from eval.imw.stereo import StereoSettings, describe_scene, run_stereo, stereo_scores
from kornia_hardnet8.errors import DataError, UsageError, closest

METRIC = "stereo/mAA@10"
# Grids of the published baselines.
THRESHOLDS_PX = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
RATIOS = (0.8, 0.85, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and on what.

    Attributes:
        scene: its name.
        settings: with the choices.
        tried: ``threshold_px``, ``ratio`` (None without one) and the score of every try.
    """

    scene: str
    settings: StereoSettings
    tried: list[dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """What is stored."""
        return {
            "scene": self.scene,
            "threshold_px": self.settings.estimator.threshold_px,
            "ratio": _ratio(self.settings),
            "tried": self.tried,
        }

    def __str__(self) -> str:
        ratio = _ratio(self.settings)
        choices = [f"threshold {self.settings.estimator.threshold_px:g} px"]
        choices += [f"ratio {ratio:g}"] if ratio is not None else []
        return f"{', '.join(choices)}, chosen on {self.scene} ({len(self.tried)} tries)"


def hold_out(scenes: Sequence[Scene], name: str) -> tuple[Scene, list[Scene]]:
    """The scene to tune on, and the others.

    Raises:
        UsageError: no scene of that name.
        DataError: no other scene, or no pairs to tune on.
    """
    names = [scene.name for scene in scenes]
    if name not in names:
        raise UsageError(f"--tune {name}: there is no such scene among {', '.join(names)}{closest(name, names)}")
    scene = scenes[names.index(name)]
    if len(names) == 1:
        raise DataError(f"--tune {name}: there is no other scene to report on")
    if reason := scene.left_out().get("stereo"):
        raise DataError(f"--tune {name}: it has no stereo task: {reason}")
    return scene, [other for other in scenes if other.name != name]


def tune(
    scene: Scene,
    method: Method,
    settings: StereoSettings,
    cache: Cache,
    executor: Executor | None = None,
    device: torch.device | None = None,
) -> Tuned:
    """Choose the inlier threshold with the ratio as it is, then the ratio with that threshold.

    By the stereo mAA at 10 degrees of one scene; of equals the first. What the estimator or the matcher does not have
    is not chosen. Features are found once, matches once a ratio.

    Raises:
        UsageError: neither has anything to choose.
    """
    has_threshold = "threshold_px" in PARAMETERS[settings.estimator.method]
    has_ratio = _ratio(settings) is not None
    if not (has_threshold or has_ratio):
        raise UsageError(
            f"--tune: the estimator {settings.estimator.method} has no threshold, and the matcher no ratio to choose"
        )
    features = describe_scene(scene, method, settings, cache)
    tried: list[dict[str, float | None]] = []

    def best(candidates: Sequence[StereoSettings]) -> StereoSettings:
        scores = [_score(scene, method, candidate, cache, executor, features, device) for candidate in candidates]
        for candidate, score in zip(candidates, scores, strict=True):
            threshold_px = candidate.estimator.threshold_px
            tried.append({"threshold_px": threshold_px, "ratio": _ratio(candidate), METRIC: score})
        return candidates[scores.index(max(scores))]

    if has_threshold:
        settings = best(
            [replace(settings, estimator=replace(settings.estimator, threshold_px=t)) for t in THRESHOLDS_PX]
        )
    if has_ratio and isinstance(settings.matcher, MatcherSettings):
        settings = best([replace(settings, matcher=replace(settings.matcher, threshold=r)) for r in RATIOS])
    return Tuned(scene.name, settings, tried)


def _score(
    scene: Scene,
    method: Method,
    settings: StereoSettings,
    cache: Cache,
    executor: Executor | None,
    features: Mapping[str, Features],
    device: torch.device | None,
) -> float:
    result = run_stereo(scene, method, settings, cache, executor, features, device)
    return stereo_scores([result])[METRIC].value or 0.0


def _ratio(settings: StereoSettings) -> float | None:
    return settings.matcher.threshold if isinstance(settings.matcher, MatcherSettings) else None
