"""The Hessian detector of the AMOS patches: fixed scales, local maxima in windows as large as a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.images import load_cv2

SCALE_STEP = 1.8
LEVELS = 5
BASE = 30.0
INITIAL_THRESHOLD = 0.00016
_BLOCK = 16  # pixels that one row of a blurring matrix product yields: few of its entries are zeros


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


def gaussian_blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate a float32 image (H, W) with a 1-D kernel along columns, then rows, mirrored about its outer pixels.

    Sums are of float64, as products with a band matrix (a long kernel takes a quarter of the time of a plain loop);
    each of the two results is float32.
    """
    reach = len(kernel) // 2
    band = np.zeros((_BLOCK + 2 * reach, _BLOCK))
    for column in range(_BLOCK):
        band[column : column + len(kernel), column] = kernel
    for axis in (0, 1):
        margins = [(reach, reach) if side == axis else (0, 0) for side in (0, 1)]
        wide = np.pad(image.astype(np.float64), margins, mode="reflect")
        sums = np.empty(image.shape)
        for start in range(0, image.shape[axis], _BLOCK):
            stripe = slice(start, min(start + _BLOCK, image.shape[axis]))
            reads = slice(stripe.start, stripe.stop + 2 * reach)
            part = band[: reads.stop - reads.start, : stripe.stop - stripe.start]
            if axis == 0:
                np.matmul(part.T, wide[reads], out=sums[stripe])
            else:
                np.matmul(wide[:, reads], part, out=sums[:, stripe])
        image = sums.astype(np.float32)
    return image


def hessian_response(image: np.ndarray, sigma: float) -> np.ndarray:
    """|gxx gyy - gxy^2| sigma^4 of an image (H, W) in 0..1, borders replicated, float32; the image is not blurred."""
    cv2 = load_cv2()
    wide = np.asarray(image, dtype=np.float32).astype(np.float64)  # sums are of float64, results float32
    first, second, same = np.array([-0.5, 0, 0.5]), np.array([1.0, -2, 1]), np.ones(1)

    def correlate(values: np.ndarray, along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
        sums = cv2.sepFilter2D(values, cv2.CV_64F, along_x, along_y, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(sums, dtype=np.float32)

    gxx, gyy = correlate(wide, second, same), correlate(wide, same, second)
    gxy = correlate(correlate(wide, first, same).astype(np.float64), same, first)
    response: np.ndarray = np.abs(gxx * gyy - gxy**2) * np.float32(sigma**4)
    return response


def window_maximum(values: np.ndarray, side: int) -> np.ndarray:
    """The largest value in the centred square window of odd ``side`` of each pixel of an image (H, W)."""
    reach = side // 2
    for _ in range(2):
        # the largest of 2 n values from those of n: one comparison doubles the window
        wide = np.pad(values, ((reach, reach), (0, 0)), constant_values=-np.inf)
        covered = 1
        while covered < side:
            step = min(covered, side - covered)
            wide = np.maximum(wide[:-step], wide[step:])
            covered += step
        values = wide.T
    return values


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
        level = hessian_response(gaussian_blur(image, gauss_kernel(sigma)), sigma)
        keep = (level == window_maximum(level, window(base, sigma))) & (level >= np.float32(floor))
        if mask is not None:
            keep &= mask
        rows, columns = np.divmod(np.flatnonzero(keep), keep.shape[1])
        xy.append(np.stack([columns, rows], axis=1))
        scale.append(np.full(len(rows), base * sigma))
        response.append(level[rows, columns])
    return Maxima(np.concatenate(xy), np.concatenate(scale), np.concatenate(response))


def at_most(maxima: Maxima, count: int, threshold: float = INITIAL_THRESHOLD) -> tuple[Maxima, float]:
    """Double ``threshold`` until at most ``count`` maxima remain; returns them and the threshold."""
    while len(maxima.above(threshold).xy) > count:
        threshold *= 2
    return maxima.above(threshold), threshold
