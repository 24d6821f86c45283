"""Flags that the commands share, and what they ask for: methods, detectors, matchers, estimators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from common.devices import choose_device
from common.shell import output_folder, seed_number
from eval.core.estimators import (
    BASELINE,
    METHODS,
    OFFICIAL_METHODS,
    PARAMETERS,
    UNCALIBRATED_METHODS,
    EstimatorSettings,
)
from eval.core.matchers import AdalamSettings, Matcher, check_imported, lightglue_settings
from eval.core.matching import Filter, MatcherSettings
from eval.features import Descriptor, Method, WholeFeature, load_method, tokens_help
from eval.features.detect import DogSettings, Selection, add_selection_flags, affine_weights, selection_from
from eval.features.hardnet import PRECISIONS, choose_precision
from eval.features.keypoints import Places
from eval.features.sift import Sift
from kornia_hardnet8.errors import UsageError
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
RATIO = MatcherSettings().threshold or 1.0


def add_descriptor_flags(parser: argparse.ArgumentParser, required: bool = False, whole: bool = True) -> None:
    """Add ``--desc`` and ``--device``; without ``whole`` the help names no whole local features."""
    parser.epilog = tokens_help(whole)
    group = parser.add_argument_group("descriptors")
    group.add_argument(
        "--desc",
        nargs="+",
        metavar="TOKEN",
        default=None if required else ["h8E512", "rootsift"],
        help="descriptors, listed below",
    )
    group.add_argument("--device", default="auto", help="of networks: cpu, cuda, or auto")


def add_run_flags(parser: argparse.ArgumentParser, what: str, cached: str | None = None) -> None:
    """Add ``--out``, ``--seed`` and ``--json``, and ``--cache`` where the benchmark has something ``cached``."""
    group = parser.add_argument_group("run")
    parser.set_defaults(cache=None)
    if cached is not None:
        group.add_argument("--cache", type=Path, metavar="DIR", help=f"cache of {cached} (default: RUN/cache)")
    group.add_argument(
        "--out", type=output_folder, metavar="RUN", help=f"folder of the results (default: runs/<date>-{what})"
    )
    group.add_argument("--seed", type=seed_number, default=0, help="of sampling and of the intervals")
    group.add_argument("--json", action="store_true", help="print the results file instead of the table")


def load_descriptors(args: argparse.Namespace) -> list[Descriptor]:
    """The descriptors that ``--desc`` names, on the device of ``--device``.

    Raises:
        UsageError: a descriptor named twice, a whole local feature, or see :func:`eval.features.load`.
    """
    methods = load_methods(args)
    descriptors = [method for method in methods if not isinstance(method, WholeFeature)]
    if len(descriptors) < len(methods):
        whole = next(method.name for method in methods if isinstance(method, WholeFeature))
        raise UsageError(f"{whole} finds its own keypoints: here the patches or keypoints are given")
    return descriptors


def load_methods(args: argparse.Namespace) -> list[Method]:
    """The descriptors and whole local features that ``--desc`` names, on the device of ``--device``.

    Raises:
        UsageError: one named twice, or see :func:`eval.features.load`.
    """
    if len(set(args.desc)) < len(args.desc):
        raise UsageError(f"--desc names a descriptor twice: {' '.join(args.desc)}")
    device = choose_device(args.device)
    return [load_method(token).to(device) for token in args.desc]


def add_keypoint_flags(parser: argparse.ArgumentParser, select: Selection = "response") -> argparse._ArgumentGroup:
    """Add the flags of the choice, orientation, shape, grid, places and size of keypoints; returns their group.

    ``select`` is what is done without the flag.
    """
    points = parser.add_argument_group("keypoints")
    add_selection_flags(points, select)
    add_upright_flag(points)
    points.add_argument("--affine", default="none", metavar="affnet[@PATH]", help="shapes of the frames by AffNet")
    points.add_argument(
        "--patches",
        choices=("kornia", "baseline"),
        default="kornia",
        help="grid of the patches; baseline: half a cell off, cut by OpenCV as the benchmark's baselines do",
    )
    add_places_flag(points)
    points.add_argument("--mr-size", type=float, default=DEFAULT_MR_SIZE, help="half side of a patch / sigma")
    return points


def add_upright_flag(group: argparse._ArgumentGroup) -> None:
    """Add ``--upright``: keypoints without orientation."""
    group.add_argument(
        "--upright",
        nargs="?",
        choices=UPRIGHT,
        const="upright++",
        default="off",
        help="angle 0; upright++ (the flag alone): every position once; upright: as the benchmark's code does it",
    )


def upright_from(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a :class:`DogSettings` that ``--upright`` asks for."""
    return {"upright": args.upright != "off", "same_place": UPRIGHT[args.upright]}


def add_places_flag(group: argparse._ArgumentGroup) -> None:
    """Add ``--places``: where OpenCV's keypoints lie."""
    group.add_argument(
        "--places",
        choices=get_args(Places),
        default="exact",
        help="of DoG keypoints; imw2020: a quarter of a pixel right and below, as the published baselines have them",
    )


def detector_from(args: argparse.Namespace, num: int) -> DogSettings:
    """The detector that the flags ask for."""
    return DogSettings(
        num=num,
        **upright_from(args),
        affine_weights=affine_weights(args.affine),
        places=args.places,
        **selection_from(args),
    )


def add_precision_flag(group: argparse._ArgumentGroup) -> None:
    """Add ``--precision`` where speed counts and no published number: ``auto`` is the default."""
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of this library's networks; auto: what the CPU or GPU is made for",
    )


def methods_from(args: argparse.Namespace) -> list[Method]:
    """The descriptors and whole local features that the flags ask for.

    Raises:
        UsageError: a flag of keypoints where every method finds its own; or see :func:`load_methods`.
    """
    methods = load_methods(args)
    if all(isinstance(method, WholeFeature) for method in methods):
        for flag, default in _KEYPOINT_DEFAULTS.items():
            if getattr(args, flag[2:].replace("-", "_")) != default:
                raise UsageError(f"{flag} has no effect with {methods[0].name}, which finds its own keypoints")
    for method in methods:
        if not isinstance(method, WholeFeature):
            method.patches = args.patches
        if isinstance(method, Sift):
            method.places = args.places
    if hasattr(args, "precision"):
        choose_precision(methods, args.precision)
    return methods


_KEYPOINT_DEFAULTS: dict[str, Any] = {
    "--upright": "off",
    "--affine": "none",
    "--patches": "kornia",
    "--places": "exact",
    "--mr-size": DEFAULT_MR_SIZE,
}


def add_matching_flags(parser: argparse.ArgumentParser, imported: bool = False) -> argparse._ArgumentGroup:
    """Add ``--matcher`` (with ``imported`` or without) and ``--ratio``; returns their group."""
    matching = parser.add_argument_group("matching")
    rule = "rule; smnn: mutual, ratio both ways; lightglue: with weights that are there"
    if imported:
        rule += "; imported: the matches that came with imported@FILE.h5"
    choices = [*MATCHERS, "adalam", "lightglue", *(["imported"] if imported else [])]
    matching.add_argument("--matcher", choices=choices, default="smnn", help=rule)
    matching.add_argument("--ratio", type=float, help=f"largest ratio that passes (default: {RATIO:g})")
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


def any_matcher_from(
    name: str,
    ratio: float | None,
    task: str,
    methods: Sequence[Method] = (),
    flag: str = "--ratio",
    default_ratio: float = RATIO,
) -> Matcher:
    """The matcher of a name; ``imported`` takes the matches of a task of the benchmark.

    Args:
        name: what ``--matcher`` was given.
        ratio: what ``flag`` was given; None: nothing.
        task: of the benchmark, for imported matches.
        methods: what finds the descriptors.
        flag: of the ratio.
        default_ratio: where the flag was not given.

    Raises:
        UsageError: one of the methods does not go with it, or a ratio for a matcher that tests none.
        MissingFileError: weights of LightGlue are not there.
    """
    if ratio is not None and (name not in MATCHERS or MATCHERS[name][0] == "none"):
        raise UsageError(f"{flag} has no effect with --matcher {name}: leave it out")
    if name == "adalam":
        return AdalamSettings()
    if name == "lightglue":
        return lightglue_settings(methods)
    if name == "imported":
        return check_imported(methods, task)
    return matcher_from(name, default_ratio if ratio is None else ratio)


def add_pose_flags(
    parser: argparse.ArgumentParser, defaults: EstimatorSettings = BASELINE, calibrated: bool = True
) -> argparse._ArgumentGroup:
    """Add the flags of the estimator of the two-view geometry; returns their group.

    Args:
        parser: of a command.
        defaults: what :func:`estimator_from` is given too.
        calibrated: whether calibrations are known, so that E can be estimated.
    """
    pose = parser.add_argument_group("pose")
    what = "of F, or (names in -e) of E from the known calibrations" if calibrated else "of F"
    pose.add_argument(
        "--estimator",
        type=lambda name: OFFICIAL_METHODS.get(name, name),
        choices=METHODS if calibrated else UNCALIBRATED_METHODS,
        help=f"{what}; the benchmark's names (cv2-ransac-f, …) are taken too (default: {defaults.method})",
    )
    for field, flag, kind, text in _POSE_FLAGS:
        default = getattr(defaults, field)
        shown = f"{default:g}" if isinstance(default, float) else default
        pose.add_argument(flag, type=kind, help=f"{text} (default: {shown})")
    pose.add_argument(
        "--inliers",
        choices=("model", "published"),
        help="of degensac; model: within the threshold; published: as pydegensac marks them, by the order of the "
        "matches too (default: model)",
    )
    return pose


# Field of the settings, flag, type, help.
_POSE_FLAGS: tuple[tuple[str, str, type, str], ...] = (
    ("threshold_px", "--threshold", float, "of inliers, pixels"),
    ("confidence", "--confidence", float, "of the estimator"),
    ("max_iters", "--max-iters", int, "iterations of the estimator, at most"),
)


def given_pose_flags(args: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """Field of the settings -> flag and value, of the pose flags beside ``--estimator`` that were given."""
    flags = {field: flag for field, flag, _, _ in _POSE_FLAGS} | {"inliers": "--inliers"}
    values = {field: (flag, getattr(args, flag[2:].replace("-", "_"))) for field, flag in flags.items()}
    return {field: pair for field, pair in values.items() if pair[1] is not None}


def estimator_from(args: argparse.Namespace, defaults: EstimatorSettings = BASELINE) -> EstimatorSettings:
    """The estimator that the flags ask for.

    Raises:
        UsageError: a value that makes no sense, or a flag that the estimator does not hear.
    """
    method, given = args.estimator or defaults.method, given_pose_flags(args)
    for field, (flag, _) in given.items():
        if field not in PARAMETERS[method]:
            raise UsageError(f"{flag} has no effect with --estimator {method}: leave it out")
    return replace(defaults, method=method, **{field: value for field, (_, value) in given.items()})
