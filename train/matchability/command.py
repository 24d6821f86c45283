"""``python -m train matchability``: train the network that says which keypoints are worth describing."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from common.cache import Cache
from common.fingerprint import fingerprint
from common.shell import positive_number, progress, seed_number
from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.checkpoints import BUNDLED_DIR
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import sha256_file

if TYPE_CHECKING:
    from train.matchability.labels import Labels

_PARTS = ("images", "sparse")
_Precision = Literal["auto", "fp32", "bf16", "int8"]


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
    parser.add_argument(
        "--precision", choices=get_args(_Precision), default="auto", help="of descriptors; auto: what pays here"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that keeps the labels of each model for further runs"
    )


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
        for part in _PARTS:
            if not (folder / part).is_dir():
                raise MissingFileError(f"{folder / part} is not there: a folder holds images/ and sparse/")
    jobs = [
        _Job(folder, THRESHOLDS[k % len(THRESHOLDS)], args.seed + k, descriptor, args.precision, args.cache)
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


class _Job(NamedTuple):
    """One model to label."""

    folder: Path
    thresholds: tuple[float, float]
    seed: int
    descriptor: str
    precision: _Precision
    cache: Path | None


def _label(job: _Job) -> list[Labels]:
    """The labels of one model, from the cache where it has them."""
    from train.matchability.labels import LIMITS, Labels, label_model

    network = None if job.descriptor == "sift" else _network(job.descriptor, job.precision)
    bundled = BUNDLED_DIR / f"{job.descriptor}.safetensors"
    configuration = {
        "model": fingerprint(path for part in _PARTS for path in (job.folder / part).rglob("*") if path.is_file()),
        "thresholds": job.thresholds,
        "seed": job.seed,
        "limits": LIMITS,
        "descriptor": "sift"
        if network is None
        else [sha256_file(bundled if bundled.is_file() else Path(job.descriptor)), network.precision],
    }

    def make() -> dict[str, Any]:
        labels = label_model(job.folder / "images", job.folder / "sparse", *job.thresholds, job.seed, network)
        return {f"{k}/{name}": getattr(one, name).numpy() for k, one in enumerate(labels) for name in Labels._fields}

    _, arrays = Cache(job.cache).compute("matchability", configuration, make)
    count = len(arrays) // len(Labels._fields)
    return [Labels(*(torch.from_numpy(arrays[f"{k}/{name}"]) for name in Labels._fields)) for k in range(count)]


@functools.lru_cache(maxsize=1)
def _network(name: str, precision: _Precision) -> HardNet8:
    return prepare_for_inference(HardNet8.from_checkpoint(name), precision)
