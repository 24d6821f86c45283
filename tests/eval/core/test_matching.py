from __future__ import annotations

import kornia.feature as KF
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.core.matching import (
    MatcherSettings,
    deduplicate_matches,
    finite_rows,
    match_ratios,
    mutual_nn,
    official_match,
)
from kornia_hardnet8.errors import UsageError


def two_views(n0: int = 120, n1: int = 150, dim: int = 16, noise: float = 0.15, seed: int = 0) -> list[torch.Tensor]:
    """Descriptors and keypoints of two images that share most of their points, in another order."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(max(n0, n1), dim, generator=generator)
    descs0 = both[torch.randperm(len(both), generator=generator)[:n0]]
    descs1 = both[torch.randperm(len(both), generator=generator)[:n1]]
    descs0 = descs0 + noise * torch.randn(descs0.shape, generator=generator)
    descs1 = descs1 + noise * torch.randn(descs1.shape, generator=generator)
    kpts = [torch.rand(n, 2, generator=generator, dtype=torch.float64) * 1000 for n in (n0, n1)]
    return [descs0, descs1, *kpts]


def as_set(matches: torch.Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, matches.tolist()))


class TestMutual:
    @pytest.mark.parametrize("max_ratio", [0.5, 0.6, 0.8, 0.95])
    def test_same_as_kornia(self, max_ratio):
        descs0, descs1, *_ = two_views(noise=0.4)
        ratios, matches = KF.match_smnn(descs0, descs1, max_ratio)
        got = mutual_nn(descs0, descs1, max_ratio)
        order = matches[:, 0].argsort()
        assert 0 < len(matches) < 120
        assert torch.equal(got.matches, matches[order])
        torch.testing.assert_close(got.ratios, ratios[order, 0], rtol=1e-4, atol=1e-5)

    def test_without_ratio_same_as_kornia(self):
        descs0, descs1, *_ = two_views(noise=0.4)
        _, matches = KF.match_mnn(descs0, descs1)
        assert as_set(mutual_nn(descs0, descs1).matches) == as_set(matches)

    @settings(max_examples=30)
    @given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20), st.floats(0.2, 1.0))
    def test_a_threshold_can_wait(self, seed, n0, n1, max_ratio):
        descs0, descs1, *_ = two_views(n0, n1, 4, 0.5, seed)
        found = mutual_nn(descs0, descs1)
        early, late = mutual_nn(descs0, descs1, max_ratio), found.below(max_ratio)
        assert torch.equal(early.matches, late.matches)
        assert torch.equal(early.ratios, late.ratios)
        swapped = mutual_nn(descs1, descs0)
        assert as_set(found.matches.flip(1)) == as_set(swapped.matches)
        assert found.ratios.sort().values.tolist() == swapped.ratios.sort().values.tolist()

    def test_ratios_by_hand(self):
        descs0 = torch.tensor([[0.0], [10.0]])
        descs1 = torch.tensor([[1.0], [9.5], [4.0]])
        ratios, matches = mutual_nn(descs0, descs1)
        # image 0: 1/4 and 0.5/6; image 1: 1/9 and 0.5/9.5
        assert matches.tolist() == [[0, 0], [1, 1]]
        assert ratios.tolist() == pytest.approx([1 / 4, 0.5 / 6])

    def test_bound_is_inclusive(self):
        descs0 = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
        descs1 = torch.tensor([[4.0, 0.0], [5.0, 0.0], [100.0, 0.0]])
        assert [0, 0] in mutual_nn(descs0, descs1, 0.8).matches.tolist()
        assert [0, 0] not in mutual_nn(descs0, descs1, 0.79).matches.tolist()

    def test_a_ratio_that_says_nothing_is_1(self):
        same = torch.ones(3, 4)
        found = mutual_nn(same, same)
        assert found.matches.tolist() == [[0, 0]]
        assert found.ratios.tolist() == [1.0]
        assert mutual_nn(same[:1], same[:1]).ratios.tolist() == [1.0]
        assert len(mutual_nn(same[:1], same[:1], 0.99).matches) == 0

    @pytest.mark.parametrize(("n0", "n1"), [(0, 0), (0, 5), (5, 0)])
    def test_empty(self, n0, n1):
        ratios, matches = mutual_nn(torch.zeros(n0, 8), torch.zeros(n1, 8), 0.9)
        assert ratios.shape == (0,)
        assert matches.shape == (0, 2)
        assert matches.dtype == torch.int64

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_bad_row_never_matches_and_hurts_nobody(self, bad):
        descs0, descs1, *_ = two_views(20, 20)
        expected = mutual_nn(descs0, descs1[1:])
        descs0 = torch.cat([descs0, torch.zeros(1, 16)])
        descs0[20, 3] = bad
        descs1[0, 0] = bad
        got = mutual_nn(descs0, descs1)
        assert torch.equal(got.matches - torch.tensor([0, 1]), expected.matches)
        assert torch.equal(got.ratios, expected.ratios)
        assert len(mutual_nn(torch.full((3, 4), bad), torch.ones(3, 4)).matches) == 0

    def test_rows_are_finite_though_their_sum_is_not(self):
        descs = torch.full((3, 16), 3e38)
        for bad, expected in ((3e38, [0, 1, 2]), (float("-inf"), [0, 2]), (float("nan"), [0, 2])):
            descs[1, 5] = bad
            kept, rows = finite_rows(descs)
            assert rows.tolist() == expected
            assert torch.equal(kept, descs[rows])
        descs[0, 0], descs[1, 5] = float("inf"), float("-inf")
        assert finite_rows(descs)[1].tolist() == [2]

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"\(3, 8\) and \(3, 4\)"):
            mutual_nn(torch.zeros(3, 8), torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"must be \(N, D\)"):
            mutual_nn(torch.zeros(8), torch.zeros(3, 8))


def plain_official(descs0, descs1, kpts0, kpts1, threshold: float) -> list[list[int]]:
    """Mutual check, pairwise ratio both ways, one match per four coordinates, sorted by them: loops, no tensors."""
    d0, d1 = descs0.double(), descs1.double()
    table = torch.cdist(d0, d1, compute_mode="donot_use_mm_for_euclid_dist").tolist()

    def choices(rows: list[list[float]]) -> dict[int, int]:
        chosen = {}
        for i, row in enumerate(rows):
            order = sorted(range(len(row)), key=lambda j: (row[j], j))
            if len(order) > 1 and row[order[0]] <= threshold * row[order[1]]:
                chosen[i] = order[0]
        return chosen

    forward = choices(table)
    backward = choices([list(column) for column in zip(*table, strict=True)])
    unique: dict[tuple[float, ...], list[int]] = {}
    for i, j in forward.items():
        if backward.get(j) == i:
            unique.setdefault((*kpts0[i].tolist(), *kpts1[j].tolist()), [i, j])
    return [unique[key] for key in sorted(unique)]


class TestOfficial:
    @settings(max_examples=40)
    @given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
    def test_default_by_definition(self, seed, n0, n1, threshold):
        descs0, descs1, kpts0, kpts1 = two_views(n0, n1, 3, 0.5, seed)
        kpts0, kpts1 = (kpts0 / 300).round(), (kpts1 / 300).round()  # many keypoints at one place
        got = official_match(descs0, descs1, kpts0, kpts1, MatcherSettings(threshold=threshold))
        assert got.tolist() == plain_official(descs0, descs1, kpts0, kpts1, threshold)

    def test_agrees_with_mutual_nn(self):
        descs0, descs1, kpts0, kpts1 = two_views(noise=0.5)
        got = official_match(descs0, descs1, kpts0, kpts1, MatcherSettings(threshold=0.8))
        assert 0 < len(got) < 120
        assert as_set(got) == as_set(mutual_nn(descs0, descs1, 0.8).matches)

    def test_compat_agrees_where_no_keypoint_repeats(self):
        views = two_views(noise=0.5)
        for step in ("none", "both", "any"):
            new, old = (official_match(*views, MatcherSettings(symmetric=step, compat=c)) for c in (False, True))
            assert torch.equal(new, old)

    def test_what_compat_loses(self):
        # one mutual match, and no other descriptor of image 1 passes the ratio test
        descs0 = torch.tensor([[0.0, 0.0], [50.0, 0.0], [52.0, 0.0]])
        descs1 = torch.tensor([[0.0, 1.0], [90.0, 0.0], [92.0, 0.0]])
        kpts = torch.arange(6.0).reshape(3, 2)
        both = MatcherSettings(threshold=0.5)
        assert official_match(descs0, descs1, kpts, kpts, both).tolist() == [[0, 0]]
        assert official_match(descs0, descs1, kpts, kpts, MatcherSettings(threshold=0.5, compat=True)).tolist() == []
        # nothing forward, something backward
        descs1 = torch.tensor([[0.0, 1.0], [0.0, -1.5], [90.0, 0.0]])
        for compat, expected in ((False, [[0, 0], [0, 1]]), (True, [])):
            settings_any = MatcherSettings(threshold=0.5, symmetric="any", compat=compat)
            assert official_match(descs0, descs1, kpts, kpts, settings_any).tolist() == expected

    def test_swapped_images_give_swapped_matches(self):
        descs0, descs1, kpts0, kpts1 = two_views(noise=0.5)
        for rule in ("none", "snn_ratio_pairwise", "snn_ratio_vs_last", "fginn_ratio_pairwise"):
            options = MatcherSettings(filter=rule, num_nn=2, threshold=0.9, fginn_radius=30.0)
            there = official_match(descs0, descs1, kpts0, kpts1, options)
            back = official_match(descs1, descs0, kpts1, kpts0, options)
            assert len(there) > 0
            assert as_set(there) == as_set(back.flip(1))

    def test_empty_and_bad_rows(self):
        descs0, descs1, kpts0, kpts1 = two_views(10, 10)
        assert official_match(descs0[:0], descs1, kpts0[:0], kpts1).shape == (0, 2)
        assert official_match(descs0, descs1[:0], kpts0, kpts1[:0]).shape == (0, 2)
        expected = official_match(descs0[1:], descs1, kpts0[1:], kpts1)
        descs0[0, 0] = float("nan")
        got = official_match(descs0, descs1, kpts0, kpts1)
        assert torch.equal(got - torch.tensor([1, 0]), expected)

    def test_wrong_input(self):
        descs0, descs1, kpts0, kpts1 = two_views(10, 10)
        with pytest.raises(ValueError, match="image 1"):
            official_match(descs0, descs1, kpts0, kpts1[1:])
        with pytest.raises(ValueError, match=r"\(10, 16\) and \(10, 8\)"):
            official_match(descs0, descs1[:, :8], kpts0, kpts1)

    def test_deduplication_keeps_float64_apart(self):
        kpts = torch.tensor([[1.0, 2.0], [1.0, 2.0 + 1e-12]], dtype=torch.float64)
        assert len(deduplicate_matches(torch.tensor([[0, 0], [1, 0]]), kpts, kpts)) == 2
        assert deduplicate_matches(torch.zeros(0, 2, dtype=torch.int64), kpts, kpts).shape == (0, 2)


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"distance": "l3"}, "unknown distance 'l3': l2, l1, hamming"),
            ({"filter": "snn_ratio"}, "unknown filter 'snn_ratio'.*snn_ratio_pairwise"),
            ({"symmetric": "either"}, "unknown symmetric step 'either'"),
            ({"num_nn": 0}, "num_nn must be at least 1"),
            ({"threshold": None}, "needs a threshold"),
            ({"threshold": 1.02}, "needs a threshold"),
            ({"filter": "fginn_ratio_pairwise"}, "needs a fginn_radius"),
            ({"filter": "fginn_ratio_pairwise", "fginn_radius": 501}, "needs a fginn_radius"),
            ({"max_distance": 0}, "must be positive"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(UsageError, match=message):
            MatcherSettings(**options)

    def official(self, **changes):
        matcher = {
            "method": "nn",
            "distance": "L2",
            "flann": False,
            "num_nn": 1,
            "filtering": {"type": "snn_ratio_pairwise", "threshold": 0.9},
            "symmetric": {"enabled": True, "reduce": "both"},
        }
        return {**matcher, **changes}

    def test_from_official(self):
        assert MatcherSettings.from_official(self.official()) == MatcherSettings()
        cap = MatcherSettings.from_official(self.official(descriptor_distance_filter={"threshold": 0.7}))
        assert cap == MatcherSettings(max_distance=0.7)
        off = MatcherSettings.from_official(self.official(symmetric={"enabled": False}))
        assert off.symmetric == "none"
        l1 = self.official(distance="l1", flann=True)
        assert MatcherSettings.from_official(l1).distance == "l1"
        assert MatcherSettings.from_official(l1, compat=True).distance == "l2"

    def test_from_official_refused(self):
        for changes, message in (
            ({"filtering": {"type": "snn_ratio_pairwise"}}, "needs a threshold"),
            ({"symmetric": {"enabled": True}}, "lack the key 'reduce'"),
            ({"symmetric": {"enabled": True, "reduce": "none"}}, "unknown symmetric step"),
            ({"method": "NN"}, "unknown matcher method"),
            ({"distance": "hamming", "flann": True}, "flann"),
        ):
            with pytest.raises(UsageError, match=message):
                MatcherSettings.from_official(self.official(**changes))

    def test_round_trip(self):
        options = MatcherSettings(filter="fginn_ratio_pairwise", fginn_radius=10.0, max_distance=0.7)
        assert MatcherSettings(**options.to_dict()) == options


def test_match_ratios_are_those_of_the_ratio_test() -> None:
    generator = torch.Generator().manual_seed(3)
    descs0, descs1 = torch.rand(30, 8, generator=generator), torch.rand(40, 8, generator=generator)
    descs0[4, 2] = torch.nan  # never matched, and in nobody's way
    mutual = mutual_nn(descs0, descs1)
    torch.testing.assert_close(match_ratios(descs0, descs1, mutual.matches), mutual.ratios)
    distances = torch.cdist(descs0[:1].double(), descs1.double())[0]
    order = distances.argsort()
    pairs = torch.tensor([[0, int(order[0])], [0, int(order[1])]])
    expected = [float(distances[order[0]] / distances[order[1]]), 1.0]  # the second one is not the nearest
    assert match_ratios(descs0, descs1, pairs, symmetric=False).tolist() == pytest.approx(expected, rel=1e-5)
    assert match_ratios(descs0, descs1[:1], torch.tensor([[0, 0]])).tolist() == [1.0]
    assert match_ratios(descs0, descs1, torch.zeros(0, 2, dtype=torch.long)).tolist() == []
