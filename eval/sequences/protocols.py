"""What is measured on one pair of a homography sequence, and how pairs become scores: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from common.homography import (
    corner_error,
    correct_nearest,
    repeatability,
    reprojection_errors,
    shared_points,
    symmetric_errors,
)
from common.hpatches import excluded_large, official_test
from common.metrics import auc, mma
from eval.core.homography_estimators import HomographySettings, estimate_homography
from eval.core.image_sequences import ImageSequence
from eval.core.matching import mutual_nn
from eval.core.nearest import nearest

Floats = NDArray[np.float64]

MMA_THRESHOLDS_PX = tuple(range(1, 11))
HA_THRESHOLDS_PX = (1, 3, 5)
AUC_THRESHOLDS_PX = (1, 3, 5)
SUPERPOINT_RANSAC = HomographySettings("opencv", 3.0, 0.995, 2000)  # OpenCV's own defaults


class LocalFeatures(NamedTuple):
    """Keypoints of one image with their descriptors."""

    xy: NDArray[np.float32]
    """(N, 2) pixels."""
    scores: NDArray[np.float32]
    """(N,), higher is stronger."""
    descs: torch.Tensor
    """(N, D) float32."""

    def rows(self, index: NDArray[np.intp]) -> LocalFeatures:
        """The features at ``index``, in that order."""
        return LocalFeatures(self.xy[index], self.scores[index], self.descs[torch.from_numpy(np.asarray(index))])


def match_pair(
    features0: LocalFeatures, features1: LocalFeatures, H_0to1: ArrayLike, radius_px: float = 3.0
) -> dict[str, object]:
    """Mutual nearest neighbours against the true mapping.

    Returns:
        ``num_matches``; ``MMA@t`` for 1 … 10 px: share of matches with an error <= t, 0 without a match;
        ``correct_nn``: of the keypoints that have a counterpart within 3 px, the share whose nearest descriptor lies
        within it (None without such keypoints).

    Source: D2-Net evaluation (MMA).
    """
    matches = mutual_nn(features0.descs, features1.descs).matches.numpy()
    errors = reprojection_errors(features0.xy[matches[:, 0]], features1.xy[matches[:, 1]], H_0to1)
    result: dict[str, object] = {"num_matches": len(matches)}
    shares = mma(errors, MMA_THRESHOLDS_PX)
    result |= {f"MMA@{t}": float(v) for t, v in zip(MMA_THRESHOLDS_PX, shares, strict=True)}
    correct, total = 0, 0
    if len(features0.xy) and len(features1.xy):
        closest = nearest(features0.descs, features1.descs, 1).idx[:, 0].numpy()
        correct, total = correct_nearest(features0.xy, features1.xy, closest, H_0to1, radius_px)
    result["correct_nn"] = correct / total if total else None
    return result


class HomographyOutcome(NamedTuple):
    """One run of the SuperPoint protocol: what was shared, matched and estimated."""

    seen0: NDArray[np.intp]
    seen1: NDArray[np.intp]
    matches: NDArray[np.int64]
    corner_error_px: float


def superpoint_homography(
    features0: LocalFeatures,
    features1: LocalFeatures,
    H_0to1: ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    keep: int = 1000,
) -> HomographyOutcome:
    """Estimate the homography from shared points by cross-checked nearest neighbours and OpenCV's RANSAC at 3 px.

    Args:
        features0: of the resized and cropped image 0.
        features1: of image 1.
        H_0to1: between the resized images.
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        keep: the strongest shared points kept on each side.

    Returns:
        Indices of the shared points, matches among them, and the corner error, infinite when there is no homography.

    Source: DeTone et al. 2018, as evaluated by the SuperPoint re-implementation.
    """
    seen0, seen1 = shared_points(
        features0.xy, features1.xy, H_0to1, size0, size1, features0.scores, features1.scores, keep
    )
    first, second = features0.rows(seen0), features1.rows(seen1)
    matches = mutual_nn(first.descs, second.descs).matches.numpy()
    estimate = estimate_homography(first.xy[matches[:, 0]], second.xy[matches[:, 1]], SUPERPOINT_RANSAC)
    return HomographyOutcome(seen0, seen1, matches, corner_error(estimate.H, H_0to1, *size0))


def glue_factory_pair(
    features0: LocalFeatures,
    features1: LocalFeatures,
    H_0to1: ArrayLike,
    size0: tuple[int, int],
    robust: HomographySettings,
) -> dict[str, float | int]:
    """Mutual nearest neighbours, a robust homography and a least-squares one.

    Convention: the corner of the upper left pixel is (0, 0): keypoints are shifted by +0.5 and the homography is used
    as it is, like the original does.

    Returns:
        ``num_matches``, ``precision@1``, ``precision@3`` (symmetric transfer error < t px; 0 without a match),
        ``error_robust``, ``error_dlt``: corner errors, infinite for a failure.

    Source: glue-factory, HPatches evaluation.
    """
    matches = mutual_nn(features0.descs, features1.descs).matches.numpy()
    points0 = features0.xy[matches[:, 0]].astype(np.float64) + 0.5
    points1 = features1.xy[matches[:, 1]].astype(np.float64) + 0.5
    errors = symmetric_errors(points0, points1, H_0to1)
    result: dict[str, float | int] = {"num_matches": len(matches)}
    for threshold in (1, 3):
        result[f"precision@{threshold}"] = float((errors < threshold).mean()) if len(errors) else 0.0
    for name, settings in (("robust", robust), ("dlt", HomographySettings("dlt"))):
        estimate = estimate_homography(points0, points1, settings)
        result[f"error_{name}"] = corner_error(estimate.H, H_0to1, *size0, convention="glue-factory")
    return result


def superpoint_repeatability(
    features0: LocalFeatures,
    features1: LocalFeatures,
    H_0to1: ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    keep: int = 300,
    radius_px: float = 3.0,
) -> float | None:
    """Repeatability of the ``keep`` strongest shared points; None when neither image has one.

    Source: SuperPoint evaluation.
    """
    seen0, seen1 = shared_points(
        features0.xy, features1.xy, H_0to1, size0, size1, features0.scores, features1.scores, keep
    )
    return repeatability(features0.xy[seen0], features1.xy[seen1], H_0to1, radius_px)


def auc_interval(errors: ArrayLike, seed: int = 0, num_resamples: int = 500) -> list[tuple[float, float]]:
    """95 % interval of the AUC at each of ``AUC_THRESHOLDS_PX`` by resampling pairs."""
    values = np.asarray(errors, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(values), (num_resamples, len(values)))
    areas = np.array([auc(values[row], AUC_THRESHOLDS_PX) for row in draws])
    low, high = np.quantile(areas, [0.025, 0.975], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def without_large(sequences: list[ImageSequence]) -> tuple[list[ImageSequence], list[str]]:
    """The sequences that the matching protocols use, and the names of the (up to 8) that they leave out."""
    large = set(excluded_large())
    kept = [s for s in sequences if s.name not in large]
    return kept, [s.name for s in sequences if s.name in large]


def missing_official(sequences: list[ImageSequence]) -> list[str]:
    """Official sequences that are not there, when at least one is; empty for a set of another kind."""
    names = {s.name for s in sequences}
    official = official_test("full")
    return [name for name in official if name not in names] if names & set(official) else []
