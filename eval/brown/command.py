"""``python -m eval brown``: FPR95, per-image matching, and the matching test on fixed-camera patch sets."""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.metrics import average_precision_merged, fpr95, fpr_at_recall
from common.shell import progress
from eval.brown import amos
from eval.brown.combinations import HEADS, combinations_table
from eval.brown.data import PAIR_FILE, SUBSETS, PatchSet, find_sets
from eval.brown.revisited import MODES, revisited_aps
from eval.core.options import add_descriptor_flags, add_run_flags, finish, format_table, load_descriptors
from eval.core.results import Result, Score, environment, run_folder
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
    wanted = args.task or [task for task in TASKS if any(task in _tasks(s, None) for s in sets)]
    if not wanted:
        raise DataError(
            f"{args.data}: no subset has {PAIR_FILE} or interest.txt (or pairs, image ids in a store; "
            "frames in one of fixed cameras)"
        )
    for task in args.task or ():
        if not any(_can(task, s) for s in sets):
            raise DataError(f"{args.data}: no subset holds what the task {task} needs ({_NEEDS[task]})")
    descriptors = load_descriptors(args)
    out = run_folder(args.out, "brown")
    env = environment()
    dataset = {
        "name": args.data.resolve().name,
        "subsets": {s.name: len(s) for s in sets},
        "fingerprint": _fingerprint(sets),
    }
    results = []
    for descriptor, subset in zip(descriptors, trained, strict=True):
        start = time.perf_counter()
        result = _judge(descriptor, subset, sets, wanted, args)
        result.dataset = dataset
        result.timing["total"] = time.perf_counter() - start
        result.environment = env
        results.append(result)
    finish(out, results, args.json, _lines(results, wanted))


_NEEDS = {
    "fpr95": f"{PAIR_FILE}, or pairs.npy in a store",
    "revisited": "interest.txt, or image ids in a store",
    "amos": "a store with image_ids, cam_ids and frames",
}


def _can(task: str, patches: PatchSet) -> bool:
    if task == "fpr95":
        return patches.pairs is not None
    if task == "revisited":
        return patches.image_ids is not None
    return patches.image_ids is not None and patches.cam_ids is not None and patches.frames is not None


def _tasks(patches: PatchSet, asked: Sequence[str] | None) -> list[str]:
    """What is measured on a set: what is asked for, else what its kind is for; as far as it holds the data."""
    # revisited ranks patches of one label in one image: a picture of a fixed camera shows each label once
    fitting = asked or (("amos",) if patches.kind == "views" else TASKS[:2])
    return [task for task in fitting if _can(task, patches)]


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


def _judge(
    descriptor: Descriptor, subset: str | None, sets: Sequence[PatchSet], tasks: Sequence[str], args: argparse.Namespace
) -> Result:
    per_scene: dict[str, dict[str, Any]] = defaultdict(dict)
    intervals: dict[str, tuple[float, float]] = {}
    counts: dict[str, int] = defaultdict(int)
    pair_rows: list[dict[str, Any]] = []
    judged = [s for s in sets if subset is None or s.name.removesuffix("_harris") != subset]
    if not judged:
        raise UsageError(f"{descriptor.name} was trained on {subset}: there is no other subset to test it on")
    for patches in judged:
        scores, own = per_scene[patches.name], _tasks(patches, args.task)
        if "fpr95" in own:
            scores |= fpr_scores(patches, descriptor)
            intervals[patches.name] = scores.pop("interval")
            assert patches.pairs is not None
            counts["FPR95"] += len(patches.pairs)
        if "revisited" in own:
            assert patches.image_ids is not None
            descs = describe_patches(patches.patches, descriptor, "pillow", patches.crop).numpy()
            aps = revisited_aps(descs, patches.labels, patches.image_ids, "euclidean", args.mode)
            scores["revisited/mAP"] = float(np.mean(list(aps.values()))) if aps else None
            counts["revisited/mAP"] += len(aps)
        if "amos" in own:
            found = amos.score_store(
                patches, describe_patches(patches.patches, descriptor, crop=patches.crop), args.ratio
            )
            every = [pair for pairs in found.values() for pair in pairs]
            scores["amos/correct_nn"] = float(np.mean([np.mean([p[2] for p in pairs]) for pairs in found.values()]))
            scores["amos/mAP"] = float(np.mean([p[3] for p in every]))
            counts["amos/mAP"] += len(every)
            counts["amos/correct_nn"] += len(found)
            pair_rows += [
                {"scene": patches.name, "camera": c, "pair": [a, b], "correct_nn": right, "ap": ap}
                for c, pairs in found.items()
                for a, b, right, ap in pairs
            ]
    names = sorted({name for scores in per_scene.values() for name in scores})
    totals = {}
    for name in names:
        values = [s[name] for s in per_scene.values() if s.get(name) is not None]
        interval = intervals[judged[0].name] if name == "FPR95" and len(values) == 1 else None
        count = counts.get("FPR95" if name in ("FPR99", "AP") else name, len(values))
        totals[name] = Score(float(np.mean(values)), interval, count) if values else Score(None, None, 0)
    return Result(
        benchmark="brown",
        protocol={
            "tasks": list(tasks),
            "mode": args.mode,
            "ratio": args.ratio,
            "resize": {"fpr95": "OpenCV bilinear", "revisited": "Pillow bilinear", "amos": "OpenCV bilinear"},
            "seed": args.seed,
        },
        dataset={},
        method={
            "descriptor": descriptor.name,
            "name": descriptor.token.name,
            "trained_on": subset,
            "weights_sha256": descriptor.weights_sha256,
        },
        scores=totals,
        per_scene=dict(per_scene),
        per_pair=pair_rows,
        timing={},
        environment={},
    )


def fpr_scores(patches: PatchSet, descriptor: Descriptor) -> dict[str, Any]:
    """``FPR95``, ``FPR99`` and ``AP`` of the pairs of a set, and ``interval`` of FPR95; null without both kinds."""
    assert patches.pairs is not None
    used, back = np.unique(patches.pairs[:, :2], return_inverse=True)
    descs = describe_patches(patches.patches[used], descriptor, "opencv", patches.crop)
    first, second = back.reshape(-1, 2).T
    distances = (descs[first] - descs[second]).square().sum(1).sqrt().numpy()
    labels = patches.pairs[:, 2]
    values = {
        "FPR95": fpr95(distances, labels),
        "FPR99": fpr_at_recall(distances, labels, 0.99),
        "AP": average_precision_merged(-distances, labels),
    }
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(_RESAMPLES))
    resampled = [fpr95(distances[d], labels[d]) for d in draws]
    usable = [v for v in resampled if math.isfinite(v)]
    low, high = np.quantile(usable, [0.025, 0.975]) if usable else (math.nan, math.nan)
    cleaned: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return {**cleaned, "interval": (float(low), float(high)) if usable else None}


def _lines(results: Sequence[Result], tasks: Sequence[str]) -> str:
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
