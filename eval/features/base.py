"""What descriptors and whole local features offer to the evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, Self

import kornia
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.features.baseline_patches import extract_baseline_patches
from eval.features.keypoints import Keypoints
from eval.features.tokens import Token
from eval.features.weights import weights_sha256
from kornia_hardnet8.fused import PLANES
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE
from kornia_hardnet8.patches import extract_patches


class _OfToken:
    """What a token stands for: its weights, and the device that its networks run on."""

    def __init__(self, token: Token, weights: Path | None = None) -> None:
        self.token = token
        self.name = token.text
        self.weights = weights
        self.weights_sha256 = weights_sha256(weights) if weights is not None else None
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Self:
        """Run networks, if there are any, on ``device``; returns itself."""
        self.device = device
        return self


class Descriptor(_OfToken, ABC):
    """A descriptor of local patches.

    Attributes:
        name: the token as typed.
        dim: length D of a descriptor.
        patch_size: side of the patches that :meth:`describe` takes.
        weights: the file of weights, or None.
        weights_sha256: its hash, or None.
        patches: how patches are cut out of an image: on kornia's grid, or as the baselines of the IMW benchmark do.
    """

    dim: int
    patch_size: int = 32
    patches: Literal["kornia", "baseline"] = "kornia"

    @abstractmethod
    def describe(self, patches: Tensor) -> Tensor:
        """Describe patches (N, 1, S, S), float in [0, 1]; returns (N, D) float32 on the CPU; N = 0 gives (0, D)."""

    def describe_image(
        self, image: NDArray[np.uint8], keypoints: Keypoints, mr_size: float = DEFAULT_MR_SIZE
    ) -> Tensor:
        """Describe the keypoints of a gray image (H, W); returns (N, D) float32 in their order.

        ``mr_size`` is the half side of a patch in units of sigma = size / 2; descriptors with a support of their own
        (SIFT) ignore it.
        """
        if self.patches == "baseline":
            patches = extract_baseline_patches(image, keypoints, self.patch_size, mr_size)
        else:
            patches = extract_patches(torch.from_numpy(image), keypoints.lafs(mr_size), self.patch_size)
        return self.describe(patches / 255.0)

    def identity(self, mr_size: float) -> dict[str, Any]:
        """All that the descriptors of a given image and its keypoints depend on: the cache key of this stage."""
        identity = {
            "descriptor": self.token.name,
            "options": dict(sorted(self.token.options.items())),
            "weights_sha256": self.weights_sha256,
            "mr_size": mr_size,
            "patch_size": self.patch_size,
            "kornia": kornia.__version__,
        }
        return identity if self.patches == "kornia" else {**identity, "patches": self.patches}


class WholeFeature(_OfToken, ABC):
    """A local feature that finds its own keypoints.

    Attributes: see :class:`Descriptor`.
    """

    dim: int

    @abstractmethod
    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """The ``num`` strongest keypoints of a colour image (H, W, 3) in OpenCV's order, strongest first.

        Returns:
            N <= ``num`` keypoints, pixel centres at integers, and their descriptors (N, D), float32 on the CPU.
        """

    def identity(self, num: int) -> dict[str, Any]:
        """All that the features of a given image depend on: the cache key of this stage."""
        return {
            "feature": self.token.name,
            "options": dict(sorted(self.token.options.items())),
            "weights_sha256": self.weights_sha256,
            "num": num,
            "kornia": kornia.__version__,
        }


Method = Descriptor | WholeFeature
"""What a token may name where images are given."""


class NetworkDescriptor(Descriptor):
    """A torch module that turns (N, 1, S, S) patches into (N, D) descriptors."""

    # Patches in one forward: bounds memory for networks that do not chunk by themselves.
    CHUNK = 1024

    def __init__(
        self, token: Token, module: nn.Module, dim: int, weights: Path | None = None, patch_size: int = 32
    ) -> None:
        super().__init__(token, weights)
        self.module = module.eval()
        self.dim = dim
        self.patch_size = patch_size

    @torch.inference_mode()
    def describe(self, patches: Tensor) -> Tensor:
        """Describe patches in chunks; see :meth:`Descriptor.describe`."""
        if len(patches) == 0:
            return torch.zeros(0, self.dim)
        parts = [self.module(part.to(self.device)).float() for part in patches.split(self.CHUNK)]
        return torch.cat(parts).cpu()

    def identity(self, mr_size: float) -> dict[str, Any]:
        """See :meth:`Descriptor.identity`; reduced precision by what runs: ``auto`` is another one elsewhere."""
        identity = super().identity(mr_size)
        precision = getattr(self.module, "precision", "fp32")
        if precision == "fp32":
            return identity
        return {**identity, "runs_in": f"int8, {PLANES} planes" if precision == "int8" else precision}

    def to(self, device: torch.device) -> Self:
        """Run the network on ``device``."""
        self.module.to(device)
        return super().to(device)
