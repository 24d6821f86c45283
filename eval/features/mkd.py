"""The multiple-kernel descriptor (Mukundan et al. 2019) with kornia's kernels and published whitening."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eval.features.base import Descriptor, NetworkDescriptor
from eval.features.tokens import Token, one_of
from eval.features.weights import read_weights
from kornia_hardnet8.errors import DataError

_DIM = 128


def mkd(token: Token, weights: Path | None) -> Descriptor:
    """MKD, ``concat`` kernels, whitened to 128; options ``whitening`` (pcawt, pcaws, pca, lw) and ``set``."""
    from kornia.feature.mkd import MKDDescriptor, Whitening

    assert weights is not None
    options = token.typed_options(
        {"whitening": one_of("pcawt", "pcaws", "pca", "lw"), "set": one_of("liberty", "notredame", "yosemite")}
    )
    models = read_weights(weights)
    training_set = options.get("set", "liberty")
    # kornia annotates whitening as str, and documents None as "no whitening"
    kernels = MKDDescriptor(patch_size=32, kernel_type="concat", whitening=None)  # type: ignore[arg-type]
    try:
        whitening = Whitening(options.get("whitening", "pcawt"), models[training_set], kernels.odims, _DIM)
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{weights} does not hold the whitening of MKD for {training_set}: it lacks {error}") from None
    return NetworkDescriptor(token, nn.Sequential(kernels, whitening), _DIM, weights)
