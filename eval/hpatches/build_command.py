"""``python -m eval hpatches-build``: HPatches-format strips from any homography sequences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.hpatches import LEVEL_NAMES, NUM_TARGETS, write_strip
from common.images import read_gray
from common.shell import progress
from eval.core.image_sequences import ImageSequence, find_sequences
from eval.core.results import format_table
from eval.hpatches.build import CALIBRATED_OVERLAP, BuildSettings, BuiltSequence, build_sequence, side_files
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import atomic_dir, write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = BuildSettings()
    parser.add_argument(
        "--sequences", type=Path, required=True, metavar="DIR", help="sequences: images 1 … 6 and H_1_2 … H_1_6"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder, one folder a sequence")
    parser.add_argument("--detections", type=int, default=defaults.detections, help="strongest of each detector")
    parser.add_argument("--patches", type=int, default=defaults.max_patches, help="patches of a sequence, at most")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the choice of patches and their jitter")


def run(args: argparse.Namespace) -> None:
    """Build every sequence; print how far the jittered regions overlap."""
    settings = BuildSettings(detections=args.detections, max_patches=args.patches, seed=args.seed)
    rows = []
    with atomic_dir(args.out) as folder:
        sequences = find_sequences(args.sequences)
        for sequence in progress(sequences, what="hpatches-build", unit="sequence"):
            built = build_from_files(sequence, settings)
            write_sequence(built, [H for _, _, H in sequence.targets], folder / sequence.name)
            rows.append([sequence.name, len(built.frames), *built.median_overlaps().values()])
        write_json(folder / "build.json", {"settings": settings.to_dict(), "sequences": [s.name for s in sequences]})
    rows.append(["calibrated", "", *CALIBRATED_OVERLAP.values()])
    print(format_table(["sequence", "patches", *(f"{name} overlap" for name in LEVEL_NAMES.values())], rows))
    print(f"strips: {args.out} (python -m eval hpatches --data {args.out})")


def build_from_files(sequence: ImageSequence, settings: BuildSettings) -> BuiltSequence:
    """Build the strips of one sequence on disk."""
    numbers = [k for k, _, _ in sequence.targets]
    if numbers != list(range(2, NUM_TARGETS + 2)):
        raise DataError(f"{sequence.reference.parent}: targets are {numbers}, HPatches strips need 2 … 6")
    images = [read_gray(sequence.reference), *(read_gray(path) for _, path, _ in sequence.targets)]
    return build_sequence(images, [H for _, _, H in sequence.targets], settings, str(sequence.reference.parent))


def write_sequence(built: BuiltSequence, homographies: Sequence[np.ndarray], folder: Path) -> None:
    """Write strips, jitter files and homographies of one sequence."""
    folder.mkdir()
    for strip, patches in built.strips.items():
        write_strip(folder / f"{strip}.png", patches)
    for name, values in side_files(built).items():
        np.savetxt(folder / name, values, fmt="%.6g")
    for k, H in enumerate(homographies, 1):
        np.savetxt(folder / f"H_ref_{k}", H, fmt="%.12g")
