"""Distances of descriptors and exact nearest neighbours, as the HPatches benchmark computes them but without its loops.

Metrics: ``L2``; ``L1``; ``masked_L1``, where the first half of a row is the descriptor, the second half its 0/1 mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common.jobs import map_on_threads
from common.metrics import average_precision, average_precision_vlfeat
from eval.core.nearest import candidates
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

    # numpy's order of summation is the original's, which decides near-ties
    for _ in map_on_threads(fill, range(0, len(rows1), _PAIR_SLAB)):
        pass
    return result


def exact_pair_distances(first: Floats32, second: Floats32, metric: str) -> Floats:
    """Distance of row i to row i in float64, (M,), summed value by value as scipy's ``cdist`` does."""
    result = np.empty(len(first))
    for start in range(0, len(first), _PAIR_CHUNK):
        part = slice(start, start + _PAIR_CHUNK)
        # One value of all rows after the other: the sum of a row is then rounded in cdist's order, which decides ties.
        gaps = first[part].T.astype(np.float64, order="C") - second[part].T
        terms = np.square(gaps, out=gaps) if metric == "L2" else np.abs(gaps, out=gaps)
        # numpy sums a lone column pairwise.
        result[part] = terms.cumsum(axis=0)[-1] if terms.shape[1] == 1 and len(terms) else terms.sum(axis=0)
    return np.sqrt(result, out=result) if metric == "L2" else result


def nearest(queries: Floats32, targets: Floats32, metric: str) -> tuple[Ints, Floats]:
    """For each query the nearest target, the first one on ties, and its distance: exactly ``cdist(...).argmin(1)``.

    A product of less precision finds the candidates, most often one; their exact distances decide.

    Args:
        queries: (N, D) float32, mask applied.
        targets: (M, D) float32, M >= 1.
        metric: one of ``METRICS``.

    Returns:
        (N,) indices and (N,) float64 distances.
    """
    if metric == "L2" or (_is_binary(queries) and _is_binary(targets)):  # for 0/1 values L1 is the squared L2
        found = candidates(torch.from_numpy(queries), torch.from_numpy(targets), 1)
        row, column, undecided = found.row.numpy(), found.column.numpy(), found.undecided.numpy()
    else:
        full = torch.cdist(torch.from_numpy(queries).double(), torch.from_numpy(targets).double(), p=1.0)
        limit = full.amin(dim=1, keepdim=True) + 1e-12 * (full.amax(dim=1, keepdim=True) + 1e-300)
        row, column = (part.numpy() for part in (full <= limit).nonzero(as_tuple=True))
        undecided = full.isnan().any(dim=1).numpy()
    index, distance = np.empty(len(queries), np.int64), np.empty(len(queries))
    exact = exact_pair_distances(queries[row], targets[column], metric)
    order = np.lexsort((-column, -exact, row))
    index[row[order]], distance[row[order]] = column[order], exact[order]  # the last one of a row stays
    rows = np.flatnonzero(undecided)
    if len(rows):
        index[rows] = cross_distances(queries[rows], targets, metric).argmin(axis=1)
        distance[rows] = exact_pair_distances(queries[rows], targets[index[rows]], metric)
    return index, distance


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


def _is_binary(descs: Floats32) -> bool:
    return bool(np.all((descs == 0) | (descs == 1)))
