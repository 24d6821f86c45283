from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kornia_hardnet8.errors import UsageError
from tests.training_vectors import decode
from train.augment import (
    PRESETS,
    VIEW_PRESETS,
    Augmentation,
    augment,
    center_crop,
    get_augmentation,
    inverse_affine,
    resample,
)


def _ramps(side: int = 64, count: int = 1) -> Tensor:
    """Patches (2 * count, side, side): x positions, then y positions, in pixels."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y]).repeat(count, 1, 1).to(torch.uint8)


def _run(patches: Tensor, settings: Augmentation, npos: int = 2, crop: float = 1.0, size: int = 32, seed: int = 0):
    return augment(patches, npos, crop, size, settings, torch.Generator().manual_seed(seed))


def test_without_change_a_patch_of_the_right_size_stays_as_it_is() -> None:
    patches = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = _run(patches, PRESETS["none"])
    assert out.shape == (4, 1, 32, 32)
    torch.testing.assert_close(out[:, 0], patches.float(), atol=1e-3, rtol=0)


def test_the_plain_patch_is_the_middle_of_the_stored_one() -> None:
    patches = torch.randint(0, 256, (2, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(center_crop(patches, 1.5, 32)[:, 0], patches[:, 8:40, 8:40].float(), atol=1e-3, rtol=0)


def test_halving_reads_between_the_pixels() -> None:
    out = center_crop(_ramps(64), 1.0, 32)[:, 0]
    inner = slice(2, -2)
    expected = 2.0 * torch.arange(32) + 0.5
    torch.testing.assert_close(out[0, 5, inner], expected[inner], atol=1e-3, rtol=0)
    torch.testing.assert_close(out[1, inner, 5], expected[inner], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("side", "crop"), [(65, 1.0), (97, 1.5), (65, 1.25), (64, 1.0)])
def test_halving_an_odd_side_leaves_everything_in_its_place(side: int, crop: float) -> None:
    """Output pixel j reads the stored position c + (2 j + 1 - S) / S * side / 2 / crop, c the stored centre."""
    out = center_crop(_ramps(side), crop, 32)[:, 0]
    expected = (side - 1) / 2 + ((2.0 * torch.arange(32) + 1) / 32 - 1) * side / 2 / crop
    inner = slice(2, -2)
    torch.testing.assert_close(out[0, 5, inner], expected[inner], atol=2e-3, rtol=0)
    torch.testing.assert_close(out[1, inner, 5], expected[inner], atol=2e-3, rtol=0)
    # a pattern that is its own mirror image stays so
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 128, (1, side, side), dtype=torch.uint8, generator=generator)
    symmetric = center_crop(noise + noise.flip(1, 2), crop, 32)[0, 0]
    torch.testing.assert_close(symmetric, symmetric.flip(0, 1), atol=2e-3, rtol=0)


def test_halving_an_odd_side_keeps_a_constant_at_its_border() -> None:
    flat = torch.full((1, 65, 65), 77, dtype=torch.uint8)
    torch.testing.assert_close(center_crop(flat, 1.0, 32), torch.full((1, 1, 32, 32), 77.0))


@pytest.mark.parametrize(("order", "wanted"), [(4, 4), (8, 8), (1, 1)])
def test_symmetries_are_exact_shared_by_a_tuple_and_all_drawn(order: int, wanted: int) -> None:
    patch = torch.randint(0, 256, (32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    out = _run(patch.expand(240, 32, 32), Augmentation(symmetries=order))[:, 0]
    group = []
    for transpose, flip_x, flip_y in itertools.product((0, 1), repeat=3):
        image = patch.T if transpose else patch
        image = image.flip(1) if flip_x else image
        group.append((image.flip(0) if flip_y else image).float())
    which = torch.stack([(out - image).abs().amax((1, 2)) < 1e-3 for image in group], 1)
    assert which.any(1).all()
    found = which.int().argmax(1)
    assert torch.equal(found[0::2], found[1::2])
    counts = torch.bincount(found[0::2], minlength=8)
    assert (counts > 0).sum() == wanted
    if order == 4:  # identity, transposition, mirror, quarter turn: the published ones
        published = [patch, patch.T, patch.flip(1), patch.T.flip(1)]
        assert all(any(torch.equal(image.float(), o) for o in out.round()) for image in published)


def test_rotation_scale_and_shift_move_positions_as_they_say() -> None:
    """On ramps the output holds the positions that were read: a similarity about the centre."""
    settings = Augmentation(rotation_deg=20.0, log2_scale=0.3, shift=(0.05, 0.05), symmetries=1)
    side, size, crop = 128, 32, 2.0
    out = _run(_ramps(side, 200), settings, npos=1, crop=crop, size=size)
    # patches 2k and 2k+1 differ in their draws, so fit each alone: value = a x + b y + c
    y, x = torch.meshgrid(torch.arange(size) - (size - 1) / 2, torch.arange(size) - (size - 1) / 2, indexing="ij")
    design = torch.stack([x.flatten(), y.flatten(), torch.ones(size * size)], 1)
    values = out.flatten(1) - (side - 1) / 2
    a, b, c = solution = torch.linalg.lstsq(design, values.T).solution
    assert (design @ solution - values.T).abs().max() < 1e-2
    step = torch.hypot(a, b)  # stored pixels between output pixels; 2 without change of scale
    octaves = torch.log2(step / 2.0)
    assert octaves.abs().max() <= 0.3 + 1e-3
    assert octaves.max() > 0.25
    assert octaves.min() < -0.25
    angle = torch.where(torch.arange(400) % 2 == 0, torch.atan2(b, a), torch.atan2(a, b)) * 180 / math.pi
    assert angle.abs().max() <= 20.0 + 1e-2
    assert angle.abs().max() > 18.0
    assert c.abs().max() <= 0.05 * 64 + 1e-2
    assert c.abs().max() > 0.045 * 64
    for values in (octaves, angle, c):
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(400)


def test_photometric_changes_have_the_strength_they_say() -> None:
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.integers(0, 256, (1, 32, 32), dtype=np.uint8)).expand(300, 32, 32)
    noisy = _run(patches, Augmentation(symmetries=1, noise=0.1), npos=1)[:, 0] - patches
    share = noisy.std(dim=(1, 2)) / patches[0].float().std()
    assert share.max() < 0.11
    assert share.max() > 0.09
    assert abs(share.mean() - 0.05) < 0.01
    flat = torch.full((300, 32, 32), 64, dtype=torch.uint8)
    gamma = torch.log2(torch.log(_run(flat, Augmentation(symmetries=1, gamma=0.3), npos=1)[:, 0, 0, 0] / 255)
                       / math.log(64 / 255))  # fmt: skip
    assert gamma.abs().max() <= 0.3 + 1e-3
    assert gamma.max() > 0.27
    assert gamma.min() < -0.27
    shaded = _run(flat, Augmentation(symmetries=1, shading=0.25), npos=1)[:, 0] / 64
    slope_x, slope_y = shaded[:, 16, 31] - shaded[:, 16, 0], shaded[:, 31, 16] - shaded[:, 0, 16]
    torch.testing.assert_close(shaded.mean((1, 2)), torch.ones(300))
    for slope in (slope_x, slope_y):  # from the first to the last centre, 31/32 of the patch
        assert slope.abs().max() <= 0.5 * 31 / 32 + 1e-5
        assert slope.max() > 0.45
        assert slope.min() < -0.45
    assert abs(torch.corrcoef(torch.stack([slope_x, slope_y]))[0, 1]) < 0.2
    point = torch.zeros(1, 32, 32, dtype=torch.uint8)
    point[0, 16, 16] = 255
    blurred = _run(point.expand(300, 32, 32), Augmentation(symmetries=1, blur=(0.0, 0.7)), npos=1)[:, 0] / 255
    torch.testing.assert_close(blurred.sum((1, 2)), torch.ones(300), atol=1e-4, rtol=0)
    x = torch.arange(32) - 16.0
    sigma = (blurred.sum(1) * x**2).sum(1).sqrt()
    assert sigma.max() < 0.71
    assert sigma.max() > 0.65
    assert sigma.min() < 0.1


def _rule(side: int) -> Tensor:
    """The patch of the vector file's augmentation cases, (1, side, side)."""
    divisors = {64: (6, 4.5), 96: (9, 6.5)}[side]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    value = 127 + 70 * torch.sin(x / divisors[0]) + 50 * torch.cos(y / divisors[1])
    return value.round().clamp(0, 255).to(torch.uint8)[None]


@pytest.mark.parametrize(("case", "side", "crop"), [("resize32", 64, 1.0), ("crop_resize", 96, 1.5)])
def test_halving_is_that_of_pillow(cases: dict[str, dict[str, Any]], case: str, side: int, crop: float) -> None:
    expected = decode(cases[f"augmentation.{case}"]["expected"]["uint8"]).float()
    out = center_crop(_rule(side), crop, 32)[0, 0]
    assert (out - expected)[1:-1, 1:-1].abs().max() <= 1.0
    if crop == 1.0:
        assert (out - expected).abs().max() <= 1.0


def test_affine_maps_are_those_of_the_2020_webcam_sets(cases: dict[str, dict[str, Any]]) -> None:
    drawn = {key: decode(value) for key, value in cases["augmentation.affine_params"]["expected"].items()}
    expected = decode(cases["augmentation.affine_matrix"]["expected"]["matrices"]).view(-1, 2, 3)[:, :, :2]
    found = inverse_affine(drawn["angle"], 1.0 / drawn["scale"], drawn["shear"][:, 0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    settings = VIEW_PRESETS["published"]
    assert (drawn["angle"].abs() <= settings.rotation_deg).all()
    assert ((drawn["scale"] >= settings.zoom[0]) & (drawn["scale"] <= settings.zoom[1])).all()
    assert (drawn["shear"][:, 0].abs() <= settings.shear_deg[1]).all()


def test_one_resampling_comes_close_to_the_three_of_the_2020_code(cases: dict[str, dict[str, Any]]) -> None:
    """The draws of the vector, made with its generator; bicubic, twice bilinear and 8 bits between, there."""
    generator = random.Random(2)
    angle, zoom = generator.uniform(-25, 25), generator.uniform(0.8, 1.4)
    shear = generator.uniform(-25, 25)
    area = generator.uniform(0.7, 1.0) * 64 * 64
    aspect = math.exp(generator.uniform(math.log(0.9), math.log(1.1)))
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    top, left = generator.randint(0, 64 - height), generator.randint(0, 64 - width)
    linear = inverse_affine(torch.tensor([angle]), torch.tensor([1 / zoom]), torch.tensor([shear]))
    middle = torch.tensor([left + width / 2 - 32, top + height / 2 - 32]) / 32
    window = torch.diag(torch.tensor([width / 64, height / 64]))
    theta = torch.cat([linear @ window, (linear @ middle[:, None])], 2) / 1.5
    expected = decode(cases["augmentation.amos_full"]["expected"]["uint8"]).float()
    difference = (resample(_rule(96), theta, 32, 2.0)[0, 0] - expected).abs()
    assert (difference <= 6).float().mean() > 0.97
    assert difference.mean() < 2.0


def test_a_part_of_a_batch_gets_the_changes_of_the_whole() -> None:
    patches = torch.randint(0, 256, (12, 48, 48), dtype=torch.uint8)
    for settings in (PRESETS["mild"], VIEW_PRESETS["published"]):
        whole = _run(patches, settings, crop=1.5)
        generator = torch.Generator().manual_seed(0)
        part = augment(patches[4:8], 2, 1.5, 32, settings, generator, rows=(4, 12))
        torch.testing.assert_close(part, whole[4:8])


def test_presets_are_chosen_by_kind_and_refused_by_name() -> None:
    assert get_augmentation("published") == Augmentation(symmetries=4)
    assert get_augmentation("published", "views").rotation_deg == 25.0
    assert get_augmentation("mild", "views") == get_augmentation("mild")
    with pytest.raises(UsageError, match="did you mean mild"):
        get_augmentation("mile")
    with pytest.raises(UsageError, match="unknown augmentation 'resize48'"):  # the command line has the answer
        get_augmentation("resize48")


def test_draws_repeat_with_the_seed_and_differ_within_a_tuple() -> None:
    patches = torch.randint(0, 256, (1, 48, 48), dtype=torch.uint8).expand(8, 48, 48)
    first = _run(patches, PRESETS["mild"], crop=1.5, seed=3)
    assert torch.equal(first, _run(patches, PRESETS["mild"], crop=1.5, seed=3))
    assert not torch.equal(first, _run(patches, PRESETS["mild"], crop=1.5, seed=4))
    assert not torch.allclose(first[0], first[1])
