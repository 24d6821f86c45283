"""XFeat (Potje et al. 2024), the sparse variant, through kornia."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.images import rgb_tensor
from eval.features.base import WholeFeature
from eval.features.keypoints import Keypoints
from eval.features.tokens import Token, non_negative
from eval.features.weights import kornia_module, load_strictly, read_weights

# kornia resizes to multiples of this.
_STEP = 32


def xfeat(token: Token, weights: Path | None) -> WholeFeature:
    """The published XFeat; ``threshold``: the heatmap must exceed it (default 0.05, the authors')."""
    return _XFeat(token, weights)


class _XFeat(WholeFeature):
    dim = 64

    def __init__(self, token: Token, weights: Path | None) -> None:
        assert weights is not None
        options = token.typed_options({"threshold": non_negative})
        super().__init__(token, weights)
        self.module = kornia_module("XFeat")(detection_threshold=options.get("threshold", 0.05))
        load_strictly(self.module.net, read_weights(weights), weights, "XFeat")
        self.module.eval()

    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """See :meth:`WholeFeature.detect_and_describe`."""
        self.module.to(self.device)
        (output,) = self.module.detectAndCompute(rgb_tensor(image).to(self.device), top_k=num)
        size = torch.tensor([image.shape[1], image.shape[0]])
        ratio = size / (size // _STEP * _STEP).clamp(min=_STEP)
        # kornia scales the pixels of the resized image about the centre of the first pixel, not about its corner
        xy = output["keypoints"].float().cpu() + 0.5 * (ratio - 1.0)
        return Keypoints.from_points(xy.numpy(), output["scores"].cpu().numpy()), output["descriptors"].clone().cpu()
