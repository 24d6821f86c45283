"""Both tasks of one method on many scenes, and its entry in the results file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from common.cache import Cache, canonical_json
from eval.core.benchmark import Benchmark
from eval.core.estimators import EstimatorSettings
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.features import Method
from eval.features.extract import detector_of
from eval.imw.multiview import (
    MultiviewScene,
    MultiviewSettings,
    multiview_bags,
    multiview_scene,
    multiview_scores,
    run_multiview,
)
from eval.imw.official import TASKS
from eval.imw.official_results import NO_DESCRIPTOR, descriptor_properties, pack
from eval.imw.scene import HEADLINE, Scene
from eval.imw.stereo import (
    StereoScene,
    StereoSettings,
    describe_scene,
    run_stereo,
    stereo_pairs,
    stereo_scene,
    stereo_scores,
)
from eval.imw.submission.write import keypoint_name, official_geom, official_matcher, official_name
from kornia_hardnet8.errors import DataError, UsageError

log = logging.getLogger(__name__)

_PART_OF = {"depth": "stereo"}


@dataclass(frozen=True)
class ImwSettings:
    """Everything that a run depends on beside scenes and methods."""

    stereo: StereoSettings = field(default_factory=StereoSettings)
    multiview: MultiviewSettings = field(default_factory=MultiviewSettings)
    tasks: tuple[str, ...] = TASKS

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {"tasks": list(self.tasks), **self.stereo.to_dict(), "multiview": self.multiview.to_dict()}


@dataclass
class MethodRun:
    """What one method did.

    Attributes:
        method: descriptor or whole local feature.
        settings: of the run.
        scenes: all scenes.
        stereo: the stereo task of the scenes that have it.
        multiview: the multiview task of the scenes that have it.
        num_keypoints: mean keypoints of an image, by scene.
        descriptor: type, width and bytes of a descriptor; ``none``, 0, 0 without any.
    """

    method: Method
    settings: ImwSettings
    scenes: list[Scene]
    stereo: list[StereoScene] = field(default_factory=list)
    multiview: list[MultiviewScene] = field(default_factory=list)
    num_keypoints: dict[str, float] = field(default_factory=dict)
    descriptor: tuple[str, int, int] = NO_DESCRIPTOR


def left_out(scenes: Sequence[Scene], tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """What of the tasks cannot be run, by scene, with the reasons; tasks are named on the log.

    Raises:
        DataError: none of the tasks can be run on any scene.
    """
    missing = {
        scene.name: {part: reason for part, reason in scene.left_out().items() if _PART_OF.get(part, part) in tasks}
        for scene in scenes
    }
    for name, parts in missing.items():
        for part, reason in parts.items():
            if part in tasks:
                log.info("%s: %s is left out: %s", name, part, reason)
    if all(task in parts for task in tasks for parts in missing.values()):
        name, parts = next(iter(missing.items()))
        reasons = "; ".join(f"{task}: {parts[task]}" for task in tasks)
        raise DataError(f"there is nothing to run: {name} has no parts of the tasks: {reasons}")
    return missing


def run_method(
    scenes: Sequence[Scene],
    method: Method,
    settings: ImwSettings,
    cache: Cache,
    executor: Executor | None = None,
    device: torch.device | None = None,
) -> MethodRun:
    """Run the tasks on every scene that has their parts; what is in the cache is not done again.

    Args:
        scenes: where to run.
        method: descriptor or whole local feature.
        settings: everything else.
        cache: of all stages; workers of ``executor`` must see the same folder.
        executor: any executor of ``concurrent.futures``; None: this process.
        device: where descriptors are compared, in this process if it is a GPU; default: the CPU.
    """
    run = MethodRun(method, settings, list(scenes))
    for scene in scenes:
        missing = scene.left_out()
        wanted = [task for task in settings.tasks if task not in missing]
        if not wanted:
            continue
        features = describe_scene(scene, method, settings.stereo, cache)
        run.num_keypoints[scene.name] = float(np.mean([len(f.keypoints) for f in features.values()]))
        if run.descriptor == NO_DESCRIPTOR:
            described = (f.descs.numpy() for f in features.values() if len(f.descs))
            run.descriptor = descriptor_properties(next(described, np.zeros((0, 0))))
        if "stereo" in wanted:
            run.stereo.append(run_stereo(scene, method, settings.stereo, cache, executor, features, device))
        if "multiview" in wanted:
            label = f"{scene.name} {method.name}"
            run.multiview.append(run_multiview(scene, features, settings.multiview, cache, executor, label, device))
    return run


def dataset_of(scenes: Sequence[Scene]) -> dict[str, Any]:
    """What the results say of the data."""
    fingerprints = {scene.name: scene.fingerprint for scene in scenes}
    return {
        "name": ", ".join(fingerprints),
        "fingerprint": hashlib.sha256(canonical_json(fingerprints).encode()).hexdigest(),
        "scenes": fingerprints,
    }


def add_result(benchmark: Benchmark, run: MethodRun, protocol: Mapping[str, Any]) -> None:
    """Add the entry of one method to the results; ``protocol``: what it has beside its settings."""
    settings, seed = run.settings, run.settings.stereo.seed
    per_scene: dict[str, dict[str, Any]] = {scene.name: {} for scene in run.scenes}
    for stereo in run.stereo:
        per_scene[stereo.scene.name] |= stereo_scene(stereo, seed)
    for multiview in run.multiview:
        per_scene[multiview.scene.name] |= multiview_scene(multiview, seed)
    for scene in run.scenes:
        if missing := scene.left_out():
            per_scene[scene.name]["left_out"] = missing
    pairs = [row for scene in run.stereo for row in stereo_pairs(scene)]
    bags = [row for scene in run.multiview for row in multiview_bags(scene)]
    benchmark.result(
        run.method,
        {
            **(stereo_scores(run.stereo, seed) if run.stereo else {}),
            **(multiview_scores(run.multiview, seed) if run.multiview else {}),
        },
        per_scene,
        pairs + bags,
        about={
            "detector": detector_of(run.method, settings.stereo.detector),
            "matcher": settings.stereo.matcher.to_dict(),
            "geometry": settings.stereo.estimator.to_dict(),
        },
        protocol={**settings.to_dict(), "covisibility": float(HEADLINE), **protocol},
        timing={**_seconds(run.stereo), **_seconds(run.multiview, "multiview_")},
    )


def to_official(run: MethodRun, label: str) -> dict[str, Any]:
    """The benchmark's own results file of one method.

    Matchers and estimators that the benchmark does not have stand in its configuration under our names.

    Args:
        run: what the method did.
        label: its ``json_label``, see :func:`official_labels`.
    """
    settings = run.settings
    matcher, estimator = settings.stereo.matcher, settings.stereo.estimator
    task = {"use_custom_matches": False, "outlier_filter": {"method": "none"}}
    stereo = {**task, "matcher": _official_matcher(matcher), "geom": _official_geom(estimator)}
    multiview = {**task, "matcher": _official_matcher(settings.multiview.matcher), "colmap": {}}
    config: dict[str, Any] = {
        "config_common": {
            "json_label": label,
            "keypoint": keypoint_name(run.method, settings.stereo.detector),
            "descriptor": official_name(run.method.token.name),
            "num_keypoints": settings.stereo.detector.num,
        }
    }
    for dataset in dict.fromkeys(scene.dataset for scene in run.scenes):
        config |= {f"config_{dataset}_stereo": stereo, f"config_{dataset}_multiview": multiview}
    return pack(config, run.descriptor, run.stereo, run.multiview, run.num_keypoints)


def official_labels(runs: Sequence[MethodRun]) -> list[str]:
    """A ``json_label`` for every method, of a-z, 0-9, - and .: its token and number of keypoints, each label once."""
    labels: list[str] = []
    for run in runs:
        label = f"{official_name(run.method.name)}-{run.settings.stereo.detector.num}"
        number = sum(other == label or other.startswith(f"{label}-run") for other in labels)
        labels.append(f"{label}-run{number + 1}" if number else label)
    return labels


def _official_matcher(matcher: Matcher) -> dict[str, Any]:
    return official_matcher(matcher) if isinstance(matcher, MatcherSettings) else matcher.to_dict()


def _official_geom(estimator: EstimatorSettings) -> dict[str, Any]:
    try:
        return official_geom(estimator)
    except UsageError:
        return estimator.to_dict()


def _seconds(scenes: Sequence[StereoScene] | Sequence[MultiviewScene], prefix: str = "") -> dict[str, float]:
    """Seconds of each stage over all scenes."""
    stages = scenes[0].seconds if scenes else {}
    return {f"{prefix}{stage}": sum(scene.seconds[stage] for scene in scenes) for stage in stages}
