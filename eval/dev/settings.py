"""The protocol of the development judgement."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from eval.core.estimators import EstimatorSettings
from eval.core.homography_estimators import HomographySettings
from eval.features.detect import DogSettings
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE


@dataclass(frozen=True)
class DevSettings:
    """Every setting; the defaults are the protocol.

    Attributes:
        detector: keypoints of an image; a fixed camera uses half as many places.
        mr_size: half side of a patch / sigma.
        max_side_px: larger images are reduced to this long side.
        ratios: thresholds of the ratio test, one of which is chosen on half of the pairs.
        min_common: 3-D points that a pair of a scene with poses has in common, at least.
        pose_pairs: pairs judged a scene with poses, at most.
        estimator: of the relative pose.
        ransac_seeds: estimates a pair; a pair's accuracy is the mean over them.
        homography: of the corner error.
        spacing_px: no two places of a fixed camera are nearer.
        webcam_pairs: pairs judged a fixed camera, at most.
        seed: of the choice of pairs, of the estimators (the first of ``ransac_seeds``) and of the intervals.
    """

    detector: DogSettings = field(default_factory=lambda: DogSettings(num=2048, contrast=0.002, edge=10.0))
    mr_size: float = DEFAULT_MR_SIZE
    max_side_px: int = 1024
    ratios: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95)
    min_common: int = 20
    pose_pairs: int = 30
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    ransac_seeds: int = 1
    homography: HomographySettings = field(default_factory=HomographySettings)
    spacing_px: float = 4.0
    webcam_pairs: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.ransac_seeds, self.pose_pairs, self.webcam_pairs, self.max_side_px) < 1 or not self.ratios:
            raise UsageError("seeds, pairs, the long side and the number of ratios must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            **asdict(self),
            "detector": self.detector.to_dict(),
            "estimator": self.estimator.to_dict(),
            "homography": self.homography.to_dict(),
        }
