"""The commands of ``python -m train``; without one, ``python -m train --ds …`` trains."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from common.shell import dispatch, run_module
from kornia_hardnet8.command import run_command
from train.recipes2020.flags import SCRIPTS, answer_script, refuse_retired

# name -> (module with configure(parser) and run(args), one line of help); modules are imported when asked for
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("train.command", "train a network (the command that is meant when none is named)"),
    "build colmap": ("train.stores.colmap", "a patch store of images and a COLMAP model: one label for each 3-D point"),
    "build photos": ("train.stores.photos", "a patch store of single photographs under random homographies and light"),
    "build amos": ("train.stores.amos", "a patch store of fixed cameras: a folder of photographs for each"),
    "build brown": ("train.stores.brown", "a patch store of Brown's photo tourism patches as published"),
    "build hpatches": ("train.stores.hpatches", "a patch store of strips of the HPatches release"),
    "merge": ("train.stores.merge", "join patch stores into one"),
    "info": ("train.stores.info", "what is in a patch store, and a contact sheet of it"),
    "fetch": ("train.fetch", "download data sets"),
    "average": ("train.average", "average the weights of runs that started from the same ones"),
    "pca": ("train.pca", "fit the projection of a checkpoint on a patch store"),
    "matchability": ("train.matchability.command", "train the choice of keypoints worth describing"),
    "plot": ("train.plots", "the curves of runs as a picture"),
    "bench": ("benchmarks.training", "patches per second, stage by stage"),
    "bundle": ("train.models:bundle", "write a checkpoint as one small file of weights"),
    "convert": ("train.models:convert", "turn a checkpoint of any known format into another"),
    "export": ("train.models:export", "write weights as ONNX, TorchScript or OpenVINO"),
}

# heading -> its commands, as --help lists them
GROUPS: dict[str, tuple[str, ...]] = {
    "data": (*(name for name in COMMANDS if name.startswith("build ")), "merge", "info", "fetch"),
    "train": ("run", "plot", "average", "pca", "matchability", "bench"),
    "use the weights": ("bundle", "convert", "export"),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code. The name of a script of the 2020 code is answered with its successor."""
    if argv and (script := re.sub(r"\.(py|ipynb|sh)$", "", argv[0].rsplit("/", 1)[-1])) in SCRIPTS:
        print(f"error: {argv[0]} of the 2020 code {answer_script(script, argv[1:])}", file=sys.stderr)
        return 2
    if argv and (argv[0] == "run" or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))):
        flags = argv[1:] if argv[0] == "run" else argv
        refused = run_command(lambda: refuse_retired(flags), debug="--debug" in flags)
        return refused or run_module("train", *COMMANDS["run"], flags)
    return dispatch("train", "Train descriptors: `python -m train --ds STORE --out RUN`.", COMMANDS, GROUPS, argv)
