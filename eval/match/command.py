"""``python -m eval match``: match two photographs, estimate their geometry, show it as a picture and a page."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images import reduce_image
from common.shell import output_file, seed_number
from eval.core.estimators import BASELINE, SEEDED_METHODS, EstimatorSettings
from eval.core.homography_estimators import HomographySettings
from eval.core.options import (
    add_keypoint_flags,
    add_matching_flags,
    add_pose_flags,
    add_precision_flag,
    any_matcher_from,
    detector_from,
    estimator_from,
    given_pose_flags,
    methods_from,
)
from eval.core.results import strict
from eval.core.viz import draw_matches
from eval.features import Method, tokens_help
from eval.features.detect import DogSettings
from eval.match.page import Matched, write_match_page
from eval.match.photo_cameras import PhotoCamera, photo_camera
from eval.match.photos import FEW_INLIERS, PhotoFeatures, PhotoMatch, RelativePose, match_photos, photo_features
from eval.pages.render import command_line
from eval.reconstruct.settings import CAMERA_MODELS, CameraSettings, camera_numbers
from kornia_hardnet8.errors import UsageError

Floats = NDArray[np.float64]

# Long side of each image in the picture, pixels.
_DRAWN_PX = 900
# Photographs from anywhere have distortion: twice the benchmark's threshold.
_ESTIMATOR = replace(BASELINE, threshold_px=1.0)
# Where calibrations are given: far ahead of every estimator of F, and OpenCV alone is needed.
_CALIBRATED = "usac-accurate-e"
# With less parallax the direction of a translation is noise.
_LITTLE_PARALLAX_DEG = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.epilog = tokens_help()
    parser.add_argument("images", type=Path, nargs=2, metavar="IMAGE", help="two photographs")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.png", help="draw the matches; FILE.html too, to look closer"
    )
    parser.add_argument("--json", action="store_true", help="print counts, model and inliers (x0, y0, x1, y1) as JSON")
    parser.add_argument("--seed", type=seed_number, help="of the estimator (default: 0)")
    features = parser.add_argument_group("features")
    features.add_argument(
        "--desc", nargs=1, default=["h8E512"], metavar="TOKEN", help="descriptor or local feature, listed below"
    )
    features.add_argument("--device", default="auto", help="of networks and matching: cpu, cuda, or auto")
    add_precision_flag(features)
    points = add_keypoint_flags(parser, select="matchability")
    points.add_argument("--keypoints", type=int, default=DogSettings().num, help="of each image")
    points.add_argument(
        "--max-side", type=int, default=1600, help="features of larger images are found at this, pixels"
    )
    add_matching_flags(parser)
    pose = add_pose_flags(parser, _ESTIMATOR)
    pose.add_argument(
        "--homography", action="store_true", help="a plane, or a camera that only turns: H by OpenCV's RANSAC at 3 px"
    )
    pose.add_argument(
        "--camera-params",
        metavar="F,CX,CY,…",
        help="of both photographs: all parameters, in COLMAP's order and pixels; E is estimated then, by "
        "usac-accurate-e unless --estimator names another, which takes EXIF's focal lengths without this",
    )
    pose.add_argument(
        "--camera-model", choices=CAMERA_MODELS, metavar="MODEL",
        help=f"of those parameters (default: {CameraSettings().model}): {', '.join(CAMERA_MODELS)}",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Match, draw, print."""
    if args.out is not None and args.out.suffix.lower() != ".png":
        raise UsageError(f"--out {args.out}: pictures are written as .png")
    if args.max_side < 32:
        raise UsageError(f"--max-side must be at least 32 pixels, got {args.max_side}")
    detector = detector_from(args, args.keypoints)
    geometry = _geometry_from(args)
    (method,) = methods_from(args)
    matcher = any_matcher_from(args.matcher, args.ratio, "match", [method])
    one, two = (photo_features(path, method, detector, args.max_side, args.mr_size) for path in args.images)
    cameras = _cameras(args, geometry, (one, two))
    pair = match_photos(one, two, matcher, geometry, args.seed or 0, method.device, cameras)
    if isinstance(geometry, HomographySettings):
        name, about = "homography", f"{geometry.method}, {geometry.threshold_px:g} px"
    else:
        name = "essential matrix" if geometry.is_calibrated else "fundamental matrix"
        about = geometry.describe(len(pair.matches))
    page = None
    if args.out is not None:
        _draw(args.out, method.name, one, two, pair)
        page = _write_page(args, method.name, Matched((one, two), matcher, geometry, pair, cameras), name)
    if args.json:
        print(json.dumps(strict(_report(args, method, one, two, pair, name, cameras)), indent=1))
        return
    num_inliers, num_matches = int(pair.inliers.sum()), len(pair.matches)
    lines = [f"keypoints: {len(one.kpts)}, {len(two.kpts)}", f"matches: {num_matches}"]
    if pair.model is None:
        lines.append(f"inliers: none; no {name} ({about}): {pair.reason}")
    else:
        share = 100 * num_inliers / num_matches
        article = "an" if name[0] == "e" else "a"
        lines.append(f"inliers: {num_inliers} ({share:.0f} %) of {article} {name} ({about})")
        if num_inliers < FEW_INLIERS:
            lines.append(f"fewer than {FEW_INLIERS} inliers: unrelated photographs have as many by chance")
        if pair.is_flat:
            lines.append(
                "these agree with one homography too: of a plane, or a camera that only turns, take --homography"
            )
    if pair.pose is not None:
        lines += _pose_lines(pair.pose, pair.is_flat)
    if args.out is not None:
        lines += [f"picture: {args.out}", f"page to open: {page}"]
    print("\n".join(lines))


def _geometry_from(args: argparse.Namespace) -> EstimatorSettings | HomographySettings:
    """What the flags ask for; those that would change nothing are refused."""
    given = [flag for flag, _ in given_pose_flags(args).values()]
    given += ["--estimator"] if args.estimator is not None else []
    cameras = {"--camera-params": args.camera_params, "--camera-model": args.camera_model}
    calibration = [flag for flag, value in cameras.items() if value is not None]
    if args.homography:
        for flag in [*given, *calibration, *(["--seed"] if args.seed is not None else [])]:
            raise UsageError(f"{flag} has no effect with --homography, which is OpenCV's RANSAC at 3 px: leave it out")
        return HomographySettings()
    known = args.camera_params is not None and args.estimator is None
    geometry = estimator_from(args, replace(_ESTIMATOR, method=_CALIBRATED) if known else _ESTIMATOR)
    if args.seed is not None and geometry.method not in SEEDED_METHODS:
        raise UsageError(f"--seed has no effect with --estimator {geometry.method}: leave it out")
    if calibration and not geometry.is_calibrated:
        raise UsageError(f"{calibration[0]} has no effect with an estimator of F: name one of E, as poselib-e")
    if args.camera_model is not None and args.camera_params is None:
        raise UsageError("--camera-model has no effect without --camera-params: leave it out")
    return geometry


def _cameras(
    args: argparse.Namespace, geometry: EstimatorSettings | HomographySettings, photos: Sequence[PhotoFeatures]
) -> list[PhotoCamera]:
    """The cameras of both photographs where an estimator needs them, else none."""
    if isinstance(geometry, HomographySettings) or not geometry.is_calibrated:
        return []
    settings = CameraSettings(args.camera_model or CameraSettings().model, params=camera_numbers(args.camera_params))
    sizes = [(photo.image.shape[1], photo.image.shape[0]) for photo in photos]
    if settings.params and sorted(sizes[0]) != sorted(sizes[1]):
        raise UsageError("--camera-params: photographs of one camera need one size, these differ")
    return [photo_camera(path, size, settings) for path, size in zip(args.images, sizes, strict=True)]


def _pose_lines(pose: RelativePose, is_flat: bool) -> list[str]:
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(pose.R)) - 1) / 2))))
    direction = ", ".join(f"{value:.2f}" for value in pose.t)
    lines = [f"pose: turned by {angle:.1f}°, t = ({direction}); parallax {pose.parallax_deg:.1f}° (median)"]
    if pose.parallax_deg < _LITTLE_PARALLAX_DEG:
        lines.append("little parallax: the rotation is sure, where the camera moved to is not")
    elif is_flat:
        lines.append("a plane can allow a second pose: this one has the most points in front of both cameras")
    return lines


def _report(
    args: argparse.Namespace,
    method: Method,
    one: PhotoFeatures,
    two: PhotoFeatures,
    pair: PhotoMatch,
    name: str,
    cameras: Sequence[PhotoCamera],
) -> dict[str, Any]:
    rows = pair.matches[pair.inliers]
    inliers = np.column_stack([one.full_kpts[rows[:, 0]], two.full_kpts[rows[:, 1]]])
    return {
        "images": args.images,
        "feature": method.name,
        "matcher": args.matcher,
        "num_keypoints": [len(one.kpts), len(two.kpts)],
        "num_matches": len(pair.matches),
        "num_inliers": len(rows),
        "model": {"kind": name, "matrix": pair.model, "failure": pair.reason},
        "is_flat": pair.is_flat,
        **({"cameras": [camera.to_dict() for camera in cameras]} if cameras else {}),
        **({"pose": pair.pose._asdict()} if pair.pose is not None else {}),
        "inliers": np.round(inliers, 3),
    }


def _draw(path: Path, feature: str, one: PhotoFeatures, two: PhotoFeatures, pair: PhotoMatch) -> None:
    images, kpts = [], []
    for item in (one, two):
        small, (x, y) = reduce_image(item.image, _DRAWN_PX)
        images.append(np.ascontiguousarray(small[..., ::-1]))
        kpts.append((item.full_kpts + 0.5) * [x, y] - 0.5)
    draw_matches(
        path, images[0], images[1], kpts[0], kpts[1], pair.matches, inliers=pair.inliers, title=feature, max_lines=400
    )


def _write_page(args: argparse.Namespace, feature: str, matched: Matched, kind: str) -> Path:
    """Write the page beside the picture; returns its path."""
    pair, (one, two) = matched.pair, matched.photos
    facts = f"{feature}, matcher {args.matcher}: {len(one.kpts):,} and {len(two.kpts):,} keypoints, "
    facts += f"{len(pair.matches):,} matches; "
    facts += pair.reason if pair.model is None else f"{int(pair.inliers.sum()):,} inliers of the {kind}"
    return write_match_page(
        args.out.with_suffix(".html"),
        (args.images[0].name, args.images[1].name),
        matched,
        kind,
        facts,
        f"Made on {datetime.date.today().isoformat()} by: {command_line(sys.argv)}",
    )
