"""Labels of keypoints against a plane whose homographies are known, and the fit against labels that follow a rule."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import train.cli
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.matchability import Matchability
from train.matchability import labels as labelling
from train.matchability.command import FitSettings, fit, negative_log_likelihood, order_quality
from train.matchability.labels import Labels, label_model, right_matches
from train.stores.densify import open_views

from ..stores.conftest import textures  # noqa: F401  # a fixture of the next
from ..stores.test_densify import HEIGHT, HOMOGRAPHIES, WIDTH, _transfer, model  # noqa: F401  # a fixture


@pytest.mark.parametrize("thresholds", labelling.THRESHOLDS)
def test_labels_are_what_the_plane_says(model: Path, thresholds: tuple[float, float]) -> None:  # noqa: F811
    views = open_views(model / "images", model / "sparse")
    detected = [labelling._detect(view, *thresholds) for view in views[:2]]
    between = HOMOGRAPHIES[1] @ np.linalg.inv(HOMOGRAPHIES[0])
    carried = _transfer(between, detected[0].xy)
    rows = right_matches(views[:2], detected)
    error = np.linalg.norm(carried[rows[:, 0]] - detected[1].xy[rows[:, 1]], axis=1)
    assert len(rows) > 60
    # What lies on the epipolar line at a likely depth by chance is rare.
    assert (error < 3.0).mean() > 0.95
    every = labelling._mutual(detected[0].descs, detected[1].descs)
    wrong = np.linalg.norm(carried[every[:, 0]] - detected[1].xy[every[:, 1]], axis=1) > 40.0
    assert wrong.any()
    kept = set(map(tuple, rows.tolist()))
    assert sum(tuple(row) in kept for row in every[wrong].tolist()) <= 0.1 * wrong.sum()
    inside = ((carried > 1) & (carried < [WIDTH - 2, HEIGHT - 2])).all(axis=1)
    outside = ((carried < -1) | (carried > [WIDTH, HEIGHT])).any(axis=1)
    seen = labelling._in_sight(views[0], views[1], detected[0])
    assert seen[inside].all()
    assert not seen[outside].any()


def test_labels_of_a_model(model: Path) -> None:  # noqa: F811
    one, again = (label_model(model / "images", model / "sparse", 0.002, 10.0, 0) for _ in range(2))
    assert len(one) == 3
    for found, other in zip(one, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
        assert found.patches.shape == (len(found.sigma), 2, 16, 16)
        assert ((found.seen >= 1) & (found.seen <= 2) & (found.right <= found.seen)).all()
        assert 0.05 < found.right.sum() / found.seen.sum() < 0.95
    with pytest.raises(DataError, match="COLMAP"):
        label_model(model / "images", model / "images", 0.002, 10.0, 0)


def _by_contrast(count: int, seed: int) -> Labels:
    """Keypoints that are matched when their patch has contrast, in both of two photographs."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(count, generator=generator)
    noise = torch.randn(count, 2, 16, 16, generator=generator) * (2 + 60 * strength)[:, None, None, None]
    right = 2.0 * (strength > 0.6)
    return Labels((128 + noise).clamp(0, 255).byte(), torch.full((count,), 2.0), right, torch.full((count,), 2.0))


def test_the_fit_finds_the_rule_and_repeats_itself() -> None:
    labels = [_by_contrast(1500, seed) for seed in range(2)]
    settings = FitSettings(steps=150, batch=256, seed=3)
    network, again = fit(labels, settings), fit(labels, settings)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in network.state_dict().items())
    other = _by_contrast(300, 9)
    with torch.no_grad():
        scores = network(other.patches.float() / 255, other.sigma)
    assert order_quality(scores, other.right, other.seen) > 0.95
    assert abs(float(torch.sigmoid(scores).mean()) - 0.4) < 0.1
    for nothing in ([], [_by_contrast(50, 1)._replace(right=torch.zeros(50))]):
        with pytest.raises(DataError):
            fit(nothing, settings)


def test_loss_and_order() -> None:
    logits, right, seen = torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0])
    p = torch.sigmoid(logits)
    expected = -(2 * p[0].log() + (1 - p[0]).log() + (1 - p[1]).log()) / 4
    torch.testing.assert_close(negative_log_likelihood(logits, right, seen), expected)
    scores, right, seen = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 2.0])
    hits = [s for s, r in zip(scores, right, strict=True) for _ in range(int(r))]
    misses = [s for s, r, n in zip(scores, right, seen, strict=True) for _ in range(int(n - r))]
    pairs = [(h > m) + 0.5 * (h == m) for h in hits for m in misses]
    assert order_quality(scores, right, seen) == pytest.approx(float(sum(pairs)) / len(pairs))
    assert math.isnan(order_quality(scores, torch.zeros(3), seen))


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(model)
    flags = [str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "m.safetensors"), "--steps", "5"]
    assert train.cli.main(["matchability", *flags, "--hold-out", "two"]) == 0
    printed = capsys.readouterr().out
    assert "learnt from: a right match is above a wrong one" in printed
    assert "held out: " in printed
    assert train.cli.main(["matchability", *flags, "--hold-out", "three"]) == 2
    assert "no folder of this name" in capsys.readouterr().err
    assert train.cli.main(["matchability", str(tmp_path), "--out", str(tmp_path / "m.safetensors")]) == 1
    assert "images" in capsys.readouterr().err
    assert Matchability(tmp_path / "m.safetensors").metadata["steps"] == 5


def test_labels_are_kept(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["matchability", str(model), "--steps", "5", "--cache", str(tmp_path / "cache"), "--out"]
    assert train.cli.main([*flags, str(tmp_path / "a.safetensors")]) == 0
    monkeypatch.setattr("train.matchability.labels.choose_pairs", lambda *_: pytest.fail("labelled again"))
    assert train.cli.main([*flags, str(tmp_path / "b.safetensors")]) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(pytest.fail.Exception):
        train.cli.main([*flags, str(tmp_path / "c.safetensors"), "--seed", "1"])
