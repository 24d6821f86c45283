"""``python -m eval sequences``: local features on homography sequences, by the field's three protocols."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from common.cache import Cache
from common.folders import fingerprint
from common.homography import crop_homography, reprojection_errors, scale_homography
from common.images import gray_from_bgr, read_bgr
from common.metrics import auc
from common.shell import progress
from eval.core.benchmark import Benchmark, rows_by_scene, safe_name
from eval.core.homography_estimators import HomographySettings
from eval.core.image_sequences import CLASSES, ImageSequence, find_sequences
from eval.core.matching import mutual_nn
from eval.core.options import add_descriptor_flags, add_run_flags, load_methods
from eval.core.results import Result, Score, format_table, mean_score
from eval.core.viz import PALETTE, draw_matches, new_figure, save_figure
from eval.features import Keypoints, Method, WholeFeature
from eval.features.detect import DogSettings, add_selection_flags, selection_from
from eval.features.extract import extract
from eval.features.keypoints import spread_places
from eval.sequences.features import (
    CROPS,
    DetectorSettings,
    Resize,
    SizedImage,
    describe,
    detect,
    on_pixels,
    resize_image,
)
from eval.sequences.protocols import (
    AUC_THRESHOLDS_PX,
    HA_THRESHOLDS_PX,
    MMA_THRESHOLDS_PX,
    SUPERPOINT_RANSAC,
    LocalFeatures,
    auc_interval,
    glue_factory_pair,
    match_pair,
    missing_official,
    superpoint_homography,
    superpoint_repeatability,
    without_large,
)
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.files import sha256_file


class _Task(NamedTuple):
    """What a protocol says about images and keypoints."""

    size: Resize
    detected: int | None
    """Strongest keypoints of an image; None: --keypoints."""
    kept: int | None = None
    """Of those, the strongest that both images see; None: all."""


TASKS = {
    "mma": _Task("original", None),
    "homography": _Task("crop-640x480", 1500, 1000),
    "auc": _Task("short-480", 1024),
    "repeatability": _Task("crop-320x240", 1000, 300),
}
_BUDGETS = {"opencv": (0.995, 3000), "poselib": (0.9999, 100_000)}  # confidence and iterations of auc's estimators
_ESTIMATOR: Literal["opencv", "poselib"] = "poselib"  # of auc
_THRESHOLD_PX = 1.0
SUPPRESSION_PX = 4.0  # of repeatability: no stronger keypoint is nearer


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = DetectorSettings()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="sequences: images 1, 2, … and H_1_2, …")
    data.add_argument("--all", action="store_true", help="keep the 8 large HPatches sequences, too")
    add_descriptor_flags(parser)
    group = parser.add_argument_group("protocol")
    group.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="what to measure")
    group.add_argument("--keypoints", type=int, default=defaults.keypoints, help="DoG keypoints for mma")
    add_selection_flags(group)
    group.add_argument("--mr-size", type=float, default=defaults.mr_size, help="half side of a patch / sigma")
    group.add_argument("--estimator", choices=tuple(_BUDGETS), help=f"robust estimator of auc (default: {_ESTIMATOR})")
    group.add_argument(
        "--threshold", type=float, help=f"inlier threshold of auc's estimator, pixels (default: {_THRESHOLD_PX:g})"
    )
    group.add_argument("--viz", type=int, default=1, metavar="N", help="sequences whose middle pair is drawn (mma)")
    add_run_flags(parser, "sequences", cached="descriptors")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor on every sequence; write results.json, and the MMA curves as PNG."""
    settings = DetectorSettings(keypoints=args.keypoints, mr_size=args.mr_size, **selection_from(args))
    robust = _robust_estimator(args)
    sequences = find_sequences(args.data)
    excluded: list[str] = []
    if not args.all:
        sequences, excluded = without_large(sequences)
    if not sequences:
        raise UsageError(f"{args.data} holds only sequences that the protocol leaves out: use --all")
    methods = load_methods(args)
    tasks = [name for name in TASKS if name in args.task]
    missing = missing_official(sequences)
    dataset = {
        "name": args.data.resolve().name,
        "sequences": [s.name for s in sequences],
        "fingerprint": fingerprint(p for s in sequences for p in (s.reference, *(t[1] for t in s.targets))),
    }
    protocol = {**protocol_of(tasks, robust), "excluded": excluded, "missing": missing, "seed": args.seed}
    with Benchmark.open("sequences", args, dataset, protocol) as benchmark:
        rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
        for number, sequence in enumerate(progress(sequences, what="sequences", unit="sequence")):
            judge = _SequenceJudge(sequence, settings, robust, benchmark.cache)
            for method in methods:
                with benchmark.timed(method, "describe_match_estimate"):
                    rows[method.name] += judge.judge(method, tasks)
                if "mma" in tasks and number < args.viz:
                    judge.draw(method, benchmark.out / "matches")
        for method in methods:
            detector = _detector(method, settings)
            benchmark.result(
                method,
                scores_by_class(rows[method.name], tasks, args.seed),
                {
                    scene: {name: score.value for name, score in pair_scores(pairs, tasks, args.seed).items()}
                    for scene, pairs in rows_by_scene(rows[method.name]).items()
                },
                rows[method.name],
                about={"detector": detector["detector"], "matcher": "mnn", "geometry": robust.method},
                protocol=detector,
            )
        if "mma" in tasks:
            plot_mma(benchmark.results, benchmark.out / "mma.png")
        benchmark.finish(_table(benchmark.results, excluded, missing), args.json)


def _robust_estimator(args: argparse.Namespace) -> HomographySettings:
    """The estimator of auc that the flags ask for."""
    if "auc" not in args.task:
        for flag, value in (("--estimator", args.estimator), ("--threshold", args.threshold)):
            if value is not None:
                raise UsageError(f"{flag} has no effect without the task auc: leave it out")
    estimator: Literal["opencv", "poselib"] = args.estimator or _ESTIMATOR
    threshold_px = _THRESHOLD_PX if args.threshold is None else args.threshold
    return HomographySettings(estimator, threshold_px, *_BUDGETS[estimator])


def protocol_of(tasks: Sequence[str], robust: HomographySettings) -> dict[str, Any]:
    """What the results say of the tasks, beside detector and data."""
    return {
        "tasks": list(tasks),
        "matcher": "mutual nearest neighbours (L2)",
        "mma": {"size": "original", "thresholds_px": list(MMA_THRESHOLDS_PX)},
        "homography": {
            "size": "640 x 480 (ratio kept, cropped)",
            "detected": TASKS["homography"].detected,
            "keypoints": TASKS["homography"].kept,
            "positions": "whole pixels",
            **SUPERPOINT_RANSAC.to_dict(),
        },
        "auc": {
            "size": "short side 480",
            "keypoints": TASKS["auc"].detected,
            **robust.to_dict(),
            "pixel_origin": "corner",
        },
        "repeatability": {
            "size": "320 x 240 (ratio kept, cropped)",
            "detected": TASKS["repeatability"].detected,
            "keypoints": TASKS["repeatability"].kept,
            "suppression_px": SUPPRESSION_PX,
            "positions": "whole pixels",
            "radius_px": 3.0,
        },
    }


def _detector(method: Method, settings: DetectorSettings) -> dict[str, Any]:
    """What the results say about where the keypoints of a method come from."""
    if isinstance(method, WholeFeature):
        return {"detector": method.token.name, "keypoints": settings.keypoints}
    return settings.to_dict()


class _SequenceJudge:
    """Images, sizes and keypoints of one sequence, shared by all methods."""

    def __init__(
        self, sequence: ImageSequence, settings: DetectorSettings, robust: HomographySettings, cache: Cache
    ) -> None:
        self.sequence, self.settings, self.robust, self.cache = sequence, settings, robust, cache
        self.paths = {1: sequence.reference, **{k: path for k, path, _ in sequence.targets}}
        self.colour = {k: read_bgr(path) for k, path in self.paths.items()}
        self.images = {k: gray_from_bgr(image) for k, image in self.colour.items()}
        self.hashes = {k: sha256_file(path) for k, path in self.paths.items()}
        self._sized: dict[tuple[int, Resize], SizedImage] = {}
        self._keypoints: dict[tuple[int, Resize], Keypoints] = {}

    def judge(self, method: Method, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """One dictionary a pair (1, k)."""
        rows = []
        described: dict[tuple[int, str], LocalFeatures] = {}

        def features(image: int, task: str) -> LocalFeatures:
            if (image, task) not in described:
                described[image, task] = self._features(image, task, method)
            return described[image, task]

        for k, _, H in self.sequence.targets:
            row: dict[str, Any] = {"scene": self.sequence.name, "class": self.sequence.kind, "pair": [1, k]}
            for task in tasks:
                row |= self._judge_pair(task, k, H, features(1, task), features(k, task))
            rows.append(row)
        return rows

    def _judge_pair(
        self, task: str, k: int, H: np.ndarray, first: LocalFeatures, second: LocalFeatures
    ) -> dict[str, Any]:
        if task == "mma":
            return {"num_keypoints": [len(first.xy), len(second.xy)], **match_pair(first, second, H)}
        how = TASKS[task].size
        one, other = self.sized(1, how), self.sized(k, how)
        if task == "auc":
            scores = glue_factory_pair(
                first, second, scale_homography(H, one.scale, other.scale), one.size, self.robust
            )
            return {f"auc_{name}": value for name, value in scores.items()}
        originals = [(i.shape[1], i.shape[0]) for i in (self.images[1], self.images[k])]
        cropped = crop_homography(H, originals[0], originals[1], CROPS[how])
        keep = TASKS[task].kept
        assert keep is not None
        if task == "homography":
            outcome = superpoint_homography(first, second, cropped, one.size, other.size, keep)
            return {"corner_error_px": outcome.corner_error_px, "ha_num_matches": len(outcome.matches)}
        return {"repeatability": superpoint_repeatability(first, second, cropped, one.size, other.size, keep)}

    def draw(self, method: Method, folder: Path) -> None:
        """Draw the matches of the middle pair at the original size."""
        k, _, H = self.sequence.targets[len(self.sequence.targets) // 2]
        first, second = self._features(1, "mma", method), self._features(k, "mma", method)
        matches = mutual_nn(first.descs, second.descs).matches.numpy()
        errors = reprojection_errors(first.xy[matches[:, 0]], second.xy[matches[:, 1]], H)
        path = folder / f"{self.sequence.name}_1_{k}_{safe_name(method.name)}.png"
        title = f"{method.name}, {self.sequence.name} 1 to {k}"
        draw_matches(path, self.images[1], self.images[k], first.xy, second.xy, matches, errors, title=title)

    def sized(self, image: int, how: Resize) -> SizedImage:
        """An image at the size of a protocol."""
        if (image, how) not in self._sized:
            self._sized[image, how] = resize_image(self.images[image], how)
        return self._sized[image, how]

    def _features(self, image: int, task: str, method: Method) -> LocalFeatures:
        how, budget = TASKS[task].size, TASKS[task].detected or self.settings.keypoints
        if isinstance(method, WholeFeature):
            pixels = resize_image(self.colour[image], how).image
            # Suppression needs more to choose from.
            num = 2 * budget if task == "repeatability" else budget
            keypoints, descs = extract(pixels, method, DogSettings(num=num), self.cache)[:2]
        else:
            keypoints = self._detected(image, how)
            if task != "repeatability":
                keypoints = keypoints[:budget]
                pixels = self.sized(image, how).image
                descs = describe(pixels, keypoints, method, self.settings, self.hashes[image], how, self.cache)
        if task == "repeatability":
            keypoints = spread_places(keypoints, SUPPRESSION_PX, budget)
            descs = torch.empty(len(keypoints), 0)  # only positions count
        features = LocalFeatures(keypoints.xy, keypoints.response, descs)
        return on_pixels(features) if task in ("homography", "repeatability") else features

    def _detected(self, image: int, how: Resize) -> Keypoints:
        if (image, how) not in self._keypoints:
            self._keypoints[image, how] = detect(self.sized(image, how).image, self.settings)
        return self._keypoints[image, how]


def scores_by_class(pairs: Sequence[dict[str, Any]], tasks: Sequence[str], seed: int = 0) -> dict[str, Score]:
    """:func:`pair_scores` of all pairs, and of each class (``i/MMA@3``) where there are several."""
    scores = pair_scores(pairs, tasks, seed)
    classes = {kind: part for kind in CLASSES if (part := [p for p in pairs if p["class"] == kind])}
    for kind, part in classes.items() if len(classes) > 1 else ():
        scores |= {f"{kind}/{name}": score for name, score in pair_scores(part, tasks, seed).items()}
    return scores


def pair_scores(pairs: Sequence[dict[str, Any]], tasks: Sequence[str], seed: int = 0) -> dict[str, Score]:
    """Scores of a set of pairs, every pair with the same weight.

    ``MMA@t``, ``correct_nn``, ``num_matches``; ``HA@t``: share of pairs with a corner error <= t px; ``AUC@t`` of the
    robust and ``AUC_dlt@t`` of the least-squares homography; ``precision@t`` of auc's matches; ``repeatability``.
    A pair without a model has an infinite error; one without a shared keypoint is left out of ``correct_nn`` and
    ``repeatability``.
    """
    scores: dict[str, Score] = {}

    def mean(name: str, values: Sequence[float | None]) -> None:
        scores[name] = mean_score([v for v in values if v is not None], seed)

    if "mma" in tasks:
        for t in MMA_THRESHOLDS_PX:
            mean(f"MMA@{t}", [p[f"MMA@{t}"] for p in pairs])
        mean("correct_nn", [p["correct_nn"] for p in pairs])
        mean("num_matches", [float(p["num_matches"]) for p in pairs])
    if "homography" in tasks:
        for t in HA_THRESHOLDS_PX:
            mean(f"HA@{t}", [float(p["corner_error_px"] <= t) for p in pairs])
    if "auc" in tasks:
        for label, key in (("AUC", "auc_error_robust"), ("AUC_dlt", "auc_error_dlt")):
            errors = [p[key] for p in pairs]
            for t, value, ci in zip(
                AUC_THRESHOLDS_PX, auc(errors, AUC_THRESHOLDS_PX), auc_interval(errors, seed), strict=True
            ):
                scores[f"{label}@{t}"] = Score(value, ci, len(pairs))
        for t in (1, 3):
            mean(f"precision@{t}", [p[f"auc_precision@{t}"] for p in pairs])
    if "repeatability" in tasks:
        mean("repeatability", [p["repeatability"] for p in pairs])
    return scores


def _table(results: Sequence[Result], excluded: Sequence[str], missing: Sequence[str]) -> str:
    names = ["MMA@1", "MMA@3", "MMA@5", "MMA@10", "correct_nn", "HA@1", "HA@3", "HA@5", "AUC@1", "AUC@3", "AUC@5"]
    names = [n for n in [*names, "AUC_dlt@5", "repeatability"] if n in results[0].scores]
    rows: list[list[Any]] = []
    for result in results:
        rows.append([result.method["descriptor"], *(result.scores[n].value for n in names)])
        for kind, title in CLASSES.items():
            if f"{kind}/{names[0]}" in result.scores:
                rows.append([f"  {title}", *(result.scores[f"{kind}/{n}"].value for n in names)])
        if len(result.per_scene) <= 8:
            rows += [[f"  {scene}", *(scores[n] for n in names)] for scene, scores in result.per_scene.items()]
    lines = format_table(["descriptor", *names], rows)
    if excluded:
        lines += f"\nleft out as the protocol says: {', '.join(excluded)} (--all keeps them)"
    if missing:
        lines += f"\n{len(missing)} official sequences are not there: the figures are of a part of HPatches"
    return lines


MARKERS = "osD^vPX"


def plot_mma(results: Sequence[Result], path: Path) -> None:
    """Draw mean matching accuracy over 1 … 10 px, one panel overall and one a class, to a PNG."""
    scores = results[0].scores
    panels = [("overall", "")] + [(title, f"{k}/") for k, title in CLASSES.items() if f"{k}/MMA@1" in scores]
    figure, axes = new_figure(1.0 + 4.0 * len(panels), 4.2, len(panels))
    axes = np.atleast_1d(axes)
    for axis, (title, prefix) in zip(axes, panels, strict=True):
        for k, result in enumerate(results):
            values = [result.scores[f"{prefix}MMA@{t}"].value for t in MMA_THRESHOLDS_PX]
            style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}
            axis.plot(MMA_THRESHOLDS_PX, values, label=result.method["descriptor"], markersize=4, **style)
        axis.set_title(f"{title} ({result.scores[f'{prefix}MMA@1'].n} pairs)")
        axis.set_xlabel("threshold [px]")
        axis.set_xticks(MMA_THRESHOLDS_PX)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean matching accuracy")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
