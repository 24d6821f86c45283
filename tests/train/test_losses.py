from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8.errors import UsageError
from train.losses import distance_matrix, get_loss, triplet_margin

from .conftest import decode


def _embeddings(cases: dict[str, dict[str, Any]], name: str) -> Tensor:
    return decode(cases["losses.embeddings"]["inputs"][name]).requires_grad_()


def _tangent(gradient: Tensor, at: Tensor) -> Tensor:
    """The part that survives the unit length: the vectors' detached norm changes the radial part alone."""
    return gradient - (gradient * at).sum(1, keepdim=True) * at


@pytest.mark.parametrize("case", ["min_m1.0", "min_m0.5", "min_nodetach", "dups_protected"])
def test_triplet_margin_reproduces_the_vectors(cases: dict[str, dict[str, Any]], case: str) -> None:
    case = cases[f"losses.tripletMargin_{case}"]
    descs = _embeddings(cases, case["inputs"]["embeddings"])
    losses = triplet_margin(descs, torch.arange(6).repeat_interleave(2), case["inputs"]["margin_pos"])
    torch.testing.assert_close(losses, decode(case["expected"]["per_item"]), atol=2e-6, rtol=0)
    losses.mean().backward()
    expected, at = decode(case["expected"]["grad"]), descs.detach()
    torch.testing.assert_close(_tangent(descs.grad, at), _tangent(expected, at), atol=2e-5, rtol=0)
    if not case["inputs"]["detach_neg"]:
        torch.testing.assert_close(descs.grad, expected, atol=2e-5, rtol=0)


def test_detaching_the_norm_changes_no_gradient_of_the_features(cases: dict[str, dict[str, Any]]) -> None:
    case = cases["losses.detach_is_no_op"]
    raw = decode(case["inputs"]["raw_features"]).requires_grad_()
    triplet_margin(F.normalize(raw, dim=1), torch.arange(6).repeat_interleave(2)).mean().backward()
    torch.testing.assert_close(raw.grad, decode(case["expected"]["grad_detached"]), atol=1e-6, rtol=0)


def test_distance_matrix(cases: dict[str, dict[str, Any]]) -> None:
    descs = _embeddings(cases, "a").detach()
    expected = decode(cases["losses.distance_matrix"]["expected"]["matrix"])
    torch.testing.assert_close(distance_matrix(descs[0::2], descs[1::2]), expected, atol=1e-6, rtol=0)


def test_excluded_pairs_are_no_negatives(cases: dict[str, dict[str, Any]]) -> None:
    descs = _embeddings(cases, "a").detach()
    exclude = torch.zeros(6, 6, dtype=torch.bool)
    plain = triplet_margin(descs, torch.arange(12) // 2)
    hardest = distance_matrix(descs[0::2], descs[1::2]).fill_diagonal_(9.0).flatten().argmin()
    exclude[hardest // 6, hardest % 6] = True
    without = triplet_margin(descs, torch.arange(12) // 2, exclude=exclude)
    assert (without <= plain + 1e-7).all()
    assert (without < plain - 1e-3).any()


def test_an_unknown_loss_names_the_close_ones() -> None:
    with pytest.raises(UsageError, match="unknown loss 'tripletmargin'; did you mean tripletMargin"):
        get_loss("tripletmargin")
