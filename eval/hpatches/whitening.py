"""Whitened and power-law normalised descriptors (the ``_pcapl`` and ``+`` variants)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.hpatches import TYPES
from eval.hpatches.descriptors import DescriptorSet
from kornia_hardnet8.errors import DataError

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

_RAISED_SHARE = 0.6  # of the eigenvalues, the smallest, are raised to the next one


def whitening_matrix(descs: Floats32) -> tuple[Floats, Floats, float]:
    """ZCA matrix of (N, D) descriptors with the lowest 60 % of the eigenvalues raised.

    Returns:
        W (D, D), symmetric; the eigenvalues before raising, ascending; the value they are raised to.

    Source: HPatches benchmark, python side.
    """
    x = descs.astype(np.float64)
    x -= x.mean(axis=0)
    product = x.T @ x
    values, vectors = np.linalg.eigh((product + product.T) / (2.0 * len(x)))
    floor = float(values[int(_RAISED_SHARE * len(values))])
    if floor <= 0.0:
        raise DataError(f"{len(x)} training descriptors of length {len(values)} span too few directions to whiten")
    raised = np.maximum(values, floor)
    return (vectors / np.sqrt(raised)) @ vectors.T, values, floor


def power_law(descs: Floats32, matrix: Floats, mean: NDArray[np.floating] | None = None) -> Floats:
    """Centre, multiply, take the signed square root, normalise rows; a zero row stays zero.

    Args:
        descs: (N, D).
        matrix: (D, D').
        mean: what to subtract; None: the mean of these descriptors themselves, as the original does.
    """
    centred = descs - (descs.mean(axis=0) if mean is None else mean).astype(np.float32)
    y = centred.astype(np.float64) @ matrix
    z = np.sign(y) * np.sqrt(np.abs(y))
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    result: Floats = np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)
    return result


def pcapl(
    descriptors: DescriptorSet, train: Sequence[str], test: Sequence[str], train_mean: bool = False
) -> DescriptorSet:
    """The normalised descriptors of ``test``.

    Fitted on the reference strips of ``train``. Each strip of ``test`` is centred by its own mean, as the original
    does, or by the training mean.

    Raises:
        DataError: no training sequence.

    Source: HPatches benchmark, python side (names there end in ``_pcapl``).
    """
    if not train:
        raise DataError("whitening needs training sequences: only splits a, b and c have them, and none is there")
    reference = np.concatenate([descriptors.get(name, 0) for name in train])
    matrix, _, _ = whitening_matrix(reference)
    mean = reference.mean(axis=0) if train_mean else None
    return descriptors.map(lambda strip: power_law(strip, matrix, mean).astype(np.float32), test)


def energy_clipped_zca(descs: Floats32, clip: float) -> tuple[Floats, Floats32]:
    """ZCA matrix (D, D) and mean (D,) with small eigenvalues raised by their share of the energy.

    Eigenvalues ascending; the first whose cumulative share exceeds ``clip`` is the floor of the others.

    Source: HPatches benchmark, MATLAB side.
    """
    mean = descs.mean(axis=0)
    x = descs.astype(np.float64) - mean
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0.0)
    share = np.cumsum(values) / max(values.sum(), 1e-300)
    floor = values[min(int(np.searchsorted(share, clip, side="right")), len(values) - 1)]
    matrix: Floats = (vectors / np.sqrt(np.maximum(values, floor) + 1e-6)) @ vectors.T
    return matrix, mean


def article_plus(descriptors: DescriptorSet, train: Sequence[str], test: Sequence[str], clip: float) -> DescriptorSet:
    """The ``+`` bars of the article: ZCA clipped at an energy share, square-root power law, L2 norm.

    Fitted on all 16 strips of ``train`` (the article: split c), whose mean is subtracted everywhere.
    """
    if not train:
        raise DataError("whitening needs training sequences: only splits a, b and c have them, and none is there")
    everything = np.concatenate([descriptors.get(name, t) for name in train for t in range(len(TYPES))])
    matrix, mean = energy_clipped_zca(everything, clip)
    return descriptors.map(lambda strip: power_law(strip, matrix, mean).astype(np.float32), test)
