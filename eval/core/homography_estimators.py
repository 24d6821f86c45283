"""Homographies from matches behind one guarded function: a failure is None with a reason, never a bad matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kornia_hardnet8.errors import UsageError, closest, need

METHODS = ("opencv", "poselib", "dlt")
MIN_POINTS = 4


@dataclass(frozen=True)
class HomographySettings:
    """One way to estimate a homography. Raises :class:`UsageError` for a value that makes no sense.

    Attributes:
        method: ``opencv`` (RANSAC), ``poselib`` (LO-RANSAC), or ``dlt`` (least squares over all matches).
        threshold_px: inlier threshold of the robust methods.
        confidence: of the robust methods.
        max_iters: of the robust methods.
    """

    method: Literal["opencv", "poselib", "dlt"] = "opencv"
    threshold_px: float = 3.0
    confidence: float = 0.995
    max_iters: int = 2000

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = closest(self.method, METHODS)
            raise UsageError(f"unknown homography estimator {self.method!r}: {', '.join(METHODS)}{hint}")
        if not self.threshold_px > 0:
            raise UsageError(f"the inlier threshold must be positive pixels, got {self.threshold_px}")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return asdict(self)


class HomographyEstimate(NamedTuple):
    """A homography (3, 3) of image 0 to image 1 with its inliers (M,), or a reason for not having one."""

    H: NDArray[np.float64] | None
    inliers: NDArray[np.bool_]
    reason: str = ""


def estimate_homography(
    points0: ArrayLike,
    points1: ArrayLike,
    settings: HomographySettings | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> HomographyEstimate:
    """Estimate the homography of matched points.

    Args:
        points0: (M, 2) pixels.
        points1: (M, 2) pixels.
        settings: how; default OpenCV RANSAC at 3 px.
        weights: (M,) of the matches, for ``dlt``.
        seed: of poselib's; OpenCV's RANSAC takes none, and repeats itself.

    Returns:
        The estimate; without a matrix for fewer than 4 matches or when the library finds none.
    """
    settings = settings or HomographySettings()
    x0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    x1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    nothing = np.zeros(len(x0), dtype=bool)
    if len(x0) != len(x1):
        raise ValueError(f"matched points must pair up, got {len(x0)} and {len(x1)}")
    if len(x0) < MIN_POINTS:
        return HomographyEstimate(None, nothing, f"{len(x0)} matches, {MIN_POINTS} needed")
    run = {"opencv": _opencv, "poselib": _poselib, "dlt": _dlt}[settings.method]
    H, inliers = run(x0, x1, settings, weights, seed)
    if H is None or H.shape != (3, 3) or not np.isfinite(H).all() or abs(np.linalg.det(H)) < 1e-15:
        return HomographyEstimate(None, nothing, f"{settings.method} found no homography")
    return HomographyEstimate(np.asarray(H, dtype=np.float64), np.asarray(inliers).ravel().astype(bool))


_Found = tuple[NDArray[Any] | None, NDArray[Any]]


def _opencv(
    x0: NDArray[np.float64], x1: NDArray[np.float64], settings: HomographySettings, weights: Any, seed: int
) -> _Found:
    import cv2

    H, mask = cv2.findHomography(
        x0,
        x1,
        cv2.RANSAC,
        ransacReprojThreshold=settings.threshold_px,
        maxIters=settings.max_iters,
        confidence=settings.confidence,
    )
    return H, mask if mask is not None else np.zeros(len(x0), bool)


def _poselib(
    x0: NDArray[np.float64], x1: NDArray[np.float64], settings: HomographySettings, weights: Any, seed: int
) -> _Found:
    poselib = need("poselib", "poselib")
    options = {
        "max_reproj_error": settings.threshold_px,
        "success_prob": settings.confidence,
        "max_iterations": settings.max_iters,
        "seed": seed,
    }
    H, info = poselib.estimate_homography(x0, x1, options)
    # It returns uninitialised memory when it finds nothing.
    return (H if info["num_inliers"] >= MIN_POINTS else None), np.asarray(info["inliers"])


def _dlt(
    x0: NDArray[np.float64], x1: NDArray[np.float64], settings: HomographySettings, weights: Any, seed: int
) -> _Found:
    import torch
    from kornia.geometry.homography import find_homography_dlt

    weight = None if weights is None else torch.as_tensor(np.asarray(weights, dtype=np.float64).ravel())[None]
    try:
        H = find_homography_dlt(torch.from_numpy(x0)[None], torch.from_numpy(x1)[None], weight)
    except (RuntimeError, AssertionError):  # all points at one place
        return None, np.zeros(len(x0), bool)
    return H[0].numpy(), np.ones(len(x0), bool)
