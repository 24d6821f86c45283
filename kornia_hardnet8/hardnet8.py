"""HardNet8: a 32 x 32 gray patch in, a unit vector out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from kornia.core.check import KORNIA_CHECK_SHAPE
from torch import Tensor, nn

from kornia_hardnet8 import fused
from kornia_hardnet8.arch import DEFAULT_ARCH, build_features, empty_features, get_arch
from kornia_hardnet8.checkpoints import Weights, load_weights
from kornia_hardnet8.errors import InputTypeError, UsageError, no_tensor

_log = logging.getLogger(__name__)

# Patches that one pass through the plain network takes in eval mode: bounds the memory.
CHUNK = 256
# Below so many patches, building or checking a fused copy costs more than it gains.
_MIN_FUSED = 16


class HardNet8(nn.Module):
    """Patch descriptor of the HardNet family, a drop-in for ``kornia.feature.HardNet8``.

    Convention: a patch may have any affine intensity range, since each is standardised; statistics are detached, so
    gradients reach the image through the patch alone. The module starts in eval mode, pretrained or not. In eval
    mode without gradients it describes by a fused copy of its layers, remade whenever they change; see
    :func:`kornia_hardnet8.prepare_for_inference` for reduced precision.

    Args:
        pretrained: False: random (orthogonal) weights, which a warning says once when they describe in eval mode;
            True: the bundled ``h8E512``; the name of a bundled model; or the path of a weight file. Nothing is ever
            downloaded. kornia 0.9 has True as its default.
        arch: architecture token; None is what the weights say, ``h8E512`` when untrained.
        output_dim: width of the descriptor after the PCA projection (truncated and renormalised); None leaves the
            projection out and gives the network's own width.
        patch_size: side of a patch; only for checking, since the architecture has one.
        device: where the module is to be; None is the CPU.

    Shape:
        - Input: (B, 1, S, S) floating point, S = ``patch_size``; B may be 0.
        - Output: (B, output_dim), unit length, the input's dtype. A patch with NaN gives a row of NaN.

    Raises:
        UsageError: unknown name, or an ``arch``, ``output_dim`` or ``patch_size`` that contradicts the weights.
        kornia.core.exceptions.ShapeError: an input of another shape.
        InputTypeError: integer patches, or no tensor at all.

    Attributes:
        untrained: the weights are random still; False after a forward in training mode, or weights loaded, or by hand.

    Source: Pultar 2020, "Improving the HardNet Descriptor"; layers as in ``kornia.feature.HardNet8``.

    Example:
        >>> import torch
        >>> HardNet8(arch="h7")(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 128])
    """

    if TYPE_CHECKING:  # torch.jit.script would take these as the types to compile for
        components: Tensor | None
        mean: Tensor | None

        def __call__(self, input: Tensor) -> Tensor:
            """See :meth:`forward`."""

    def __init__(
        self,
        pretrained: bool | str | Path = False,
        arch: str | None = None,
        output_dim: int | None = 128,
        *,
        patch_size: int | None = None,
        device: torch.device | str | None = None,
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
        if weights is None:
            self.features = build_features(spec.name)
            self.metadata: dict[str, Any] = {}
        else:
            self.features = empty_features(spec.name)
            self.features.load_state_dict(weights.features, strict=True, assign=True)
            self.metadata = dict(weights.metadata)
        self.untrained = weights is None
        self._precision = "fp32"
        self._fused: tuple[Any, fused.Engine] | None = None
        self.to(device).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path, output_dim: int | None = None) -> HardNet8:
        """Read any weight file of :func:`kornia_hardnet8.checkpoints.load_weights`.

        Args:
            path: the file, or the name of a bundled model.
            output_dim: width of the descriptor; None is as the file has it: the width of its projection, but 128 of
                a full basis, and the network's own width where the file holds no projection.
        """
        weights = load_weights(path)
        if output_dim is None and weights.projection is not None:
            output_dim = min(128, weights.projection.components.shape[1])
        return cls(path, output_dim=output_dim)

    @property
    def precision(self) -> str:
        """Of the fused copy: ``"fp32"``, or what ``prepare_for_inference`` chose."""
        return self._precision

    @staticmethod
    def _normalize_input(x: Tensor, eps: float = 1e-7) -> Tensor:
        """Standardise each patch: mean 0, unbiased standard deviation 1; a constant patch becomes zeros."""
        std, mean = torch.std_mean(x, dim=(-3, -2, -1), keepdim=True)
        return (x - mean.detach()) / (std.detach() + eps)

    def forward(self, input: Tensor) -> Tensor:
        """Describe patches (B, 1, S, S); returns unit vectors (B, output_dim) of the input's dtype."""
        if not torch.jit.is_scripting() and not isinstance(input, Tensor):
            raise no_tensor(input, "patches as a tensor (B, 1, S, S)")
        KORNIA_CHECK_SHAPE(input, self._shape)
        if not input.is_floating_point():
            raise InputTypeError("HardNet8 takes floating point patches: convert with .float()")
        if input.shape[0] == 0:
            return input.new_zeros(0, self.output_dim)
        if not torch.jit.is_scripting():
            self._warn_of_random_weights()
            engine = self._engine(input)
            if engine is not None:
                return self._describe_fused(input, engine)
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
        x = self._normalize_input(x).to(self.features[0].weight.dtype)  # type: ignore[arg-type]
        return self._finish(self.features(x).flatten(1)).to(input.dtype)

    def _finish(self, raw: Tensor) -> Tensor:
        """Unit length, project, unit length, in float32 or better."""
        raw = raw if raw.dtype == torch.float64 else raw.float()
        descs = F.normalize(raw, dim=1, eps=1e-12)
        if self.components is not None and self.mean is not None:
            descs = (descs - self.mean.to(descs.dtype)) @ self.components.to(descs.dtype)
            descs = F.normalize(descs, dim=1, eps=1e-12)
        return descs

    @torch.jit.unused
    def _warn_of_random_weights(self) -> None:
        """Once, where random weights describe instead of being trained."""
        if not self.untrained or torch.compiler.is_compiling():
            return
        self.untrained = False
        if not self.training:
            _log.warning(
                "this HardNet8 describes by random weights: HardNet8(True) has the bundled ones (kornia 0.9 loads "
                "weights by default, this package when it is asked to)"
            )

    @torch.jit.unused
    def _describe_fused(self, input: Tensor, engine: fused.Engine) -> Tensor:
        """Chunk by chunk through the fused copy."""
        with torch.no_grad():
            out = torch.empty(input.shape[0], self.output_dim, device=input.device, dtype=input.dtype)
            for start in range(0, input.shape[0], engine.chunk):
                part = input[start : start + engine.chunk]
                part = part if part.dtype == torch.float64 else part.float()
                x = fused.standardised(part) if engine.precision == "int8" else self._normalize_input(part).float()
                descs = self._finish(engine(x))
                # Neither the comparison in a fused ReLU nor an integer carries NaN through.
                bad = x.flatten(1).sum(dim=1, keepdim=True).isnan()
                out[start : start + engine.chunk] = descs.masked_fill(bad, float("nan")).to(input.dtype)
        return out

    @torch.jit.unused
    def _engine(self, input: Tensor) -> fused.Engine | None:
        """The fused copy of the layers as they are now, or None where the plain network is to run."""
        if self._runs_plain(input):
            return None
        key = fused.fingerprint(self.features)
        if key is None:
            return None
        if self._fused is None or self._fused[0] != (key, self._precision):
            steps = fused.fuse(self.features)
            if steps is None:
                return None
            ranges = fused.ranges_from_json(self.metadata.get("int8_ranges"))
            with torch.no_grad():
                engine = fused.Engine(steps, self.patch_size, self._precision, ranges)  # type: ignore[arg-type]
            self._fused = ((key, self._precision), engine)
        return self._fused[1]

    @torch.jit.unused
    def _runs_plain(self, input: Tensor) -> bool:
        """Whether something watches the layers, or the copy would not be of the kind of this input."""
        if (
            self.training
            or type(input) is not Tensor
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or not torch.amp.is_autocast_available(input.device.type)  # a device without kernels of its own, as meta
            or torch.is_autocast_enabled(input.device.type)
            or (self._precision == "fp32" and input.shape[0] < _MIN_FUSED)
        ):
            return True
        weight = self.features[0].weight
        if weight.dtype != torch.float32 or weight.device != input.device:
            return True
        if self._precision in (("fp16",) if input.device.type == "cpu" else ("int8",)):
            return True  # prepared for another kind of device than it was moved to
        return torch.is_grad_enabled() and (input.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """What a weight file said of its weights does not hold for others."""
        super()._load_from_state_dict(*args, **kwargs)
        self.metadata = {}
        self.untrained = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}


def _projection(
    weights: Weights | None, name: str, dim: int, output_dim: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and components of the projection: the weights' own, or the first axes of the identity."""
    if output_dim is None:
        return None, None
    if weights is not None and weights.projection is not None:
        mean, components = weights.projection.truncated(output_dim)
        return mean.float().clone(), components.float().contiguous().clone()
    if not 1 <= output_dim <= dim:
        raise UsageError(f"output_dim must be 1 … {dim} for {name}, got {output_dim}")
    if weights is not None and output_dim < dim:
        _log.warning(
            "these weights hold no projection: the descriptor is the first %d of %d features; fit one with "
            "python -m train pca, or take output_dim=None",
            output_dim,
            dim,
        )
    return torch.zeros(dim), torch.eye(dim, output_dim)
