"""The linear projection behind the network: PCA, fitted in one pass, ordered, truncated and renormalised on use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kornia_hardnet8.errors import DataError, UsageError

LEAST_VARIANCE = 1e-4
"""Of an axis when it is whitened, relative to the first: what is below is noise, and no more enlarged."""


@dataclass(frozen=True)
class Projection:
    """Mean and ordered principal axes of a set of descriptors.

    Attributes:
        mean: (D,).
        components: (D, K), K = D when fitted here; column k is the k-th principal axis: of unit length unless whitened,
            its largest entry positive.
        eigenvalues: (K,) variances of the projected descriptors, descending; NaN where a file does not say them.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor

    def __post_init__(self) -> None:
        dim = self.mean.shape[0] if self.mean.dim() == 1 else -1
        if (
            self.components.dim() != 2
            or self.components.shape[0] != dim
            or self.eigenvalues.shape != self.components.shape[1:]
        ):
            raise DataError(
                f"a projection needs mean (D,), components (D, K), eigenvalues (K,); got {tuple(self.mean.shape)}, "
                f"{tuple(self.components.shape)}, {tuple(self.eigenvalues.shape)}"
            )

    def truncated(self, output_dim: int) -> tuple[Tensor, Tensor]:
        """``mean (D,)`` and the first ``output_dim`` columns of ``components``.

        Raises:
            UsageError: more dimensions asked than the basis has.
        """
        if not 1 <= output_dim <= self.components.shape[1]:
            raise UsageError(f"output_dim must be 1 … {self.components.shape[1]} for these weights, got {output_dim}")
        return self.mean, self.components[:, :output_dim]

    def whitened(self, power: float) -> Projection:
        """The same axes, each divided by its standard deviation to ``power``, relative to the first.

        Args:
            power: 0 (no change) … 1 (all variances equal, but of axes with less than ``LEAST_VARIANCE``).

        Raises:
            UsageError: another power.
            DataError: the eigenvalues are not known, or zero.

        Source: the attenuated whitening of multiple-kernel descriptors (Mukundan et al. 2019).
        """
        if not 0.0 <= power <= 1.0:
            raise UsageError(f"the power of whitening must be 0 … 1, got {power}")
        if power == 0.0:
            return self
        if not (torch.isfinite(self.eigenvalues).all() and self.eigenvalues[0] > 0):
            raise DataError("the variances along the axes of the projection are not known, or zero: no whitening")
        relative = (self.eigenvalues / self.eigenvalues[0]).clamp(min=LEAST_VARIANCE)
        scale = relative ** (-power / 2.0)
        return Projection(self.mean, self.components * scale, self.eigenvalues * scale**2)


class PCAFitter:
    """Streams descriptors into float64 moments; the memory is D x D whatever their number.

    Source: the exact form of the PCA that the 2020 code fitted with scikit-learn (centred, no whitening).
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, descs: Tensor) -> None:
        """Add descriptors (B, D)."""
        if descs.dim() != 2 or descs.shape[1] != self._sum.shape[0]:
            raise DataError(f"expected descriptors (B, {self._sum.shape[0]}), got {tuple(descs.shape)}")
        batch = descs.detach().to("cpu", torch.float64)
        if not torch.isfinite(batch).all():
            raise DataError("descriptors hold NaN or infinity: a projection cannot be fitted to them")
        if self._shift is None and len(batch):
            self._shift = batch.mean(dim=0)  # moments about a near mean lose no digits
        if self._shift is not None:
            batch = batch - self._shift
            self._sum += batch.sum(dim=0)
            self._outer += batch.T @ batch
            self.count += len(batch)

    def finish(self) -> Projection:
        """The projection of everything seen.

        Raises:
            DataError: fewer than two descriptors were seen.
        """
        if self.count < 2 or self._shift is None:
            raise DataError(f"a projection needs at least 2 descriptors, got {self.count}")
        offset = self._sum / self.count
        covariance = (self._outer - self.count * torch.outer(offset, offset)) / (self.count - 1)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        vectors = vectors.flip(1)
        peak = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        return Projection(
            (self._shift + offset).float(),
            (vectors * peak.sign()).float(),
            eigenvalues.flip(0).clamp(min=0).float(),
        )
