"""``python -m train matchability``: train the network that says which keypoints are worth describing."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cache import Cache
from common.folders import fingerprint
from common.jobs import ordered_map
from common.shell import output_file, positive_number, progress, seed_number
from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import sha256_file
from kornia_hardnet8.fused import Precision
from kornia_hardnet8.matchability import Matchability, save_matchability
from kornia_hardnet8.models import BUNDLED_DIR
from train.matchability.labels import LIMITS, THRESHOLDS, Labels, label_model

_PARTS = ("images", "sparse")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="DIR", help="folders with images/ and a COLMAP model in sparse/"
    )
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.safetensors", help="weights to write")
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
        "--precision",
        choices=("auto", *get_args(Precision)),
        default="auto",
        help="of descriptors; auto: what pays here",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that keeps the labels of each model for further runs"
    )


def run(args: argparse.Namespace) -> None:
    """Label, fit, write, and say how well photographs are ordered."""
    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: weights are written as .safetensors")
    names = [folder.absolute().name for folder in args.models]
    _check_models(args, names)
    jobs = [
        _Job(folder, THRESHOLDS[k % len(THRESHOLDS)], args.seed + k, descriptor, args.precision, args.cache)
        for descriptor in args.descriptor
        for k, folder in enumerate(args.models)
    ]
    results = progress(ordered_map(_label, jobs, args.num_workers), len(jobs), "label", "model")
    labels: dict[str, list[Labels]] = {name: [] for name in names}
    for name, labelled in zip(names * len(args.descriptor), results, strict=True):
        labels[name] += labelled
    names_learnt = [name for name in names if name not in args.hold_out]
    learnt = [one for name in names_learnt for one in labels[name]]
    if not learnt:
        raise DataError("no two photographs of these models have enough right matches to learn from")
    settings = FitSettings(steps=args.steps, seed=args.seed)
    network = fit(learnt, settings)
    network.metadata = {
        "models": sorted(names_learnt),
        "descriptors": args.descriptor,
        "photographs": len(learnt),
        "keypoints": sum(len(one.sigma) for one in learnt),
        "steps": settings.steps,
        "seed": settings.seed,
    }
    save_matchability(args.out, network)
    print(f"{args.out}: from {network.metadata['keypoints']} keypoints of {len(learnt)} photographs")
    for title, chosen in (("learnt from", names_learnt), ("held out", args.hold_out)):
        qualities = _qualities(network, [one for name in chosen for one in labels[name]])
        if qualities:
            print(f"{title}: a right match is above a wrong one with probability {np.nanmean(qualities):.3f}")


def _check_models(args: argparse.Namespace, names: Sequence[str]) -> None:
    unknown = [name for name in args.hold_out if name not in names]
    if unknown:
        raise UsageError(f"--hold-out {unknown[0]}: no folder of this name is given")
    for folder in args.models:
        for part in _PARTS:
            if not (folder / part).is_dir():
                raise MissingFileError(f"{folder / part} is not there: a folder holds images/ and sparse/")


@torch.no_grad()
def _qualities(network: Matchability, labels: Sequence[Labels]) -> list[float]:
    """The quality of the order of each photograph's keypoints."""
    return [order_quality(network(one.patches.float() / 255.0, one.sigma), one.right, one.seen) for one in labels]


class _Job(NamedTuple):
    """One model to label."""

    folder: Path
    thresholds: tuple[float, float]
    seed: int
    descriptor: str
    precision: Literal["auto"] | Precision
    cache: Path | None


def _label(job: _Job) -> list[Labels]:
    """The labels of one model, from the cache where it has them."""
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
def _network(name: str, precision: Literal["auto"] | Precision) -> HardNet8:
    return prepare_for_inference(HardNet8.from_checkpoint(name), precision)


WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class FitSettings:
    """``steps`` of ``batch`` keypoints; ``rate`` is the largest of one cycle; ``seed`` of weights and batches."""

    steps: int = 4000
    batch: int = 2048
    rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.rate > 0:
            raise UsageError("steps, batch and rate must be positive")


def fit(labels: Sequence[Labels], settings: FitSettings | None = None) -> Matchability:
    """Fit a network; the same labels and seed give the same weights on one machine.

    Each photograph has an offset of its own beside the network, since its share of right matches says how alike its
    partners are; what the network learns is the order within a photograph. The mean offset stays in the network.

    Raises:
        DataError: no keypoint is labelled, or all of them alike.
    """
    settings = settings or FitSettings()
    if not labels:
        raise DataError("no photograph has labelled keypoints")
    patches, sigma, right, seen = (torch.cat([getattr(one, name) for one in labels]) for name in Labels._fields)
    photograph = torch.cat([torch.full((len(one.sigma),), k) for k, one in enumerate(labels)])
    share = float(right.sum() / seen.sum())
    if not 0.0 < share < 1.0:
        raise DataError(f"{len(right)} keypoints are matched in {share:.0%} of the photographs: nothing to learn")
    generator = torch.Generator().manual_seed(settings.seed)
    network = _initialised(generator)
    offsets = nn.Parameter(torch.full((len(labels),), math.log(share / (1.0 - share))))
    groups = [
        {"params": network.parameters(), "weight_decay": WEIGHT_DECAY},
        {"params": [offsets], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [settings.rate, 10 * settings.rate], settings.steps, pct_start=0.1
    )
    for _ in progress(range(settings.steps), settings.steps, "fit", "step"):
        rows = torch.randint(len(right), (settings.batch,), generator=generator)
        turned = _turned(patches[rows].float() / 255.0, int(torch.randint(8, (1,), generator=generator)))
        logits = network(turned, sigma[rows]) + offsets[photograph[rows]]
        loss = negative_log_likelihood(logits, right[rows], seen[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        _last(network).bias.add_(offsets.mean())
    return network.eval()


def negative_log_likelihood(logits: Tensor, right: Tensor, seen: Tensor) -> Tensor:
    """Of being right ``right`` times out of ``seen``, a mean over all of ``seen``."""
    return (F.softplus(logits) * seen - logits * right).sum() / seen.sum()


def order_quality(scores: Tensor, right: Tensor, seen: Tensor) -> float:
    """Probability that a right match has a higher score than a wrong one (area under the ROC curve); NaN without both.

    Args:
        scores: (N,) of the keypoints of one photograph.
        right: (N,) see :class:`Labels`.
        seen: (N,) likewise.
    """
    order = torch.argsort(scores, stable=True)
    hits, misses = right[order].double(), (seen - right)[order].double()
    below = misses.cumsum(0) - misses / 2
    total = float(hits.sum() * misses.sum())
    return float((hits * below).sum()) / total if total else math.nan


def _initialised(generator: torch.Generator) -> Matchability:
    """A network with weights drawn from ``generator`` alone."""
    network = Matchability()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(_last(network).weight)
    return network.train()


def _last(network: Matchability) -> nn.Linear:
    layer = network.head[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _turned(patches: Tensor, which: int) -> Tensor:
    """One of the eight turns and reflections of a square: an upright photograph is only one of those that are taken."""
    patches = torch.rot90(patches, which % 4, (2, 3))
    return patches.flip(3) if which >= 4 else patches
