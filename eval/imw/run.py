"""Both tasks of one method on many scenes, and its entry in the results file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from eval.cache import Cache, canonical_json
from eval.features import Method
from eval.features.extract import detector_of
from eval.imw.multiview import MultiviewScene, MultiviewSettings, run_multiview
from eval.imw.multiview_results import multiview_bags, multiview_scene, multiview_scores
from eval.imw.scene import Scene
from eval.imw.stereo import HEADLINE, StereoScene, StereoSettings, describe_scene, run_stereo
from eval.imw.stereo_results import stereo_pairs, stereo_scene, stereo_scores
from eval.results import Result
from kornia_hardnet8.errors import DataError

log = logging.getLogger(__name__)

TASKS = ("stereo", "multiview")
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


@dataclass(frozen=True)
class MethodRun:
    """What one method did.

    Attributes:
        method: descriptor or whole local feature.
        scenes: all scenes.
        stereo: the stereo task of the scenes that have it.
        multiview: the multiview task of the scenes that have it.
    """

    method: Method
    scenes: list[Scene]
    stereo: list[StereoScene]
    multiview: list[MultiviewScene]


def left_out(scenes: Sequence[Scene], tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """What of the tasks cannot be run, by scene, with the reasons; tasks are named on the log.

    Raises:
        DataError: none of the tasks can be run on any scene.
    """
    found = {
        scene.name: {part: reason for part, reason in scene.left_out().items() if _PART_OF.get(part, part) in tasks}
        for scene in scenes
    }
    for name, parts in found.items():
        for part, reason in parts.items():
            if part in tasks:
                log.info("%s: %s is left out: %s", name, part, reason)
    if all(task in parts for task in tasks for parts in found.values()):
        name, parts = next(iter(found.items()))
        reasons = "; ".join(f"{task}: {parts[task]}" for task in tasks)
        raise DataError(f"there is nothing to run: {name} has no parts of the tasks: {reasons}")
    return found


def run_method(
    scenes: Sequence[Scene],
    method: Method,
    settings: ImwSettings,
    cache: Cache,
    executor: Executor | None = None,
) -> MethodRun:
    """Run the tasks on every scene that has their parts; what is in the cache is not done again.

    Args:
        scenes: where to run.
        method: descriptor or whole local feature.
        settings: everything else.
        cache: of all stages; workers of ``executor`` must see the same folder.
        executor: any executor of ``concurrent.futures``; None: this process.
    """
    run = MethodRun(method, list(scenes), [], [])
    for scene in scenes:
        missing = scene.left_out()
        wanted = [task for task in settings.tasks if task not in missing]
        if not wanted:
            continue
        features = describe_scene(scene, method, settings.stereo, cache)
        if "stereo" in wanted:
            run.stereo.append(run_stereo(scene, method, settings.stereo, cache, executor, features))
        if "multiview" in wanted:
            label = f"{scene.name} {method.name}"
            run.multiview.append(run_multiview(scene, features, settings.multiview, cache, executor, label))
    return run


def to_result(run: MethodRun, settings: ImwSettings, about: dict[str, Any]) -> Result:
    """The entry of one method in the results file."""
    seed = settings.stereo.seed
    fingerprints = {scene.name: scene.fingerprint for scene in run.scenes}
    per_scene: dict[str, dict[str, Any]] = {scene.name: {} for scene in run.scenes}
    for stereo in run.stereo:
        per_scene[stereo.scene.name] |= stereo_scene(stereo, seed)
    for multiview in run.multiview:
        per_scene[multiview.scene.name] |= multiview_scene(multiview, seed)
    for scene in run.scenes:
        if missing := scene.left_out():
            per_scene[scene.name]["left_out"] = missing
    timing = {stage: sum(found.seconds[stage] for found in run.stereo) for stage in _stages(run.stereo)}
    timing |= {
        f"multiview_{stage}": sum(found.seconds[stage] for found in run.multiview) for stage in _stages(run.multiview)
    }
    return Result(
        benchmark="imw",
        protocol={**settings.to_dict(), "covisibility": float(HEADLINE)},
        dataset={
            "name": ", ".join(fingerprints),
            "fingerprint": hashlib.sha256(canonical_json(fingerprints).encode()).hexdigest(),
            "scenes": fingerprints,
        },
        method={
            "descriptor": run.method.name,
            "detector": detector_of(run.method, settings.stereo.detector),
            "matcher": settings.stereo.matcher.to_dict(),
            "geometry": settings.stereo.estimator.to_dict(),
            "weights_sha256": run.method.weights_sha256,
        },
        scores={
            **(stereo_scores(run.stereo, seed) if run.stereo else {}),
            **(multiview_scores(run.multiview, seed) if run.multiview else {}),
        },
        per_scene=per_scene,
        per_pair=[row for found in run.stereo for row in stereo_pairs(found)]
        + [row for found in run.multiview for row in multiview_bags(found)],
        timing=timing,
        environment=about,
    )


def _stages(found: Sequence[StereoScene] | Sequence[MultiviewScene]) -> list[str]:
    return list(found[0].seconds) if found else []
