"""Two pictures in one call: shifts that are known, what is drawn, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kornia.io import write_image
from torch import Tensor

from kornia_hardnet8 import HardNet8, HardNet8Feature, draw_matches, example_pair, match_pair
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.pair import PairMatches, read_image


@pytest.fixture(scope="module")
def feature() -> HardNet8Feature:
    return HardNet8Feature(150, upright=True, descriptor=HardNet8(True))


@pytest.fixture(scope="module")
def day() -> Tensor:
    return read_image(example_pair()[0])[:, 100:340, 100:420]


def test_a_shifted_window_matches_by_its_shift(feature: HardNet8Feature, day: Tensor) -> None:
    matches = match_pair(day[:, 7:220, 4:300], day[:, :213, :290], feature)
    assert len(matches.points0) == len(matches.points1) == len(matches.ratios) == len(matches.inliers) >= 50
    shift = matches.points1 - matches.points0
    right = (shift - torch.tensor([4.0, 7.0])).abs().amax(dim=1) < 0.5
    assert right.float().mean() > 0.9
    assert (matches.ratios <= 0.9).all()


def test_inliers_lie_on_the_epipolar_lines(feature: HardNet8Feature, day: Tensor) -> None:
    turned = torch.rot90(day, 1, (1, 2))
    upright = match_pair(day, turned, feature)
    assert upright.num_inliers < 15  # frames that point upward do not know the turned picture
    matches = match_pair(day, turned, HardNet8Feature(150))
    assert matches.fundamental is not None
    ones = torch.ones(len(matches.points0), 1)
    lines = torch.cat([matches.points0, ones], 1) @ matches.fundamental.T
    distance = (torch.cat([matches.points1, ones], 1) * lines).sum(1).abs() / lines[:, :2].norm(dim=1)
    assert matches.num_inliers >= 50
    assert (distance[matches.inliers] < 2).all()


def test_the_same_seed_gives_the_same_and_leaves_the_random_state(feature: HardNet8Feature, day: Tensor) -> None:
    state = torch.random.get_rng_state()
    one, two = (match_pair(day, day.flip(0), feature, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.inliers, two.inliers)


def test_pictures_without_keypoints_have_no_matches(feature: HardNet8Feature, day: Tensor) -> None:
    matches = match_pair(torch.zeros(1, 64, 64), day, feature)
    assert (matches.points0.shape, matches.ratios.shape, matches.num_inliers) == ((0, 2), (0,), 0)
    assert matches.fundamental is None


def test_what_is_drawn_runs_from_place_to_place() -> None:
    points0, points1 = torch.tensor([[5.0, 10.0], [0.0, 0.0]]), torch.tensor([[15.0, 10.0], [19.0, 29.0]])
    matches = PairMatches(points0, points1, torch.zeros(2), torch.tensor([True, False]), None)
    dark, small = torch.zeros(1, 30, 20), torch.zeros(3, 25, 20)
    drawn = draw_matches(dark, small, matches)
    assert (drawn.shape, drawn.dtype) == ((3, 30, 40), torch.uint8)
    assert (drawn[:, 26:, 20:] == 255).all()  # below the lower picture
    green = (drawn[1] > 60) & (drawn[0] < 60)
    assert green[10, 5:36].all()
    assert not green[12:, :20].any()
    rejected = draw_matches(dark, small, matches, rejected=True)
    assert (rejected[0, 0, 0] > 100) and (drawn[0, 0, 0] == 0)


def test_files_are_read_as_they_are_stored(tmp_path: Path, feature: HardNet8Feature, day: Tensor) -> None:
    write_image(tmp_path / "day.png", (day * 255).round().to(torch.uint8))
    torch.testing.assert_close(read_image(tmp_path / "day.png"), day, atol=1 / 500, rtol=0)
    assert match_pair(tmp_path / "day.png", day, feature).num_inliers > 100


def test_what_is_refused(tmp_path: Path, feature: HardNet8Feature, day: Tensor) -> None:
    with pytest.raises(MissingFileError, match=r"no\.jpg is not there"):
        match_pair(tmp_path / "no.jpg", day, feature)
    (tmp_path / "cut.jpg").write_bytes(example_pair()[0].read_bytes()[:40000])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be read"):
        match_pair(tmp_path / "cut.jpg", day, feature)
    with pytest.raises(UsageError, match="max_ratio"):
        match_pair(day, day, feature, max_ratio=0)
    with pytest.raises(UsageError, match="threshold_px"):
        match_pair(day, day, feature, threshold_px=0)
    with pytest.raises(DataError, match="divide by 255"):
        match_pair((day * 255).byte(), day, feature)
