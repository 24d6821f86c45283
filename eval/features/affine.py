"""Affine shapes of keypoints by AffNet (Mishkin et al. 2018)."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eval.features.keypoints import Keypoints
from eval.features.weights import find_file, weights_sha256
from kornia_hardnet8.detectors import DETECTION_MR_SIZE, load_kornia_weights
from kornia_hardnet8.errors import UsageError

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
