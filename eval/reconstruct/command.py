"""``python -m eval reconstruct``: a folder of photographs to a COLMAP database and model."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from common.cache import Cache
from common.devices import choose_device
from common.jobs import open_executor
from common.shell import output_folder, seed_number
from eval.core.matchers import gains_from_threads
from eval.core.options import (
    add_keypoint_flags,
    add_matching_flags,
    add_precision_flag,
    any_matcher_from,
    detector_from,
    methods_from,
)
from eval.core.results import format_table
from eval.features import Method, tokens_help
from eval.pages.render import command_line
from eval.reconstruct.pipeline import Outcome, reconstruct
from eval.reconstruct.settings import CAMERA_MODELS, CAMERA_MODES, CameraSettings, ReconstructSettings, camera_numbers
from eval.reconstruct.undistort import undistort
from kornia_hardnet8.files import atomic_path, shown_name


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = ReconstructSettings()
    parser.epilog = tokens_help()
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photographs, folders below it too")
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="model.html, sparse/0, database.db …"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of features and matches (default: DIR/cache)")
    features = parser.add_argument_group("features")
    features.add_argument(
        "--desc", nargs=1, default=["h8small"], metavar="TOKEN", help="descriptor or local feature, listed below"
    )
    features.add_argument("--device", default="auto", help="of networks and matching: cpu, cuda, or auto")
    add_precision_flag(features)
    points = add_keypoint_flags(parser, select="matchability")
    points.add_argument("--keypoints", type=int, default=defaults.detector.num, help="of each image")
    points.add_argument(
        "--max-side", type=int, default=defaults.max_side_px, help="features of larger images are found at this, pixels"
    )
    matching = add_matching_flags(parser)
    which = matching.add_mutually_exclusive_group()
    which.add_argument(
        "--num-matched", type=int, default=defaults.num_matched, metavar="N",
        help="match each image with the N others in which most of its best keypoints are found again; 0: with all",
    )  # fmt: skip
    which.add_argument("--pairs", type=Path, metavar="FILE", help="match these instead, two names a line")
    cameras = parser.add_argument_group("cameras (focal lengths by EXIF where it has them, else guessed and refined)")
    cameras.add_argument(
        "--cameras", choices=CAMERA_MODES, default=defaults.camera.mode, help="which images share one; auto: by EXIF"
    )
    cameras.add_argument("--camera-model", choices=CAMERA_MODELS, default=defaults.camera.model, metavar="MODEL",
                         help=f"of COLMAP: {', '.join(CAMERA_MODELS)}")  # fmt: skip
    cameras.add_argument("--focal", type=float, metavar="PX", help="focal length of every image, pixels")
    cameras.add_argument("--camera-params", metavar="F,CX,CY,…", help="all parameters, in COLMAP's order and pixels")
    cameras.add_argument(
        "--refine", action=argparse.BooleanOptionalAction, default=True, help="of focal length and distortion"
    )
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--seed", type=seed_number, default=0, help="of verification and mapping")
    run_group.add_argument(
        "--threads", type=int, default=defaults.num_threads,
        help="of the mapper; 0: all cores. With more than 1 the last digits differ between runs",
    )  # fmt: skip
    run_group.add_argument(
        "--jobs", type=int, metavar="N",
        help="processes for matching (default: one a core; nearest neighbours and verification: threads)",
    )  # fmt: skip
    run_group.add_argument(
        "--picture", action=argparse.BooleanOptionalAction, default=True, help="write DIR/model.html and DIR/model.png"
    )
    run_group.add_argument(
        "--undistort", action="store_true",
        help="write DIR/undistorted too: images beside sparse/0, as gsplat and nerfstudio read them",
    )  # fmt: skip
    run_group.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    run_group.add_argument("--print-config", action="store_true", help="print the settings as JSON and stop")


def run(args: argparse.Namespace) -> None:
    """Reconstruct, draw and print."""
    (method,) = methods_from(args)
    settings = settings_from(args, method)
    if args.print_config:
        print(json.dumps({"images": str(args.images), "desc": args.desc[0], **settings.to_dict()}, indent=1))
        return
    device = choose_device(args.device)
    cache = Cache(args.cache) if args.cache else None
    jobs = args.jobs
    if device.type != "cpu" or (jobs is None and gains_from_threads(settings.matcher)):
        jobs = 1  # threads need not start
    with open_executor(jobs=jobs) as executor:
        outcome = reconstruct(args.images, method, args.out, settings, args.pairs, cache, executor, device)
    paths = {"model": args.out / "sparse" / "0"}
    if args.undistort:
        photos = Path(outcome.summary["images"]["folder"])
        paths["undistorted"] = undistort(paths["model"], photos, args.out / "undistorted")
    paths["points"] = args.out / "points.ply"
    with atomic_path(paths["points"]) as temporary:
        outcome.models[0].export_PLY(temporary)
    if args.picture:
        paths |= _draw(args.out, args.images, method.name, outcome)
    if args.json:
        print((args.out / "summary.json").read_text(encoding="utf-8"), end="")
        return
    print(table(outcome))
    for what, path in paths.items():
        print(f"{what}: {path}")


def _draw(out: Path, images: Path, feature: str, outcome: Outcome) -> dict[str, Path]:
    """Show the largest model as a picture and as a page; returns both."""
    from eval.core.viz import draw_model
    from eval.reconstruct.page import write_model_page

    model, summary, folder = outcome.models[0], outcome.summary, images.resolve()
    place = shown_name(folder.parent.name if folder.name.lower() in ("images", "photos") else folder.name)
    draw_model(out / "model.png", model, title=f"{place}, {feature}")
    left_out = [*summary["not_registered"], *summary["images"]["unreadable"]]
    made = f"Made on {datetime.date.today().isoformat()} by: {command_line(summary['environment']['command'])}"
    photos = Path(summary["images"]["folder"])
    write_model_page(out / "model.html", model, photos, f"{place}, {feature}", left_out, made)
    return {"picture": out / "model.png", "page to open": out / "model.html"}


def settings_from(args: argparse.Namespace, method: Method) -> ReconstructSettings:
    """The settings that the flags ask for."""
    return ReconstructSettings(
        detector=detector_from(args, args.keypoints),
        mr_size=args.mr_size,
        max_side_px=args.max_side,
        matcher=any_matcher_from(args.matcher, args.ratio, "reconstruct", [method]),
        num_matched=args.num_matched,
        camera=CameraSettings(
            model=args.camera_model,
            mode=args.cameras,
            focal_px=args.focal,
            params=camera_numbers(args.camera_params),
            refine=args.refine,
        ),
        seed=args.seed,
        num_threads=args.threads,
    )


def table(outcome: Outcome) -> str:
    """One line a model, then pairs, seconds, and what is not in the first model."""
    summary = outcome.summary
    readable = summary["images"]["found"] - len(summary["images"]["unreadable"])
    rows: list[tuple[Any, ...]] = [
        (
            f"sparse/{index}",
            f"{model['registered']}/{readable}",
            model["points"],
            f"{model['mean_reprojection_error_px']:.2f} px",
            f"{model['mean_track_length']:.2f}",
            round(model["mean_observations_per_image"]),
        )
        for index, model in enumerate(summary["models"])
    ]
    head = ("model", "images", "points", "reprojection", "track length", "points/image")
    pairs, seconds = summary["pairs"], summary["seconds"]
    lines = [
        format_table(head, rows),
        f"pairs: {pairs['verified']} of {pairs['matched']} verified",
        "seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()),
    ]
    for what, names in (
        ("not in sparse/0", summary["not_registered"]),
        ("unreadable", summary["images"]["unreadable"]),
    ):
        if names:
            lines.append(
                f"{what}: {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            )
    return "\n".join(lines)
