"""KeyNet keypoints (Barroso-Laguna et al. 2019) with this package's descriptors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import kornia.feature as KF
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.images import gray_from_bgr
from eval.features.base import WholeFeature
from eval.features.detect import affine_weights
from eval.features.keypoints import Keypoints
from eval.features.tokens import Token, flag, one_of
from eval.features.weights import weights_sha256
from kornia_hardnet8.detectors import load_kornia_weights
from kornia_hardnet8.feature import HardNet8Feature
from kornia_hardnet8.models import BUNDLED_DIR


def keynet(token: Token, weights: Path | None) -> WholeFeature:
    """KeyNet and h8E512; ``upright`` (true, false), ``affine`` (none, affnet)."""
    return _KeyNet(token, weights)


class _KeyNet(WholeFeature):
    dim = 128

    def __init__(self, token: Token, weights: Path | None) -> None:
        assert weights is not None
        options = token.typed_options({"upright": flag, "affine": one_of("none", "affnet")})
        super().__init__(token, weights)
        self.upright = options.get("upright", False)
        self.descriptor = token.name.partition("-")[2]
        self.affnet = affine_weights(options.get("affine", "none"))
        self._feature = functools.lru_cache(maxsize=1)(self._make)
        self._feature(1)  # a wrong file is found now, not at the first image

    def _make(self, num: int) -> HardNet8Feature:
        detector = KF.KeyNetDetector(False, num)
        network: Any = detector.model
        assert self.weights is not None
        load_kornia_weights(network, self.weights.name, self.weights.parent)
        feature = HardNet8Feature(num, detector.eval(), self.descriptor, upright=self.upright, select="response")
        if self.affnet is not None:
            shape = KF.LAFAffNetShapeEstimator(False)
            load_kornia_weights(shape, self.affnet.name, self.affnet.parent)
            feature.shape_estimator = shape.eval()
        return feature.eval()

    def identity(self, num: int) -> dict[str, Any]:
        """The files of the descriptor and of AffNet as well."""
        files = {"descriptor_sha256": BUNDLED_DIR / f"{self.descriptor}.safetensors", "affnet_sha256": self.affnet}
        return super().identity(num) | {
            name: None if file is None else weights_sha256(file) for name, file in files.items()
        }

    @torch.inference_mode()
    def detect_and_describe(self, image: NDArray[np.uint8], num: int) -> tuple[Keypoints, Tensor]:
        """See :meth:`WholeFeature.detect_and_describe`."""
        feature = self._feature(num).to(self.device)
        gray = torch.from_numpy(gray_from_bgr(image))[None].float() / 255.0
        lafs, responses, descs = (t.float().cpu() for t in feature.detect_and_describe(gray.to(self.device)))
        scale = torch.linalg.det(lafs[:, :, :2]).abs().sqrt()
        keypoints = Keypoints.from_points(
            lafs[:, :, 2].numpy(), responses.numpy(), 2.0 * scale.numpy() / feature.mr_size
        )
        keypoints.angle[:] = torch.rad2deg(torch.atan2(lafs[:, 1, 0], lafs[:, 0, 0])).numpy() % 360.0
        shape = (lafs[:, :, :2] / scale[:, None, None]).numpy()
        return Keypoints(
            keypoints.xy, keypoints.size, keypoints.angle, keypoints.response, keypoints.octave, shape
        ), descs
