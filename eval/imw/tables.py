"""The tables that ``python -m eval imw`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from eval.core.results import Result, Score, format_table
from eval.imw.stereo_results import MAA_DEGREES


def tables(results: Sequence[Result]) -> str:
    """Means over scenes with 95 % intervals, task by task; then each scene, if there are more; then both tasks."""
    parts = [_stereo(results), _multiview(results)]
    parts += [_by_scene(results, task, unit) for task, unit in (("stereo", "pairs"), ("multiview", "bags"))]
    parts.append(_both(results))
    return "\n\n".join(part for part in parts if part)


def _stereo(results: Sequence[Result]) -> str:
    if not _ran(results, "stereo"):
        return ""
    names = {"matches": "num_matches", "inliers": "num_inliers"}
    depth = {"repeatability@3": "repeatability@3", "matching score@3": "matching_score@3"}
    depth = {head: name for head, name in depth.items() if f"stereo/{name}" in results[0].scores}
    rows = [
        (
            result.method["descriptor"],
            *(result.scores[f"stereo/mAA@{degrees}"] for degrees in MAA_DEGREES),
            *(result.scores[f"stereo/{name}"].value for name in depth.values()),
            *(_count(result.scores[f"stereo/{name}"]) for name in names.values()),
            result.scores["stereo/mAA@10"].n,
        )
        for result in results
    ]
    return format_table(("stereo", "mAA@5 [95 %]", "mAA@10 [95 %]", *depth, *names, "pairs"), rows)


def _multiview(results: Sequence[Result]) -> str:
    if not _ran(results, "multiview"):
        return ""
    rows = []
    for result in results:
        scores = {name.removeprefix("multiview/"): score for name, score in result.scores.items()}
        failed = sum(sum(scene.get("failed_bags", {}).values()) for scene in result.per_scene.values())
        rows.append(
            (
                result.method["descriptor"],
                *(scores[f"mAA@{degrees}"] for degrees in MAA_DEGREES),
                scores["registered_ratio"].value,
                _count(scores["num_points"]),
                scores["track_length"].value,
                scores["ATE"].value,
                scores["ATE_corrected"].value,
                failed,
                scores["mAA@10"].n,
            )
        )
    head = ("mAA@5 [95 %]", "mAA@10 [95 %]", "registered", "points", "track", "ATE", "ATE corrected", "failed", "bags")
    return format_table(("multiview", *head), rows)


def _by_scene(results: Sequence[Result], task: str, unit: str) -> str:
    """The mAA of a task on each scene; empty for a single scene."""
    metric = f"{task}/mAA@10"
    scenes = [name for name, scores in results[0].per_scene.items() if metric in scores]
    if len(results[0].per_scene) < 2 or not scenes:
        return ""
    rows = [
        (name, results[0].per_scene[name][metric].n, *(result.per_scene[name][metric] for result in results))
        for name in scenes
    ]
    descriptors = [result.method["descriptor"] for result in results]
    return format_table((f"{task}, mAA@10 [95 %]", unit, *descriptors), rows)


def _both(results: Sequence[Result]) -> str:
    """The mean of both tasks, by which the challenge ranked."""
    if not (_ran(results, "stereo") and _ran(results, "multiview")):
        return ""
    rows = []
    for result in results:
        values = [result.scores[f"{task}/mAA@10"].value for task in ("stereo", "multiview")]
        mean = None if None in values else sum(value for value in values if value is not None) / 2
        rows.append((result.method["descriptor"], *values, mean))
    return format_table(("both tasks, mAA@10", "stereo", "multiview", "mean"), rows)


def _ran(results: Sequence[Result], task: str) -> bool:
    return f"{task}/mAA@10" in results[0].scores


def _count(score: Score) -> int | None:
    return None if score.value is None else round(score.value)
