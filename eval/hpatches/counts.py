"""Average precision from the number of negatives before each positive, without building ranked lists."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def precision_from_counts(false_positives: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Trapezoid and VLFeat AP when ``false_positives[..., j, :]`` negatives stand before the j-th best positive.

    Args:
        false_positives: (..., P, K), all P positives of a query, ascending along P.

    Returns:
        both (..., K).
    """
    num = false_positives.shape[-2]
    found = np.arange(1, num + 1)[:, None]
    at = found / (found + false_positives)
    before = (found - 1) / np.maximum(found - 1 + false_positives, 1)
    before[..., :1, :] = false_positives[..., :1, :] == 0  # the curve starts at precision 1
    return ((at + before) / 2.0).mean(axis=-2), at.mean(axis=-2)
