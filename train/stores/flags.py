"""The flags that builders share, and what a store records of them."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from common.machine import available_cores
from common.shell import output_folder
from kornia_hardnet8.errors import UsageError
from train.stores.frames import Cut

_NOT_SETTINGS = ("verbose", "quiet", "debug", "num_workers")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the store goes, and in how many processes it is built."""
    parser.add_argument("--out", required=True, type=output_folder, metavar="STORE", help="the store to build")
    parser.add_argument(
        "--num-workers", type=int, default=available_cores(), metavar="N", help="processes; 0 = only this one"
    )
    parser.epilog = " ".join([
        *([parser.epilog] if parser.epilog else []),
        "A build that is interrupted or killed goes on with the same command; one that fails leaves nothing. The "
        "patches do not depend on --num-workers.",
    ])  # fmt: skip


def add_cut(parser: argparse.ArgumentParser, of_detector: str = "", fixed: str = "") -> None:
    """How patches are cut in keypoints' frames; where ``of_detector`` alone obeys, the defaults are set later."""
    shown = {"crop": str(Cut.crop), "mr_size": Cut.mr_size}
    default = {name: None if of_detector else value for name, value in shown.items()}
    end = {name: f" (default: {value})" if of_detector else "" for name, value in shown.items()}
    parser.add_argument(
        "--crop",
        default=default["crop"],
        help=f"{of_detector}side of the stored patch over that of the plain patch{fixed}{end['crop']}",
    )
    parser.add_argument(
        "--mr-size",
        type=float,
        default=default["mr_size"],
        help=f"{of_detector}half the side of the plain patch over the keypoint's sigma{end['mr_size']}",
    )
    parser.add_argument("--patch-size", type=int, metavar="PIXELS", help="side of a stored patch (default: 64)")


def number_crop(args: argparse.Namespace, kind: str) -> float:
    """``--crop`` as a number.

    Raises:
        UsageError: another value, or ``fixed``, which this kind of source lacks.
    """
    crop = parse_crop(args.crop)
    if crop == "fixed":
        raise UsageError(f"build {kind} has no --crop fixed: its patches are cut in the keypoints' frames")
    return crop


def parse_crop(text: str) -> float | Literal["fixed"]:
    """``"fixed"``, or the stored side as a multiple (at least 1) of the plain side.

    Raises:
        UsageError: another value.
    """
    if text == "fixed":
        return "fixed"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= 4.0:
        raise UsageError(f"--crop must be 'fixed' or a number in 1 ... 4, got {text!r}")
    return value


def refuse_idle(settings: dict[str, Any], beside: str) -> None:
    """Refuse settings that were given where they change nothing.

    Raises:
        UsageError: one that is not None.
    """
    for name, value in settings.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no effect with {beside}: leave it out")


def how_built(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The settings of a build, for ``meta.json``; it names no other file's place."""
    how = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | list) and k not in _NOT_SETTINGS}
    return {"command": f"build {kind}", **how}
