"""The detector of differences of Gaussians: against kornia's, closed forms and brute force."""

from __future__ import annotations

import kornia
import kornia.feature as KF
import pytest
import torch
import torch.nn.functional as F
from kornia.geometry.subpix import ConvQuadInterp3d
from kornia.geometry.transform import ScalePyramid
from torch import Tensor

from kornia_hardnet8 import dog
from kornia_hardnet8.detectors import DominantGradient, make_orienter

from .test_feature import picture

new_kornia = pytest.mark.skipif(
    tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9),
    reason="kornia 0.8 refines by another rule and maps octaves to the image half a pixel off",
)


def kornias(num_features: int) -> torch.nn.Module:
    return KF.ScaleSpaceDetector(
        num_features, resp_module=KF.BlobDoG(), scale_pyr_module=ScalePyramid(3, 1.6, 32, double_image=True),
        scale_space_response=True, minima_are_also_good=True, subpix_module=ConvQuadInterp3d(),
    ).eval()  # fmt: skip


@new_kornia
@pytest.mark.parametrize(
    ("height", "width", "seed", "dtype"),
    [(120, 160, 0, torch.float32), (97, 301, 1, torch.float32), (40, 44, 2, torch.float32), (75, 64, 3, torch.float64)],
)
def test_the_keypoints_are_kornias(height: int, width: int, seed: int, dtype: torch.dtype) -> None:
    image = picture(height, width, seed)[0].to(dtype)
    if seed == 1:
        image = (image * 1.5).clamp(max=1.0)  # burnt-out areas, where all neighbours are equal
    lafs, responses = dog.detect(image, 10000, 6.0)
    with torch.no_grad():
        theirs, strengths = kornias(10000)(image[None, None])
    keep = (torch.linalg.det(theirs[0, :, :, :2]) > 0) & (strengths[0].abs() > 1e-5)
    expected = theirs[0, keep]
    ours = lafs[responses.abs() > 1e-5]
    assert lafs.dtype == responses.dtype == dtype
    assert abs(len(ours) - len(expected)) <= 0.005 * len(expected)
    # Where the vertex of a parabola lies exactly one threshold away, rounding decides on which side.
    difference = (expected[:, None] - ours[None]).abs().amax(dim=(2, 3))
    assert (difference.min(dim=1).values < 2e-3).float().mean() >= 0.99
    strongest = strengths[0, keep].sort(descending=True).values[:20]
    torch.testing.assert_close(responses[:20], strongest, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("x", "y", "sigma"), [(50.0, 40.0, 4.0), (61.3, 47.8, 6.0)])
def test_a_blob_is_found_where_it_is_at_its_size(sign: float, x: float, y: float, sigma: float) -> None:
    """A Gaussian blob of sigma s is strongest in a difference whose lower sigma is about s / 2 ** (1 / 6)."""
    v, u = torch.meshgrid(torch.arange(96.0), torch.arange(120.0), indexing="ij")
    image = 0.5 + sign * 0.4 * torch.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2))
    lafs, responses = dog.detect(image, 1, 6.0)
    torch.testing.assert_close(lafs[0, :, 2], torch.tensor([x, y]), atol=0.05, rtol=0)
    assert lafs[0, 0, 0] / 6.0 == pytest.approx(sigma / 2 ** (1 / 6), rel=0.1)
    assert lafs[0, 0, 1] == lafs[0, 1, 0] == 0
    assert responses[0] > 0.01


def test_flat_images_have_no_keypoints() -> None:
    for value in (0.0, 0.3, 1.0):
        lafs, responses = dog.detect(torch.full((70, 90), value), 50, 6.0)
        assert (lafs.shape, responses.shape) == ((0, 2, 3), (0,))


def test_strict_extrema_by_brute_force() -> None:
    octave = torch.rand(6, 13, 11, generator=torch.Generator().manual_seed(0))
    octave[:, 4:7, 3:6] = octave[:, 4:5, 3:4]  # a plateau has none
    differences = octave[1:] - octave[:-1]
    found, cubes = dog._candidates(differences, 0.0)
    for sign in (1, -1):
        places = found[sign * cubes[13] > sign * cubes[12]]
        expected = []
        for level in range(1, 4):
            for y in range(1, 12):
                for x in range(1, 10):
                    cube = sign * differences[level - 1 : level + 2, y - 1 : y + 2, x - 1 : x + 2].flatten()
                    others = torch.cat([cube[:13], cube[14:]])
                    if cube[13] > others.max() and cube[13] != 0:
                        expected.append((level, y, x))
        assert sorted(map(tuple, places.tolist())) == expected
        assert len(expected) > 5


@pytest.mark.parametrize("size", [(40, 64), (33, 130), (129, 65)])
@pytest.mark.parametrize("sigma", [0.7, 1.6, 3.09])
def test_blur_is_a_convolution_with_reflected_borders(
    size: tuple[int, int], sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    radius = int(8 * sigma + 1) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[None, None], (radius,) * 4, mode="reflect")
    expected = F.conv2d(padded, (kernel[:, None] * kernel)[None, None])[0, 0]
    torch.testing.assert_close(dog.blur(image, sigma), expected)
    torch.testing.assert_close(dog._convolved(image, dog._taps(sigma)), expected)  # what other devices run
    torch.testing.assert_close(dog.blur(image.float(), sigma), expected.float(), atol=1e-6, rtol=0)
    monkeypatch.setattr(dog, "_has_direct_convolutions", lambda: False)  # what CPUs without them run
    torch.testing.assert_close(dog.blur(image.float(), sigma), expected.float(), atol=1e-6, rtol=0)


def test_bands_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(100, 90, seed=6)[0]
    lafs, responses = dog.detect(image, 10000, 6.0)
    monkeypatch.setattr(dog, "_BAND", 64)  # four of them in the first octave
    monkeypatch.setattr(dog, "_STRIP", 300)
    banded, strengths = dog.detect(image, 10000, 6.0)
    assert len(lafs) > 150
    torch.testing.assert_close(banded, lafs, atol=1e-3, rtol=0)
    torch.testing.assert_close(strengths, responses, atol=1e-6, rtol=0)


def test_a_mask_leaves_room_for_what_it_allows() -> None:
    image = picture(120, 160, seed=4)[0]
    mask = torch.zeros(120, 160)
    mask[:, 100:] = 1.0
    everywhere, _ = dog.detect(image, 10000, 6.0)
    allowed = everywhere[everywhere[:, 0, 2].round() >= 100]
    found, _ = dog.detect(image, 10, 6.0, mask)
    assert torch.equal(found, allowed[:10])
    assert len(found) == 10


def vertical_edges(angle: float) -> Tensor:
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    turn = torch.tensor(angle).deg2rad()
    return torch.sigmoid((torch.cos(turn) * (u - 31.5) - torch.sin(turn) * (v - 31.5)) / 2.0)


def test_orientation_follows_the_gradient() -> None:
    """A gradient that points ``angle`` degrees counter-clockwise turns the frame as much."""
    frame = torch.tensor([[[[20.0, 0.0, 31.5], [0.0, 20.0, 31.5]]]])
    orienter = make_orienter("dominant", None)
    for angle in (0.0, 30.0, -115.0):
        with torch.no_grad():
            turned = orienter(frame, vertical_edges(angle)[None, None])
        found = float(KF.get_laf_orientation(turned))
        assert found == pytest.approx(angle, abs=1.0)
        assert float(KF.get_laf_scale(turned)) == pytest.approx(20.0, abs=1e-3)


@new_kornia
def test_orientation_is_kornias() -> None:
    image = picture(120, 160, seed=5)[None]
    lafs, _ = dog.detect(image[0, 0], 300, 6.0)
    with torch.no_grad():
        orienter = make_orienter("dominant", None)
        assert orienter is not None
        ours = orienter(lafs[None], image)
        theirs = KF.LAFOrienter(32)(lafs[None], image)
    assert len(lafs) > 130  # more than one part of them
    same = (ours - theirs).abs().amax(dim=(0, 2, 3)) < 1e-2
    assert same.float().mean() > 0.99  # two bins of a histogram may be as high


@new_kornia
def test_the_angle_of_a_patch_is_kornias() -> None:
    ramp = torch.linspace(0.0, 1.0, 32).expand(1, 1, 32, 32)
    edges = [ramp, ramp.flip(3), ramp.mT, ramp.mT.flip(2)]
    noise = torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    patches = torch.cat([*edges, torch.full((1, 1, 32, 32), 0.4), noise, (noise > 0.5).float()])
    ours, theirs = DominantGradient(), KF.PatchDominantGradientOrientation(32)
    for given in (patches, patches.double()):
        torch.testing.assert_close(ours(given), theirs(given), atol=1e-5, rtol=0)
