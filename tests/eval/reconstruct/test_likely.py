from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.cache import Cache
from eval.cli import main
from eval.reconstruct.likely import choose, likely_pairs, similarities
from eval.reconstruct.pairs import exhaustive_pairs

PLACES, VIEWS = 6, 10


def photographs(seed: int = 0) -> list[torch.Tensor]:
    """Descriptors of views, place by place: half of the place, with noise, the others of nothing or of one sky."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sky = draw(20, 64)
    images = []
    for _place in range(PLACES):
        shown = draw(120, 64)
        for _view in range(VIEWS):
            seen = shown[torch.randperm(120, generator=generator)[:60]] + 0.6 * draw(60, 64)
            elsewhere = torch.cat([draw(40, 64), sky + 0.1 * draw(20, 64)])
            images.append(F.normalize(torch.cat([seen, elsewhere])))
    return images


def test_views_of_a_place_are_more_similar_than_those_of_others() -> None:
    found = similarities(photographs())
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    chosen = choose(found.numpy(), VIEWS - 1)
    place = np.arange(PLACES * VIEWS) // VIEWS
    same = place[:, None] == place[None]
    assert (chosen & same).sum() >= 0.98 * (same.sum() - len(place))
    # what all places show alone, as the sky, says nothing
    assert found.numpy()[same].sum() > 20 * found.numpy()[~same].sum() * same.sum() / (~same).sum()


def test_images_of_few_none_or_broken_descriptors() -> None:
    images = photographs()
    images[3] = images[3][:7]
    images[4] = images[4][:0]
    images[5] = torch.full((100, 64), float("nan"))
    found = similarities(images)
    assert torch.isfinite(found).all()
    assert (found[4] == 0).all() and (found[5] == 0).all()
    assert choose(found.numpy(), 5)[4].sum() == 0
    assert (similarities([torch.zeros(0, 64)] * 3) == 0).all()


def test_a_pair_is_chosen_by_either_image() -> None:
    counts = np.array([[0, 5, 4, 0], [5, 0, 3, 2], [4, 3, 0, 0], [0, 2, 0, 0]], np.float32)
    chosen = choose(counts, 1)
    assert [tuple(pair) for pair in np.argwhere(np.triu(chosen))] == [(0, 1), (0, 2), (1, 3)]
    assert np.array_equal(chosen, chosen.T)
    assert np.array_equal(choose(counts, 4), counts > 0)


def test_the_command_matches_each_image_with_as_many_as_asked_for(yard, tmp_path: Path) -> None:
    words = ["reconstruct", str(yard.images), "--desc", "rootsift", "--keypoints", "600", "--cameras", "single"]
    out = tmp_path / "model"
    assert main([*words, "--out", str(out), "--no-picture", "--num-matched", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["num_matched"] == 2
    assert 6 <= summary["pairs"]["matched"] <= 12  # of 15
    assert summary["models"][0]["registered"] == 6


def test_all_pairs_where_there_are_no_more_others() -> None:
    assert likely_pairs(["a", "b", "c"], {}, 2, Cache(None)) == exhaustive_pairs(["a", "b", "c"])


def test_wrong_numbers(yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reconstruct", str(yard.images), "--out", str(tmp_path / "model")]
    assert main([*words, "--num-matched", "-1"]) == 2
    assert "each image needs 1 or more others to match, or 0 for all, got -1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--num-matched", "3", "--pairs", "pairs.txt"])
    assert "not allowed with" in capsys.readouterr().err
