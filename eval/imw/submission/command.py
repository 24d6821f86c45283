"""``python -m eval imw-submit`` and ``imw-validate``: a zip that the benchmark takes, and what is wrong with one."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.cache import Cache
from common.jobs import open_executor
from common.shell import output_file
from eval.core.options import (
    add_keypoint_flags,
    add_matching_flags,
    add_pose_flags,
    any_matcher_from,
    detector_from,
    estimator_from,
    methods_from,
)
from eval.features import tokens_help
from eval.imw.multiview import MULTIVIEW_RATIO
from eval.imw.scene import find_raw_scenes
from eval.imw.submission.archive import MAX_TOTAL_BYTES
from eval.imw.submission.config import PLACEHOLDERS
from eval.imw.submission.validate import validate, verdict
from eval.imw.submission.write import TRACKS, SubmissionSettings, write_submission
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import read_json

log = logging.getLogger(__name__)


def configure_submit(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.epilog = tokens_help()
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="DATASET/SCENE folders with images, or full scenes"
    )
    data.add_argument("--cache", type=Path, metavar="DIR", help="cache of the stages (default: FILE.cache)")
    data.add_argument("--out", type=output_file, required=True, metavar="FILE.zip", help="the submission")
    data.add_argument("--metadata", type=Path, metavar="FILE.json", help="authors, method and so on; see docs/imw.md")
    entry = parser.add_argument_group("entry")
    entry.add_argument("--desc", required=True, metavar="TOKEN", help="descriptor or whole local feature, listed below")
    entry.add_argument("--track", required=True, choices=TRACKS, help="keypoints an image, at most: 2048 or 8000")
    entry.add_argument("--device", default="auto", help="of networks: cpu, cuda, or auto")
    entry.add_argument(
        "--custom-matches",
        action="store_true",
        help="hand in matches: the estimator's inliers for stereo, filtered ones for multiview",
    )
    entry.add_argument(
        "--pairwise-keypoints",
        action="store_true",
        help="with --custom-matches: keypoints by pair, the places of its inliers; stereo alone",
    )
    add_keypoint_flags(parser)
    matching = add_matching_flags(parser, imported=True)
    matching.add_argument(
        "--multiview-ratio", type=float, help=f"largest ratio that passes in multiview (default: {MULTIVIEW_RATIO:g})"
    )
    add_pose_flags(parser, calibrated=False)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--seed", type=int, default=0, help="of the estimator, for custom matches")
    run_group.add_argument("--jobs", type=int, metavar="N", help="processes for pairs (default: one a core)")


def run_submit(args: argparse.Namespace) -> None:
    """Write the zip and say what is in it."""
    if args.out.suffix.lower() != ".zip":
        raise UsageError(f"--out {args.out}: a submission is a .zip file")
    if args.pairwise_keypoints and not args.custom_matches:
        raise UsageError("--pairwise-keypoints: keypoints of pairs are those of matches, give --custom-matches too")
    (method,) = methods_from(argparse.Namespace(**{**vars(args), "desc": [args.desc]}))
    settings = SubmissionSettings(
        detector=detector_from(args, TRACKS[args.track]),
        mr_size=args.mr_size,
        stereo=any_matcher_from(args.matcher, args.ratio, "stereo", [method]),
        multiview=any_matcher_from(
            args.matcher, args.multiview_ratio, "multiview", [method], "--multiview-ratio", MULTIVIEW_RATIO
        ),
        estimator=estimator_from(args),
        custom_matches=args.custom_matches,
        pairwise=args.pairwise_keypoints,
        seed=args.seed,
    )
    metadata = _metadata(args.metadata)
    scenes = find_raw_scenes(args.data)
    cache = Cache(args.cache or args.out.with_suffix(".cache"))
    with open_executor(None, args.jobs) as executor:
        written = write_submission(scenes, method, settings, metadata, args.out, cache, executor)
    common = written.config[0]["config_common"]
    print(
        f"{args.out}: {common['json_label']}, {len(scenes)} scenes, {written.num_images} images, "
        f"{written.mean_keypoints:.0f} keypoints an image (at most {written.max_keypoints}), "
        f"{written.num_bytes / 1e6:.1f} MB, {written.seconds:.1f} s"
    )
    print(f"check it: python -m eval imw-validate {args.out} --data {args.data}")


def _metadata(path: Path | None) -> dict[str, Any]:
    if path is None:
        log.warning(
            "warning: config.json holds placeholders for authors, e-mail, name and description: give --metadata "
            "before you hand it in"
        )
        return dict(PLACEHOLDERS)
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary with {', '.join(PLACEHOLDERS)}")
    return content


def configure_validate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("submission", type=Path, metavar="FILE.zip", help="the zip, or its unpacked folder")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="DATASET/SCENE folders with images, or full scenes"
    )
    parser.add_argument(
        "--official", action="store_true", help="check the full list of test scenes, not those that --data holds"
    )
    parser.add_argument(
        "--max-size", type=float, default=MAX_TOTAL_BYTES / (1 << 30), metavar="GIB", help="of the unpacked zip"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run_validate(args: argparse.Namespace) -> int:
    """Print every finding; 1 when there is an error."""
    findings = validate(args.submission, args.data, args.official, int(args.max_size * (1 << 30)))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(finding)
        errors, total = len(findings.errors), len(findings.items)
        print(f"{args.submission}: {errors} errors, {total - errors} warnings: {verdict(findings)}")
    return 1 if findings.errors else 0
