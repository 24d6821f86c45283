"""Cutting patches: the convention at the border of the image, and on devices that lack an operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
