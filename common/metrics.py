"""Numbers that judge matches, poses and rankings: pure functions of numpy arrays, no files.

Fractions lie in [0, 1]. A failure is an infinite (or NaN) error: it counts in the denominator and passes no threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FAILED_POSE = (math.pi, math.pi / 2)
"""(rotation, translation) error in radians of a stereo pair without a pose."""

OFFICIAL_BINS_DEG = 10
_EPS = 1e-15
_RESAMPLE_BLOCK = 1 << 20  # random indices drawn at once: 8 MiB


# --- relative pose -----------------------------------------------------------------------------------------------


def quaternion_from_matrix(matrix: ArrayLike) -> Floats:
    """Unit quaternion (w, x, y, z), w >= 0, of the rotation nearest to a 3x3 (or the upper left of a 4x4) matrix.

    Scaled and slightly non-orthogonal matrices are fine. Raises ``ValueError`` for another shape or non-finite values.

    Source: spec of the IMW benchmark, 4.4 (eigenvector of the symmetric 4x4 matrix; Bar-Itzhack 2000).
    """
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"a rotation is a 3x3 or 4x4 matrix, got shape {m.shape}")
    m = m[:3, :3]
    if not np.isfinite(m).all():
        raise ValueError("the rotation matrix holds NaN or infinity")
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = m
    lower = np.array(
        [
            [m00 - m11 - m22, 0.0, 0.0, 0.0],
            [m01 + m10, m11 - m00 - m22, 0.0, 0.0],
            [m02 + m20, m12 + m21, m22 - m00 - m11, 0.0],
            [m21 - m12, m02 - m20, m10 - m01, m00 + m11 + m22],
        ]
    )
    _, vectors = np.linalg.eigh(lower / 3.0, UPLO="L")
    x, y, z, w = vectors[:, -1]
    q = np.array([w, x, y, z])
    return -q if w < 0.0 else q


def evaluate_R_t(R_gt: ArrayLike, t_gt: ArrayLike, R: ArrayLike, t: ArrayLike) -> tuple[float, float]:  # noqa: N802
    """Error of a relative pose: (rotation angle in [0, pi], angle between the translations in [0, pi/2]), radians.

    The sign and the length of the translation do not count; a zero translation is pi/2 off. The smallest values are
    about 1e-7, not 0. Anything that is not finite gives :data:`FAILED_POSE`.

    Args:
        R_gt: true rotation (3, 3).
        t_gt: true translation, 3 values of any shape.
        R: estimated rotation (3, 3).
        t: estimated translation, 3 values of any shape.

    Source: IMW benchmark.
    """
    values = [np.asarray(v, dtype=np.float64) for v in (R_gt, t_gt, R, t)]
    if not all(np.isfinite(v).all() for v in values):
        return FAILED_POSE
    q_gt, q = quaternion_from_matrix(values[0]), quaternion_from_matrix(values[2])
    q = q / (np.linalg.norm(q) + _EPS)
    q_gt = q_gt / (np.linalg.norm(q_gt) + _EPS)
    loss_q = max(_EPS, 1.0 - float(q @ q_gt) ** 2)
    err_q = math.acos(1.0 - 2.0 * loss_q)

    direction_gt, direction = values[1].ravel(), values[3].ravel()
    direction = direction / (np.linalg.norm(direction) + _EPS)
    direction_gt = direction_gt / (np.linalg.norm(direction_gt) + _EPS)
    loss_t = max(_EPS, 1.0 - float(direction @ direction_gt) ** 2)
    err_t = math.acos(math.sqrt(1.0 - loss_t))
    return err_q, err_t


def max_error_deg(errors_rad: ArrayLike) -> Floats:
    """(N, 2) rotation and translation errors in radians -> the larger of both in degrees, (N,); NaN stays NaN."""
    errors = np.asarray(errors_rad, dtype=np.float64).reshape(-1, 2)
    larger: Floats = errors.max(axis=1)
    return larger * 180.0 / np.pi


# --- accuracy over thresholds ------------------------------------------------------------------------------------


def accuracy_histogram(errors_deg: ArrayLike, num_bins: int = OFFICIAL_BINS_DEG) -> Floats:
    """Share of errors in the bins [0, 1), [1, 2), … of one degree; the last bin is closed on the right.

    Errors that are larger, infinite or NaN fall in no bin but count in the denominator. Zeros for no errors.

    Source: IMW benchmark (``qt_01_10``).
    """
    errors = np.asarray(errors_deg, dtype=np.float64).ravel()
    if errors.size == 0:
        return np.zeros(num_bins)
    counts, _ = np.histogram(errors[np.isfinite(errors)], bins=np.arange(num_bins + 1, dtype=np.float64))
    return counts / errors.size


def accuracy_curve(errors_deg: ArrayLike, num_bins: int = OFFICIAL_BINS_DEG) -> Floats:
    """Share of errors below 1, 2, … ``num_bins`` degrees: the cumulative :func:`accuracy_histogram`."""
    return np.cumsum(accuracy_histogram(errors_deg, num_bins))


def maa(errors_deg: ArrayLike, max_deg: int = 10) -> float:
    """Mean average accuracy: the mean over 1, 2, … ``max_deg`` degrees of the share of errors below.

    "Below" is strict, but an error of exactly 10 degrees counts at 10: mAA at 5 is the mean of the first five values of
    the same histogram. No errors at all give 0.

    Source: IMW benchmark (``qt_auc_05``, ``qt_auc_10``).
    """
    if max_deg < 1:
        raise ValueError(f"max_deg must be at least 1, got {max_deg}")
    return float(accuracy_curve(errors_deg, max(max_deg, OFFICIAL_BINS_DEG))[:max_deg].mean())


def maa_per_pair(errors_deg: ArrayLike, max_deg: int = 10) -> Floats:
    """What each pair adds to the mAA, (N,): its share of passed thresholds. The mean of it is :func:`maa`.

    This is what :func:`bootstrap_ci` resamples.
    """
    errors = np.asarray(errors_deg, dtype=np.float64).reshape(-1, 1)
    limits = np.arange(1, max_deg + 1, dtype=np.float64)
    last = max(max_deg, OFFICIAL_BINS_DEG)
    passed = (errors < limits) | ((errors == limits) & (limits == last))
    share: Floats = passed.mean(axis=1)
    return share


def bag_accuracy_histogram(errors_deg: Sequence[ArrayLike]) -> Floats:
    """Mean over bags of :func:`accuracy_histogram`: every bag has the same weight, whatever its number of pairs.

    A bag without any pair counts as failed. Zeros for no bags.

    Source: IMW benchmark (``qt_colmap_01_10``).
    """
    if len(errors_deg) == 0:
        return np.zeros(OFFICIAL_BINS_DEG)
    histograms: Floats = np.mean([accuracy_histogram(errors) for errors in errors_deg], axis=0)
    return histograms


def maa_from_histogram(histogram: ArrayLike, max_deg: int = 10) -> float:
    """The mAA at ``max_deg`` degrees of a histogram over bins of one degree."""
    return float(np.cumsum(np.asarray(histogram, dtype=np.float64))[:max_deg].mean())


def auc(errors: ArrayLike, thresholds: Sequence[float]) -> list[float]:
    """Area under the recall curve up to each threshold, divided by the threshold; errors equal to it do not count.

    Not the mAA: the curve is linear between the sorted errors. Zeros for no errors.

    Source: SuperGlue, glue-factory.
    """
    values = np.asarray(errors, dtype=np.float64).ravel()
    values = np.sort(np.where(np.isnan(values), np.inf, values))
    recall = np.concatenate([[0.0], np.arange(1, values.size + 1) / max(values.size, 1)])
    values = np.concatenate([[0.0], values])
    areas = []
    for threshold in thresholds:
        end = max(int(np.searchsorted(values, threshold)), 1)
        x = np.concatenate([values[:end], [threshold]])
        y = np.concatenate([recall[:end], [recall[end - 1]]])
        areas.append(trapezoid(y, x) / threshold)
    return areas


def mma(errors_px: ArrayLike, thresholds: Sequence[float] = tuple(range(1, 11))) -> Floats:
    """Matching accuracy of one pair: share of matches with an error <= each threshold; zeros without a match.

    The mean matching accuracy (MMA) is the mean of this over pairs.
    """
    errors = np.asarray(errors_px, dtype=np.float64).reshape(-1, 1)
    if errors.size == 0:
        return np.zeros(len(thresholds))
    shares: Floats = (errors <= np.asarray(thresholds, dtype=np.float64)).mean(axis=0)
    return shares


def trapezoid(y: Floats, x: Floats) -> float:
    """Area under the polygon (numpy before 2.0 has it under another name)."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2.0)


# --- rankings ----------------------------------------------------------------------------------------------------


def average_precision(scores: ArrayLike, is_match: ArrayLike, num_positives: int | None = None) -> float:
    """Area under the precision-recall curve by the trapezoid rule, from (recall 0, precision 1).

    Ties keep the order of the input; entries of score ``-inf`` are never retrieved. 0 without a positive.

    Args:
        scores: (N,), higher is better (minus the distance).
        is_match: (N,), true for positives.
        num_positives: positives that exist, when some are not in the list.

    Source: HPatches benchmark, python flavour.
    """
    order, is_positive = _ranking(scores, is_match)
    positives = int(is_positive.sum()) if num_positives is None else num_positives
    if positives < int(is_positive.sum()):
        raise ValueError(f"num_positives is {positives}, but the list holds {int(is_positive.sum())} positives")
    retrieved = is_positive[order]
    if positives == 0 or retrieved.size == 0:
        return 0.0
    tp = np.concatenate([[0], np.cumsum(retrieved)])
    precision = np.concatenate([[1.0], tp[1:] / np.arange(1, tp.size)])
    return trapezoid(precision, tp / positives)


def precision_recall(scores: ArrayLike, is_match: ArrayLike, num_positives: int | None = None) -> tuple[Floats, Floats]:
    """Precision and recall after 0, 1, 2, … retrieved entries; the curve that :func:`average_precision` integrates.

    Returns:
        precision, recall, each (R + 1,) for R retrieved entries; they start at (1, 0). Recall is 0 without a positive.
    """
    order, is_positive = _ranking(scores, is_match)
    positives = int(is_positive.sum()) if num_positives is None else num_positives
    if positives < int(is_positive.sum()):
        raise ValueError(f"num_positives is {positives}, but the list holds {int(is_positive.sum())} positives")
    tp = np.concatenate([[0], np.cumsum(is_positive[order])])
    precision = np.concatenate([[1.0], tp[1:] / np.arange(1, tp.size)])
    return precision, tp / max(positives, 1)


def average_precision_vlfeat(scores: ArrayLike, is_match: ArrayLike, num_positives: int | None = None) -> float:
    """Mean over all positives of the precision at the place where each is retrieved; NaN without a positive.

    Ties keep the order of the input; a positive that is not retrieved adds 0. Arguments as for
    :func:`average_precision`, from which it differs where positives are few.

    Source: VLFeat ``vl_pr``, which the figures of the HPatches article use.
    """
    precision, recall = precision_recall(scores, is_match, num_positives)
    positives = int(np.asarray(is_match).astype(bool).sum()) if num_positives is None else num_positives
    if positives == 0:
        return math.nan
    return float(precision[1:][np.diff(recall) > 0].sum() / positives)


def average_precision_merged(scores: ArrayLike, is_match: ArrayLike) -> float:
    """Sum over distinct scores of precision times the gain of recall: entries of one score are retrieved together.

    0 without a positive.

    Args:
        scores: (N,), higher is better.
        is_match: (N,), true for positives.

    Source: scikit-learn ``average_precision_score``.
    """
    order, is_positive = _ranking(scores, is_match)
    if not is_positive.any():
        return 0.0
    sorted_scores = np.asarray(scores, dtype=np.float64).ravel()[order]
    ends = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True))
    tp = np.cumsum(is_positive[order])[ends]
    recall = tp / is_positive.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * tp / (ends + 1)))


def roc_auc(scores: ArrayLike, is_match: ArrayLike) -> float:
    """Area under the ROC curve; ties are not merged but keep the order of the input. 0 without both kinds.

    Source: HPatches benchmark, python flavour.
    """
    order, is_positive = _ranking(scores, is_match)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if positives == 0 or negatives == 0:
        return 0.0
    tp = np.concatenate([[0], np.cumsum(is_positive[order])])
    fp = np.arange(tp.size) - tp
    return trapezoid(tp / positives, fp / negatives)


def fpr_at_recall(distances: ArrayLike, is_match: ArrayLike, recall: float = 0.95) -> float:
    """Share of non-matches at a distance not above the smallest one that accepts ``recall`` of the matches.

    NaN without a match or without a non-match. Ties at the threshold count against the descriptor.

    Args:
        distances: (N,), lower is better; NaN is treated as infinite.
        is_match: (N,), true for matching pairs.
        recall: share of the matches that must be accepted, in (0, 1].
    """
    values = np.asarray(distances, dtype=np.float64).ravel()
    values = np.where(np.isnan(values), np.inf, values)
    match = np.asarray(is_match).ravel().astype(bool)
    if values.shape != match.shape:
        raise ValueError(f"{values.size} distances but {match.size} labels")
    if not 0.0 < recall <= 1.0:
        raise ValueError(f"recall must lie in (0, 1], got {recall}")
    positives, negatives = values[match], values[~match]
    if positives.size == 0 or negatives.size == 0:
        return math.nan
    rank = math.ceil(round(recall * positives.size, 9))  # 0.55 * 100 is a rounding error above 55
    threshold = np.partition(positives, rank - 1)[rank - 1]
    return float(np.mean(negatives <= threshold))


def matches_for_recall(recall: float) -> int:
    """Matches below which a false positive rate at a recall says nothing: one missed match would be too many."""
    return math.ceil(round(1.0 / (1.0 - recall), 9))


def fpr95(distances: ArrayLike, is_match: ArrayLike) -> float:
    """False positive rate at 95 % recall; see :func:`fpr_at_recall`."""
    return fpr_at_recall(distances, is_match, 0.95)


def _ranking(scores: ArrayLike, is_match: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Indices of the retrieved entries, best first, and the labels as booleans."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    is_positive = np.asarray(is_match).ravel().astype(bool)
    if values.shape != is_positive.shape:
        raise ValueError(f"{values.size} scores but {is_positive.size} labels")
    if np.isnan(values).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-values, kind="stable")
    return order[: int(np.sum(values > -np.inf))], is_positive


# --- intervals ---------------------------------------------------------------------------------------------------


def bootstrap_ci(
    values: ArrayLike, seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean by resampling ``values`` with replacement (percentile bootstrap).

    (NaN, NaN) for no values; a single value is its own interval. Raises ``ValueError`` for non-finite values: resample
    accuracies (:func:`maa_per_pair`), not errors.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0:
        return math.nan, math.nan
    means = resampled_means(x, np.random.default_rng(seed), num_resamples)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def resampled_means(values: Floats, rng: np.random.Generator, num_resamples: int = 2000) -> Floats:
    """Means (num_resamples,) of N draws out of ``values`` (N,), N >= 1, with replacement; see :func:`bootstrap_ci`."""
    if not np.isfinite(values).all():
        raise ValueError("cannot resample NaN or infinity: turn failures into an accuracy of 0 first")
    block = max(1, _RESAMPLE_BLOCK // values.size)
    sizes = [min(block, num_resamples - start) for start in range(0, num_resamples, block)]
    return np.concatenate([values[rng.integers(0, values.size, (n, values.size))].mean(axis=1) for n in sizes])
