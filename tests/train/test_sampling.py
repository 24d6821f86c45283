from __future__ import annotations

import numpy as np
import pytest

from kornia_hardnet8.errors import DataError, UsageError
from train.sampling import (
    Sampling,
    dataset_sequence,
    distinct_draws,
    index_labels,
    index_views,
    plan_batch,
    plan_view_batch,
)


def _table(num_labels: int = 40, num_cams: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 2 to 5 patches in random file order, each patch from a random camera."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(num_labels) * 3 - 7, rng.integers(2, 6, num_labels))
    labels = rng.permutation(labels)
    return labels, rng.integers(0, num_cams, len(labels)) * 10


def test_index_groups_patches_and_cameras() -> None:
    labels = np.array([9, 4, 9, 7, 4, 4])
    cams = np.array([2, 0, 0, 2, 2, 2])
    index = index_labels(labels, cams)
    assert index.labels.tolist() == [4, 9]  # 7 has one patch
    assert index.num_single == 1
    assert index.patches.tolist() == [1, 4, 5, 0, 2]
    assert index.patch_starts.tolist() == [0, 3, 5]
    assert index.cams.tolist() == [0, 2]
    seen = [index.cam_labels[a:b].tolist() for a, b in zip(index.cam_starts, index.cam_starts[1:], strict=False)]
    assert seen == [[0, 1], [0, 1]]
    with pytest.raises(DataError, match="no label has two patches"):
        index_labels(np.arange(5), np.zeros(5))


@pytest.mark.parametrize("fewcams", [False, True])
@pytest.mark.parametrize("npos", [2, 3, 6])
def test_tuples_hold_distinct_labels_and_distinct_patches(npos: int, fewcams: bool) -> None:
    labels, cams = _table()
    index = index_labels(labels, cams)
    rows = plan_batch(index, Sampling(25, npos, fewcams), np.random.default_rng(1))
    assert rows.shape == (25, npos)
    found = labels[rows]
    assert (found == found[:, :1]).all()
    assert len(np.unique(found[:, 0])) == 25
    for row in rows:
        size = int((labels == labels[row[0]]).sum())
        assert len(np.unique(row)) == min(size, npos)


def test_draws_are_uniform_over_labels_and_over_pairs_of_patches() -> None:
    labels, cams = _table(10)
    index = index_labels(labels, cams)
    rng = np.random.default_rng(0)
    seen, pairs = np.zeros(40), np.zeros((len(labels), len(labels)))
    rounds = 4000
    for _ in range(rounds):
        rows = plan_batch(index, Sampling(4), rng)
        seen += np.bincount(labels[rows[:, 0]] + 7, minlength=40)
        np.add.at(pairs, (rows[:, 0], rows[:, 1]), 1)
    expected = rounds * 4 / 10
    assert np.abs(seen[seen > 0] - expected).max() < 5 * np.sqrt(expected)
    assert (seen > 0).sum() == 10
    for label in np.unique(labels):
        group = np.flatnonzero(labels == label)
        counts = pairs[np.ix_(group, group)]
        assert counts.diagonal().sum() == 0
        off = counts[~np.eye(len(group), dtype=bool)]
        assert np.abs(off - off.mean()).max() < 5 * np.sqrt(off.mean())


def test_batches_depend_on_the_generator_alone() -> None:
    labels, cams = _table()
    index = index_labels(labels, cams)
    for sampling in (Sampling(12), Sampling(12, fewcams=True), Sampling(12, fewcams=True, cams_in_batch=3)):
        first, again, other = (plan_batch(index, sampling, np.random.default_rng(seed)) for seed in (5, 5, 6))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_fewcams_takes_whole_cameras_until_the_batch_is_full() -> None:
    """Published behaviour: all labels of a camera before the next one; patches from anywhere."""
    labels = np.repeat(np.arange(60), 2)
    cams = np.repeat(np.arange(6), 20)  # ten labels a camera, none shared
    index = index_labels(labels, cams)
    rng = np.random.default_rng(0)
    last = []
    for _ in range(50):
        drawn = labels[plan_batch(index, Sampling(25, fewcams=True), rng)[:, 0]]
        counts = np.bincount(drawn // 10, minlength=6)
        assert sorted(counts[counts > 0].tolist()) == [5, 10, 10]
        last.append(np.sort(drawn[drawn // 10 == np.flatnonzero(counts == 5)[0]] % 10))
    # the last camera gives random labels, not its lowest
    assert set(np.concatenate(last).tolist()) == set(range(10))


def test_fewcams_patches_may_come_from_any_camera() -> None:
    labels, cams = _table(20, 4)
    index = index_labels(labels, cams)
    rng = np.random.default_rng(0)
    used = np.unique(np.concatenate([plan_batch(index, Sampling(15, fewcams=True), rng).ravel() for _ in range(200)]))
    assert np.array_equal(used, np.arange(len(labels)))


def test_cams_in_batch_spreads_labels_and_anchors_lie_in_their_camera() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(200), 4)
    cams = np.concatenate([rng.choice(5, 4, replace=False) for _ in range(200)])
    index = index_labels(labels, cams)
    rows = plan_batch(index, Sampling(40, fewcams=True, cams_in_batch=4), rng)
    counts = np.bincount(cams[rows[:, 0]], minlength=5)
    assert sorted(counts.tolist()) == [0, 10, 10, 10, 10]


@pytest.mark.parametrize("sampling", [Sampling(500), Sampling(500, fewcams=True), Sampling(500, 2, True, 3)])
def test_a_set_smaller_than_a_batch_gives_all_its_labels(sampling: Sampling) -> None:
    labels, cams = _table()
    rows = plan_batch(index_labels(labels, cams), sampling, np.random.default_rng(0))
    assert sorted(labels[rows[:, 0]].tolist()) == sorted(np.unique(labels).tolist())


def test_wrong_settings_are_refused() -> None:
    for wrong in (
        {"batch_size": 1},
        {"batch_size": 8, "npos": 1},
        {"batch_size": 8, "cams_in_batch": 3},
    ):
        with pytest.raises(UsageError):
            Sampling(**wrong)


def test_the_sequence_of_sets_follows_the_weights() -> None:
    drawn = dataset_sequence([1.0, 3.0, 0.0], 8000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=3)
    assert counts[2] == 0
    assert abs(counts[1] - 6000) < 5 * np.sqrt(8000 * 0.75 * 0.25)
    for wrong in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(UsageError):
            dataset_sequence(wrong, 3, np.random.default_rng(0))


def test_distinct_draws_are_uniform_over_ordered_choices() -> None:
    rng = np.random.default_rng(0)
    drawn = distinct_draws(np.full(24_000, 4), 3, rng)
    codes, counts = np.unique(drawn @ [16, 4, 1], return_counts=True)
    assert len(codes) == 24  # ordered choices of 3 of 4
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
    again = distinct_draws(np.array([2, 3, 7]), 5, rng)
    assert sorted(again[0, :2].tolist()) == sorted(again[0, 2:4].tolist()) == [0, 1]
    assert sorted(again[1, :3].tolist()) == [0, 1, 2]
    assert len(set(again[2].tolist())) == 5
    fixed = distinct_draws(np.array([5, 5]), 5, rng, given=np.array([[4], [2]]))
    assert fixed[:, 0].tolist() == [4, 2]
    assert sorted(fixed[0].tolist()) == [0, 1, 2, 3, 4]


def _views(hidden: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three views of 10, 20 and 5 places and 6 images each; some patches missing if ``hidden``."""
    labels, images, views = [], [], []
    for view, count in enumerate((10, 20, 5)):
        for image in range(6):
            labels += [100 * view + k for k in range(count)]
            images += [10 * view + image] * count
            views += [view] * count
    table = np.array([labels, images, views])
    keep = np.random.default_rng(0).random(table.shape[1]) < (0.6 if hidden else 1.0)
    return tuple(table[:, keep])


def test_a_view_batch_takes_two_images_of_one_view_after_the_other() -> None:
    labels, images, views = _views()
    index = index_views(labels, images, views)
    seen = set()
    for seed in range(60):
        rows = plan_view_batch(index, 25, 2, np.random.default_rng(seed))
        assert rows.shape == (25, 2)
        assert (labels[rows[:, 0]] == labels[rows[:, 1]]).all()
        assert len(np.unique(labels[rows[:, 0]])) == 25
        counts = []
        for view in range(3):
            own = rows[views[rows[:, 0]] == view]
            if len(own):
                pair = images[own]
                assert (pair == pair[0]).all()
                assert pair[0, 0] != pair[0, 1]
                seen.add(tuple(pair[0]))
                counts.append(len(own) == (10, 20, 5)[view])
        assert counts.count(False) <= 1  # all views but the last are taken whole
    assert len(seen) > 60  # of 90 ordered pairs


def test_hidden_patches_of_views_are_not_drawn() -> None:
    labels, images, views = _views(hidden=True)
    index = index_views(labels, images, views)
    for seed in range(20):
        rows = plan_view_batch(index, 12, 3, np.random.default_rng(seed))
        assert rows.min() >= 0
        assert (labels[rows] == labels[rows[:, :1]]).all()
        for row in rows:
            assert len(set(row.tolist())) >= 2
    with pytest.raises(DataError, match="no place is seen in two images"):
        index_views(np.arange(4), np.arange(4), np.zeros(4))


def test_a_view_batch_larger_than_the_set_takes_every_place_once() -> None:
    labels, images, views = _views()
    rows = plan_view_batch(index_views(labels, images, views), 500, 2, np.random.default_rng(0))
    assert sorted(labels[rows[:, 0]].tolist()) == sorted(np.unique(labels).tolist())
