import numpy as np
import pytest

from rendered.render import ShadowMap, View, cast, depth_map, sample
from rendered.solids import Ball, Box, Column, Sheet
from rendered.textures import Painter, f32

PLAIN = Painter(np.random.default_rng(0), 4, 4, 16).tint((0.5, 0.5, 0.5)).done()
SOLIDS = {
    "box": (Box((0, 0, 0), (2, 2, 2), [PLAIN]), 9.0),
    "turned box": (Box((0, 0, 0), (2, 2, 2), [PLAIN], yaw=np.pi / 4), 10 - np.sqrt(2)),
    "column": (Column((0, 0, 0), 1.0, 2.0, [PLAIN]), 9.0),
    "ball": (Ball((0, 0, 1), 1.0, [PLAIN]), 9.0),
    "sheet": (Sheet((-1, 0.5, 2), (2, 0, 0), (0, 0, -2), [PLAIN]), 10.5),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_ray_through_the_middle_meets_the_near_side(name: str) -> None:
    solid, expected = SOLIDS[name]
    rays = f32([[[0, 1, 0], [0, 2, 0], [0, -1, 0], [1, 0, 0]]])
    found = solid.hit(f32([0, -10, 1]), rays)
    np.testing.assert_allclose(found[0, :2], [expected, expected / 2], rtol=1e-5)
    assert np.isinf(found[0, 2:]).all()


@pytest.mark.parametrize("name", SOLIDS)
def test_hits_lie_on_the_surface_and_face_the_ray(name: str) -> None:
    solid, _ = SOLIDS[name]
    rng = np.random.default_rng(1)
    origin = f32([3, -9, 4])
    rays = f32(rng.uniform([-1, -1, 0], [1, 1, 2], (400, 3))) - origin
    t = solid.hit(origin, rays[None])[0]
    met = np.isfinite(t)
    assert met.sum() > 40
    points = origin + t[met, None] * rays[met]
    low, high = solid.corners().min(0), solid.corners().max(0)
    assert (points > low - 1e-3).all()
    assert (points < high + 1e-3).all()
    surface = solid.surface(points)
    frame = np.stack([surface.normal, surface.along_u, surface.along_v], 1)
    np.testing.assert_allclose(frame @ frame.transpose(0, 2, 1), np.broadcast_to(np.eye(3), frame.shape), atol=1e-4)
    if name != "sheet":  # a sheet has two sides
        assert (np.einsum("ni,ni->n", surface.normal, rays[met]) < 1e-3).all()
    # uv moves by a metre where the point moves by a metre along u or v
    for axis, along in enumerate((surface.along_u, surface.along_v)):
        moved = solid.surface(points + 1e-3 * along)
        same = moved.texture == surface.texture
        step = (moved.uv - surface.uv)[same, axis] / 1e-3
        if name == "ball" and axis == 0:  # u is measured on the equator
            step = step * np.hypot(*surface.normal[same, :2].T)
        assert np.median(np.abs(step - 1)) < 0.02


def test_nearest_solid_wins_and_the_rectangle_loses_nothing() -> None:
    view = View(np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]]), np.eye(3), np.zeros(3), 64, 48)
    solids = [Ball((0, 0, 8), 1.5, [PLAIN]), Ball((0.4, 0, 5), 0.8, [PLAIN]), Ball((0, 0, -5), 1, [PLAIN])]
    rays = view.rays(1)
    depth, index = cast(solids, view.center, rays, lambda points: view.project(points))
    every = np.stack([solid.hit(view.center, rays) for solid in solids])
    np.testing.assert_array_equal(depth, every.min(0))
    np.testing.assert_array_equal(index, np.where(np.isfinite(every.min(0)), every.argmin(0), -1))
    assert {-1, 0, 1} == set(np.unique(index).tolist())


def test_depth_is_exact_at_pixel_centres_and_zero_where_nothing_lasts() -> None:
    view = View(np.array([[40.0, 0, 15], [0, 40.0, 15], [0, 0, 1]]), np.eye(3), np.array([0, 0, 2.0]), 31, 31)
    wall = Sheet((-0.5, -9, 4), (0, 18, 0), (9, 0, 0), [PLAIN])
    passer = Ball((0, 0, 2), 0.3, [PLAIN], transient=True)
    depth = depth_map([wall, passer], view)
    assert depth[15, 15] == 0  # the passer-by
    assert depth[0, 0] == 0  # nothing
    assert depth[0, 25] == pytest.approx(6.0)  # a wall across the view: depth, not distance


def test_shadow_falls_behind_the_thing_that_casts_it() -> None:
    box = Box((0, 0, 0), (2, 2, 4), [PLAIN])
    ground = Sheet((-20, 20, 0), (40, 0, 0), (0, -40, 0), [PLAIN])
    shadow = ShadowMap.of([ground, box], (1, 0, 1), f32([0, 0, 0]))
    points = f32([[-3, 0, 0], [-8, 0, 0], [3, 0, 0], [0, 5, 0]])
    lit = shadow.lit(points, np.broadcast_to(f32([0, 0, 1]), points.shape), 4, 0.05)
    np.testing.assert_array_equal(lit, [0, 1, 1, 1])


def test_sampling_interpolates_and_averages() -> None:
    painter = Painter(np.random.default_rng(0), 2, 2, 32)
    painter.color[:] = (painter.x / 2)[..., None]
    texture = painter.done()
    uv = f32([[0.5, 1.0], [1.0, 0.3], [1.5, 1.7]])
    fine, slope = sample(texture, uv, np.full(3, 0.01, np.float32))
    np.testing.assert_allclose(fine[:, 0], uv[:, 0] / 2 - 1 / 128, atol=0.003)
    assert np.abs(slope).max() == 0
    coarse, _ = sample(texture, uv, np.full(3, 0.3, np.float32))
    np.testing.assert_allclose(coarse[:, 0], uv[:, 0] / 2 - 1 / 128, atol=0.02)


def test_relief_slopes_are_metres_per_metre() -> None:
    painter = Painter(np.random.default_rng(0), 1, 1, 64)
    painter.relief[:] = 0.3 * painter.x - 0.2 * painter.y
    _, slope = sample(painter.done(), f32([[0.5, 0.5]]), f32([0.01]))
    np.testing.assert_allclose(slope, [[0.3, -0.2]], atol=1e-3)
