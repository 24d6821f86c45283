"""HardNet8: a 32 x 32 gray patch in, a unit vector out."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.core.check import KORNIA_CHECK_SHAPE
from torch import Tensor, nn

from kornia_hardnet8.arch import DEFAULT_ARCH, build_features, get_arch
from kornia_hardnet8.checkpoints import Weights, load_weights
from kornia_hardnet8.errors import UsageError

# Patches that one pass through the network takes in eval mode: bounds the memory, and the activations fit the cache.
CHUNK = 256


class HardNet8(nn.Module):
    """Patch descriptor of the HardNet family, a drop-in for ``kornia.feature.HardNet8``.

    Convention: a patch may have any affine intensity range, since each is standardised; statistics are detached, so
    gradients reach the image through the patch alone. The module starts in eval mode, pretrained or not.

    Args:
        pretrained: False: random (orthogonal) weights; True: the bundled ``h8E512``; the name of a bundled model; or
            the path of a weight file. Nothing is ever downloaded.
        arch: architecture token; None is what the weights say, ``h8E512`` when untrained.
        output_dim: width of the descriptor after the PCA projection (truncated and renormalised); None leaves the
            projection out and gives the network's own width.
        patch_size: side of a patch; only for checking, since the architecture has one.

    Shape:
        - Input: (B, 1, S, S) floating point, S = ``patch_size``; B may be 0.
        - Output: (B, output_dim), unit length, the input's dtype.

    Raises:
        UsageError: unknown name, or an ``arch``, ``output_dim`` or ``patch_size`` that contradicts the weights.
        kornia.core.exceptions.ShapeError: an input of another shape.

    Source: Pultar 2020, "Improving the HardNet Descriptor"; layers as in ``kornia.feature.HardNet8``.

    Example:
        >>> import torch
        >>> HardNet8(arch="h7")(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 128])
    """

    def __init__(
        self,
        pretrained: bool | str | Path = False,
        arch: str | None = None,
        output_dim: int | None = 128,
        *,
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        weights = load_weights(DEFAULT_ARCH if pretrained is True else pretrained) if pretrained else None
        if weights is not None and arch is not None and get_arch(arch).name != weights.arch:
            raise UsageError(f"arch={arch!r} contradicts the weights {pretrained}, which are {weights.arch}")
        spec = get_arch(weights.arch if weights is not None else arch or DEFAULT_ARCH)
        if patch_size is not None and patch_size != spec.patch_size:
            raise UsageError(f"patch_size={patch_size} contradicts {spec.name}, which takes {spec.patch_size}")
        self.arch = spec.name
        self.patch_size = spec.patch_size
        self.output_dim = spec.dim if output_dim is None else output_dim
        self._chunk = CHUNK
        self._shape = ["B", "1", str(spec.patch_size), str(spec.patch_size)]
        # Buffers come first in the state dict, as in kornia.
        mean, components = _projection(weights, spec.name, spec.dim, output_dim)
        self.register_buffer("components", components)
        self.register_buffer("mean", mean)
        self.features = build_features(spec.name)
        if weights is not None:
            self.features.load_state_dict(weights.features, strict=True)
        self.eval()

    @staticmethod
    def _normalize_input(x: Tensor, eps: float = 1e-7) -> Tensor:
        """Standardise each patch: mean 0, unbiased standard deviation 1; a constant patch becomes zeros."""
        std, mean = torch.std_mean(x, dim=(-3, -2, -1), keepdim=True)
        return (x - mean.detach()) / (std.detach() + eps)

    def forward(self, input: Tensor) -> Tensor:
        """Describe patches (B, 1, S, S); returns unit vectors (B, output_dim) of the input's dtype."""
        KORNIA_CHECK_SHAPE(input, self._shape)
        if not input.is_floating_point():
            raise TypeError("HardNet8 takes floating point patches: convert with .float()")
        if input.shape[0] == 0:
            return input.new_zeros(0, self.output_dim)
        if self.training or torch.is_grad_enabled() or input.shape[0] <= self._chunk:
            return self._describe(input)
        out = torch.empty(input.shape[0], self.output_dim, device=input.device, dtype=input.dtype)
        for start in range(0, input.shape[0], self._chunk):
            out[start : start + self._chunk] = self._describe(input[start : start + self._chunk])
        return out

    def _describe(self, input: Tensor) -> Tensor:
        """One pass: standardise, network, unit length, project, unit length."""
        # Half-precision sums of 1024 grey levels overflow or lose all digits.
        x = input if input.dtype == torch.float64 else input.float()
        x = self._normalize_input(x).to(self.features[0].weight.dtype)
        raw = self.features(x).flatten(1)
        raw = raw if raw.dtype == torch.float64 else raw.float()
        descs = F.normalize(raw, dim=1, eps=1e-12)
        if self.components is not None and self.mean is not None:
            descs = (descs - self.mean.to(descs.dtype)) @ self.components.to(descs.dtype)
            descs = F.normalize(descs, dim=1, eps=1e-12)
        return descs.to(input.dtype)


def _projection(
    weights: Weights | None, name: str, dim: int, output_dim: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and components of the projection: the weights' own, or the first axes of the identity."""
    if output_dim is None:
        return None, None
    if weights is not None and weights.projection is not None:
        mean, components = weights.projection.truncated(output_dim)
        return mean.clone(), components.contiguous().clone()
    if not 1 <= output_dim <= dim:
        raise UsageError(f"output_dim must be 1 … {dim} for {name}, got {output_dim}")
    return torch.zeros(dim), torch.eye(dim, output_dim)
