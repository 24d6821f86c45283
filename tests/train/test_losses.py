"""Losses against the vectors, with gradients; and what is promised of those that have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_hardnet8.errors import UsageError
from tests.training_vectors import decode
from train import mining
from train.losses import (
    ITEM_LOSSES,
    LOSSES,
    Criterion,
    Described,
    DynamicSoftMargin,
    GeneralisedTriplet,
    GlobalOrthogonality,
    HybridTriplet,
    LossOptions,
    PairLoss,
    SecondOrder,
    pair_distances,
    parse_loss,
)
from train.mining import distance_matrix, hardest_of_classes, hardest_pairs, nearest_rows

Cases = dict[str, dict[str, Any]]


def _batch(unit: Tensor, labels: Tensor | None = None, exclude: Tensor | None = None) -> Described:
    tuples = torch.arange(len(unit)) // 2
    return Described(unit, torch.ones(len(unit)), tuples if labels is None else labels, tuples, exclude)


def _embeddings(cases: Cases, name: str) -> Tensor:
    return decode(cases["losses.embeddings"]["inputs"][name]).requires_grad_()


def _tangent(gradient: Tensor, at: Tensor) -> Tensor:
    """The part that survives the unit length: the vectors' detached norm changes the radial part alone."""
    return gradient - (gradient * at).sum(1, keepdim=True) * at


def _random(count: int, dim: int = 16, seed: int = 0) -> Tensor:
    """Unit pairs (2 * count, dim), the partners near each other."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, dim, generator=generator).repeat_interleave(2, 0)
    return F.normalize(base + 0.5 * torch.randn(2 * count, dim, generator=generator), dim=1)


PAIR_CASES = [
    "tripletMargin_min_m1.0", "tripletMargin_min_m0.5", "tripletMargin_min_nodetach", "tripletMargin_dups_protected",
    "tripletMargin_dups_closeok", "tripletMargin_blocks", "tripletMargin_average", "tripletMargin_random",
    "tripletMarginHuberInternal_min", "tripletMarginHuberExternal_min", "tripletMarginHuberDouble_min",
    "tripletMarginRobust_min", "softmax_min", "contrastive_min",
]  # fmt: skip


@pytest.mark.parametrize("name", PAIR_CASES)
def test_pair_losses(cases: Cases, name: str) -> None:
    case = cases[f"losses.{name}"]
    inputs, expected = case["inputs"], case["expected"]
    descs = _embeddings(cases, inputs["embeddings"])
    exclude = None
    if "block_sizes" in inputs:
        block = torch.arange(len(inputs["block_sizes"])).repeat_interleave(torch.tensor(inputs["block_sizes"]))
        exclude = block[:, None] != block
    options = LossOptions(inputs["margin_pos"], inputs["batch_reduce"], inputs["dup_protection"])
    permutation = decode(inputs["permutation"]) if "permutation" in inputs else None
    pos, neg = pair_distances(_batch(descs, exclude=exclude), options, permutation)
    # the distance of identical vectors, 0.001, is known to its rounding alone, and its gradient is that of 1 / d
    close = {"atol": 1e-4, "rtol": 0.1} if "closeok" in name else {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(pos, decode(expected["pos"]), atol=2e-6, rtol=0)
    torch.testing.assert_close(neg, decode(expected["neg"]), atol=1e-4 if "closeok" in name else 2e-6, rtol=0)
    losses = ITEM_LOSSES[inputs["loss_type"]](pos, neg, options.margin)
    torch.testing.assert_close(losses, decode(expected["per_item"]), atol=1e-4 if "closeok" in name else 2e-6, rtol=0)
    if options.reduce != "random":
        module = PairLoss(inputs["loss_type"], options)
        torch.testing.assert_close(module(_batch(descs, exclude=exclude)), losses)
    losses.mean().backward()
    gradient, at = decode(expected["grad"]), descs.detach()
    torch.testing.assert_close(_tangent(descs.grad, at), _tangent(gradient, at), **close)
    if not inputs["detach_neg"]:
        torch.testing.assert_close(descs.grad, gradient, **close)


@pytest.mark.parametrize(
    ("name", "loss", "reduce"),
    [
        ("triplet_min", "tripletMargin", "min"), ("softmax_min", "softmax", "min"),
        ("contrastive_min", "contrastive", "min"), ("triplet_average", "tripletMargin", "average"),
    ],
)  # fmt: skip
def test_the_losses_of_2017_have_the_same_means(cases: Cases, name: str, loss: str, reduce: str) -> None:
    batch = _batch(_embeddings(cases, "a"))
    found = PairLoss(loss, LossOptions(reduce=reduce))(batch).mean()
    assert found.item() == pytest.approx(cases[f"losses.hardnet2017_{name}"]["expected"]["mean"], abs=2e-6)


def test_detaching_the_norm_changes_no_gradient_of_the_features(cases: Cases) -> None:
    case = cases["losses.detach_is_no_op"]
    raw = decode(case["inputs"]["raw_features"]).requires_grad_()
    PairLoss("tripletMargin", LossOptions())(_batch(F.normalize(raw, dim=1))).mean().backward()
    torch.testing.assert_close(raw.grad, decode(case["expected"]["grad_detached"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["pairs", "pairs_m05", "groups", "dups", "zero_positive"])
def test_the_generalised_loss(cases: Cases, name: str) -> None:
    case = cases[f"losses.generalized_{name}"]
    inputs = case["inputs"]
    if isinstance(inputs["embeddings"], str):
        descs = _embeddings(cases, inputs["embeddings"])
    else:
        descs = decode(inputs["embeddings"]).requires_grad_()
    losses = GeneralisedTriplet(LossOptions(inputs["margin"]))(_batch(descs, decode(inputs["labels"])))
    torch.testing.assert_close(losses, decode(case["expected"]["per_class"]), atol=2e-6, rtol=0)
    losses.mean().backward()
    torch.testing.assert_close(descs.grad, decode(case["expected"]["grad"]), atol=2e-5, rtol=0)


def test_the_generalised_loss_differs_from_the_original_as_described(cases: Cases) -> None:
    case = cases["losses.generalized_vs_original"]
    labels = decode(case["inputs"]["labels"])
    batch = _batch(_embeddings(cases, "a"), labels)
    generalised = GeneralisedTriplet(LossOptions())(batch)
    torch.testing.assert_close(generalised, decode(case["expected"]["generalized"]), atol=2e-6, rtol=0)
    original = PairLoss("tripletMargin", LossOptions())(batch)[labels[0::2].argsort()]
    torch.testing.assert_close(original, decode(case["expected"]["original_reordered"]), atol=2e-6, rtol=0)


def test_distance_matrices(cases: Cases) -> None:
    descs = _embeddings(cases, "a").detach()
    anchors, positives = descs[0::2], descs[1::2]
    expected = decode(cases["losses.distance_matrix"]["expected"]["matrix"])
    torch.testing.assert_close(distance_matrix(anchors, positives), expected, atol=1e-6, rtol=0)
    case = cases["losses.unit_l2_matrix"]["expected"]
    rows, columns = torch.arange(6).repeat_interleave(6), torch.arange(6).repeat(6)
    from train.losses import _unit_distance

    found = _unit_distance(anchors[rows], positives[columns]).view(6, 6)
    torch.testing.assert_close(found, decode(case["matrix"]), atol=1e-6, rtol=0)
    hard = hardest_pairs(anchors, positives)
    torch.testing.assert_close(found[hard.anchors, hard.positives], decode(case["hard"]), atol=1e-6, rtol=0)


def test_the_dynamic_soft_margin_over_three_batches(cases: Cases) -> None:
    case = cases["losses.softMargin"]
    loss = DynamicSoftMargin(LossOptions())
    for step in case["expected"]["steps"]:
        generator = np.random.RandomState(step["seed"])
        base = np.repeat(generator.standard_normal((12, 8)), 2, axis=0)
        descs = F.normalize(torch.from_numpy(base + 0.5 * generator.standard_normal((24, 8))), dim=1).float()
        value = loss(_batch(descs.requires_grad_())).mean()
        assert value.item() == pytest.approx(step["loss"], abs=5e-6)
        value.backward()
        assert descs.grad.norm().item() == pytest.approx(step["grad_norm"], abs=5e-6)
        torch.testing.assert_close(descs.grad[0], decode(step["grad_first_row"]), atol=5e-6, rtol=0)
        histogram = {str(k): v for k, v in enumerate(loss.histogram.tolist()) if v > 1e-9}
        for key in histogram.keys() | step["histogram_nonzero"].keys():
            assert histogram.get(key, 0.0) == pytest.approx(step["histogram_nonzero"].get(key, 0.0), abs=5e-5)


def test_global_orthogonality(cases: Cases) -> None:
    value = GlobalOrthogonality(LossOptions())(_batch(_embeddings(cases, "a"))).mean()
    assert value.item() == pytest.approx(cases["losses.hardnet2017_gor"]["expected"]["value"], abs=2e-6)


def test_second_order_similarity_by_its_definition() -> None:
    descs = _random(30)
    anchors, positives = descs[0::2], descs[1::2]
    first, second = torch.cdist(anchors, anchors), torch.cdist(positives, positives)
    expected = []
    for k in range(30):
        near = set(first[k].argsort()[1:9].tolist()) | set(second[k].argsort()[1:9].tolist())
        expected.append(sum((first[k, j] - second[k, j]) ** 2 for j in near) ** 0.5)
    found = SecondOrder(LossOptions())(_batch(descs))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-3, rtol=0)
    same = torch.stack([anchors, anchors], 1).flatten(0, 1)
    assert SecondOrder(LossOptions())(_batch(same)).max() < 2e-3


def test_the_hybrid_loss_by_its_definition() -> None:
    descs = _random(20)
    distances = torch.cdist(descs, descs)
    same = torch.arange(40)[:, None] // 2 == torch.arange(40) // 2
    nearest = distances.masked_fill(same, 9.0).min(1).values.view(-1, 2).min(1).values
    own = (descs[0::2] - descs[1::2]).norm(dim=1)
    expected = F.relu(1.2 + own + own**2 - nearest - nearest**2)
    torch.testing.assert_close(HybridTriplet(LossOptions(1.2))(_batch(descs)), expected, atol=1e-4, rtol=0)


def test_excluded_pairs_are_no_negatives(cases: Cases) -> None:
    descs = _embeddings(cases, "a").detach()
    hardest = distance_matrix(descs[0::2], descs[1::2]).fill_diagonal_(9.0).flatten().argmin()
    exclude = torch.zeros(6, 6, dtype=torch.bool)
    exclude[hardest // 6, hardest % 6] = True
    for build in (GeneralisedTriplet, lambda o: PairLoss("tripletMargin", o)):
        loss = build(LossOptions())
        plain, without = loss(_batch(descs)), loss(_batch(descs, exclude=exclude | exclude.T))
        assert (without <= plain + 1e-7).all()
        assert (without < plain - 1e-3).any()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    descs = _random(50)
    labels = torch.randint(0, 20, (100,), generator=torch.Generator().manual_seed(0))
    tuples = torch.arange(100) // 2
    exclude = torch.rand(50, 50, generator=torch.Generator().manual_seed(0)) < 0.1

    def found() -> list[Tensor]:
        hard = hardest_pairs(descs[0::2], descs[1::2], exclude)
        classes = hardest_of_classes(descs, labels, tuples, exclude)
        return [hard.anchors, hard.positives, hard.penalty, *classes, nearest_rows(descs, 8)]

    whole = found()
    monkeypatch.setattr(mining, "BLOCK", 700)  # 14 and 7 rows at a time
    for a, b in zip(whole, found(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_improves_what_it_is_for_and_its_state_is_kept(name: str) -> None:
    text = f"tripletMargin*0.001,{name}" if LOSSES[name].regulariser else name
    criterion = Criterion(text, LossOptions())
    raw = (_random(64, seed=1) * (1.0 + 0.2 * torch.rand(128, 1))).requires_grad_()
    optimizer = torch.optim.Adam([raw], 0.02)
    triplets, margins = PairLoss("tripletMargin", LossOptions()), []
    tuples = torch.arange(128) // 2
    targets = F.normalize(raw.detach()[0::2], dim=1)[tuples]
    for _ in range(30):
        batch = Described(F.normalize(raw, dim=1), raw.norm(dim=1), tuples, tuples, targets=targets)
        loss, items, terms = criterion(batch)
        # weights of the adaptive losses change under way: their values say little
        margins.append(terms[name].item() if LOSSES[name].regulariser else triplets(batch).mean().item())
        assert torch.isfinite(items).all()
        assert terms.keys() >= {name}
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(raw.grad).all()
        optimizer.step()
    assert margins[-1] < 0.95 * margins[0]
    again = Criterion(text, LossOptions())
    again.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(again(batch)[0], criterion(batch)[0])


def test_terms_are_summed_with_their_weights() -> None:
    batch = _batch(_random(20))
    total, _, terms = Criterion("tripletMargin++, sos*0.5,gor*2", LossOptions())(batch)
    expected = terms["tripletMargin++"] + 0.5 * terms["sos"] + 2 * terms["gor"]
    torch.testing.assert_close(total, expected)
    assert [term.weight for term in parse_loss("tripletMargin++,sos*1e-1")] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("text", "npos", "message"),
    [
        ("tripletmargin", 2, "unknown loss 'tripletmargin'; did you mean tripletMargin"),
        ("Margin", 2, "unknown loss 'Margin'"),
        ("", 2, "is not of the form"),
        ("face", 2, "unknown loss 'face'"),
        ("sos", 2, "regularisers alone"),
        ("tripletMargin*0", 2, "must be a positive number"),
        ("tripletMargin", 3, "loss tripletMargin takes pairs, got tuples of 3 patches"),
        ("tripletMargin++,sos", 3, "loss sos takes pairs"),
    ],
)
def test_wrong_loss_strings_are_refused(text: str, npos: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_loss(text, npos)
    assert message in str(error.value)
