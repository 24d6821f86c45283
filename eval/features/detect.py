"""Keypoints of an image."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eval.features.keypoints import Keypoints, Places
from eval.features.weights import find_file, weights_sha256
from kornia_hardnet8 import matchability
from kornia_hardnet8.detectors import DETECTION_MR_SIZE, load_kornia_weights
from kornia_hardnet8.errors import DataError, UsageError, need
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

Selection = Literal["response", "matchability"]
CANDIDATES = 8000


@dataclass(frozen=True)
class DogSettings:
    """Difference-of-Gaussians keypoints by OpenCV's SIFT.

    The thresholds of -10000 accept every extremum, as the IMW baselines do; the budget then decides.

    Attributes:
        num: keep this many of the strongest responses; places with several orientations count several times.
        contrast: OpenCV's contrastThreshold.
        edge: OpenCV's edgeThreshold.
        upright: angle 0, each place once.
        same_place: how ``upright`` recognises a further orientation of a place: by its ``position`` (before the budget
            cuts), or, as the IMW code does, by a ``response`` equal to that of the keypoint found just before.
        affine_weights: file of AffNet, which gives the frames affine shapes; None: similarities.
        places: ``exact``; ``imw2020``: a quarter of a pixel right of and below what was detected, in every octave, as
            OpenCV gives them by default and as the published baselines of 2020 have them.
        select: which keypoints are kept: the strongest by ``response``, or those of the library's bundled
            ``matchability``, whose shares then are the responses.
        candidates: how many of the strongest responses matchability chooses from; never fewer than ``num``.
    """

    num: int = 2048
    contrast: float = -10000.0
    edge: float = -10000.0
    upright: bool = False
    same_place: Literal["position", "response"] = "position"
    affine_weights: Path | None = None
    places: Places = "exact"
    select: Selection = "response"
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UsageError(f"the number of keypoints must be at least 1, got {self.num}")
        if self.same_place not in ("position", "response"):
            raise UsageError(f"one place is recognised by position or response, not {self.same_place!r}")
        if self.places not in get_args(Places):
            raise UsageError(f"places of keypoints are exact or imw2020, not {self.places!r}")
        if self.select not in get_args(Selection):
            raise UsageError(f"keypoints are selected by {' or '.join(get_args(Selection))}, not {self.select!r}")
        if self.candidates < 1:
            raise UsageError(f"the number of candidates must be at least 1, got {self.candidates}")

    def to_dict(self) -> dict[str, Any]:
        """What a cache key and a results file say about the detector."""
        settings = {"detector": "dog-opencv", **asdict(self)}
        weights, same_place = settings.pop("affine_weights"), settings.pop("same_place")
        if self.select == "response":
            del settings["select"], settings["candidates"]
        else:
            settings["matchability_sha256"] = weights_sha256(matchability.BUNDLED)
            settings["response_weight"] = matchability.RESPONSE_WEIGHT
        if weights is not None:
            settings |= {"affine": "affnet", "affine_sha256": weights_sha256(weights)}
        if self.upright and same_place != "position":
            settings["same_place"] = same_place
        return settings


def add_selection_flags(group: argparse._ArgumentGroup, default: Selection = "response") -> None:
    """Add ``--select`` and ``--candidates``."""
    group.add_argument(
        "--select",
        choices=get_args(Selection),
        default=default,
        help="which keypoints are kept: the detector's strongest, or those likeliest to be matched",
    )
    group.add_argument(
        "--candidates", type=int, metavar="N", help=f"strongest that matchability chooses from (default: {CANDIDATES})"
    )


def selection_from(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a :class:`DogSettings` that the flags ask for.

    Raises:
        UsageError: candidates, but nothing that chooses from them.
    """
    if args.candidates is not None and args.select == "response":
        raise UsageError("--candidates changes nothing with --select response: add --select matchability")
    return {"select": args.select, "candidates": CANDIDATES if args.candidates is None else args.candidates}


def detect_dog(image: NDArray[np.uint8], settings: DogSettings) -> Keypoints:
    """Detect keypoints in a gray image (H, W) uint8, best first; a blank image gives none.

    Of equal responses the one that OpenCV found last comes first, as in the IMW code. Upright keypoints are made
    unique before the budget cuts, so that it is filled.
    """
    cv2 = need("cv2", "eval")
    if image.ndim != 2 or image.dtype != np.uint8:
        raise DataError(f"detect_dog: the image must be (H, W) uint8, got {image.shape} {image.dtype}")
    sift = cv2.SIFT.create(
        contrastThreshold=settings.contrast,
        edgeThreshold=settings.edge,
        enable_precise_upscale=settings.places == "exact",
    )
    keypoints = Keypoints.from_opencv(sift.detect(image, None))
    by_response = settings.select == "response"
    num = settings.num if by_response else max(settings.num, settings.candidates)
    if settings.upright and settings.same_place == "response":
        keypoints = keypoints[first_orientations(keypoints.response)]
        keypoints.angle[:] = 0.0
        keypoints = select(keypoints, num, upright=False)
    else:
        keypoints = select(keypoints, num, settings.upright)
    if not by_response:
        keypoints = _most_matchable(image, keypoints, settings.num)
    if settings.affine_weights is None:
        return keypoints
    return affine_shapes(image, keypoints, settings.affine_weights)


def first_orientations(response: NDArray[np.float32]) -> NDArray[np.intp]:
    """Rows, in the detector's order, whose response differs from that of the row before.

    OpenCV gives the further orientations of a place right after the first, with its response (as in the IMW benchmark).
    """
    kept = np.ones(len(response), bool)
    kept[1:] = response[1:] != response[:-1]
    return np.flatnonzero(kept)


def select(keypoints: Keypoints, num: int, upright: bool) -> Keypoints:
    """The ``num`` strongest keypoints, strongest first; ``upright``: angle 0 and each position once."""
    keypoints = keypoints[np.argsort(keypoints.response, kind="stable")[::-1]]
    if upright:
        _, first = np.unique(keypoints.xy, axis=0, return_index=True)
        keypoints = keypoints[np.sort(first)]
        keypoints.angle[:] = 0.0
    return keypoints[:num]


def _most_matchable(image: NDArray[np.uint8], candidates: Keypoints, num: int) -> Keypoints:
    """The ``num`` candidates that the bundled network prefers, best first, with its shares as responses."""
    gray = torch.from_numpy(image).float() / 255.0
    responses = torch.from_numpy(candidates.response)
    shares = _matchability().score(gray, candidates.lafs(DEFAULT_MR_SIZE), DEFAULT_MR_SIZE, responses).numpy()
    order = np.argsort(-shares, kind="stable")[:num]
    return replace(candidates[order], response=shares[order])


@functools.lru_cache(maxsize=1)
def _matchability() -> matchability.Matchability:
    return matchability.Matchability(pretrained=True)


# Keypoints in one forward: bounds memory.
_CHUNK = 4096


def affine_weights(text: str) -> Path | None:
    """The weights that ``none``, ``affnet`` or ``affnet@PATH`` asks for; nothing is downloaded.

    Raises:
        UsageError: another name.
        MissingFileError: no weights where they are looked for.
    """
    name, at, path = text.partition("@")
    if text == "none":
        return None
    if name != "affnet" or (at and not path):
        raise UsageError(f"unknown affine shape {text!r}: it is none, affnet or affnet@PATH")
    return find_file(text, "affnet", Path(path).expanduser() if at else None, "AffNet.pth", "AffNet.pth")


def affine_shapes(image: NDArray[np.uint8], keypoints: Keypoints, weights: Path) -> Keypoints:
    """The keypoints with affine shapes, estimated in a gray image (H, W) on frames of 6 sigma; N = 0 stays empty.

    Centre, size and direction stay; where the network gives no proper frame, the similarity does.
    """
    if len(keypoints) == 0:
        return replace(keypoints, shape=np.zeros((0, 2, 2), np.float32))
    estimator = _estimator(weights, weights_sha256(weights))
    pixels = torch.from_numpy(image)[None, None].float() / 255.0
    with torch.inference_mode():
        frames = [
            estimator(part[None], pixels)[0, :, :, :2] for part in keypoints.lafs(DETECTION_MR_SIZE).split(_CHUNK)
        ]
    linear = torch.cat(frames)
    scale = torch.linalg.det(linear).abs().sqrt()[:, None, None]
    return replace(keypoints, shape=(linear / scale).numpy())


@functools.lru_cache(maxsize=2)
def _estimator(weights: Path, _: str) -> nn.Module:
    """The network of a file with a given hash."""
    import kornia.feature as KF

    module = KF.LAFAffNetShapeEstimator(False)
    load_kornia_weights(module, weights.name, weights.parent)
    return module.eval()
