"""``python -m eval brown``: FPR95, per-image matching, and the matching test on fixed-camera patch sets."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.brown import PAIRS
from common.metrics import average_precision_merged, fpr95, fpr_at_recall, matches_for_recall
from common.shell import progress
from eval.brown import amos
from eval.brown.data import HEADS, SUBSETS, PatchSet, combinations_table, find_sets
from eval.brown.revisited import MODES, Mode, revisited_aps
from eval.core.benchmark import Benchmark
from eval.core.options import add_descriptor_flags, add_run_flags, load_descriptors
from eval.core.results import Result, Score, format_table
from eval.features import Descriptor
from kornia_hardnet8.errors import DataError, UsageError

TASKS = ("fpr95", "revisited", "amos")
_CHUNK = 4096
_RESAMPLES = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="Brown's subset folders, .pt files, or patch stores"
    )
    add_descriptor_flags(parser, whole=False)
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--task",
        nargs="+",
        choices=TASKS,
        help="what to measure (default: amos on fixed-camera "
        "stores, fpr95 and revisited on others, as far as data allow)",
    )
    group.add_argument(
        "--trained-on",
        nargs="+",
        metavar="SUBSET",
        help="the subset that each --desc was trained on, or none; it is not tested on it",
    )
    group.add_argument("--mode", choices=MODES, default="fixed", help="of revisited; v0.3.0: with the package's bugs")
    group.add_argument("--ratio", type=float, help="of amos: largest ratio to the second nearest (the original: 0.8)")
    add_run_flags(parser, "brown")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor on every subset."""
    sets = find_sets(args.data)
    trained = _trained_on(args)
    settings = BrownSettings(None if args.task is None else tuple(args.task), args.mode, args.ratio)
    tasks = _tasks_of(args.data, sets, settings)
    descriptors = load_descriptors(args)
    dataset = {
        "name": args.data.resolve().name,
        "subsets": {patches.name: len(patches) for patches in sets},
        "fingerprint": _fingerprint(sets),
    }
    protocol = {
        "tasks": tasks,
        "mode": args.mode,
        "ratio": args.ratio,
        "resize": {"fpr95": "OpenCV bilinear", "revisited": "Pillow bilinear", "amos": "OpenCV bilinear"},
        "seed": args.seed,
    }
    with Benchmark.open("brown", args, dataset, protocol) as benchmark:
        for descriptor, subset in zip(descriptors, trained, strict=True):
            unseen = [s for s in sets if subset is None or s.name.removesuffix("_harris") != subset]
            if not unseen:
                raise UsageError(f"{descriptor.name} was trained on {subset}: there is no other subset to test it on")
            with benchmark.timed(descriptor, "total"):
                scores = {patches.name: judge(patches, descriptor, settings) for patches in unseen}
            benchmark.result(
                descriptor,
                mean_scores(list(scores.values())),
                {name: of_set.values for name, of_set in scores.items()},
                [pair for of_set in scores.values() for pair in of_set.pairs],
                about={"name": descriptor.token.name, "trained_on": subset},
            )
        benchmark.finish(_table(benchmark.results, tasks), args.json)


@dataclass(frozen=True)
class BrownSettings:
    """The protocol.

    Attributes:
        tasks: of ``TASKS``; None: those that the kind of a set is for.
        mode: of revisited, see :func:`eval.brown.revisited.revisited_aps`.
        ratio: of amos, see :func:`eval.brown.amos.match_views`.
    """

    tasks: tuple[str, ...] | None = None
    mode: Mode = "fixed"
    ratio: float | None = None


@dataclass
class SetScores:
    """What the tasks give on one set.

    Attributes:
        values: by name; None for what could not be measured.
        counts: items behind each value.
        intervals: of some values.
        pairs: one dictionary a pair of pictures.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)


def judge(patches: PatchSet, descriptor: Descriptor, settings: BrownSettings) -> SetScores:
    """The tasks on one set, as far as it holds the data."""
    scores = SetScores()
    for task in tasks_on(patches, settings.tasks):
        part = _JUDGES[task](patches, descriptor, settings)
        scores.values |= part.values
        scores.counts |= part.counts
        scores.intervals |= part.intervals
        scores.pairs += part.pairs
    return scores


def mean_scores(sets: Sequence[SetScores]) -> dict[str, Score]:
    """Means over sets by name; the interval of a score that one set alone has."""
    means = {}
    for name in sorted({name for scores in sets for name in scores.values}):
        values = [value for scores in sets if (value := scores.values.get(name)) is not None]
        intervals = [scores.intervals.get(name) for scores in sets if scores.values.get(name) is not None]
        count = sum(scores.counts.get(name, 0) for scores in sets)
        interval = intervals[0] if len(intervals) == 1 else None
        means[name] = Score(float(np.mean(values)), interval, count) if values else Score(None, None, 0)
    return means


_NEEDS = {
    "fpr95": f"{PAIRS}, or pairs.npy in a store",
    "revisited": "interest.txt, or image ids in a store",
    "amos": "a store with image_ids, cam_ids and frames",
}


def _tasks_of(data: Path, sets: Sequence[PatchSet], settings: BrownSettings) -> list[str]:
    """What is measured on some set: what is asked for, or all that the data allow.

    Raises:
        DataError: nothing, or no set holds what a task needs.
    """
    for task in settings.tasks or ():
        if not any(_can(task, patches) for patches in sets):
            raise DataError(f"{data}: no subset holds what the task {task} needs ({_NEEDS[task]})")
    tasks = list(settings.tasks or [t for t in TASKS if any(t in tasks_on(patches, None) for patches in sets)])
    if not tasks:
        raise DataError(
            f"{data}: no subset has {PAIRS} or interest.txt (or pairs, image ids in a store; "
            "frames in one of fixed cameras)"
        )
    return tasks


def _can(task: str, patches: PatchSet) -> bool:
    if task == "fpr95":
        return patches.pairs is not None
    if task == "revisited":
        return patches.image_ids is not None
    return patches.image_ids is not None and patches.cam_ids is not None and patches.frames is not None


def tasks_on(patches: PatchSet, asked: Sequence[str] | None) -> list[str]:
    """What is measured on a set: what is asked for, else what its kind is for; as far as it holds the data."""
    # revisited ranks patches of one label in one image: a picture of a fixed camera shows each label once
    fitting = asked or (("amos",) if patches.kind == "views" else TASKS[:2])
    return [task for task in TASKS if task in fitting and _can(task, patches)]


def _trained_on(args: argparse.Namespace) -> list[str | None]:
    if args.trained_on is None:
        return [None] * len(args.desc)
    if len(args.trained_on) != len(args.desc):
        raise UsageError(f"--trained-on names {len(args.trained_on)} subsets for {len(args.desc)} descriptors")
    known = ("none", *SUBSETS)
    for name in args.trained_on:
        if name not in known:
            raise UsageError(f"--trained-on {name}: expected one of {', '.join(known)}")
    return [None if name == "none" else name for name in args.trained_on]


def describe_patches(
    patches: NDArray[np.uint8], descriptor: Descriptor, how: str = "opencv", crop: float = 1.0
) -> torch.Tensor:
    """Describe (N, S, S) patches, (N, D).

    Args:
        patches: uint8.
        descriptor: describes patches of its own side.
        how: of the resize: ``opencv`` bilinear, or ``pillow`` bilinear (antialiased), as the two protocols do.
        crop: stored side / plain side; the centre of that size is used.
    """
    side = patches.shape[1] if len(patches) else descriptor.patch_size
    plain = round(side / crop)
    edge = (side - plain) // 2
    parts = []
    starts = range(0, len(patches), _CHUNK)
    for start in progress(starts, what=f"describe {descriptor.name}", unit="chunk"):
        chunk = patches[start : start + _CHUNK, edge : edge + plain, edge : edge + plain]
        resized = np.stack([_resize(np.ascontiguousarray(p), descriptor.patch_size, how) for p in chunk])
        parts.append(descriptor.describe(torch.from_numpy(resized)[:, None].float() / 255.0))
    return torch.cat(parts) if parts else torch.zeros(0, descriptor.dim)


def _resize(patch: NDArray[np.uint8], side: int, how: str) -> NDArray[np.uint8]:
    if patch.shape[0] == side:
        return patch
    if how == "opencv":
        return np.asarray(cv2.resize(patch, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.asarray(Image.fromarray(patch).resize((side, side), Image.Resampling.BILINEAR))


def _fingerprint(sets: Sequence[PatchSet]) -> str:
    digest = hashlib.sha256()
    for patches in sets:
        for array in (patches.patches, patches.labels, patches.pairs, patches.image_ids):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fpr_scores(patches: PatchSet, descriptor: Descriptor, settings: BrownSettings) -> SetScores:
    """``FPR95`` with its interval, ``FPR99`` and ``AP`` of the pairs of a set; None without both kinds of pairs.

    The rates are None for fewer than 20 or 100 matching pairs too: one pair would decide.
    """
    assert patches.pairs is not None
    used, back = np.unique(patches.pairs[:, :2], return_inverse=True)
    descs = describe_patches(patches.patches[used], descriptor, "opencv", patches.crop)
    first, second = back.reshape(-1, 2).T
    distances = (descs[first] - descs[second]).square().sum(1).sqrt().numpy()
    labels = patches.pairs[:, 2]
    enough = {recall: np.count_nonzero(labels) >= matches_for_recall(recall) for recall in (0.95, 0.99)}
    values = {
        "FPR95": fpr95(distances, labels) if enough[0.95] else math.nan,
        "FPR99": fpr_at_recall(distances, labels, 0.99) if enough[0.99] else math.nan,
        "AP": average_precision_merged(-distances, labels),
    }
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(_RESAMPLES))
    values_95 = (fpr95(distances[rows], labels[rows]) for rows in draws) if enough[0.95] else ()
    resampled = [value for value in values_95 if math.isfinite(value)]
    low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (math.nan, math.nan)
    return SetScores(
        {name: value if math.isfinite(value) else None for name, value in values.items()},
        dict.fromkeys(values, len(labels)),
        {"FPR95": (float(low), float(high)) if resampled else None},
    )


def revisited_scores(patches: PatchSet, descriptor: Descriptor, settings: BrownSettings) -> SetScores:
    """``revisited/mAP``: mean over images of :func:`eval.brown.revisited.revisited_aps`; None without one."""
    assert patches.image_ids is not None
    descs = describe_patches(patches.patches, descriptor, "pillow", patches.crop).numpy()
    aps = revisited_aps(descs, patches.labels, patches.image_ids, "euclidean", settings.mode)
    mean = float(np.mean(list(aps.values()))) if aps else None
    return SetScores({"revisited/mAP": mean}, {"revisited/mAP": len(aps)})


def amos_scores(patches: PatchSet, descriptor: Descriptor, settings: BrownSettings) -> SetScores:
    """``amos/correct_nn``, mean over cameras, and ``amos/mAP``, mean over ordered pairs of pictures."""
    descs = describe_patches(patches.patches, descriptor, crop=patches.crop)
    cameras = amos.score_store(patches, descs, settings.ratio)
    rows = [
        {"scene": patches.name, "camera": camera, "pair": [a, b], "correct_nn": right, "ap": ap}
        for camera, pairs in cameras.items()
        for a, b, right, ap in pairs
    ]
    correct = float(np.mean([np.mean([right for _, _, right, _ in pairs]) for pairs in cameras.values()]))
    return SetScores(
        {"amos/correct_nn": correct, "amos/mAP": float(np.mean([row["ap"] for row in rows]))},
        {"amos/correct_nn": len(cameras), "amos/mAP": len(rows)},
        pairs=rows,
    )


_JUDGES: dict[str, Callable[[PatchSet, Descriptor, BrownSettings], SetScores]] = {
    "fpr95": fpr_scores,
    "revisited": revisited_scores,
    "amos": amos_scores,
}


def _table(results: Sequence[Result], tasks: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for r in results for name in r.scores))
    rows: list[list[Any]] = []
    for result in results:
        label = result.method["descriptor"]
        if result.method["trained_on"]:
            label += f" (trained on {result.method['trained_on']})"
        rows.append([label, *(result.scores.get(n, Score(None, None, 0)).value for n in names)])
        rows += [[f"  {subset}", *(scores.get(n) for n in names)] for subset, scores in result.per_scene.items()]
    blocks = [format_table(["descriptor", *names], rows)]
    combined = combinations_table([(r.method, r.per_scene) for r in results])
    if "fpr95" in tasks and combined:
        blocks.append(format_table(["FPR95, train > test", *HEADS], combined))
    return "\n\n".join(blocks)
