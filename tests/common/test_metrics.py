from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.metrics import (
    FAILED_POSE,
    accuracy_curve,
    auc,
    average_precision,
    bootstrap_ci,
    evaluate_R_t,
    fpr95,
    fpr_at_recall,
    maa,
    maa_per_pair,
    max_error_deg,
    mma,
    quaternion_from_matrix,
)
from tests.official import pose_error_deg


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula, by hand."""
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


axes = st.tuples(*[st.floats(-1, 1, width=32)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1).map(np.array)
angles = st.floats(1e-3, math.pi - 1e-3)
errors_deg = st.lists(st.one_of(st.floats(0, 20), st.just(math.inf), st.just(math.nan), st.integers(0, 11)))


class TestPoseError:
    @given(axes, angles, axes, angles, axes)
    def test_angle_of_the_difference(self, axis, angle, other_axis, other, t):
        R_gt = rotation(other_axis, other)
        err_q, err_t = evaluate_R_t(R_gt, t, rotation(axis, angle) @ R_gt, -3.0 * t)
        assert err_q == pytest.approx(angle, abs=1e-6)
        assert err_t == pytest.approx(0.0, abs=1e-6)

    @given(axes, axes)
    def test_angle_between_translations_without_sign(self, a, b):
        cosine = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        _, err_t = evaluate_R_t(np.eye(3), a, np.eye(3), b)
        assert err_t == pytest.approx(np.arccos(min(cosine, 1.0)), abs=2e-7 if cosine < 0.999 else 1e-3)

    @pytest.mark.parametrize("place", range(4))
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite_is_a_failure(self, place, bad):
        values = [np.eye(3), np.ones(3), np.eye(3), np.ones(3)]
        values[place] = values[place].copy()
        values[place].flat[0] = bad
        assert evaluate_R_t(*values) == FAILED_POSE
        assert pose_error_deg(*values) == 180.0

    def test_larger_of_both_in_degrees(self):
        assert max_error_deg([[math.pi, 0.0], [0.1, 0.2]]).tolist() == [180.0, 0.2 * 180.0 / math.pi]
        assert np.isnan(max_error_deg([[math.nan, 0.1]])).all()
        R = rotation(np.array([0.0, 1.0, 0.0]), math.radians(7.0))
        assert pose_error_deg(R, [1, 0, 0], np.eye(3), [1, 0.01, 0]) == pytest.approx(7.0)

    def test_quaternion_of_a_bad_matrix(self):
        with pytest.raises(ValueError, match="3x3 or 4x4"):
            quaternion_from_matrix(np.eye(2))
        with pytest.raises(ValueError, match="NaN or infinity"):
            quaternion_from_matrix(np.full((3, 3), np.nan))


class TestAccuracy:
    @given(errors_deg, st.sampled_from([1, 5, 10, 20]))
    @example([5, 10, 20], 5)
    @example([5, 10, 20], 10)
    @example([5, 10, 20], 20)
    def test_mean_of_pairs_is_the_maa(self, errors, max_deg):
        # by hand: strictly below, but the last threshold of the histogram is closed
        last = max(max_deg, 10)
        shares = [
            np.mean([e < k or (e == k == last) for e in errors]) if errors else 0.0 for k in range(1, max_deg + 1)
        ]
        assert maa(errors, max_deg) == pytest.approx(np.mean(shares))
        if errors:
            assert maa_per_pair(errors, max_deg).mean() == pytest.approx(maa(errors, max_deg))

    @given(errors_deg)
    def test_a_failure_never_helps(self, errors):
        assert maa([*errors, math.inf]) <= maa(errors)
        assert maa([*errors, math.nan]) == maa([*errors, math.inf])
        assert (np.diff(accuracy_curve(errors)) >= 0).all()

    def test_wrong_threshold(self):
        with pytest.raises(ValueError, match="at least 1"):
            maa([1.0], 0)

    def test_area_under_the_recall_curve(self):
        assert auc([0.0, 0.0], [1, 3]) == [1.0, 1.0]
        assert auc([math.nan, math.inf], [1]) == [0.0]
        assert auc([], [5]) == [0.0]
        # errors 1 and 2 of 2: recall rises linearly to 1/2 at 1, to 1 at 2, stays until 4
        assert auc([2.0, 1.0], [4]) == [pytest.approx((0.25 + 0.75 + 2.0) / 4)]
        assert auc([1.0], [1.0]) == [0.0]

    def test_matching_accuracy(self):
        assert mma([0.5, 1.0, 2.5, math.inf, math.nan], [1, 2, 3]).tolist() == [0.4, 0.4, 0.6]
        assert mma([]).tolist() == [0.0] * 10


class TestRankings:
    def test_average_precision_by_hand(self):
        # precisions 1, 1, 1/2, 2/3 at recalls 0, 1/2, 1/2, 1
        assert average_precision([4, 3, 2], [1, 0, 1]) == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)
        assert average_precision([4, 3], [1, 1]) == 1.0
        assert average_precision([4, 3], [1, 1], num_positives=4) == 0.5
        assert average_precision([4, 3], [0, 0]) == 0.0
        assert average_precision([], []) == 0.0
        assert average_precision([-math.inf, 1.0], [1, 0]) == 0.0

    def test_average_precision_of_bad_input(self):
        with pytest.raises(ValueError, match="2 scores but 1 labels"):
            average_precision([1, 2], [1])
        with pytest.raises(ValueError, match="NaN"):
            average_precision([math.nan], [1])
        with pytest.raises(ValueError, match="holds 2 positives"):
            average_precision([1, 2], [1, 1], num_positives=1)

    @given(
        st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2),
        st.sampled_from([0.5, 0.95, 0.99, 1.0]),
    )
    def test_false_positive_rate_by_definition(self, pairs, recall):
        distances, labels = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
        got = fpr_at_recall(distances, labels, recall)
        if labels.all() or not labels.any():
            assert math.isnan(got)
            return
        accepted = [d for d in sorted(distances) if np.mean(distances[labels] <= d) >= recall - 1e-12]
        assert got == np.mean(distances[~labels] <= accepted[0])

    def test_95_percent_of_20(self):
        distances = [*range(20), 18.0, 18.5, 19.5]
        assert fpr95(distances, [1] * 20 + [0] * 3) == pytest.approx(1 / 3)  # the 19th of 20, at distance 18
        assert fpr_at_recall([*range(100), 54.5], [1] * 100 + [0], 0.55) == 0.0  # the 55th of 100, at distance 54

    def test_false_positive_rate_of_bad_input(self):
        assert fpr95([math.nan, 1.0, 2.0], [1, 0, 0]) == 1.0
        with pytest.raises(ValueError, match="recall"):
            fpr_at_recall([1.0, 2.0], [1, 0], 0.0)
        with pytest.raises(ValueError, match="1 distances but 2 labels"):
            fpr95([1.0], [1, 0])


class TestIntervals:
    def test_interval_of_a_mean(self):
        values = np.random.default_rng(0).normal(3.0, 1.0, 400)
        low, high = bootstrap_ci(values, seed=1)
        standard_error = values.std() / 20.0
        assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.15 * standard_error)
        assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.15 * standard_error)
        assert bootstrap_ci(values, seed=1) == (low, high)
        assert bootstrap_ci(values, seed=2) != (low, high)

    def test_blocks_do_not_change_the_interval(self, monkeypatch):
        values = np.random.default_rng(0).random(50)
        whole = bootstrap_ci(values)
        monkeypatch.setattr("common.metrics._RESAMPLE_BLOCK", 50 * 7)
        assert bootstrap_ci(values) == whole

    def test_few_values(self):
        assert all(math.isnan(v) for v in bootstrap_ci([]))
        assert bootstrap_ci([0.25]) == (0.25, 0.25)
        with pytest.raises(ValueError, match="failures"):
            bootstrap_ci([1.0, math.inf])
