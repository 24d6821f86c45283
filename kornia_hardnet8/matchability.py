"""Matchability: how likely a keypoint is to find its partner in another photograph, from a glance at its patch.

Detectors find many more keypoints than are ever matched, and the strength of their response hardly says which. A small
network looks at two coarse upright patches of each candidate instead, one of the region that is described and one of
the detected blob itself; what it prefers is worth describing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from kornia.core.check import KORNIA_CHECK_SHAPE
from torch import Tensor, nn

from kornia_hardnet8.checkpoints import MATCHABILITY, read_safetensors, write_safetensors
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.models import BUNDLED_DIR
from kornia_hardnet8.patches import extract_patches

FORMAT = "kornia-hardnet8/matchability/1"
BUNDLED = BUNDLED_DIR / f"{MATCHABILITY}.safetensors"
# Side of a patch in cells, and half sides / sigma: of the region that HardNet describes, and of the blob.
PATCH_SIZE = 16
MR_SIZES = (12.0, 4.0)
# Patches in one pass: their activations stay in the cache.
_CHUNK = 512
# What contrast and scale are divided by before their logarithm: usual ones become about 0.
USUAL_CONTRAST, USUAL_SIGMA = 0.08, 2.0
# The best of 0, 0.3, 0.6 and 1 by AP of matches on eight models that were not learnt from.
RESPONSE_WEIGHT = 0.6
_LEAST_RESPONSE = 1e-12
# One gray level, added to the contrast: what lies below is noise.
ONE_LEVEL = 1.0 / 255.0


class Matchability(nn.Module):
    """The share of photographs of the same place in which a keypoint is expected to be matched rightly.

    Convention: patches are upright (the score does not depend on a keypoint's orientation) and cover ``MR_SIZES`` sigma
    to each side. The score is a logit; its sigmoid is a share. It ranks the keypoints of one image; between images it
    says less, since nothing in a patch tells how different the other photograph will be.

    Args:
        pretrained: False: random weights; True: those that ship with the package; or the path of a file.

    Shape:
        - patches: (B, 2, 16, 16) floating point in [0, 1]; B may be 0.
        - sigma: (B,) detection scale in pixels.
        - Output: (B,) logits of the dtype of the patches.

    Raises:
        MissingFileError, DataError: no file, or one that is damaged or holds something else.
        kornia.core.exceptions.ShapeError: inputs of other shapes.
    """

    def __init__(self, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(len(MR_SIZES), 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(64 + len(MR_SIZES) + 1, 32), nn.ReLU(), nn.Linear(32, 1))
        self.metadata: dict[str, Any] = {}
        if pretrained:
            state, self.metadata = _read(BUNDLED if pretrained is True else Path(pretrained), self.state_dict())
            self.load_state_dict(state)
        self.eval()

    def forward(self, patches: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B,) of patches (B, 2, 16, 16) of keypoints of ``sigma`` (B,) pixels."""
        KORNIA_CHECK_SHAPE(patches, ["B", str(len(MR_SIZES)), str(PATCH_SIZE), str(PATCH_SIZE)])
        KORNIA_CHECK_SHAPE(sigma, [str(len(patches))])
        if len(patches) == 0:
            return patches.new_zeros(0)
        centred = patches - patches.mean(dim=(2, 3), keepdim=True)
        # the standard deviation, fifteen times as fast as torch.std on a CPU
        std = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True) / math.sqrt(PATCH_SIZE**2 - 1)
        seen = self.features(centred / (std + ONE_LEVEL))
        contrast = torch.log((std[:, :, 0, 0] + ONE_LEVEL) / USUAL_CONTRAST)
        scale = torch.log(sigma.clamp(min=1e-3).to(patches) / USUAL_SIGMA)[:, None]
        logits: Tensor = self.head(torch.cat([seen, contrast, scale], dim=1))[:, 0]
        return logits

    def score(self, image: Tensor, lafs: Tensor, mr_size: float, responses: Tensor | None = None) -> Tensor:
        """Expected shares of the keypoints of one image.

        The patches say little of what a detector's response tells best: whether the keypoint is found again at all. So
        ``RESPONSE_WEIGHT`` times the logarithm of its ratio to the image's median is added to a logit.

        Args:
            image: (H, W) gray in [0, 1].
            lafs: (N, 2, 3) frames; only their centres and areas count.
            mr_size: half side of these frames / sigma.
            responses: (N,) of the detector, positive and of any unit; None: the patches alone.

        Returns:
            (N,) in [0, 1], of the dtype of the image; 0 for a frame that is not finite or without area.
        """
        sigma, patches = cut_upright(image, lafs, mr_size)
        dtype = self.head[0].weight.dtype
        with torch.no_grad():
            chunks = zip(patches.split(_CHUNK), sigma.split(_CHUNK), strict=True)
            logits = torch.cat([patches.new_zeros(0), *(self(p.to(dtype), s.to(dtype)) for p, s in chunks)])
            if responses is not None and len(responses):
                strength = torch.log(responses.to(logits).clamp(min=_LEAST_RESPONSE))
                logits = logits + RESPONSE_WEIGHT * (strength - strength.median())
            shares = torch.sigmoid(logits).to(image.dtype)
        return torch.where(sigma > 0, shares, 0.0).nan_to_num(nan=0.0)


def cut_upright(image: Tensor, lafs: Tensor, mr_size: float) -> tuple[Tensor, Tensor]:
    """Detection scales (N,) of frames (N, 2, 3), and the patches (N, 2, 16, 16) that :class:`Matchability` looks at."""
    area = lafs[:, 0, 0] * lafs[:, 1, 1] - lafs[:, 0, 1] * lafs[:, 1, 0]
    sigma = area.abs().sqrt() / mr_size
    linear = torch.eye(2, dtype=lafs.dtype, device=lafs.device) * sigma[:, None, None]
    frames = (torch.cat([size * linear, lafs[:, :, 2:]], dim=2) for size in MR_SIZES)
    return sigma, torch.cat([extract_patches(image, frame, PATCH_SIZE) for frame in frames], dim=1)


def save_matchability(path: str | Path, module: Matchability) -> None:
    """Write a ``.safetensors`` file in float32, with the module's metadata.

    Raises:
        DataError: the file cannot be written; nothing is left behind.
    """
    tensors = {key: value.detach().cpu().float().contiguous() for key, value in module.state_dict().items()}
    write_safetensors(path, tensors, {**module.metadata, "format": FORMAT})


def _read(path: Path, expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and metadata of a file, checked against the shapes that the module has."""
    if not path.is_file():
        raise MissingFileError(f"no matchability weights at {path}")
    state, metadata = read_safetensors(path, FORMAT)
    for key in sorted(set(expected) | set(state)):
        if key not in expected or key not in state or state[key].shape != expected[key].shape:
            raise DataError(f"{path} is no matchability network of this version: {key} is missing, extra or misshapen")
        if not state[key].is_floating_point() or not torch.isfinite(state[key]).all():
            raise DataError(f"{path}: {key} holds NaN, infinity or no numbers")
    return state, metadata
