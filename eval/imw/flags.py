"""Flags of keypoints, matching and pose that the commands of the benchmark share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal, get_args

from eval.core.estimators import METHODS, EstimatorSettings
from eval.core.matchers import AdalamSettings, Matcher, check_imported, lightglue_settings
from eval.core.matching import Filter, MatcherSettings
from eval.core.options import load_methods
from eval.features import Method, WholeFeature
from eval.features.affine import affine_weights
from eval.features.detect import DogSettings
from eval.features.keypoints import Places
from eval.features.sift import Sift
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

# Field's name of a rule -> filter and symmetric step of the benchmark's matcher.
MATCHERS: dict[str, tuple[Filter, str]] = {
    "smnn": ("snn_ratio_pairwise", "both"),
    "mnn": ("none", "both"),
    "snn": ("snn_ratio_pairwise", "none"),
    "nn": ("none", "none"),
    "fginn": ("fginn_ratio_pairwise", "both"),
}
# Upright keypoints: how a further orientation of a place is recognised.
UPRIGHT: dict[str, Literal["position", "response"]] = {
    "off": "position",
    "upright": "response",
    "upright++": "position",
}
FGINN_RADIUS_PX = 10.0
# The estimator of the published baselines.
ESTIMATOR = EstimatorSettings(threshold_px=0.5, confidence=0.999999, max_iters=100_000)


def add_keypoint_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add ``--upright``, ``--affine``, ``--patches``, ``--places`` and ``--mr-size``; returns their group."""
    points = parser.add_argument_group("keypoints")
    points.add_argument(
        "--upright",
        nargs="?",
        choices=UPRIGHT,
        const="upright++",
        default="off",
        help="angle 0; upright++ (the flag alone): every position once; upright: as the benchmark's code does it",
    )
    points.add_argument("--affine", default="none", metavar="affnet[@PATH]", help="shapes of the frames by AffNet")
    points.add_argument(
        "--patches",
        choices=("kornia", "baseline"),
        default="kornia",
        help="grid of the patches; baseline: half a cell off, cut by OpenCV as the benchmark's baselines do",
    )
    points.add_argument(
        "--places",
        choices=get_args(Places),
        default="exact",
        help="of DoG keypoints; imw2020: a quarter of a pixel right and below, as the published baselines have them",
    )
    points.add_argument("--mr-size", type=float, default=DEFAULT_MR_SIZE, help="half side of a patch / sigma")
    return points


def detector_from(args: argparse.Namespace, num: int) -> DogSettings:
    """The detector that the flags ask for."""
    return DogSettings(
        num=num,
        upright=args.upright != "off",
        same_place=UPRIGHT[args.upright],
        affine_weights=affine_weights(args.affine),
        places=args.places,
    )


def methods_from(args: argparse.Namespace) -> list[Method]:
    """The descriptors and whole local features that the flags ask for."""
    methods = load_methods(args)
    for method in methods:
        if not isinstance(method, WholeFeature):
            method.patches = args.patches
        if isinstance(method, Sift):
            method.places = args.places
    return methods


def add_matching_flags(parser: argparse.ArgumentParser, imported: bool = False) -> argparse._ArgumentGroup:
    """Add ``--matcher`` (with ``imported`` or without) and ``--ratio``; returns their group."""
    matching = parser.add_argument_group("matching")
    rule = "rule; smnn: mutual, ratio both ways; lightglue: with weights that are there"
    if imported:
        rule += "; imported: the matches that came with imported@FILE.h5"
    choices = [*MATCHERS, "adalam", "lightglue", *(["imported"] if imported else [])]
    matching.add_argument("--matcher", choices=choices, default="smnn", help=rule)
    matching.add_argument(
        "--ratio", type=float, default=MatcherSettings().threshold, help="largest ratio that passes (stereo)"
    )
    return matching


def matcher_from(name: str, ratio: float) -> MatcherSettings:
    """The matcher of a field's name with a largest ratio, as far as it tests one."""
    kind, symmetric = MATCHERS[name]
    return MatcherSettings(
        filter=kind,
        threshold=None if kind == "none" else ratio,
        fginn_radius=FGINN_RADIUS_PX if name == "fginn" else None,
        symmetric=symmetric,  # type: ignore[arg-type]  # checked by the class
    )


def any_matcher_from(name: str, ratio: float, task: str, methods: Sequence[Method] = ()) -> Matcher:
    """The matcher of a name; ``imported`` takes the matches of a task of the benchmark.

    Raises:
        UsageError: one of the methods does not go with it.
        MissingFileError: weights of LightGlue are not there.
    """
    if name == "adalam":
        return AdalamSettings()
    if name == "lightglue":
        return lightglue_settings(methods)
    return check_imported(methods, task) if name == "imported" else matcher_from(name, ratio)


def add_pose_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of the estimator of the fundamental matrix; returns their group."""
    pose = parser.add_argument_group("pose")
    pose.add_argument("--estimator", choices=METHODS, default=ESTIMATOR.method, help="of F")
    pose.add_argument("--threshold", type=float, default=ESTIMATOR.threshold_px, help="of inliers, pixels")
    pose.add_argument("--confidence", type=float, default=ESTIMATOR.confidence, help="of the estimator")
    pose.add_argument("--max-iters", type=int, default=ESTIMATOR.max_iters, help="of the estimator")
    return pose


def estimator_from(args: argparse.Namespace) -> EstimatorSettings:
    """The estimator that the flags ask for."""
    return EstimatorSettings(
        method=args.estimator, threshold_px=args.threshold, confidence=args.confidence, max_iters=args.max_iters
    )
