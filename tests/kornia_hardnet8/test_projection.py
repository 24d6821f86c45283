from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.projection import PCAFitter, Projection
from tests.training_vectors import decode

from .conftest import fill_module


def _fit(descs: Tensor, splits: int = 1) -> Projection:
    fitter = PCAFitter(descs.shape[1])
    for part in descs.chunk(splits):
        fitter.update(part)
    return fitter.finish()


@pytest.mark.parametrize("splits", [1, 3])
def test_fit_and_apply(splits: int, vectors: dict[str, dict[str, Any]]) -> None:
    case = vectors["pca.fit_apply"]
    expected = case["expected"]
    projection = _fit(decode(case["inputs"]["train"]), splits)
    torch.testing.assert_close(projection.mean, decode(expected["mean"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(projection.eigenvalues[:4], decode(expected["explained_variance"]), atol=2e-5, rtol=0)
    theirs = decode(expected["components"]).T
    mean, ours = projection.truncated(4)
    signs = (ours * theirs).sum(dim=0).sign()
    torch.testing.assert_close(ours * signs, theirs, atol=2e-5, rtol=0)
    projected = (decode(case["inputs"]["query"]) - mean) @ ours * signs
    torch.testing.assert_close(projected, decode(expected["projected"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(F.normalize(projected), decode(expected["normalised"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(
        F.normalize(projected), decode(vectors["pca.kornia_form"]["expected"]["normalised"]), atol=2e-5, rtol=0
    )


def test_the_projection_inside_the_network(vectors: dict[str, dict[str, Any]], patches: Tensor) -> None:
    case = vectors["architectures.forward_h7pca32"]
    source = fill_module(HardNet8(arch="h7", output_dim=None), case["inputs"]["seed"])
    model = HardNet8(arch="h7", output_dim=32)
    model.load_state_dict(
        {
            "components": decode(case["inputs"]["pca_components"]).T,
            "mean": decode(case["inputs"]["pca_mean"]),
            **source.state_dict(),
        },
        strict=True,
    )
    with torch.no_grad():
        descs = model(patches)
    torch.testing.assert_close(descs, decode(case["expected"]["descriptors"]).float(), atol=3e-5, rtol=0)


def test_axes_are_orthonormal_ordered_and_of_fixed_sign() -> None:
    descs = F.normalize(torch.randn(500, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 24))
    projection = _fit(descs)
    torch.testing.assert_close(projection.components.T @ projection.components, torch.eye(24), atol=1e-5, rtol=0)
    assert (projection.eigenvalues.diff() <= 0).all()
    peaks = projection.components.gather(0, projection.components.abs().argmax(dim=0, keepdim=True))
    assert (peaks > 0).all()
    torch.testing.assert_close(projection.eigenvalues.sum(), descs.var(dim=0).sum(), atol=1e-5, rtol=0)


def test_moments_keep_their_digits_far_from_the_origin() -> None:
    descs = torch.randn(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e-3 + 1e4
    projection = _fit(descs, splits=7)
    expected = torch.linalg.eigvalsh(torch.cov(descs.T)).flip(0)
    torch.testing.assert_close(projection.eigenvalues.double(), expected, rtol=1e-4, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_streaming_does_not_change_the_result(seed: int, splits: int) -> None:
    descs = torch.randn(60, 6, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 7)
    one, many = _fit(descs), _fit(descs, splits)
    torch.testing.assert_close(one.eigenvalues, many.eigenvalues, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.mean, many.mean, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(DataError, match="at least 2"):
        PCAFitter(4).finish()
    fitter = PCAFitter(4)
    fitter.update(torch.zeros(0, 4))
    fitter.update(torch.rand(1, 4))
    with pytest.raises(DataError, match="at least 2 descriptors, got 1"):
        fitter.finish()
    with pytest.raises(DataError, match=r"\(B, 4\), got \(2, 3\)"):
        fitter.update(torch.zeros(2, 3))
    with pytest.raises(DataError, match="NaN"):
        fitter.update(torch.full((1, 4), float("nan")))


def test_truncation_and_shapes() -> None:
    projection = Projection(torch.zeros(4), torch.eye(4), torch.ones(4))
    assert projection.truncated(2)[1].equal(torch.eye(4)[:, :2])
    for wrong in (0, 5):
        with pytest.raises(UsageError, match=r"1 … 4 .*got"):
            projection.truncated(wrong)
    with pytest.raises(DataError, match="mean"):
        Projection(torch.zeros(3), torch.eye(4), torch.ones(4))
    with pytest.raises(DataError, match="eigenvalues"):
        Projection(torch.zeros(4), torch.eye(4), torch.ones(3))


def test_whitening_evens_the_variances_by_its_power() -> None:
    descs = torch.randn(4000, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(3, 0.5, 6)
    projection = _fit(descs)
    assert projection.whitened(0.0) is projection
    for power in (0.5, 1.0):
        white = projection.whitened(power)
        variances = ((descs - white.mean) @ white.components).var(dim=0)
        torch.testing.assert_close(variances, white.eigenvalues, rtol=1e-4, atol=0)
        expected = projection.eigenvalues ** (1 - power) * projection.eigenvalues[0] ** power
        torch.testing.assert_close(white.eigenvalues, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(F.normalize(white.components, dim=0), projection.components)


def test_whitening_does_not_enlarge_noise() -> None:
    white = Projection(torch.zeros(3), torch.eye(3), torch.tensor([4.0, 1e-9, 0.0])).whitened(1.0)
    torch.testing.assert_close(white.components.diagonal(), torch.tensor([1.0, 100.0, 100.0]))
    assert white.eigenvalues[1] < 1e-4


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_whitening_by_another_power(power: float) -> None:
    with pytest.raises(UsageError, match="0 … 1"):
        Projection(torch.zeros(2), torch.eye(2), torch.ones(2)).whitened(power)


@pytest.mark.parametrize("variance", [0.0, float("nan")])
def test_whitening_needs_variances(variance: float) -> None:
    with pytest.raises(DataError, match="no whitening"):
        Projection(torch.zeros(2), torch.eye(2), torch.full((2,), variance)).whitened(0.5)
