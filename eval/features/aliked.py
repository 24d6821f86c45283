"""ALIKED (Zhao et al. 2023) through kornia."""

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

# The network halves the image five times.
_MIN_SIDE = 32


def aliked(token: Token, weights: Path | None) -> WholeFeature:
    """The published ALIKED-N(16); ``threshold``: scores must exceed it (default 0: the strongest maxima)."""
    return _Aliked(token, weights)


class _Aliked(WholeFeature):
    dim = 128

    def __init__(self, token: Token, weights: Path | None) -> None:
        assert weights is not None
        options = token.typed_options({"threshold": non_negative})
        super().__init__(token, weights)
        self.threshold = options.get("threshold", 0.0)
        self.module = kornia_module("ALIKED")(token.name, 1, -1.0)
        # the grid of the detector is a constant, which the published file does not hold
        state = {**read_weights(weights), "dkd.hw_grid": self.module.dkd.hw_grid}
        load_strictly(self.module, state, weights, "ALIKED")
        self.module.eval()

    @torch.inference_mode()
    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """See :meth:`WholeFeature.detect_and_describe`; images with a side below 32 pixels give nothing."""
        if min(image.shape[:2]) < _MIN_SIDE:
            return Keypoints.from_points(np.zeros((0, 2)), np.zeros(0)), torch.zeros(0, self.dim)
        self.module.to(self.device)
        self.module.dkd.top_k = num
        (output,) = self.module(rgb_tensor(image).to(self.device))
        order = torch.sort(output.keypoint_scores, descending=True, stable=True).indices
        order = order[output.keypoint_scores[order] > self.threshold][:num].cpu()
        xy, scores, descs = (
            t.float().cpu()[order] for t in (output.keypoints, output.keypoint_scores, output.descriptors)
        )
        return Keypoints.from_points(xy.numpy(), scores.numpy()), descs
