"""The Hessian detector of the AMOS patches: fixed scales, local maxima in windows as large as a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d, maximum_filter1d

SCALE_STEP = 1.8
LEVELS = 5
BASE = 30.0
INITIAL_THRESHOLD = 0.00016


@dataclass(frozen=True)
class Maxima:
    """Local maxima by level, row and column: xy (n, 2) integer pixels, scale (n,) = base * sigma, response (n,)."""

    xy: np.ndarray
    scale: np.ndarray
    response: np.ndarray

    def above(self, threshold: float) -> Maxima:
        """Those of at least this response."""
        keep = self.response >= np.float32(threshold)
        return Maxima(self.xy[keep], self.scale[keep], self.response[keep])


def default_sigmas() -> list[float]:
    """1, 1.8, 3.24, 5.832, 10.4976."""
    return [SCALE_STEP**level for level in range(LEVELS)]


def gauss_kernel(sigma: float) -> np.ndarray:
    """Gaussian of odd length int(6 sigma) or one more, sum 1, float32."""
    length = int(6 * sigma)
    length += length % 2 == 0
    x = np.arange(length) - length // 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).astype(np.float32)


def window(base: float, sigma: float) -> int:
    """Odd side in pixels of the window in which a maximum stands alone."""
    side = int(2 * base * sigma)
    return side + (side % 2 == 0)


def hessian_response(image: np.ndarray, sigma: float) -> np.ndarray:
    """|gxx gyy - gxy^2| sigma^4 of an image (H, W) in 0..1, borders replicated, float32; the image is not blurred."""
    image = np.asarray(image, dtype=np.float32)
    first, second = np.array([0.5, 0, -0.5], np.float32), np.array([1, -2, 1], np.float32)
    gxx = correlate1d(image, second, axis=1, mode="nearest")
    gyy = correlate1d(image, second, axis=0, mode="nearest")
    gxy = correlate1d(correlate1d(image, first, axis=1, mode="nearest"), first, axis=0, mode="nearest")
    response: np.ndarray = np.abs(gxx * gyy - gxy**2) * np.float32(sigma**4)
    return response


def local_maxima(
    image: np.ndarray,
    base: float = BASE,
    sigmas: Sequence[float] | None = None,
    mask: np.ndarray | None = None,
    floor: float = INITIAL_THRESHOLD,
) -> Maxima:
    """Maxima of :func:`hessian_response` at each sigma of a blurred image (H, W) in 0..1.

    A pixel stays where its response equals the largest of its window, is at least ``floor``, and ``mask`` holds.
    """
    image = np.asarray(image, dtype=np.float32)
    xy, scale, response = [], [], []
    for sigma in default_sigmas() if sigmas is None else sigmas:
        kernel = gauss_kernel(sigma)
        blurred = correlate1d(correlate1d(image, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
        level = hessian_response(blurred, sigma)
        side = window(base, sigma)
        largest = level
        for axis in range(2):
            largest = maximum_filter1d(largest, side, axis=axis, mode="constant", cval=-np.inf)
        keep = (level == largest) & (level >= np.float32(floor))
        if mask is not None:
            keep &= mask
        rows, columns = np.nonzero(keep)
        xy.append(np.stack([columns, rows], axis=1))
        scale.append(np.full(len(rows), base * sigma))
        response.append(level[rows, columns])
    return Maxima(np.concatenate(xy), np.concatenate(scale), np.concatenate(response))


def at_most(maxima: Maxima, count: int, threshold: float = INITIAL_THRESHOLD) -> tuple[Maxima, float]:
    """Double ``threshold`` until at most ``count`` maxima remain; returns them and the threshold."""
    while len(maxima.above(threshold).xy) > count:
        threshold *= 2
    return maxima.above(threshold), threshold
