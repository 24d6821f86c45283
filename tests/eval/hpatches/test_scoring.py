"""The fast paths against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from common.metrics import average_precision, average_precision_vlfeat, roc_auc
from eval.core.distances import METRICS, apply_mask, exact_pair_distances, identity_matching, nearest, pair_distances
from eval.hpatches.descriptors import from_arrays
from eval.hpatches.matching import article_headline, headline, score_matching
from eval.hpatches.retrieval import POOL_SIZES, count_nearer, score_retrieval
from eval.hpatches.tasks import PatchList, RetrievalTask, draw_retrieval, draw_verification
from eval.hpatches.verification import headline as verification_headline
from eval.hpatches.verification import precision_from_counts, score_verification, verification_scores
from eval.hpatches.whitening import article_plus, energy_clipped_zca, pcapl
from kornia_hardnet8.errors import DataError, UsageError

SCIPY = {"L2": "euclidean", "L1": "cityblock"}


@given(seed=st.integers(0, 10**6), levels=st.integers(2, 40), metric=st.sampled_from(("L2", "L1")))
@settings(max_examples=40)
def test_nearest_is_argmin_of_cdist_ties_included(seed, levels, metric):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, levels, (n, 3)).astype(np.float32) * np.float32(0.05) for n in (30, 25))
    full = cdist(a.astype(np.float64), b.astype(np.float64), SCIPY[metric])
    index, distance = nearest(a, b, metric)
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_array_equal(distance, full.min(1))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9, 200])
@pytest.mark.parametrize("metric", ["L2", "L1"])
def test_exact_distances_are_those_of_cdist_to_the_last_bit(count, metric):
    rng = np.random.default_rng(count)
    a, b = (rng.standard_normal((count, 128)).astype(np.float32) for _ in range(2))
    full = cdist(a.astype(np.float64), b.astype(np.float64), SCIPY[metric]) if count else np.zeros((0, 0))
    np.testing.assert_array_equal(exact_pair_distances(a, b, metric), np.diag(full))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_of_unit_vectors_and_of_far_ones(offset):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 128)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = (a + 0.1 * rng.standard_normal(a.shape) + offset).astype(np.float32)
    a = (a + offset).astype(np.float32)
    index, _ = nearest(a, b, "L2")
    np.testing.assert_array_equal(index, cdist(a.astype(float), b.astype(float)).argmin(1))


def test_binary_l1_is_hamming():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 2, (40, 64)).astype(np.float32) for _ in range(2))
    index, distance = nearest(a, b, "L1")
    full = (a[:, None] != b[None]).sum(2)
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_array_equal(distance, full.min(1))


def test_pair_distances_are_float32_of_every_metric():
    rng = np.random.default_rng(2)
    data = rng.standard_normal((50, 6)).astype(np.float32)
    rows = rng.integers(0, 50, (2, 40_001))  # chunks and slabs that are not full
    for metric in METRICS:
        masked = apply_mask(data, metric)
        got = pair_distances(masked, *rows, metric)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, exact_pair_distances(masked[rows[0]], masked[rows[1]], metric), rtol=1e-5)


def test_a_mask_needs_two_halves():
    three = from_arrays({"i_a": np.ones((16, 2, 3))})
    with pytest.raises(DataError, match="odd length 3"):
        score_matching(three, ["i_a"], "masked_L1")
    with pytest.raises(UsageError, match="unknown distance 'L3'"):
        score_matching(three, ["i_a"], "L3")


@given(st.lists(st.integers(0, 30), min_size=5, max_size=5))
def test_precision_from_counts_is_the_ap_of_the_list(counts):
    counts = sorted(counts)
    labels: list[int] = []
    for j, fp in enumerate(counts):
        labels += [0] * (fp - (counts[j - 1] if j else 0)) + [1]
    scores = -np.arange(len(labels), dtype=float)
    trapezoid, vlfeat = precision_from_counts(np.array(counts)[:, None])
    assert trapezoid[0] == pytest.approx(average_precision(scores, labels), abs=1e-12)
    assert vlfeat[0] == pytest.approx(average_precision_vlfeat(scores, labels), abs=1e-12)


@pytest.mark.parametrize("metric", ["L2", "L1"])
def test_count_nearer_is_brute_force_with_ties(metric):
    rng = np.random.default_rng(3)
    queries, negatives = (rng.integers(0, 3, (n, 3)).astype(np.float32) * np.float32(0.1) for n in (7, 1300))
    full = cdist(queries.astype(float), negatives.astype(float), SCIPY[metric])
    thresholds = full[:, rng.integers(0, 1300, 15)]  # every threshold is tied with many negatives
    check_counts(queries, negatives, thresholds, metric)
    check_counts(queries, negatives, thresholds, metric, rng.random(1300) < 0.7)


def hard_to_tell_apart(count, dim):
    """Unit vectors with zero rows, duplicates and rows that differ in the last bit."""
    vectors = np.random.default_rng(4).standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[::90] = 0.0
    vectors[200:300] = vectors[:100]
    vectors[300:600] = np.nextafter(vectors[:300], np.float32(1.0))
    return vectors


@pytest.mark.parametrize("size", [1e-20, 1.0, 1000.0, 1e19])  # squares vanish, or overflow
@pytest.mark.parametrize("metric", ["L2", "L1"])
def test_count_nearer_of_unit_vectors_zero_rows_and_near_ties(metric, size):
    negatives = hard_to_tell_apart(900, 32) * np.float32(size)
    queries = negatives[[0, 1, 5, 301, 700]]
    full = cdist(queries.astype(float), negatives.astype(float), SCIPY[metric])
    thresholds = np.sort(full, axis=1)[:, [0, 1, 2, 3, 100, 200, 898, 899]]
    check_counts(queries, negatives, thresholds, metric, np.arange(900) % 7 != 3)
    check_counts(queries, negatives, thresholds + size, metric)
    check_counts(queries, negatives[:0], thresholds, metric)


def check_counts(queries, negatives, thresholds, metric, counted=None):
    full = cdist(queries.astype(float), negatives.astype(float), SCIPY[metric])
    full = full if counted is None else full[:, counted]
    below, at_most = count_nearer(queries, negatives, thresholds, metric, counted)
    for k, size in enumerate(POOL_SIZES):
        part = full[:, None, : size - 5]
        np.testing.assert_array_equal(below[:, :, k], (part < thresholds[:, :, None]).sum(2))
        np.testing.assert_array_equal(at_most[:, :, k], (part <= thresholds[:, :, None]).sum(2))


@pytest.mark.parametrize("size", [1e-20, 1.0])  # squares vanish
@pytest.mark.parametrize("metric", ["L2", "L1"])
def test_nearest_of_duplicates_near_ties_and_zero_rows(metric, size):
    targets = hard_to_tell_apart(700, 64) * np.float32(size)
    queries = np.concatenate([np.random.default_rng(5).permutation(targets), (targets[:50] + targets[50:100]) / 2])
    full = cdist(queries.astype(float), targets.astype(float), SCIPY[metric])
    index, distance = nearest(queries, targets, metric)
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_array_equal(distance, full.min(1))


def small_set(names=("i_a", "v_b", "v_c"), n=40, noise=0.3, seed=0, dim=8):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in names:
        base = rng.standard_normal((n, dim))
        arrays[name] = np.stack([base, *(base + noise * rng.standard_normal((n, dim)) for _ in range(15))])
    return from_arrays(arrays)


def test_constant_descriptors_show_the_tie_rules():
    constant = from_arrays({n: np.ones((16, 20, 4)) for n in ("i_a", "v_b")})
    counts = {"i_a": 20, "v_b": 20}
    table = score_verification(constant, draw_verification(("i_a", "v_b"), counts, 1000))
    cell = table["e"]["inter"]
    assert cell["imbalanced_ap"] == pytest.approx(0.0884, abs=2e-3)  # negatives first: pessimistic
    assert cell["tie_share"] == 1.0
    assert cell["imbalanced_ap_tie_neutral"] > 0.5
    scores = score_matching(constant, ("i_a",))
    assert scores["i_a"]["h"]["success"] == [1 / 20] * 5
    low = {n: np.zeros(20, bool) for n in counts}
    found = score_retrieval(constant, draw_retrieval(("i_a", "v_b"), counts, low, 10))
    assert found.headline() == 1.0  # views first: optimistic
    assert found.tie_share == 1.0
    assert found.headline("ap_tie_neutral") < 0.8


def test_one_sequence_has_no_negatives_elsewhere():
    one = small_set(("i_a",))
    counts = {"i_a": 40}
    table = score_verification(one, draw_verification(("i_a",), counts, 200))
    assert table["e"]["inter"] is None
    assert table["e"]["intra"]["imbalanced_ap"] > 0.5
    assert verification_headline(table) is None
    task = draw_retrieval(("i_a",), counts, {"i_a": np.zeros(40, bool)}, 10)
    assert score_retrieval(one, task) is None


def test_a_query_without_distractors_is_not_scored():
    lists = RetrievalTask(
        PatchList(("i_a", "v_b"), np.array([0, 1]), np.array([0, 0])),
        PatchList(("i_a", "v_b"), np.array([0]), np.array([1])),
    )
    assert score_retrieval(small_set(("i_a", "v_b")), lists) is None  # i_a's only distractor is its own


def test_article_mean_weighs_both_kinds_equally():
    scores = score_matching(small_set(), ("i_a", "v_b", "v_c"))
    parts = [headline({n: scores[n] for n in names}, "ap_vl") for names in (("i_a",), ("v_b", "v_c"))]
    assert article_headline(scores) == pytest.approx(np.mean(parts))
    assert article_headline({"i_a": scores["i_a"]}) is None


def test_identity_matching_of_noise_and_of_copies():
    rng = np.random.default_rng(5)
    a = rng.standard_normal((200, 16)).astype(np.float32)
    assert identity_matching(a, a) == {"ap": 1.0, "ap_vl": 1.0, "success": 1.0}
    assert identity_matching(a, rng.standard_normal((200, 16)).astype(np.float32))["success"] < 0.05


def test_verification_scores_of_perfect_distances():
    near, far = np.full(50, 0.1, np.float32), np.full(50, 0.9, np.float32)
    cell = verification_scores(near, far)
    assert cell["imbalanced_ap"] == cell["balanced_auc"] == cell["imbalanced_ap_vl"] == 1.0
    assert verification_scores(near, near)["tie_share"] == 1.0
    nothing = verification_scores(near[:4], far[:4])  # a fifth of four pairs is none
    assert nothing["imbalanced_ap"] == nothing["imbalanced_ap_vl"] == nothing["tie_share"] == 0.0
    assert nothing["balanced_auc"] == 1.0


@given(seed=st.integers(0, 10**6), count=st.integers(5, 60), values=st.integers(1, 30))
@settings(max_examples=60)
def test_verification_scores_are_those_of_the_ranked_lists(seed, count, values):
    rng = np.random.default_rng(seed)
    positive, negative = (rng.integers(0, values, count).astype(np.float32) for _ in range(2))
    few = positive[: count // 5]
    cell = verification_scores(positive, negative)
    after = -np.concatenate([negative, few]), np.arange(count + len(few)) >= count
    before = -np.concatenate([few, negative]), np.arange(count + len(few)) < len(few)
    assert cell["imbalanced_ap"] == pytest.approx(average_precision(*after), abs=1e-9)
    assert cell["imbalanced_ap_vl"] == pytest.approx(average_precision_vlfeat(*before), abs=1e-9)
    neutral = (average_precision(*after) + average_precision(*before)) / 2
    assert cell["imbalanced_ap_tie_neutral"] == pytest.approx(neutral, abs=1e-9)
    every = -np.concatenate([negative, positive]), np.arange(2 * count) >= count
    assert cell["balanced_auc"] == pytest.approx(roc_auc(*every), abs=1e-9)
    share = np.isin(few, negative).sum() + np.isin(negative, few).sum()
    assert cell["tie_share"] == pytest.approx(share / (count + len(few)))


def test_whitening_makes_the_training_set_white_and_rows_unit():
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((2000, 6)) * [5, 3, 1, 1, 1, 1]).astype(np.float32)
    matrix, mean = energy_clipped_zca(x, 0.0)
    white = (x - mean) @ matrix
    np.testing.assert_allclose(white.T @ white / len(x), np.eye(6), atol=1e-3)
    raw = small_set()
    for result in (
        pcapl(raw, ["i_a", "v_b"], ["v_c"]),
        pcapl(raw, ["i_a", "v_b"], ["v_c"], train_mean=True),
        article_plus(raw, ["i_a", "v_b"], ["v_c"], 0.25),
    ):
        assert result.names == ("v_c",)
        np.testing.assert_allclose(np.linalg.norm(result.data, axis=1), 1.0, atol=1e-5)
    with pytest.raises(DataError, match="training sequences"):
        pcapl(raw, [], ["v_c"])
