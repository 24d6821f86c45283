"""From descriptors to the scores of the HPatches tasks, in the schema that all benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache
from common.hpatches import LEVEL_NAMES, LEVELS, Split, official_patch_count, official_test
from common.metrics import bootstrap_ci
from common.shell import progress
from eval.core.results import Score
from eval.hpatches import matching, retrieval, tasks, verification
from eval.hpatches.descriptors import DescriptorSet
from kornia_hardnet8.errors import DataError

TASKS = ("verification", "matching", "retrieval")
TIES_WORTH_A_WARNING = 0.01
_PAIRS_PER_PATCH = 100
_CLASSES = {"i_": "illumination", "v_": "viewpoint"}


@dataclass(frozen=True)
class PatchData:
    """What is known about the strips of a split, apart from descriptors.

    Attributes:
        split: the sequences.
        counts: patches of each test sequence.
        low_contrast: which reference patches are too flat for retrieval, by sequence; None without strips.
        tasks_dir: folder with official task files, or None.
        num_pairs: verification pairs to draw; None: the official million for a complete set, fewer otherwise.
    """

    split: Split
    counts: Mapping[str, int]
    low_contrast: Mapping[str, NDArray[np.bool_]] | None
    tasks_dir: Path | None = None
    num_pairs: int | None = None

    @property
    def is_official(self) -> bool:
        """All sequences of the split are there, with the published numbers of patches."""
        bounds = {name: official_patch_count(name) for name in self.split.test}
        return self.split.is_official and all(b and b[0] <= self.counts[n] <= b[1] for n, b in bounds.items())


@dataclass
class TaskScores:
    """Scores of one descriptor set.

    Attributes:
        scores: by name.
        per_scene: by sequence.
        not_measured: name of a score -> why it is null.
        warnings: lines for people.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    per_scene: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def null(self, name: str, reason: str) -> None:
        """Record a score that could not be measured."""
        self.scores[name] = Score(None, None, 0)
        self.not_measured[name] = reason


def verification_task(data: PatchData, cache: Cache) -> tuple[tasks.VerificationTask, dict[str, Any]]:
    """The pairs of a split and where they come from: official files, else drawn (and cached)."""
    split = data.split
    if data.tasks_dir is not None and tasks.verification_paths(data.tasks_dir, split.name)["positives"].is_file():
        known = [*official_test(split.name), *split.extra]
        task, rows = tasks.read_verification(data.tasks_dir, split.name, known, data.counts)
        return task, {"source": "files", "rows": rows, "rows_used": len(task.positives)}
    official = data.is_official
    wanted = data.num_pairs or (
        tasks.OFFICIAL_PAIRS
        if official
        else min(tasks.OFFICIAL_PAIRS, max(10_000, _PAIRS_PER_PATCH * sum(data.counts.values())))
    )
    counts = {name: int(data.counts[name]) for name in split.test}
    drawn: list[tasks.VerificationTask] = []

    def make() -> dict[str, NDArray[Any]]:
        task = tasks.draw_verification(split.test, counts, wanted)
        drawn.append(task)
        shared = {key: getattr(task.positives, key) for key in ("s1", "t1", "idx1", "t2")}
        other = {"intra": task.intra.idx2, "inter": task.inter.idx2, "inter_s": task.inter.s2}
        return {key: np.asarray(value, dtype=np.int32) for key, value in {**shared, **other}.items()}

    settings = {"split": list(split.test), "counts": counts, "pairs": wanted, "seed": tasks.SEED}
    _, stored = cache.compute("hpatches-verification", settings, make)
    arrays = {name: values.astype(np.int64) for name, values in stored.items()}
    first = (arrays["s1"], arrays["t1"], arrays["idx1"])
    names = tuple(split.test)
    task = tasks.VerificationTask(
        tasks.PatchPairs(names, *first, arrays["s1"], arrays["t2"], arrays["idx1"]),
        tasks.PatchPairs(names, *first, arrays["s1"], arrays["t2"], arrays["intra"]),
        tasks.PatchPairs(names, *first, arrays["inter_s"], arrays["t2"], arrays["inter"]),
    )
    how = "drawn as the official files" if official and wanted == tasks.OFFICIAL_PAIRS else "drawn for these sequences"
    return task, {"source": how, "rows": wanted, "rows_used": wanted, "seed": tasks.SEED}


def retrieval_task(data: PatchData) -> tuple[tasks.RetrievalTask | None, dict[str, Any]]:
    """The queries and distractors of a split; None without official files and without strips to draw from."""
    split = data.split
    if data.tasks_dir is not None and tasks.retrieval_paths(data.tasks_dir, split.name)["queries"].is_file():
        known = [*official_test(split.name), *split.extra]
        task, rows = tasks.read_retrieval(data.tasks_dir, split.name, known, data.counts)
        source = {"source": "files", "queries_in_file": rows}
    elif data.low_contrast is None:
        return None, {"source": None}
    else:
        # In a small set the official ten thousand queries would leave no distractor.
        usable = sum(int((~data.low_contrast[name]).sum()) for name in split.test)
        queries = tasks.OFFICIAL_QUERIES if data.is_official else min(tasks.OFFICIAL_QUERIES, usable // 3)
        task = tasks.draw_retrieval(split.test, data.counts, data.low_contrast, queries)
        how = "drawn as the official files" if data.is_official else "drawn for these sequences"
        source = {"source": how, "seed": tasks.SEED}
    return task, {**source, "queries": len(task.queries), "distractors": len(task.distractors)}


def judge(
    descriptors: DescriptorSet,
    data: PatchData,
    metric: str,
    verification_pairs: tasks.VerificationTask | None,
    matching_wanted: bool,
    retrieval_lists: tasks.RetrievalTask | None,
    seed: int = 0,
) -> TaskScores:
    """Score one descriptor set on the tasks that are given.

    Raises:
        DataError: numbers of patches differ from those of the strips.
    """
    for name in data.split.test:
        count = int(descriptors.counts[descriptors.index[name]])
        if count != data.counts[name]:
            raise DataError(f"{name}: {count} descriptors for {data.counts[name]} patches")
    result = TaskScores({}, {name: {} for name in data.split.test})
    if verification_pairs is not None:
        _verification(result, descriptors, verification_pairs, metric)
    if matching_wanted:
        _matching(result, descriptors, data, metric, seed)
    if retrieval_lists is not None:
        _retrieval(result, descriptors, retrieval_lists, metric, seed)
    return result


def _verification(result: TaskScores, descriptors: DescriptorSet, task: tasks.VerificationTask, metric: str) -> None:
    table = verification.score_verification(descriptors, task, metric)
    pairs = len(task.positives)
    names = {
        "mAP": "imbalanced_ap",
        "mAP_vl": "imbalanced_ap_vl",
        "mAP_tie_neutral": "imbalanced_ap_tie_neutral",
        "AUC": "balanced_auc",
    }
    for name, key in names.items():
        value = verification.headline(table, key)
        if value is None:
            result.null(f"verification/{name}", "one sequence only: there are no negatives of another sequence")
        else:
            result.scores[f"verification/{name}"] = Score(value, None, pairs)
    for level, row in table.items():
        for kind, cell in row.items():
            for name, key in names.items():
                where = f"verification/{LEVEL_NAMES[level]}/{kind}/{name}"
                if cell is None:
                    result.null(where, "one sequence only: there are no negatives of another sequence")
                else:
                    result.scores[where] = Score(cell[key], None, pairs)
    ties = max((c["tie_share"] for row in table.values() for c in row.values() if c is not None), default=0.0)
    if ties > TIES_WORTH_A_WARNING:
        result.warnings.append(
            f"verification: {ties:.0%} of the distances are tied with the other label; ties count against the "
            "descriptor (see mAP_tie_neutral)"
        )


def _matching(result: TaskScores, descriptors: DescriptorSet, data: PatchData, metric: str, seed: int) -> None:
    scores = matching.score_matching(
        descriptors, data.split.test, metric, lambda names: progress(names, what="matching", unit="sequence")
    )
    classes = {
        title: {n: row for n, row in scores.items() if n.startswith(prefix)} for prefix, title in _CLASSES.items()
    }
    for name, key in (("mAP", "ap"), ("mAP_vl", "ap_vl"), ("success", "success")):
        by_sequence = {n: float(np.mean([row[level][key] for level in LEVELS])) for n, row in scores.items()}
        for n, value in by_sequence.items():
            result.per_scene[n][f"matching/{name}"] = value
        value = matching.headline(scores, key)
        article = matching.article_headline(scores, key) if name == "mAP_vl" else None
        if article is not None:  # illumination and viewpoint with equal weight
            value = article
        interval = bootstrap_ci(list(by_sequence.values()), seed) if len(scores) > 1 else None
        result.scores[f"matching/{name}"] = Score(value, interval, len(scores))
        for level, mean in matching.level_means(scores, key).items():
            result.scores[f"matching/{LEVEL_NAMES[level]}/{name}"] = Score(mean, None, len(scores))
            for title, part in classes.items():
                if part:
                    mean_of_class = matching.level_means(part, key)[level]
                    result.scores[f"matching/{LEVEL_NAMES[level]}/{title}/{name}"] = Score(
                        mean_of_class, None, len(part)
                    )


def _retrieval(
    result: TaskScores, descriptors: DescriptorSet, task: tasks.RetrievalTask, metric: str, seed: int
) -> None:
    scores = retrieval.score_retrieval(
        descriptors, task, metric, lambda blocks: progress(blocks, what="retrieval", unit="block")
    )
    if scores is None:
        for name in ("mAP", "mAP_vl", "mAP_tie_neutral"):
            result.null(f"retrieval/{name}", "no distractor of another sequence: one sequence, or no usable patch")
        return
    queries = scores.ap.shape[1]
    for name, key in (("mAP", "ap"), ("mAP_vl", "ap_vl"), ("mAP_tie_neutral", "ap_tie_neutral")):
        per_query = getattr(scores, key)[:, :, -1].mean(axis=0)
        result.scores[f"retrieval/{name}"] = Score(scores.headline(key), bootstrap_ci(per_query, seed), queries)
        for level, row in scores.table(key).items():
            for size, value in row.items():
                result.scores[f"retrieval/{LEVEL_NAMES.get(level, level)}/{name}@{size}"] = Score(value, None, queries)
        for s in np.unique(task.queries.s):
            of_sequence = per_query[task.queries.s == s]
            result.per_scene[task.queries.names[s]][f"retrieval/{name}"] = float(of_sequence.mean())
    if scores.tie_share > TIES_WORTH_A_WARNING:
        result.warnings.append(
            f"retrieval: {scores.tie_share:.0%} of the distractors are exactly as far as a true view; ties count for "
            "the descriptor (see mAP_tie_neutral)"
        )
