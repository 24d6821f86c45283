"""The commands of ``python -m eval``."""

from __future__ import annotations

from collections.abc import Sequence

from common.shell import dispatch

# name -> (module with configure(parser) and run(args), one line of help); modules are imported when asked for
COMMANDS: dict[str, tuple[str, str]] = {
    "imw": ("eval.imw.command", "IMW benchmark: stereo and multiview on scenes with known poses"),
    "imw-scene": ("eval.imw.build", "make an IMW scene from a COLMAP model and its images"),
    "match": ("eval.match.command", "match two photographs, estimate their geometry, draw it"),
    "reconstruct": ("eval.reconstruct.command", "a folder of photographs to a COLMAP database and model"),
    "imw-import": ("eval.imw.import_features", "features and matches computed elsewhere, for eval imw"),
    "imw-submit": ("eval.imw.submission.command:submit", "pack a submission for the IMW benchmark"),
    "imw-validate": ("eval.imw.submission.command:validate", "check an IMW submission before it is handed in"),
    "hpatches": ("eval.hpatches.command", "HPatches: patch verification, image matching, patch retrieval"),
    "hpatches-build": ("eval.hpatches.build", "cut HPatches-format strips from homography sequences"),
    "sequences": ("eval.sequences.command", "homography sequences: MMA, homography accuracy and AUC, repeatability"),
    "brown": ("eval.brown.command", "Brown patches: FPR95, per-image matching; fixed-camera patch sets"),
    "webcam": ("eval.webcam.command", "static cameras: the same place in another light or season"),
    "dev": ("eval.dev.command", "the development judgement: poses, homographies and fixed cameras in one go"),
    "compare": ("eval.report.compare", "differences between the methods of two runs, pair by pair, with intervals"),
    "bench": ("benchmarks.command", "how fast patches are described, and how long the benchmarks take"),
    "report": ("eval.report.page", "one static HTML page from results of any benchmarks"),
}

# heading -> its commands, as --help lists them
GROUPS: dict[str, tuple[str, ...]] = {
    "use it on your photographs": ("match", "reconstruct"),
    "judge": ("imw", "hpatches", "sequences", "brown", "webcam", "dev"),
    "look and compare": ("report", "compare", "bench"),
    "make or bring data": ("imw-scene", "imw-import", "hpatches-build"),
    "take part in the challenge": ("imw-submit", "imw-validate"),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    return dispatch("eval", "Judge descriptors and whole local features.", COMMANDS, GROUPS, argv)
