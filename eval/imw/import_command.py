"""``python -m eval imw-import``: features and matches computed elsewhere, for ``eval imw --desc imported@FILE.h5``."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.features.imported import write_imported
from eval.imw.import_features import import_hloc, import_submission
from eval.imw.scene import find_scenes
from kornia_hardnet8.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a scene, or a folder of scenes")
    source = parser.add_argument_group("source", "a submission, or hloc's files")
    source.add_argument(
        "--submission", type=Path, metavar="ZIP", help="submission, its folder, or the folder of one scene's h5 files"
    )
    source.add_argument(
        "--features", type=Path, metavar="FILE.h5", help="hloc's features: keypoints, descriptors, scores"
    )
    source.add_argument("--matches", type=Path, metavar="FILE.h5", help="hloc's matches of these features")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.h5", help="file of the imported features")


def run(args: argparse.Namespace) -> None:
    """Read, check and write."""
    if (args.submission is None) == (args.features is None):
        raise UsageError("give either --submission or --features")
    if args.matches is not None and args.features is None:
        raise UsageError("--matches goes with --features; a submission has matches of its own")
    scenes = find_scenes(args.data)
    if args.submission is not None:
        found = import_submission(args.submission, scenes)
    else:
        found = import_hloc(args.features, args.matches, scenes)
    write_imported(args.out, found.images, found.matches)
    most = max(len(image.keypoints) for image in found.images.values())
    pairs = max((len(pairs) for pairs in found.matches.values()), default=0)
    print(f"{args.out}: {len(found.images)} images with at most {most} keypoints, matches of {pairs} pairs")
    flags = " --matcher imported" if found.matches else ""
    flags += " --task stereo" if list(found.matches) == ["stereo"] else ""
    print(f"score it: python -m eval imw --data {args.data} --desc imported@{args.out} --keypoints {most}{flags}")
