"""Networks of patches as published: TFeat (Balntas 2016), HardTFeat, and MKD (Mukundan 2019) by kornia's kernels."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.base import Descriptor, NetworkDescriptor
from eval.features.tokens import Token, one_of
from eval.features.weights import load_strictly, read_weights
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.torch_files import state_dict_of


def tfeat(token: Token, weights: Path | None) -> Descriptor:
    """TFeat as kornia has it, with a published state dict (Balntas et al. 2016); its output is not of unit length."""
    import kornia.feature as KF

    assert weights is not None
    token.typed_options({})
    module = KF.TFeat(pretrained=False)
    load_strictly(module, read_weights(weights), weights, "TFeat")
    return NetworkDescriptor(token, module, 128, weights)


def hardtfeat(token: Token, weights: Path | None) -> Descriptor:
    """TFeat's layers trained with HardNet's loss (published with AffNet, Mishkin et al. 2018)."""
    assert weights is not None
    token.typed_options({})
    state = state_dict_of(read_weights(weights))
    module = _HardTFeat()
    load_strictly(module, {k: v for k, v in state.items() if not str(k).startswith("SIFT.")}, weights, "HardTFeat")
    return NetworkDescriptor(token, module, 128, weights)


class _HardTFeat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=7),
            nn.Tanh(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(32, 64, kernel_size=6),
            nn.Tanh(),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(64, 128, kernel_size=8), nn.Tanh())

    def forward(self, patches: Tensor) -> Tensor:
        mean = patches.mean(dim=(1, 2, 3), keepdim=True)
        std = patches.std(dim=(1, 2, 3), keepdim=True) + 1e-7
        return F.normalize(self.classifier(self.features((patches - mean) / std)).flatten(1))


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
        if not all(value.isfinite().all() for value in whitening.state_dict().values()):
            raise ValueError("it holds values that are not finite")
    except Exception as error:  # torch and kornia raise many types for odd content
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DataError(f"{weights} does not hold the whitening of MKD for {training_set} ({reason})") from None
    return NetworkDescriptor(token, nn.Sequential(kernels, whitening), _DIM, weights)
