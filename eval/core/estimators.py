"""Robust estimators of the fundamental matrix behind one guarded function; those of E are in ``essential.py``.

Every failure, whatever the library does in that case (exception, zero matrix, None, uninitialised memory), becomes an
:class:`Estimate` without a matrix and with a reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import epipolar_squared, sampson_distances
from kornia_hardnet8.errors import HardNet8Error, UsageError, closest, need

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROBUST = ("threshold_px", "confidence", "max_iters")
_DEGENSAC = ("error_type", "degeneracy_check", "laf_coefficient", "inliers")
PARAMETERS: dict[str, tuple[str, ...]] = {
    "degensac": (*_ROBUST, *_DEGENSAC),
    "poselib": _ROBUST,
    "ransac": _ROBUST,
    "usac-default": _ROBUST,
    "usac-magsac": _ROBUST,
    "usac-fast": _ROBUST,
    "usac-accurate": _ROBUST,
    "lmeds": ("confidence",),
    "8pt": (),
    "7pt": (),
    "poselib-e": _ROBUST,
    "ransac-e": (*_ROBUST, "threshold_n"),
    "usac-default-e": (*_ROBUST, "threshold_n"),
    "usac-magsac-e": (*_ROBUST, "threshold_n"),
    "usac-fast-e": (*_ROBUST, "threshold_n"),
    "usac-accurate-e": (*_ROBUST, "threshold_n"),
    "lmeds-e": ("confidence",),
}
"""Estimator -> the settings that it hears; with names in ``-e`` of E, from known calibrations, the others of F."""
METHODS = tuple(PARAMETERS)
UNCALIBRATED_METHODS = tuple(name for name in METHODS if not name.endswith("-e"))
SEEDED_METHODS = ("degensac", "poselib", "poselib-e")
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
    "cv2-ransac-e": "ransac-e",
    "cv2-lmeds-e": "lmeds-e",
}
"""Names of the IMW benchmark -> ours, as far as an estimator for them exists."""

OFFICIAL_LAF_COEFFICIENT = 2.0
# What OpenCV takes where the benchmark's configuration has no max_iter.
_OPENCV_MAX_ITERS = 1000
# Fewer inliers than a sample and one more are no evidence.
MIN_DEGENSAC_INLIERS = 8


@dataclass(frozen=True)
class EstimatorSettings:
    """One way to estimate a fundamental or an essential matrix.

    Raises :class:`UsageError` for a value that makes no sense; which settings a method hears stands in
    :data:`PARAMETERS`. OpenCV's estimators are repeatable but take no seed. ``7pt`` is exact for seven matches; of more
    OpenCV takes the least median of squares, as in ``lmeds``.
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
    """Only degensac, on frames (N, 6): above 0 it looks for a matrix that the affine shapes agree with too, up to so
    many thresholds. Inliers are chosen by their places alone: a frame that disagrees can be one."""
    inliers: Literal["model", "published"] = "model"
    """Only degensac. ``model``: the matches whose distance to the matrix is within the threshold; ``published``: as
    pydegensac marks them, and as the published baselines have them, where its symmetric check clears the flags of
    wrong matches, so that they depend on the order of the matches."""
    threshold_n: float | None = None
    """Only OpenCV's estimators of E, in place of ``threshold_px``: on points normalised by the calibrations, as in the
    configurations of the IMW benchmark."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.method not in METHODS:
            hint = closest(self.method, METHODS)
            raise UsageError(f"unknown estimator {self.method!r}: {', '.join(METHODS)}{hint}")
        if not self.threshold_px > 0:
            raise UsageError(f"the inlier threshold must be positive pixels, got {self.threshold_px}")
        if self.threshold_n is not None and not self.threshold_n > 0:
            raise UsageError(f"the normalised inlier threshold must be positive, got {self.threshold_n}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"the confidence must lie in (0, 1), got {self.confidence}")
        if self.max_iters < 1:
            raise UsageError(f"max_iters must be at least 1, got {self.max_iters}")
        if self.error_type not in ("sampson", "symm_epipolar"):
            raise UsageError(f"unknown error type {self.error_type!r}: sampson or symm_epipolar")
        if self.inliers not in ("model", "published"):
            raise UsageError(f"inliers are those of the model or published, not {self.inliers!r}")
        special = [item for item in fields(self) if item.name in (*_DEGENSAC, "threshold_n")]
        for item in special:
            if item.name not in PARAMETERS[self.method] and getattr(self, item.name) != item.default:
                raise UsageError(f"{item.name} has no effect with the estimator {self.method}")

    @property
    def is_calibrated(self) -> bool:
        """It estimates E, and needs the calibrations."""
        return self.method not in UNCALIBRATED_METHODS

    @property
    def min_points(self) -> int:
        """Matches below which the estimate fails."""
        return 5 if self.is_calibrated else 7 if self.method == "7pt" else 8

    def describe(self, num_matches: int = 0) -> str:
        """Method and threshold as they work on so many matches: ``degensac, 0.75 px``."""
        if self.method == "7pt" and num_matches > 7:
            return "7pt, which is least median of squares for more than seven matches"
        return f"{self.method}, {self.threshold_px:g} px" if "threshold_px" in PARAMETERS[self.method] else self.method

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown."""
        settings = asdict(self)
        if settings["threshold_n"] is None:
            del settings["threshold_n"]
        if self.method not in SEEDED_METHODS:  # OpenCV's own
            del settings["inliers"]
        return settings

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
        method = OFFICIAL_METHODS[name]
        threshold = "threshold_n" if method not in UNCALIBRATED_METHODS else "threshold_px"
        given = {"threshold": threshold, "confidence": "confidence", "max_iter": "max_iters"}
        given |= {"error_type": "error_type", "degeneracy_check": "degeneracy_check"}
        options = {ours: geom[theirs] for theirs, ours in given.items() if theirs in geom}
        if name == "cmp-degensac-f-laf":
            options["laf_coefficient"] = OFFICIAL_LAF_COEFFICIENT
        if method not in UNCALIBRATED_METHODS:
            options.setdefault("max_iters", _OPENCV_MAX_ITERS)
        return cls(method=method, **options)


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
        ValueError: the point sets differ in shape, are not of the right width, or the seed is out of range.
        MissingDependencyError: the library of the estimator is not installed.
        UsageError: it is a version that does not know one of our options, or the estimator is one of E.
    """
    settings = settings or EstimatorSettings()
    if settings.is_calibrated:
        raise UsageError(f"{settings.method} estimates E from known calibrations, here F is asked for")
    x0, x1 = as_matched(points0, points1, seed, 6 if settings.laf_coefficient > 0 else 2)
    nothing = np.zeros(len(x0), dtype=bool)
    if reason := too_few_or_bad(x0, x1, settings):
        return Estimate(None, nothing, reason)
    run = {"degensac": _degensac, "poselib": _poselib}.get(settings.method, _opencv)
    try:
        model, mask = run(x0, x1, settings, seed)
    except HardNet8Error:
        raise
    except LIBRARY_ERRORS as error:
        return Estimate(None, nothing, f"{settings.method} failed: {' '.join(str(error).split())}")
    return _checked(model, mask, x0, x1, settings)


LIBRARY_ERRORS = (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError)


def as_matched(points0: ArrayLike, points1: ArrayLike, seed: int, width: int = 2) -> tuple[Floats, Floats]:
    """Two point sets (N, ``width``) that an estimator can take; (0, ``width``) for empty ones.

    Raises:
        ValueError: they differ in shape or have another width.
        UsageError: the seed is out of range.
    """
    if not 0 <= seed < 2**31:
        raise UsageError(f"the seed of an estimator must lie in 0 to 2^31 - 1, got {seed}")
    x0, x1 = (np.ascontiguousarray(np.asarray(p, dtype=np.float64)) for p in (points0, points1))
    x0, x1 = (x.reshape(0, width) if x.size == 0 else x for x in (x0, x1))
    if x0.shape != x1.shape:
        raise ValueError(f"matched points must have one shape, got {x0.shape} and {x1.shape}")
    if x0.ndim != 2 or x0.shape[1] != width:
        raise ValueError(f"matched points must be (N, {width}), got {x0.shape}")
    return x0, x1


def too_few_or_bad(x0: Floats, x1: Floats, settings: EstimatorSettings) -> str:
    """Why nothing can be estimated of matched points; empty when it can."""
    if len(x0) < settings.min_points:
        return f"{len(x0)} matches, {settings.min_points} needed"
    return "" if np.isfinite(x0).all() and np.isfinite(x1).all() else "a matched point is NaN or infinite"


def _checked(model: Any, mask: Any, x0: Floats, x1: Floats, settings: EstimatorSettings) -> Estimate:
    """The estimate of what a library returned, or the reason to refuse it."""
    nothing = np.zeros(len(x0), dtype=bool)
    F, reason = finite_matrices(model, mask, settings.method)
    if F is None:
        return Estimate(None, nothing, reason)
    if settings.method in SEEDED_METHODS and settings.inliers == "model":
        inliers = model_inliers(x0[:, :2], x1[:, :2], F[0], settings)
    else:
        inliers = np.asarray(mask).ravel().astype(bool)
    if inliers.shape != nothing.shape:
        return Estimate(None, nothing, f"{settings.method} returned {inliers.size} flags for {nothing.size} points")
    fewest = MIN_DEGENSAC_INLIERS if settings.method in SEEDED_METHODS else 1
    if inliers.sum() < fewest:
        return Estimate(None, nothing, f"{settings.method}: {int(inliers.sum())} inliers, {fewest} needed")
    return Estimate(F, inliers)


def finite_matrices(model: Any, mask: Any, method: str) -> tuple[Floats | None, str]:
    """The matrices (k, 3, 3) that a library returned, or None and the reason to refuse them."""
    if model is None or mask is None:
        return None, f"{method} found no model"
    matrices = np.asarray(model, dtype=np.float64)
    if matrices.size == 0 or matrices.ndim != 2 or matrices.shape[1] != 3 or matrices.shape[0] % 3:
        return None, f"{method} returned a matrix of shape {matrices.shape}"
    if not np.isfinite(matrices).all() or not np.abs(matrices).max() > 0:
        return None, f"{method} returned no finite matrix"
    return matrices.reshape(-1, 3, 3), ""


def model_inliers(x0: Floats, x1: Floats, F: Floats, settings: EstimatorSettings) -> Bools:
    """Matches (N,) whose distance to F (3, 3) is at most the threshold: Sampson's, or of both epipolar lines as one."""
    if settings.error_type == "symm_epipolar":
        inliers: Bools = epipolar_squared(x0, x1, F) <= settings.threshold_px**2
    else:
        inliers = sampson_distances(x0, x1, F) <= settings.threshold_px
    return inliers


def _degensac(x0: Floats, x1: Floats, settings: EstimatorSettings, seed: int) -> tuple[Any, Any]:
    pydegensac = need("pydegensac", "eval")
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
    poselib = need("poselib", "poselib")
    F, info = poselib.estimate_fundamental(x0, x1, poselib_options(settings, seed), {})
    return F, info["inliers"]


def poselib_options(settings: EstimatorSettings, seed: int) -> dict[str, Any]:
    """The options of poselib's RANSAC.

    Raises:
        UsageError: the installed version does not know one of them; it would ignore it without a word.
    """
    options = {
        "max_epipolar_error": settings.threshold_px,
        "success_prob": settings.confidence,
        "max_iterations": settings.max_iters,
        "min_iterations": min(1000, settings.max_iters),
        "seed": seed,
    }
    unknown = options.keys() - dict(need("poselib", "poselib").RansacOptions()).keys()
    if unknown:
        raise UsageError(f"this version of poselib has no option {', '.join(sorted(unknown))}: use poselib 2.0.5")
    return options


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
