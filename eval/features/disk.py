"""DISK (Tyszkiewicz et al. 2020) through kornia."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.images import rgb_tensor
from eval.features.base import WholeFeature
from eval.features.keypoints import Keypoints
from eval.features.tokens import Token
from eval.features.weights import kornia_module, load_strictly, read_weights
from kornia_hardnet8.errors import DataError


def disk(token: Token, weights: Path | None) -> WholeFeature:
    """DISK with a published file (``depth-save.pth``, or ``epipolar-save.pth`` after ``@``)."""
    return _Disk(token, weights)


class _Disk(WholeFeature):
    dim = 128

    def __init__(self, token: Token, weights: Path | None) -> None:
        assert weights is not None
        token.typed_options({})
        super().__init__(token, weights)
        content = read_weights(weights)
        if "extractor" not in content:
            raise DataError(f"{weights} does not hold the weights of DISK: it lacks 'extractor'")
        self.module = kornia_module("DISK")()
        load_strictly(self.module, content["extractor"], weights, "DISK")
        self.module.eval()

    @torch.inference_mode()
    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """See :meth:`WholeFeature.detect_and_describe`."""
        self.module.to(self.device)
        (output,) = self.module(rgb_tensor(image).to(self.device), n=num, pad_if_not_divisible=True)
        order = torch.sort(output.detection_scores, descending=True, stable=True).indices.cpu()
        xy, scores, descs = (
            t.float().cpu()[order] for t in (output.keypoints, output.detection_scores, output.descriptors)
        )
        return Keypoints.from_points(xy.numpy(), scores.numpy()), descs
