"""The commands of ``python -m kornia_hardnet8``: match two photographs, or write the features of some."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kornia_hardnet8 import __version__
from kornia_hardnet8.command import HelpFormatter, Parser, run_command
from kornia_hardnet8.errors import DataError, UsageError, need
from kornia_hardnet8.files import atomic_path, check_output, check_words

if TYPE_CHECKING:  # they import torch, for which help texts and wrong flags do not wait
    import numpy as np

    from kornia_hardnet8 import HardNet8Feature

# Unrelated photographs have about as many by chance.
_FEW_INLIERS = 15


def make_parser() -> argparse.ArgumentParser:
    """The command line: ``match`` and ``describe``."""
    parser = Parser(
        prog="python -m kornia_hardnet8", description="Match photographs with HardNet8.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=HelpFormatter)

    match = add("match", "match two photographs and draw the matches")
    match.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="two photographs (none: the examples)")
    match.add_argument("--out", type=Path, metavar="FILE", help="draw the matches: .png, .jpg or .tif")
    match.add_argument("--json", action="store_true", help="print the matches as JSON instead of their number")
    match.add_argument("--max-ratio", type=float, default=0.9, help="keep matches up to this ratio")
    match.set_defaults(run=run_match)
    describe = add("describe", "write keypoints and descriptors to a file")
    describe.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photographs; more than one for .h5")
    describe.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".npz (arrays by name), or .h5 as hloc reads it"
    )
    describe.set_defaults(run=run_describe)
    for command in (match, describe):
        command.add_argument("--keypoints", type=int, default=2048, help="of each image, the best")
        command.add_argument("--detector", default="dog", help="what finds them: dog, keynet, hessian, sift-opencv")
        command.add_argument("--max-side", type=int, default=1600, help="larger images are shrunk to this, pixels")
        command.add_argument("--dim", type=int, default=128, help="numbers a descriptor: 1 to 512, of h8small to 128")
        command.add_argument(
            "--weights", default="h8E512", metavar="NAME|FILE", help="h8small takes a quarter of the work; or a file"
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def make_feature(args: argparse.Namespace) -> HardNet8Feature:
    """The local feature that the flags ask for."""
    from kornia_hardnet8 import HardNet8, HardNet8Feature

    network = HardNet8(args.weights, output_dim=args.dim)
    return HardNet8Feature(args.keypoints, args.detector, network, max_side=args.max_side, precision="auto")


def run_match(args: argparse.Namespace) -> None:
    """Match, draw, print."""
    if len(args.images) not in (0, 2):
        raise UsageError(f"match takes two photographs, got {len(args.images)}")
    if args.out is not None and args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".tif", ".tiff"):
        raise UsageError(f"--out {args.out}: pictures are written as .png, .jpg or .tif")
    import torch
    from kornia.io import write_image

    from kornia_hardnet8 import draw_matches, example_pair, match_pair, read_image

    paths = args.images or example_pair()
    images = [read_image(path) for path in paths]
    matches = match_pair(images[0], images[1], make_feature(args), max_ratio=args.max_ratio)
    if args.out is not None:
        with atomic_path(args.out) as temporary:
            named = temporary.with_name(temporary.name + args.out.suffix.lower())  # kornia goes by the suffix
            try:
                write_image(named, draw_matches(images[0], images[1], matches), quality=85)
                named.replace(temporary)
            except Exception as error:  # kornia raises no other type where there is no room
                raise DataError(f"cannot write {args.out}: {error}") from None
            finally:
                named.unlink(missing_ok=True)
    if args.json:
        rows = torch.cat([matches.points0, matches.points1], dim=1).double().numpy().round(3).tolist()
        fundamental = None if matches.fundamental is None else matches.fundamental.tolist()
        print(json.dumps({"images": [str(path) for path in paths], "matches": rows,
                          "inliers": matches.inliers.tolist(), "fundamental": fundamental}))  # fmt: skip
        return
    print(f"{paths[0].name} and {paths[1].name}: {len(matches.ratios)} matches, {matches.num_inliers} inliers")
    if matches.num_inliers < _FEW_INLIERS:
        print(f"fewer than {_FEW_INLIERS} inliers: unrelated photographs have as many by chance")
    if args.out is not None:
        print(f"picture: {args.out}")


def run_describe(args: argparse.Namespace) -> None:
    """Describe each photograph and write all of them, or nothing."""
    suffix = args.out.suffix.lower()
    if suffix not in (".npz", ".h5"):
        raise UsageError(f"--out {args.out}: features are written as .npz or .h5")
    if suffix == ".npz" and len(args.images) > 1:
        raise UsageError(f"--out {args.out}: an .npz holds one photograph, got {len(args.images)}; take .h5")
    names = [path.name for path in args.images]
    if len(set(names)) < len(names):
        raise UsageError(f"two photographs have the name {max(names, key=names.count)}")
    if suffix == ".h5":
        need("h5py", "h5")  # before the work, not after
    import numpy as np

    feature = make_feature(args)
    photographs = {path.name: features_of(path, feature) for path in args.images}
    with atomic_path(args.out) as temporary:
        if suffix == ".npz":
            arrays: Any = photographs[names[0]]
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
        else:
            _write_hloc(temporary, photographs)
    for name, features in photographs.items():
        rows, width = features["descriptors"].shape
        print(f"{name}: {rows} keypoints of {width} numbers")
    print(f"features: {args.out}")


def features_of(path: Path, feature: HardNet8Feature) -> dict[str, np.ndarray]:
    """Arrays of one photograph.

    Returns:
        ``keypoints`` (N, 2) float32 pixels, ``lafs`` (N, 2, 3) float32, ``scores`` (N,) float32 (higher is stronger),
        ``descriptors`` (N, D) float32 of unit length, ``image_size`` (2,) int64 width and height.
    """
    import numpy as np
    import torch

    from kornia_hardnet8 import read_image

    image = read_image(path)
    with torch.inference_mode():
        lafs, responses, descs = feature.detect_and_describe(image)
    return {
        "keypoints": lafs[:, :, 2].numpy(),
        "lafs": lafs.numpy(),
        "scores": responses.numpy(),
        "descriptors": descs.numpy(),
        "image_size": np.array([image.shape[2], image.shape[1]]),
    }


def _write_hloc(path: Path, photographs: dict[str, dict[str, np.ndarray]]) -> None:
    """A group a photograph, descriptors (D, N), as hloc keeps them; ``lafs`` beside what hloc reads."""
    # Built in memory: the HDF5 library reports a full disk late, and then cannot close its file.
    buffer = io.BytesIO()
    with need("h5py", "h5").File(buffer, "w") as file:
        for name, arrays in photographs.items():
            group = file.create_group(name)
            for key, value in arrays.items():
                group.create_dataset(key, data=value.T if key == "descriptors" else value)
    path.write_bytes(buffer.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for bad data, 2 for wrong usage. Errors are one line."""
    words = sys.argv[1:] if argv is None else argv

    def command() -> None:
        check_words(words)
        args = make_parser().parse_args(words)
        if args.out is not None:
            check_output(args.out, is_folder=False)
        args.run(args)

    return run_command(command, debug="--debug" in words)
