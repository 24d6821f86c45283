"""Cutting patches: the convention at the border of the image, and on devices that lack an operation."""

from __future__ import annotations

from importlib.metadata import version

import kornia.feature as KF
import pytest
import torch
from torch import Tensor

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.patches import _sample, extract_patches


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(40, 61, generator=torch.Generator().manual_seed(0))


def test_the_border_without_its_padding_mode(image: Tensor) -> None:
    grid = 4.0 * torch.rand(1, 500, 7, 2, generator=torch.Generator().manual_seed(1)) - 2.0
    grid[0, :4, 0] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0 - 1 / 61, 1.0 - 1 / 40], [-50.0, 50.0]])
    grid.requires_grad_()
    results = []
    for clamp in (False, True):
        samples = _sample(image[None, None], grid, clamp)
        (slope,) = torch.autograd.grad(samples.square().sum(), grid)
        inside = (grid.detach().abs() < 0.97).all(dim=-1)
        results.append((samples.detach(), slope[inside]))
    torch.testing.assert_close(results[1], results[0], atol=2e-5, rtol=1e-4)
    assert torch.equal(_sample(image[None, None], grid), _sample(image[None, None], grid, clamp=False))


def test_a_mirrored_frame_gives_the_patch_transposed(image: Tensor) -> None:
    """So its size is that of its area, whatever the sign."""
    frame = torch.tensor([[[9.0, 4.0, 30.0], [-3.0, 11.0, 20.0]]])
    mirrored = frame[:, :, [1, 0, 2]]
    expected = extract_patches(image, frame, 8).transpose(2, 3)
    torch.testing.assert_close(extract_patches(image, mirrored, 8), expected)


def test_images_cut_in_the_same_frames(image: Tensor) -> None:
    images = torch.stack([image, 1.0 - image, image.flip(1)])
    frames = torch.tensor([[[3.0, 1.0, 9.0], [-1.0, 3.0, 20.0]], [[15.0, 0, 30.0], [0, 15.0, 20.0]]])  # of two levels
    frames = torch.cat([frames, frames.new_full((1, 2, 3), torch.nan)])
    together = extract_patches(images, frames, 8)
    assert together.shape == (3, 3, 8, 8)
    for index, one in enumerate(images):
        torch.testing.assert_close(together[:, index], extract_patches(one, frames, 8)[:, 0], equal_nan=True)
    assert extract_patches(images, frames[:0], 8).shape == (0, 3, 8, 8)


def test_a_batch_as_kornia_takes_it(image: Tensor) -> None:
    """Shape and, for frames of one pyramid level, values of ``extract_patches_from_pyramid``."""
    images = torch.stack([image, image.flip(1)])[:, None].repeat(1, 2, 1, 1)
    lafs = torch.tensor([[[4.0, 1.0, 20.3], [-1.0, 4.0, 17.8]]]).repeat(2, 3, 1, 1)
    lafs[:, :, :, 2] += torch.arange(6.0).view(2, 3, 1)
    patches = extract_patches(images, lafs, 8)
    assert patches.shape == (2, 3, 2, 8, 8)
    torch.testing.assert_close(patches[0, :, 1:], extract_patches(image, lafs[0], 8))
    if version("kornia") >= "0.9":  # older ones sample elsewhere
        torch.testing.assert_close(patches, KF.extract_patches_from_pyramid(images, lafs, 8), atol=1e-5, rtol=0)
    assert extract_patches(images[:0], lafs[:0], 8).shape == (0, 3, 2, 8, 8)
    with pytest.raises(DataError, match=r"got \(2, 2, 40, 61\) with frames \(3, 2, 3\); \(B, C, H, W\) goes with"):
        extract_patches(images, lafs[0])
