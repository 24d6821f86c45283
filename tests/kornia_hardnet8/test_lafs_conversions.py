"""Frames to and from OpenCV and COLMAP: a rendered pattern lands upright, at its size, where it is."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from kornia_hardnet8.errors import DataError
from kornia_hardnet8.lafs import colmap_from_lafs, lafs_from_colmap, lafs_from_opencv, opencv_from_lafs
from kornia_hardnet8.patches import extract_patches

SIDE = 32
# In the frame of the patch, [-1, 1]^2: a large blob to the right, a small one above, at these places (u, v).
BLOBS = ((0.45, 0.0, 0.2), (0.0, -0.5, 0.13))


def render(center: tuple[float, float], half_side: float, angle_deg: float) -> Tensor:
    """The pattern drawn in closed form: turned clockwise on the screen by ``angle_deg`` about ``center`` (pixels)."""
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(240.0), indexing="ij")
    angle = math.radians(angle_deg)
    dx, dy = (x - center[0]) / half_side, (y - center[1]) / half_side
    u = math.cos(angle) * dx + math.sin(angle) * dy
    v = -math.sin(angle) * dx + math.cos(angle) * dy
    return sum((torch.exp(-((u - a) ** 2 + (v - b) ** 2) / (2 * s**2)) for a, b, s in BLOBS), torch.zeros(200, 240))


def offsets(patch: Tensor) -> tuple[Tensor, float]:
    """By how much a patch differs from the pattern: shift u, v, growth, turn (least squares) and what remains.

    The blur and the gain that resampling brings are fitted too.
    """
    unit = ((2 * torch.arange(SIDE) + 1) / SIDE - 1).double()
    v, u = torch.meshgrid(unit, unit, indexing="ij")
    value, du, dv, blur = (torch.zeros(SIDE, SIDE, dtype=torch.float64) for _ in range(4))
    for a, b, s in BLOBS:
        blob = torch.exp(-((u - a) ** 2 + (v - b) ** 2) / (2 * s**2))
        value, du, dv = value + blob, du - blob * (u - a) / s**2, dv - blob * (v - b) / s**2
        blur = blur + blob * (((u - a) ** 2 + (v - b) ** 2) / s**4 - 2 / s**2)
    basis = torch.stack([-du, -dv, -(u * du + v * dv), v * du - u * dv, blur, value], dim=-1).reshape(-1, 6)
    difference = (patch.double() - value).reshape(-1, 1)
    solution = torch.linalg.lstsq(basis, difference).solution
    return solution[:4, 0], float((difference - basis @ solution).square().mean().sqrt())


def assert_lands(lafs: Tensor, center: tuple[float, float], half_side: float, angle_deg: float) -> None:
    """The patch at the frame is the pattern: to 0.05 pixels of the image, 0.5 % in size and 0.3 degrees."""
    patch = extract_patches(render(center, half_side, angle_deg), lafs.reshape(1, 2, 3), SIDE)[0, 0]
    (u, v, growth, turn), remains = offsets(patch)
    assert remains < 0.01
    assert abs(float(u)) * half_side < 0.05
    assert abs(float(v)) * half_side < 0.05
    assert abs(float(growth)) < 0.005
    assert abs(float(turn)) < math.radians(0.3)


CASES = [(100.0, 90.0, 16.0, 0.0), (110.3, 80.7, 16.0, 33.0), (95.25, 101.5, 24.0, 90.0), (120.0, 99.9, 20.0, 251.0)]


def test_the_measure_sees_a_wrong_frame() -> None:
    good = torch.tensor([[16.0, 0.0, 100.0], [0.0, 16.0, 90.0]])
    for wrong in (
        good + torch.tensor([[0.0, 0, 0.1], [0, 0, 0]]),
        good * torch.tensor([[1.03, 1, 1], [1, 1.03, 1]]),
        torch.tensor([[0.0, -16.0, 100.0], [16.0, 0.0, 90.0]]),
    ):
        with pytest.raises(AssertionError):
            assert_lands(wrong, (100.0, 90.0), 16.0, 0.0)


@pytest.mark.parametrize(("x", "y", "half_side", "angle"), CASES)
@pytest.mark.parametrize("mr_size", [6.0, 12.0])
def test_opencv(x: float, y: float, half_side: float, angle: float, mr_size: float) -> None:
    keypoint = cv2.KeyPoint(x, y, 2 * half_side / mr_size, angle, 0.25)
    lafs = lafs_from_opencv([keypoint], mr_size)
    assert_lands(lafs, (x, y), half_side, angle)
    (back,) = opencv_from_lafs(lafs, torch.tensor([[0.25]]), mr_size)
    np.testing.assert_allclose((*back.pt, back.size, back.response), (*keypoint.pt, keypoint.size, 0.25), rtol=1e-5)
    assert abs((back.angle - angle + 180) % 360 - 180) < 1e-3
    assert_lands(lafs_from_opencv([back], mr_size), (x, y), half_side, angle)


@pytest.mark.parametrize(("x", "y", "half_side", "angle"), CASES)
@pytest.mark.parametrize("columns", [4, 6])
def test_colmap(x: float, y: float, half_side: float, angle: float, columns: int) -> None:
    sigma, radians = half_side / 12.0, math.radians(angle)
    rows: NDArray[np.float32]
    if columns == 4:
        rows = np.array([[x + 0.5, y + 0.5, sigma, radians]], dtype=np.float32)
    else:
        cos, sin = sigma * math.cos(radians), sigma * math.sin(radians)
        rows = np.array([[x + 0.5, y + 0.5, cos, -sin, sin, cos]], dtype=np.float32)
    lafs = lafs_from_colmap(rows)
    assert_lands(lafs, (x, y), half_side, angle)
    back = colmap_from_lafs(lafs)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back[:, :2], rows[:, :2], atol=1e-4)
    assert_lands(lafs_from_colmap(back), (x, y), half_side, angle)


def test_colmap_reads_what_we_write() -> None:
    """COLMAP's own idea of scale and orientation of an affine keypoint."""
    pycolmap = pytest.importorskip("pycolmap")
    rows = colmap_from_lafs(lafs_from_opencv([cv2.KeyPoint(10.0, 20.0, 6.0, 40.0)]))[0]
    keypoint = pycolmap.FeatureKeypoint(dict(zip(("x", "y", "a11", "a12", "a21", "a22"), rows.tolist(), strict=True)))
    assert keypoint.compute_scale() == pytest.approx(3.0, rel=1e-5)
    assert keypoint.compute_orientation() == pytest.approx(math.radians(40.0), rel=1e-5)


def test_sift_of_both_libraries_finds_the_same_pattern() -> None:
    """A blob of known place and size through OpenCV's detector (its default grid is a quarter pixel off)."""
    image = 40 + 180 * torch.exp(
        -((torch.arange(200.0) - 100) ** 2)[:, None] / 72 - ((torch.arange(240.0) - 120) ** 2) / 72
    )
    best = max(
        cv2.SIFT.create(enable_precise_upscale=True).detect(image.byte().numpy(), None), key=lambda k: k.response
    )
    laf = lafs_from_opencv([best], 6.0)[0, 0]
    assert abs(float(laf[0, 2]) - 120) < 0.1
    assert abs(float(laf[1, 2]) - 100) < 0.1
    assert float(laf[:, :2].det().sqrt()) / 6 == pytest.approx(6.0, rel=0.2)  # sigma of the blob


affine = st.floats(-3, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(affine, affine, affine, affine, st.floats(-50, 500), st.floats(-50, 500)), max_size=5))
def test_affine_frames_survive_colmap(rows: list[tuple[float, ...]]) -> None:
    lafs = torch.tensor([[[r[0], r[1], r[4]], [r[2], r[3], r[5]]] for r in rows]).reshape(-1, 2, 3)
    for given_lafs in (lafs, lafs[None]):
        torch.testing.assert_close(lafs_from_colmap(colmap_from_lafs(given_lafs))[0], lafs, atol=1e-4, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 100), st.floats(0, 359.9), st.floats(0, 4000), st.floats(0, 4000))
def test_similarity_frames_survive_opencv(size: float, angle: float, x: float, y: float) -> None:
    lafs = lafs_from_opencv([cv2.KeyPoint(x, y, size, angle)])
    torch.testing.assert_close(lafs_from_opencv(opencv_from_lafs(lafs)), lafs, atol=1e-3, rtol=1e-4)


def test_empty_and_wrong() -> None:
    assert opencv_from_lafs(torch.zeros(1, 0, 2, 3)) == []
    assert colmap_from_lafs(torch.zeros(0, 2, 3)).shape == (0, 6)
    for columns in (2, 4, 6):
        assert lafs_from_colmap(np.zeros((0, columns))).shape == (1, 0, 2, 3)
    torch.testing.assert_close(
        lafs_from_colmap(np.array([[1.5, 2.5]]), 3.0)[0, 0], torch.tensor([[3.0, 0, 1], [0, 3, 2]])
    )
    with pytest.raises(DataError, match=r"\(1, 5\)"):
        lafs_from_colmap(np.zeros((1, 5)))
    for function in (opencv_from_lafs, colmap_from_lafs):
        with pytest.raises(DataError, match=r"\(2, 3, 2, 3\)"):
            function(torch.zeros(2, 3, 2, 3))
    with pytest.raises(DataError, match="2 frames have 3 responses"):
        opencv_from_lafs(torch.zeros(2, 2, 3), torch.zeros(3))
