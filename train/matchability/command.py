"""``python -m train matchability``: train the network that says which keypoints are worth describing."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.shell import positive_number, progress, seed_number
from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError

if TYPE_CHECKING:
    from train.matchability.labels import Labels


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="DIR", help="folders with images/ and a COLMAP model in sparse/"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="weights to write")
    parser.add_argument(
        "--hold-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="folders that are judged on, not learnt from",
    )
    parser.add_argument(
        "--descriptor", nargs="+", default=["sift"], metavar="NAME",
        help="whose matches are learnt from: sift (quick), weights of this library such as h8E512, or both",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive_number, default=4000, help="of the fit, 2048 keypoints each")
    parser.add_argument("--seed", type=seed_number, default=0, help="of photographs, pairs, weights and batches")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that label models; 0: none")


def run(args: argparse.Namespace) -> None:
    """Label, fit, write, and say how well photographs are ordered."""
    from common.jobs import ordered_map
    from kornia_hardnet8.matchability import save_matchability
    from train.matchability.fit import FitSettings, fit, order_quality
    from train.matchability.labels import THRESHOLDS

    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: weights are written as .safetensors")
    names = [folder.absolute().name for folder in args.models]
    unknown = [name for name in args.hold_out if name not in names]
    if unknown:
        raise UsageError(f"--hold-out {unknown[0]}: no folder of this name is given")
    for folder in args.models:
        for part in ("images", "sparse"):
            if not (folder / part).is_dir():
                raise MissingFileError(f"{folder / part} is not there: a folder holds images/ and sparse/")
    jobs = [
        (folder / "images", folder / "sparse", *THRESHOLDS[k % len(THRESHOLDS)], args.seed + k, descriptor)
        for descriptor in args.descriptor
        for k, folder in enumerate(args.models)
    ]
    results = progress(ordered_map(_label, jobs, args.num_workers), len(jobs), "label", "model")
    labels: dict[str, list[Labels]] = {name: [] for name in names}
    for name, labelled in zip(names * len(args.descriptor), results, strict=True):
        labels[name] += labelled
    learnt = [one for name in names if name not in args.hold_out for one in labels[name]]
    if not learnt:
        raise DataError("no two photographs of these models have enough right matches to learn from")
    settings = FitSettings(steps=args.steps, seed=args.seed)
    network = fit(learnt, settings)
    network.metadata = {
        "models": sorted(name for name in names if name not in args.hold_out),
        "descriptors": args.descriptor,
        "photographs": len(learnt),
        "keypoints": sum(len(one.sigma) for one in learnt),
        "steps": settings.steps,
        "seed": settings.seed,
    }
    save_matchability(args.out, network)
    print(f"{args.out}: from {network.metadata['keypoints']} keypoints of {len(learnt)} photographs")
    for title, chosen in (("learnt from", [n for n in names if n not in args.hold_out]), ("held out", args.hold_out)):
        with torch.no_grad():
            qualities = [
                order_quality(network(one.patches.float() / 255.0, one.sigma), one.right, one.seen)
                for name in chosen
                for one in labels[name]
            ]
        if qualities:
            print(f"{title}: a right match is above a wrong one with probability {np.nanmean(qualities):.3f}")


def _label(job: tuple[Path, Path, float, float, int, str]) -> list[Labels]:
    from train.matchability.labels import label_model

    images, model, contrast, edge, seed, name = job
    return label_model(images, model, contrast, edge, seed, None if name == "sift" else _network(name))


@functools.lru_cache(maxsize=1)
def _network(name: str) -> HardNet8:
    return prepare_for_inference(HardNet8.from_checkpoint(name))
