"""Robust estimators of the fundamental matrix behind one guarded function.

Every failure, whatever the library does in that case (exception, zero matrix, None, uninitialised memory), becomes an
:class:`Estimate` without a matrix and with a reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import as_matches, as_points
from kornia_hardnet8.errors import HardNet8Error, UsageError, closest, missing_extra

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

METHODS = (
    "degensac",
    "poselib",
    "ransac",
    "usac-default",
    "usac-magsac",
    "usac-fast",
    "usac-accurate",
    "lmeds",
    "8pt",
    "7pt",
)
OFFICIAL_METHODS = {
    "cmp-degensac-f": "degensac",
    "cmp-degensac-f-laf": "degensac",
    "cv2-ransac-f": "ransac",
    "cv2-usacdef-f": "usac-default",
    "cv2-usacmagsac-f": "usac-magsac",
    "cv2-usacfast-f": "usac-fast",
    "cv2-usacaccurate-f": "usac-accurate",
    "cv2-lmeds-f": "lmeds",
    "cv2-8pt": "8pt",
    "cv2-7pt": "7pt",
}
"""Names of the IMW benchmark -> ours, as far as an estimator for them exists."""

OFFICIAL_LAF_COEFFICIENT = 2.0
MIN_DEGENSAC_INLIERS = 8


@dataclass(frozen=True)
class EstimatorSettings:
    """One way to estimate a fundamental matrix. Raises :class:`UsageError` for a value that makes no sense.

    OpenCV's estimators are repeatable but take no seed; ``8pt``, ``7pt`` and ``lmeds`` have no threshold.
    """

    method: str = "degensac"
    threshold_px: float = 0.75
    """Inlier threshold: Sampson or point-to-line distance, in pixels."""
    confidence: float = 0.9999
    max_iters: int = 10_000
    error_type: Literal["sampson", "symm_epipolar"] = "sampson"
    """Only degensac."""
    degeneracy_check: bool = True
    """Only degensac."""
    laf_coefficient: float = 0.0
    """Only degensac, on frames (N, 6): above 0 the affine shapes must agree as well."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.method not in METHODS:
            hint = closest(self.method, METHODS)
            raise UsageError(f"unknown estimator {self.method!r}: {', '.join(METHODS)}{hint}")
        if not self.threshold_px > 0:
            raise UsageError(f"the inlier threshold must be positive pixels, got {self.threshold_px}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"the confidence must lie in (0, 1), got {self.confidence}")
        if self.max_iters < 1:
            raise UsageError(f"max_iters must be at least 1, got {self.max_iters}")
        if self.error_type not in ("sampson", "symm_epipolar"):
            raise UsageError(f"unknown error type {self.error_type!r}: sampson or symm_epipolar")
        if self.laf_coefficient > 0 and self.method != "degensac":
            raise UsageError(f"only degensac compares affine shapes, not {self.method}")

    @property
    def min_points(self) -> int:
        """Matches below which the estimate fails."""
        return 7 if self.method == "7pt" else 8

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown."""
        return asdict(self)

    @classmethod
    def from_official(cls, geom: dict[str, Any]) -> EstimatorSettings:
        """From the ``geom`` dictionary of a submission's config.json.

        Raises:
            UsageError: an estimator that is not available here.
        """
        name = str(geom.get("method", ""))
        if name not in OFFICIAL_METHODS:
            raise UsageError(
                f"the estimator {name!r} is not available: {', '.join(OFFICIAL_METHODS)}"
                f"{closest(name, OFFICIAL_METHODS)}"
            )
        given = {"threshold": "threshold_px", "confidence": "confidence", "max_iter": "max_iters"}
        given |= {"error_type": "error_type", "degeneracy_check": "degeneracy_check"}
        options = {ours: geom[theirs] for theirs, ours in given.items() if theirs in geom}
        if name == "cmp-degensac-f-laf":
            options["laf_coefficient"] = OFFICIAL_LAF_COEFFICIENT
        return cls(method=OFFICIAL_METHODS[name], **options)


# Of the published baselines of the IMW benchmark.
BASELINE = EstimatorSettings(threshold_px=0.5, confidence=0.999999, max_iters=100_000)


class Estimate(NamedTuple):
    """A fundamental matrix with its inliers, or a reason for not having one."""

    F: Floats | None
    """(k, 3, 3) float64 with x1' F x0 = 0; k = 1 except for 7pt, which has up to three solutions."""
    inliers: Bools
    """(N,) over the given points; all False without a matrix."""
    reason: str = ""
    """Why there is no matrix; empty on success."""


def matched_points(
    matches: ArrayLike, kpts0: ArrayLike, kpts1: ArrayLike, minimum: int = 8
) -> tuple[Floats, Floats] | None:
    """Coordinates (M, 2) of matches (M, 2), or None for a single match or fewer than ``minimum``.

    Source: IMW benchmark.
    """
    pairs = as_matches(matches)
    if len(pairs) < max(minimum, 2):
        return None
    return as_points(kpts0)[pairs[:, 0]], as_points(kpts1)[pairs[:, 1]]


def affine_frames(kpts: ArrayLike, scales: ArrayLike, angles_deg: ArrayLike, shapes: ArrayLike | None = None) -> Floats:
    """Frames x, y, a11, a12, a21, a22 of side factor 12 for degensac with affine shapes, (N, 6).

    Args:
        kpts: (N, >= 2) pixels.
        scales: (N,).
        angles_deg: (N,), as OpenCV gives them.
        shapes: (N, 2, 2), multiplied from the right.

    Source: IMW benchmark.
    """
    points = as_points(kpts)
    angles = np.deg2rad(np.asarray(angles_deg, dtype=np.float64).ravel())
    cos, sin = np.cos(angles), np.sin(angles)
    rotations = np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2)
    frames = 12.0 * np.asarray(scales, dtype=np.float64).reshape(-1, 1, 1) * rotations
    if shapes is not None:
        frames = frames @ np.asarray(shapes, dtype=np.float64)
    return np.column_stack([points, frames.reshape(-1, 4)])


def estimate_fundamental(
    points0: ArrayLike, points1: ArrayLike, settings: EstimatorSettings | None = None, seed: int = 0
) -> Estimate:
    """Estimate the fundamental matrix of matched points.

    Args:
        points0: points of image 0 in pixels, (N, 2); frames (N, 6) for degensac with a LAF coefficient.
        points1: their matches in image 1.
        settings: see :class:`EstimatorSettings`.
        seed: 0 to 2^31 - 1, for degensac and poselib; one seed gives one result. OpenCV's use a seed of their own.

    Returns:
        an :class:`Estimate`; never raises for bad points.

    Raises:
        ValueError: the two point sets differ in shape, or the seed is out of range.
        MissingDependencyError: the library of the estimator is not installed.
        UsageError: it is a version that does not know one of our options.
    """
    settings = settings or EstimatorSettings()
    if not 0 <= seed < 2**31:
        raise UsageError(f"the seed of an estimator must lie in 0 to 2^31 - 1, got {seed}")
    width = 6 if settings.laf_coefficient > 0 else 2
    x0, x1 = (np.ascontiguousarray(np.asarray(p, dtype=np.float64).reshape(-1, width)) for p in (points0, points1))
    if x0.shape != x1.shape:
        raise ValueError(f"matched points must have one shape, got {x0.shape} and {x1.shape}")
    nothing = np.zeros(len(x0), dtype=bool)
    if len(x0) < settings.min_points:
        return Estimate(None, nothing, f"{len(x0)} matches, {settings.min_points} needed")
    if not (np.isfinite(x0).all() and np.isfinite(x1).all()):
        return Estimate(None, nothing, "a matched point is NaN or infinite")
    run = {"degensac": _degensac, "poselib": _poselib}.get(settings.method, _opencv)
    try:
        model, mask = run(x0, x1, settings, seed)
    except HardNet8Error:
        raise
    except _LIBRARY_ERRORS as error:
        return Estimate(None, nothing, f"{settings.method} failed: {' '.join(str(error).split())}")
    return _checked(model, mask, settings, nothing)


_LIBRARY_ERRORS = (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError)


def _checked(model: Any, mask: Any, settings: EstimatorSettings, nothing: Bools) -> Estimate:
    """The estimate of what a library returned, or the reason to refuse it."""
    if model is None or mask is None:
        return Estimate(None, nothing, f"{settings.method} found no model")
    F = np.asarray(model, dtype=np.float64)
    if F.size == 0 or F.ndim != 2 or F.shape[1] != 3 or F.shape[0] % 3:
        return Estimate(None, nothing, f"{settings.method} returned a matrix of shape {F.shape}")
    if not np.isfinite(F).all() or not np.abs(F).max() > 0:
        return Estimate(None, nothing, f"{settings.method} returned no finite matrix")
    inliers = np.asarray(mask).ravel().astype(bool)
    if inliers.shape != nothing.shape:
        return Estimate(None, nothing, f"{settings.method} returned {inliers.size} flags for {nothing.size} points")
    fewest = MIN_DEGENSAC_INLIERS if settings.method in ("degensac", "poselib") else 1
    if inliers.sum() < fewest:
        return Estimate(None, nothing, f"{settings.method}: {int(inliers.sum())} inliers, {fewest} needed")
    return Estimate(F.reshape(-1, 3, 3), inliers)


def _degensac(x0: Floats, x1: Floats, settings: EstimatorSettings, seed: int) -> tuple[Any, Any]:
    try:
        import pydegensac
    except ImportError:
        raise missing_extra("pydegensac", "eval") from None
    return pydegensac.findFundamentalMatrix(
        x0,
        x1,
        px_th=settings.threshold_px,
        conf=settings.confidence,
        max_iters=settings.max_iters,
        laf_consistensy_coef=settings.laf_coefficient,
        error_type=settings.error_type,
        symmetric_error_check=True,
        enable_degeneracy_check=settings.degeneracy_check,
        seed=seed,
    )


def _poselib(x0: Floats, x1: Floats, settings: EstimatorSettings, seed: int) -> tuple[Any, Any]:
    try:
        import poselib
    except ImportError:
        raise missing_extra("poselib", "poselib") from None
    options = {
        "max_epipolar_error": settings.threshold_px,
        "success_prob": settings.confidence,
        "max_iterations": settings.max_iters,
        "min_iterations": min(1000, settings.max_iters),
        "seed": seed,
    }
    unknown = options.keys() - dict(poselib.RansacOptions()).keys()
    if unknown:  # it would ignore them without a word
        raise UsageError(f"this version of poselib has no option {', '.join(sorted(unknown))}: use poselib 2.0.5")
    F, info = poselib.estimate_fundamental(x0, x1, options, {})
    return F, info["inliers"]


def _opencv(x0: Floats, x1: Floats, settings: EstimatorSettings, _: int) -> tuple[Any, Any]:
    import cv2

    flags = {
        "ransac": cv2.FM_RANSAC,
        "lmeds": cv2.FM_LMEDS,
        "8pt": cv2.FM_8POINT,
        "7pt": cv2.FM_7POINT,
        "usac-default": cv2.USAC_DEFAULT,
        "usac-magsac": cv2.USAC_MAGSAC,
        "usac-fast": cv2.USAC_FAST,
        "usac-accurate": cv2.USAC_ACCURATE,
    }
    try:
        return cv2.findFundamentalMat(
            x0,
            x1,
            flags[settings.method],
            ransacReprojThreshold=settings.threshold_px,
            confidence=settings.confidence,
            maxIters=settings.max_iters,
        )
    except cv2.error as error:
        raise ValueError(str(error)) from None
