"""The mapper on databases made of projected points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from eval.reconstruct.mapping import map_incrementally
from eval.reconstruct.settings import ReconstructSettings

FOCAL, WIDTH, HEIGHT = 600.0, 800, 600


def street(path: Path, num_images: int, step: float) -> None:
    """A database of a camera that moves straight ahead between points on all sides: keypoints, verified matches."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-6.0, -4.0, 8.0], [6.0, 4.0, 38.0], (600, 3))
    camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId.SIMPLE_RADIAL, FOCAL, WIDTH, HEIGHT)
    camera.has_prior_focal_length = True
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    with pycolmap.Database.open(path) as database:
        camera_id = database.write_camera(camera)
        rig = pycolmap.Rig(rig_id=1)
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
        for index in range(num_images):
            local = points - [0.0, 0.0, step * index]
            pixels = FOCAL * local[:, :2] / local[:, 2:] + [WIDTH / 2, HEIGHT / 2]
            inside = (local[:, 2] > 1.0) & (pixels > 0).all(1) & (pixels < [WIDTH, HEIGHT]).all(1)
            image = pycolmap.Image()
            image.name, image.camera_id = f"{index:02}.jpg", camera_id
            image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = 1
            frame.add_data_id(database.read_image(image_id).data_id)
            database.write_frame(frame)
            pixels = pixels[inside] + rng.normal(0.0, 0.1, (int(inside.sum()), 2))
            database.write_keypoints(image_id, np.ascontiguousarray(pixels, np.float32))
            for other_id, other, other_pixels in seen:
                _, a, b = np.intersect1d(other, np.flatnonzero(inside), return_indices=True)
                matches = np.stack([a, b], axis=1).astype(np.uint32)
                geometry = pycolmap.estimate_two_view_geometry(camera, other_pixels, camera, pixels, matches, options)
                database.write_matches(other_id, image_id, matches)
                database.write_two_view_geometry(other_id, image_id, geometry)
            seen.append((image_id, np.flatnonzero(inside), pixels))


@pytest.mark.parametrize("step", [1.0, 2.0])
def test_a_camera_that_moves_straight_ahead_is_followed(step: float, tmp_path: Path) -> None:
    street(tmp_path / "database.db", 8, step)
    models = map_incrementally(tmp_path / "database.db", tmp_path, ReconstructSettings(), 8)
    assert models[0].num_reg_images() == 8
    poses = sorted((image.name, image.projection_center()) for image in models[0].images.values())
    steps = np.diff([centre for _, centre in poses], axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.02)
    np.testing.assert_allclose(steps / lengths[:, None], np.tile(steps[0] / lengths[0], (7, 1)), atol=0.02)
