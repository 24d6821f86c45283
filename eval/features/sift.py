"""SIFT and RootSIFT, described by OpenCV from the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.features.base import Descriptor
from eval.features.keypoints import Keypoints, Places
from eval.features.tokens import Token
from kornia_hardnet8.errors import DataError, UsageError, need
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE


def sift(token: Token, weights: Path | None) -> Descriptor:
    """OpenCV's SIFT as it comes, in 0 … 255."""
    return Sift(token, weights, root=False)


def rootsift(token: Token, weights: Path | None) -> Descriptor:
    """RootSIFT: L1 norm, then square root (Arandjelovic and Zisserman 2012)."""
    return Sift(token, weights, root=True)


class Sift(Descriptor):
    """OpenCV's SIFT, or RootSIFT with ``root``."""

    dim = 128
    places: Places = "exact"
    """Of the keypoints that it is given; OpenCV describes what lies there."""

    def __init__(self, token: Token, weights: Path | None, root: bool) -> None:
        if weights is not None:
            raise UsageError(f"{token.text}: {token.name} has no weights")
        token.typed_options({})
        super().__init__(token)
        self.root = root

    def describe(self, patches: Tensor) -> Tensor:
        """Describe each patch by one upright SIFT at its centre, whose window fills the patch."""
        if patches.dim() != 4 or patches.shape[1] != 1:
            raise DataError(f"{self.name}: patches must be (N, 1, S, S), got {tuple(patches.shape)}")
        side = patches.shape[-1]
        # 4 x 4 cells of 3 sigma each = 6 KeyPoint.size.
        centre = Keypoints(
            np.full((1, 2), (side - 1) / 2, np.float32),
            np.full(1, side / 6, np.float32),
            np.zeros(1, np.float32),
            np.zeros(1, np.float32),
            np.zeros(1, np.int32),
        )
        images = (patches[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        rows = [self.describe_image(np.ascontiguousarray(image), centre) for image in images]
        return torch.cat(rows) if rows else torch.zeros(0, self.dim)

    def describe_image(
        self, image: NDArray[np.uint8], keypoints: Keypoints, mr_size: float = DEFAULT_MR_SIZE
    ) -> Tensor:
        """SIFT's own support (12 sigma wide, 4 x 4 cells of 3 sigma), so ``mr_size`` has no part in it."""
        if keypoints.shape is not None:
            raise UsageError(f"{self.name}: OpenCV's SIFT describes circles, not affine shapes")
        if len(keypoints) == 0:
            return torch.zeros(0, self.dim)
        cv2 = need("cv2", "eval")
        described, rows = cv2.SIFT.create(enable_precise_upscale=self.places == "exact").compute(
            image, keypoints.to_opencv()
        )
        order = np.array([k.class_id for k in described])
        if len(order) != len(keypoints):
            raise DataError(f"{self.name}: OpenCV described {len(order)} of {len(keypoints)} keypoints")
        descs = np.empty((len(keypoints), self.dim), np.float32)
        descs[order] = rows
        return torch.from_numpy(root_normalise(descs) if self.root else descs)

    def identity(self, mr_size: float) -> dict[str, Any]:
        """The name, OpenCV's version and the places: the support is fixed."""
        return {"descriptor": self.token.name, "opencv": need("cv2", "eval").__version__, "places": self.places}


def root_normalise(descs: NDArray[np.float32]) -> NDArray[np.float32]:
    """L1-normalise rows (N, D), 1e-8 in the denominator, then take the square root."""
    return np.sqrt(descs / (descs.sum(axis=1, keepdims=True) + np.float32(1e-8)))
