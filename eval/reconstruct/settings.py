"""Everything that a reconstruction depends on beside photographs and feature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.features.detect import DogSettings
from kornia_hardnet8.errors import UsageError, closest
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

CAMERA_MODES = ("auto", "single", "per-folder", "per-image")
# Name -> parameters, as COLMAP orders them; all of them have a focal length, so that EXIF can give it.
CAMERA_MODELS = {
    "SIMPLE_PINHOLE": "f, cx, cy",
    "PINHOLE": "fx, fy, cx, cy",
    "SIMPLE_RADIAL": "f, cx, cy, k",
    "RADIAL": "f, cx, cy, k1, k2",
    "OPENCV": "fx, fy, cx, cy, k1, k2, p1, p2",
    "OPENCV_FISHEYE": "fx, fy, cx, cy, k1, k2, k3, k4",
    "FULL_OPENCV": "fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, k5, k6",
    "SIMPLE_RADIAL_FISHEYE": "f, cx, cy, k",
    "RADIAL_FISHEYE": "f, cx, cy, k1, k2",
}


@dataclass(frozen=True)
class CameraSettings:
    """Where intrinsics come from. Raises :class:`UsageError` for what does not fit.

    Attributes:
        model: of COLMAP.
        mode: which images share a camera. ``auto``: those of one size that EXIF gives one camera and focal length;
            images without that have one each.
        focal_px: of all cameras, pixels; None: EXIF's, and 1.2 times the longer side where it has none.
        params: all parameters, in COLMAP's order and its pixels (the corner of the first one is 0, 0); empty: guessed.
        refine: bundle adjustment may change focal length and distortion.
    """

    model: str = "SIMPLE_RADIAL"
    mode: Literal["auto", "single", "per-folder", "per-image"] = "auto"
    focal_px: float | None = None
    params: tuple[float, ...] = ()
    refine: bool = True

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise UsageError(
                f"unknown camera model {self.model!r}: {', '.join(CAMERA_MODELS)}{closest(self.model, CAMERA_MODELS)}"
            )
        if self.mode not in CAMERA_MODES:
            raise UsageError(f"unknown camera mode {self.mode!r}: {', '.join(CAMERA_MODES)}")
        if self.focal_px is not None and not self.focal_px > 0:
            raise UsageError(f"the focal length must be positive pixels, got {self.focal_px}")
        names = CAMERA_MODELS[self.model]
        if self.params and len(self.params) != names.count(",") + 1:
            raise UsageError(f"{self.model} has the parameters {names}; got {len(self.params)} numbers")
        if self.params and self.focal_px is not None:
            raise UsageError("the focal length is one of the camera's parameters: give one of both")


@dataclass(frozen=True)
class ReconstructSettings:
    """See the module; ``max_side_px``: larger images are shrunk for the features, keypoints are those of the original.

    ``num_matched``: each image is matched with so many others (:func:`eval.reconstruct.likely.likely_pairs`), 0: with
    all. ``num_threads`` of COLMAP's mapper; with 1 the same seed gives the same model.
    """

    detector: DogSettings = field(default_factory=lambda: DogSettings(num=4096, select="matchability"))
    mr_size: float = DEFAULT_MR_SIZE
    max_side_px: int = 1600
    matcher: Matcher = field(default_factory=MatcherSettings)
    num_matched: int = 20
    camera: CameraSettings = field(default_factory=CameraSettings)
    seed: int = 0
    num_threads: int = 1

    def __post_init__(self) -> None:
        if self.max_side_px < 32:
            raise UsageError(f"the longer side must be at least 32 pixels, got {self.max_side_px}")
        if self.num_matched < 0:
            raise UsageError(f"each image needs 1 or more others to match, or 0 for all, got {self.num_matched}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"the seed must lie in 0 to 2^31 - 1, got {self.seed}")
        if self.num_threads < 0:
            raise UsageError(f"the number of threads must be at least 0 (all cores), got {self.num_threads}")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            "detector": self.detector.to_dict(),
            "mr_size": self.mr_size,
            "max_side_px": self.max_side_px,
            "matcher": self.matcher.to_dict(),
            "num_matched": self.num_matched,
            "camera": {**vars(self.camera), "params": list(self.camera.params)},
            "seed": self.seed,
            "num_threads": self.num_threads,
        }


def camera_numbers(text: str | None) -> tuple[float, ...]:
    """What ``--camera-params`` was given: numbers with commas between them; none for None."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--camera-params {text}: expected numbers with commas between them") from None
