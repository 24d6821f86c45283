"""HardNet8Feature: an image in; frames, responses and descriptors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8.detectors import (
    DETECTION_MR_SIZE,
    Detector,
    DetectorName,
    OpenCVSift,
    make_detector,
    make_orienter,
    make_shape_estimator,
)
from kornia_hardnet8.errors import DataError, UsageError, no_tensor
from kornia_hardnet8.fused import Precision
from kornia_hardnet8.hardnet8 import HardNet8
from kornia_hardnet8.inference import prepare_for_inference
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE
from kornia_hardnet8.matchability import Matchability
from kornia_hardnet8.patches import extract_patches

Selection = Literal["matchability", "response"]
SELECTIONS: tuple[str, ...] = get_args(Selection)


class HardNet8Feature(nn.Module):
    """Detect, orient and describe, with the call and the results of ``kornia.feature.LocalFeature``.

    Convention: LAFs in pixels of the image that was given, pixel centres at integers, half side = ``mr_size`` sigma
    (shape and orientation are estimated on frames of 6 sigma, as in kornia). Best keypoint first, equal ones in the
    detector's order.

    Args:
        num_features: keep at most so many keypoints an image.
        detector: ``"dog"``, ``"hessian"`` (kornia's), ``"keynet"`` (its weights must be there) or ``"sift-opencv"``
            (needs OpenCV; all extrema, its own orientations). Or a :class:`kornia_hardnet8.detectors.Detector` of
            your own, or a detector module of kornia; it finds as many candidates as it was made for.
        descriptor: a network, or what ``HardNet8(pretrained=…)`` takes; True is the bundled one.
        upright: no orientation, frames point upward.
        affine_shape: ``"affnet"`` or None.
        orientation: ``"dominant"`` (gradient histogram), ``"orinet"`` or ``"none"``; ``"dominant"`` with
            ``"sift-opencv"`` means OpenCV's.
        mr_size: half side of a patch / sigma; None is what the weights were trained for, else 12.
        max_side: longer images are shrunk to this side for detection and description, pixels; None never.
        precision: of the descriptor, see :func:`prepare_for_inference`.
        select: which of the candidates are kept: ``"matchability"``, those that a small network expects to be matched
            (:class:`kornia_hardnet8.matchability.Matchability`; the responses are then its shares, in 0 … 1), or
            ``"response"``, the detector's strongest. Or a :class:`Matchability` of your own.
        candidates: how many of the strongest responses matchability chooses from; never fewer than ``num_features``.
        weights_dir: folder of ``keynet_pytorch.pth``, ``AffNet.pth``, ``OriNet.pth``; None is torch's hub cache.
        device: where the modules are to be; None leaves them where they are.

    Raises:
        UsageError: an unknown or contradictory setting.
        MissingFileError: weights that are asked for are not there; nothing is downloaded.

    Source: kornia's ``LocalFeature``; the support of 12 sigma as HardNet is used on DoG keypoints.

    Example:
        >>> import torch
        >>> feature = HardNet8Feature(100, descriptor=HardNet8(arch="h7"))
        >>> lafs, responses, descs = feature(torch.rand(1, 1, 64, 64))
        >>> descs.shape[2]
        128
    """

    def __init__(
        self,
        num_features: int = 2048,
        detector: DetectorName | Detector | nn.Module = "dog",
        descriptor: HardNet8 | bool | str | Path = True,
        *,
        upright: bool = False,
        affine_shape: Literal["affnet", "none"] | None = None,
        orientation: Literal["dominant", "orinet", "none"] = "dominant",
        mr_size: float | None = None,
        max_side: int | None = None,
        precision: Literal["auto"] | Precision = "fp32",
        select: Selection | Matchability = "matchability",
        candidates: int = 8000,
        weights_dir: str | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise UsageError(f"num_features must be at least 1, got {num_features}")
        if candidates < 1:
            raise UsageError(f"candidates must be at least 1, got {candidates}")
        if max_side is not None and max_side < 1:
            raise UsageError(f"max_side must be at least 1 pixel, got {max_side}")
        if upright and orientation == "orinet":
            raise UsageError("upright=True contradicts orientation='orinet'")
        folder = None if weights_dir is None else Path(weights_dir)
        network = descriptor if isinstance(descriptor, HardNet8) else HardNet8(descriptor)
        self.descriptor = network if precision == network.precision else prepare_for_inference(network, precision)
        size = self.descriptor.metadata.get("mr_size", DEFAULT_MR_SIZE) if mr_size is None else mr_size
        self.mr_size = float(size)
        if not self.mr_size > 0:
            raise UsageError(f"mr_size must be positive, got {size}")
        self.num_features, self.max_side = num_features, max_side
        upright = upright or orientation == "none"
        self.matchability = _choose(select)
        self.candidates = num_features if self.matchability is None else max(candidates, num_features)
        self.detector = make_detector(detector, self.candidates, upright, folder)
        self.shape_estimator = make_shape_estimator(affine_shape, folder)
        own_angles = isinstance(self.detector, OpenCVSift) and orientation == "dominant"
        self.orienter = None if upright or own_angles else make_orienter(orientation, folder)
        self.to(device).eval()

    if TYPE_CHECKING:

        def __call__(
            self, images: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor] | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            """See :meth:`forward`."""

    def forward(
        self, images: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of a batch, or of a list of images of different sizes.

        Args:
            images: (B, 1 or 3, H, W) in [0, 1], or a list of (1 or 3, H, W).
            masks: (B, 1, H, W), or a list of (1, H, W): keypoints only where it is positive.

        Returns:
            lafs (B, N, 2, 3), responses (B, N), descs (B, N, D); N is the largest number that one of the images has,
            rows of zeros fill up the others. B = 0 gives N = 0.

        Raises:
            InputTypeError: an image that is no tensor.
            DataError: other shapes, integer images, NaN or infinity in an image.
        """
        if not isinstance(images, (Tensor, list, tuple)):
            raise no_tensor(images, "a batch (B, 1 or 3, H, W) or a list of tensors (1 or 3, H, W)")
        count = len(images)
        if masks is not None and len(masks) != count:
            raise DataError(f"{count} images have {len(masks)} masks")
        features = [self.detect_and_describe(images[i], None if masks is None else masks[i]) for i in range(count)]
        if not features:
            reference = images if isinstance(images, Tensor) else torch.zeros(0)
            width = self.descriptor.output_dim
            return reference.new_zeros(0, 0, 2, 3), reference.new_zeros(0, 0), reference.new_zeros(0, 0, width)
        most = max(len(responses) for _, responses, _ in features)
        lafs, responses, descs = (torch.stack([_filled(part[k], most) for part in features]) for k in range(3))
        return lafs, responses, descs

    def detect_and_describe(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (N, 2, 3), responses (N,) and descriptors (N, D) of one image (1 or 3, H, W); see :meth:`forward`."""
        gray = _gray(image)
        if mask is not None and mask.shape[-2:] != image.shape[-2:]:
            raise DataError(f"the mask is {tuple(mask.shape)}, the image {tuple(image.shape)}")
        mask = None if mask is None else mask.reshape(gray.shape)
        scale = 1.0
        if self.max_side is not None and max(gray.shape) > self.max_side:
            scale = self.max_side / max(gray.shape)
            size = [max(1, round(side * scale)) for side in gray.shape]
            gray = F.interpolate(gray[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
            if mask is not None:
                mask = F.interpolate(mask[None, None].float(), size, mode="nearest")[0, 0]
        lafs, responses = self._detect(gray.detach(), mask)
        patches = extract_patches(gray, lafs, self.descriptor.patch_size)
        descs = self.descriptor(patches)
        if scale != 1.0:
            sizes = torch.tensor([image.shape[-1], image.shape[-2]], dtype=lafs.dtype, device=lafs.device)
            factors = sizes / torch.tensor([gray.shape[1], gray.shape[0]], dtype=lafs.dtype, device=lafs.device)
            centres = factors[:, None] * (lafs[:, :, 2:] + 0.5) - 0.5  # pixel centres are integers in both
            lafs = torch.cat([factors[:, None] * lafs[:, :, :2], centres], dim=2)
        return lafs, responses, descs

    @torch.no_grad()
    def choose(self, image: Tensor, lafs: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
        """The ``num_features`` best of an image's keypoints, best first.

        Args:
            image: (H, W) gray in [0, 1].
            lafs: (N, 2, 3) frames of 6 sigma.
            responses: (N,) of the detector.

        Returns:
            Their frames, and responses: matchability's shares where it chooses, else the detector's.
        """
        order = torch.sort(responses, descending=True, stable=True).indices[: self.candidates]
        lafs, responses = lafs[order], responses[order]
        if self.matchability is not None:
            shares = self.matchability.score(image, lafs, DETECTION_MR_SIZE, responses).to(responses.dtype)
            responses, order = torch.sort(shares, descending=True, stable=True)
            lafs = lafs[order]
        return lafs[: self.num_features], responses[: self.num_features]

    @torch.no_grad()
    def _detect(self, gray: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames of ``mr_size`` sigma, best first."""
        work = gray if gray.dtype in (torch.float32, torch.float64) else gray.float()
        lafs, responses = self.detector.find(work, mask)
        if mask is not None:
            inside = _inside(lafs, mask)
            lafs, responses = lafs[inside], responses[inside]
        lafs, responses = self.choose(work, lafs, responses)
        if len(lafs):
            batch, image = lafs[None], work[None, None]
            if self.shape_estimator is not None:
                batch = self.shape_estimator(batch, image)
            if self.orienter is not None:
                batch = self.orienter(batch, image)
            lafs = batch[0]
        factor = self.mr_size / DETECTION_MR_SIZE
        scaled = torch.cat([lafs[:, :, :2] * factor, lafs[:, :, 2:]], dim=2)
        return scaled.to(gray.dtype), responses.to(gray.dtype)


def _choose(select: str | Matchability) -> Matchability | None:
    """The network that chooses keypoints, None where the response does."""
    if isinstance(select, Matchability):
        return select
    if select not in SELECTIONS:
        raise UsageError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
    return Matchability(pretrained=True) if select == "matchability" else None


def _gray(image: Tensor) -> Tensor:
    """The image as (H, W), checked."""
    if not isinstance(image, Tensor):
        raise no_tensor(image, "an image as a tensor (1 or 3, H, W) in [0, 1]")
    if image.dim() != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"an image must be (1 or 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise DataError(f"an image must be floating point in [0, 1], got {image.dtype}: divide by 255")
    if not torch.isfinite(image).all():
        raise DataError("the image holds NaN or infinity")
    gray: Tensor = image[0] if image.shape[0] == 1 else kornia.color.rgb_to_grayscale(image)[0]
    return gray


def _inside(lafs: Tensor, mask: Tensor) -> Tensor:
    """Whether the pixel that a centre lies in is allowed."""
    x = lafs[:, 0, 2].round().long().clamp(0, mask.shape[1] - 1)
    y = lafs[:, 1, 2].round().long().clamp(0, mask.shape[0] - 1)
    return mask[y, x] > 0


def _filled(rows: Tensor, count: int) -> Tensor:
    """Rows of zeros after the others, ``count`` in all."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
