"""Distances of descriptors and exact nearest neighbours, as the HPatches benchmark computes them but without its loops.

Metrics: ``L2``; ``L1``; ``masked_L1``, where the first half of a row is the descriptor, the second half its 0/1 mask.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.metrics import average_precision, average_precision_vlfeat
from kornia_hardnet8.errors import DataError, UsageError, closest

METRICS = ("L2", "L1", "masked_L1")
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_PAIR_CHUNK = 1 << 10  # pairs gathered at once: half a MiB a side at 128 values, which stays in the cache
_PAIR_SLAB = 1 << 14  # pairs of one task of a thread


def check_metric(metric: str, dim: int) -> None:
    """Raise for an unknown metric, or a mask that cannot be half of ``dim`` values."""
    if metric not in METRICS:
        raise UsageError(f"unknown distance {metric!r}{closest(metric, METRICS)} (one of {', '.join(METRICS)})")
    if metric == "masked_L1" and dim % 2:
        raise DataError(f"masked_L1 needs descriptor and mask in one row, got the odd length {dim}")


def apply_mask(descs: Floats32, metric: str) -> Floats32:
    """Multiply out the mask for ``masked_L1``, (N, 2 D) -> (N, D); other metrics pass through."""
    if metric != "masked_L1":
        return descs
    half = descs.shape[1] // 2
    masked: Floats32 = descs[:, :half] * descs[:, half:]
    return masked


def pair_distances(data: Floats32, rows1: Ints, rows2: Ints, metric: str) -> Floats32:
    """Distance of row ``rows1[i]`` to row ``rows2[i]`` of ``data``, (M,), in float32 throughout as the original.

    ``data`` has its mask applied.
    """
    result = np.empty(len(rows1), dtype=np.float32)

    def fill(slab: int) -> None:
        first, second = (np.empty((_PAIR_CHUNK, data.shape[1]), dtype=np.float32) for _ in range(2))
        for start in range(slab, min(slab + _PAIR_SLAB, len(rows1)), _PAIR_CHUNK):
            part = slice(start, min(start + _PAIR_CHUNK, slab + _PAIR_SLAB, len(rows1)))
            gap, other = first[: part.stop - start], second[: part.stop - start]
            np.take(data, rows1[part], axis=0, out=gap, mode="clip")  # the other modes copy once more
            np.take(data, rows2[part], axis=0, out=other, mode="clip")
            gap -= other
            if metric == "L2":
                np.sqrt(np.square(gap, out=gap).sum(axis=1), out=result[part])
            else:
                np.abs(gap, out=gap).sum(axis=1, out=result[part])

    # numpy releases the lock in these calls; its order of summation is the original's, which decides near-ties.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, range(0, len(rows1), _PAIR_SLAB)):
            pass
    return result


def exact_pair_distances(first: Floats32, second: Floats32, metric: str) -> Floats:
    """Distance of row i to row i in float64, (M,), summed value by value as scipy's ``cdist`` does."""
    # One value of all rows after the other: the sum of a row is then rounded in cdist's order, which decides ties.
    gaps = first.T.astype(np.float64, order="C") - second.T
    terms = np.square(gaps, out=gaps) if metric == "L2" else np.abs(gaps, out=gaps)
    # numpy sums a lone column pairwise.
    total = terms.cumsum(axis=0)[-1] if terms.shape[1] == 1 and len(terms) else terms.sum(axis=0)
    result: Floats = np.sqrt(total) if metric == "L2" else total
    return result


def nearest(queries: Floats32, targets: Floats32, metric: str) -> tuple[Ints, Floats]:
    """For each query the nearest target, the first one on ties, and its distance: exactly ``cdist(...).argmin(1)``.

    A float32 matrix product finds the candidates; rows whose two best lie within its rounding error are decided by
    exact distances.

    Args:
        queries: (N, D) float32, mask applied.
        targets: (M, D) float32, M >= 1.
        metric: one of ``METRICS``.

    Returns:
        (N,) indices and (N,) float64 distances.
    """
    if metric == "L2" or (_is_binary(queries) and _is_binary(targets)):  # for 0/1 values L1 is the squared L2
        index, unsure = _nearest_by_product(torch.from_numpy(queries), torch.from_numpy(targets))
    else:
        full = torch.cdist(torch.from_numpy(queries).double(), torch.from_numpy(targets).double(), p=1.0)
        index, unsure = _best_two(full, 1e-12 * (full.amax(1) + 1e-300))
    nearest_index = index.numpy()
    rows = np.flatnonzero(unsure.numpy())
    if len(rows):
        nearest_index[rows] = cross_distances(queries[rows], targets, metric).argmin(axis=1)
    return nearest_index, exact_pair_distances(queries, targets[nearest_index], metric)


def identity_matching(reference: Floats32, target: Floats32, metric: str = "L2") -> dict[str, float]:
    """Match (N, D) descriptors whose true partner has the same row: ``ap``, ``ap_vl``, ``success``."""
    index, distance = nearest(reference, target, metric)
    right = index == np.arange(len(reference))
    return {
        "ap": average_precision(-distance, right, len(reference)),
        "ap_vl": average_precision_vlfeat(-distance, right, len(reference)),
        "success": float(right.mean()),
    }


def cross_distances(first: Floats32, second: Floats32, metric: str) -> Floats:
    """The full (N, M) matrix of distances in float64."""
    from scipy.spatial.distance import cdist

    matrix: Floats = cdist(
        first.astype(np.float64), second.astype(np.float64), "euclidean" if metric == "L2" else "cityblock"
    )
    return matrix


def _nearest_by_product(queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    centre = targets.mean(0)
    a, b = queries - centre, targets - centre
    b_square = b.square().sum(1)
    gaps = torch.addmm(b_square[None], a, b.T, alpha=-2.0)  # squared distance up to a constant of the row
    # Twice the bound of the rounding error of a float32 product of this length.
    tolerance = (a.shape[1] + 16) * 1.2e-7 * (a.square().sum(1) + b_square.max())
    return _best_two(gaps, tolerance)


def _best_two(values: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the smallest of each row, and whether the second smallest is within ``tolerance`` of it."""
    matrix = values.numpy()  # whose argmin is ten times as fast
    index = matrix.argmin(axis=1)
    rows = np.arange(len(matrix))
    best = matrix[rows, index]
    matrix[rows, index] = np.inf
    second = matrix.min(axis=1)
    return torch.from_numpy(index), torch.from_numpy(second - best) <= tolerance


def _is_binary(descs: Floats32) -> bool:
    return bool(np.all((descs == 0) | (descs == 1)))
