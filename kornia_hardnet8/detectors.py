"""Detectors of local affine frames, all with one call: a gray image in, frames of 6 sigma and responses out."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, get_args

import kornia.feature as KF
import torch
import torch.nn.functional as F
from kornia.filters import get_gaussian_discrete_kernel1d, get_gaussian_kernel2d
from torch import Tensor, nn

from kornia_hardnet8 import dog
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest, need
from kornia_hardnet8.lafs import lafs_from_opencv
from kornia_hardnet8.memory import keep_freed_blocks
from kornia_hardnet8.patches import extract_patches
from kornia_hardnet8.torch_files import load_torch

DetectorName = Literal["dog", "keynet", "hessian", "sift-opencv"]
DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)
# Half side of the frames / sigma on which shape and orientation are estimated: kornia's.
DETECTION_MR_SIZE = 6.0
# Side of the patches that orientation is estimated on, and how many at once.
_SIDE, _ORIENTED = 32, 128
# Of the histogram of gradients, and what keeps a root and an angle from zero.
_BINS, _LEAST = 36, 1e-8
# Interpolation may overshoot 1; what goes beyond this is no such image, and white all over where it is cut at 1.
_BRIGHTEST = 2.0
# Images with a shorter side have no room for a scale space.
MIN_SIDE = 16


class Detector(nn.Module, ABC):
    """Finds frames in one image."""

    @abstractmethod
    def find(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames (N, 2, 3) of 6 sigma and responses (N,) of a gray image (H, W) in [0, 1]; mask (H, W) or None."""


class KorniaDetector(Detector):
    """A detector of kornia, without its empty slots."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def find(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :meth:`Detector.find`."""
        if min(image.shape) < MIN_SIDE:
            return image.new_zeros(0, 2, 3), image.new_zeros(0)
        lafs, responses = self.detector(image[None, None], None if mask is None else mask[None, None].to(image.dtype))
        area = lafs[0, :, 0, 0] * lafs[0, :, 1, 1] - lafs[0, :, 0, 1] * lafs[0, :, 1, 0]
        filled = torch.isfinite(area) & (area.abs() > 0)
        return lafs[0, filled], responses.reshape(-1)[filled]


class DifferencesOfGaussians(nn.Module):
    """Our own DoG, called as kornia's detectors, several times faster; see :func:`kornia_hardnet8.dog.detect`."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        keep_freed_blocks()

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames (1, N, 2, 3) and responses (1, N) of an image (1, 1, H, W)."""
        allowed = None if mask is None else mask[0, 0]
        lafs, responses = dog.detect(image[0, 0], self.num_features, DETECTION_MR_SIZE, allowed)
        return lafs[None], responses[None]


class OpenCVSift(Detector):
    """OpenCV's SIFT; ``contrast`` and ``edge`` are its thresholds, -10000 takes every extremum."""

    def __init__(self, num_features: int, upright: bool, contrast: float = -10000.0, edge: float = -10000.0) -> None:
        super().__init__()
        self.num_features, self.upright, self.contrast, self.edge = num_features, upright, contrast, edge
        self._create = need("cv2", "opencv").SIFT.create

    def find(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :meth:`Detector.find`; a place with several orientations comes several times unless upright."""
        if image.max() > _BRIGHTEST:
            raise DataError(f"an image must be in [0, 1], got one up to {float(image.max()):g}: divide by 255")
        gray = (image.detach().float() * 255.0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        # Without this OpenCV's places lie a quarter of a pixel right of and below what was detected.
        sift = self._create(contrastThreshold=self.contrast, edgeThreshold=self.edge, enable_precise_upscale=True)
        allowed = None if mask is None else (mask > 0).to("cpu", torch.uint8).numpy()
        keypoints = sorted(sift.detect(gray, allowed), key=lambda k: -k.response)
        if self.upright:
            places: dict[tuple[float, float, float], None] = {}
            unique = []
            for keypoint in keypoints:
                place = (keypoint.pt[0], keypoint.pt[1], keypoint.size)
                if place not in places:
                    places[place] = None
                    unique.append(keypoint)
                keypoint.angle = 0.0
            keypoints = unique
        keypoints = keypoints[: self.num_features]
        lafs = lafs_from_opencv(keypoints, DETECTION_MR_SIZE)[0]
        responses = torch.tensor([k.response for k in keypoints], dtype=image.dtype, device=image.device)
        return lafs.to(image), responses


def make_detector(
    detector: str | Detector | nn.Module, num_features: int, upright: bool, weights_dir: Path | None
) -> Detector:
    """A detector by its name; one that is given is taken as it is, a module of kornia's kind in a wrapper.

    Raises:
        UsageError: an unknown name (close names given).
        MissingFileError: KeyNet's weights are not there.
    """
    if isinstance(detector, Detector):
        return detector
    if isinstance(detector, nn.Module):
        return KorniaDetector(detector)
    name = detector
    if name == "sift-opencv":
        return OpenCVSift(num_features, upright)
    if name == "keynet":
        keynet = KF.KeyNetDetector(False, num_features)
        network: Any = keynet.model
        load_kornia_weights(network, "keynet_pytorch.pth", weights_dir)
        return KorniaDetector(keynet.eval())
    if name == "dog":
        return KorniaDetector(DifferencesOfGaussians(num_features))
    if name == "hessian":
        return KorniaDetector(_scale_space_detector(num_features, resp_module=KF.BlobHessian()))
    raise UsageError(f"unknown detector {name!r}: it is one of {', '.join(DETECTORS)}{closest(name, DETECTORS)}")


def _scale_space_detector(num_features: int, **arguments: Any) -> nn.Module:
    """The detector of kornia with subpixel maxima, whose argument was called ``nms_module`` before 0.9."""
    parameters = inspect.signature(KF.ScaleSpaceDetector.__init__).parameters
    subpixel = "subpix_module" if "subpix_module" in parameters else "nms_module"
    arguments[subpixel] = KF.ConvQuadInterp3d() if hasattr(KF, "ConvQuadInterp3d") else _conv_quad_interp()
    detector: nn.Module = KF.ScaleSpaceDetector(num_features, mr_size=DETECTION_MR_SIZE, **arguments)
    return detector.eval()


def _conv_quad_interp() -> nn.Module:
    from kornia.geometry.subpix import ConvQuadInterp3d

    module: nn.Module = ConvQuadInterp3d(10)
    return module


def make_shape_estimator(name: str | None, weights_dir: Path | None) -> nn.Module | None:
    """``"affnet"`` or None: what turns similarity frames into affine ones."""
    if name is None or name == "none":
        return None
    if name != "affnet":
        raise UsageError(f"unknown affine shape {name!r}: it is affnet or none")
    module = KF.LAFAffNetShapeEstimator(False)
    load_kornia_weights(module, "AffNet.pth", weights_dir)
    return module.eval()


class Orienter(nn.Module):
    """Turns frames by the angle of their patches, as ``KF.LAFOrienter``, few patches at a time: they stay in the cache.

    Args:
        estimator: patches (B, 1, 32, 32) to angles (B,) in radians.
    """

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, lafs: Tensor, image: Tensor) -> Tensor:
        """Frames (1, N, 2, 3) of an image (1, 1, H, W), turned."""
        patches = extract_patches(image[0, 0], lafs[0], _SIDE, level="floor")
        angles = torch.cat([self.estimator(part) for part in patches.split(_ORIENTED)]).view(1, -1, 1)
        turned: Tensor = KF.set_laf_orientation(lafs, torch.rad2deg(angles) + KF.get_laf_orientation(lafs))
        return turned


class DominantGradient(nn.Module):
    """Angle of the dominant gradient: that of ``KF.PatchDominantGradientOrientation`` (0.9), in a third of its time."""

    weighting: Tensor

    def __init__(self) -> None:
        super().__init__()
        weighting = get_gaussian_kernel2d((_SIDE, _SIDE), (_SIDE / 6.0, _SIDE / 6.0), True)[0]
        self.register_buffer("weighting", weighting, persistent=False)
        self.smoothing = get_gaussian_discrete_kernel1d(5, 1.6).flatten().tolist()

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """Angles (B,) in radians of patches (B, 1, 32, 32); of a flat patch, pi."""
        gx, gy = _sobel(patches)
        square = (gx * gx).add_(gy * gy)
        strength = square.sign().mul_(square.add_(_LEAST).sqrt_()).mul_(self.weighting.to(patches))
        turn = torch.atan2(gy, gx.add_(_LEAST)).add_(2.0 * math.pi).add_(math.pi).mul_(_BINS).div_(2.0 * math.pi)
        low = turn.nan_to_num_(0.0).floor()
        to_high = turn.sub_(low).mul(strength)
        to_low = turn.neg_().add_(1.0).mul_(strength)
        histogram = patches.new_zeros(len(patches), _BINS)
        for place, votes in ((low, to_low), (low + 1.0, to_high)):
            place.sub_((place / _BINS).floor_(), alpha=_BINS)  # several times as fast as a remainder
            histogram.scatter_add_(1, place.flatten(1).long(), votes.flatten(1))
        smooth = torch.zeros_like(histogram)
        for shift, share in enumerate(self.smoothing):
            smooth.add_(histogram.roll(2 - shift, 1), alpha=share)
        height, peak = smooth.max(dim=1)
        before, after = (smooth.gather(1, (peak[:, None] + step) % _BINS)[:, 0] for step in (-1, 1))
        bend = before + after - 2.0 * height
        offset = torch.where(bend != 0, 0.5 * (before - after) / bend, 0.0)
        return -(2.0 * math.pi * (peak + offset) / _BINS - math.pi)


def _sobel(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, S, S) along x and y of patches (B, 1, S, S), whose borders go on beyond them.

    Sums of shifted patches: a convolution with one channel is slow on a CPU.
    """
    wide = F.pad(patches, (1, 1, 1, 1), mode="replicate")[:, 0]
    (a, b, c), (d, _, e), (f, g, h) = (
        [wide[:, y : wide.shape[1] - 2 + y, x : wide.shape[2] - 2 + x] for x in range(3)] for y in range(3)
    )
    along_x = (c - a).mul_(0.125).sub_(d, alpha=0.25).add_(e, alpha=0.25).sub_(f, alpha=0.125).add_(h, alpha=0.125)
    along_y = (-0.125 * a).sub_(b, alpha=0.25).sub_(c, alpha=0.125)
    return along_x, along_y.add_(f, alpha=0.125).add_(g, alpha=0.25).add_(h, alpha=0.125)


def make_orienter(name: str, weights_dir: Path | None) -> nn.Module | None:
    """``"dominant"`` (gradient histogram), ``"orinet"`` or ``"none"``."""
    if name == "none":
        return None
    if name == "dominant":
        return Orienter(DominantGradient()).eval()
    if name != "orinet":
        raise UsageError(f"unknown orientation {name!r}: it is dominant, orinet or none")
    network = KF.OriNet(False)
    load_kornia_weights(network, "OriNet.pth", weights_dir)
    return Orienter(network).eval()


def load_kornia_weights(module: nn.Module, name: str, weights_dir: Path | None) -> None:
    """Load one of kornia's weight files from ``weights_dir``, else from torch's hub cache; nothing is fetched.

    Raises:
        MissingFileError: it is in neither, with its name and where it was looked for.
        DataError: the file is damaged or is of another network.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints" if weights_dir is None else weights_dir
    path = folder / name
    if not path.is_file():
        raise MissingFileError(
            f"{name} is not in {folder}: put kornia's file there, name its folder with weights_dir, or let kornia "
            "fetch it once"
        )
    content = load_torch(path)
    try:
        keys = module.load_state_dict(content["state_dict"], strict=False)
    except Exception as error:  # torch raises many types for damaged files
        raise DataError(f"{path} is no weight file of {type(module).__name__}: {str(error)[:200]}") from None
    missing = [key for key in keys.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or keys.unexpected_keys:
        wrong = (missing or keys.unexpected_keys)[0]
        raise DataError(f"{path} is no weight file of {type(module).__name__}: {wrong} is missing or extra")
