"""From the drawn square to files: photographs, calibrations, depth maps, co-visibility."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.shell import progress
from eval.imw import build as imw
from eval.imw.scene import Camera
from kornia_hardnet8.files import atomic_dir
from rendered import town
from rendered.render import ShadowMap, View, depth_map, develop, radiance
from rendered.textures import Array, Painter, f32

GRID_PX = 12  # every 12th pixel becomes a point that decides co-visibility
DEPTH_TOLERANCE = 0.01  # a point counts as seen when the depth map agrees to one percent
BAGS = {5: 4, 10: 2}


def write(folder: Path, seed: int) -> Path:
    """Render and write the scene; see :func:`eval.imw.demo.build`."""
    rng = np.random.default_rng(seed)
    solids, shots, lights = town.square(rng), town.shots(rng), town.lights()
    sky = Painter(rng, 14, 6, 100).noise(3.0, 7, 0.6)
    center = f32([town.TARGET[0], town.TARGET[1], 0])
    zenith = ShadowMap.of(solids, (0.05, 0.02, 1), center)
    suns = {k: ShadowMap.of(solids, light.sun, center) for k, light in enumerate(lights) if max(light.sun_color) > 0}
    with atomic_dir(folder) as temporary, tempfile.TemporaryDirectory(dir=temporary) as photographs:
        files, depths = [], []
        for number, shot in enumerate(progress(shots, what="rendering", unit="image")):
            everything = [*solids, *shot.people]
            light = radiance(everything, shot.view, lights[shot.light], (suns.get(shot.light, zenith), zenith), sky)
            picture = develop(light, shot.development, rng)
            files.append(Path(photographs) / f"view_{number:02d}.jpg")
            cv2.imwrite(str(files[-1]), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 94))])
            depths.append(depth_map(everything, shot.view))
        seen = observations([shot.view for shot in shots], depths)
        views = [
            imw.View(
                file.stem,
                file,
                (shot.view.width, shot.view.height),
                Camera(shot.view.K, shot.view.R, shot.view.t),
                points,
            )
            for file, shot, points in zip(files, shots, seen, strict=True)
        ]
        maps = {view.name: depth for view, depth in zip(views, depths, strict=True)}
        imw.write_scene(views, temporary / "scene", BAGS, seed, maps)
        (temporary / "scene" / "set_100").rename(temporary / "set_100")
        shutil.rmtree(temporary / "scene")
    return folder


def observations(views: Sequence[View], depths: Sequence[Array]) -> list[dict[int, tuple[float, float]]]:
    """Position by point id in each view, of points taken on a grid of pixels of every view.

    A point is seen where it projects into the image and the depth map there (nearest pixel) agrees.
    """
    points = np.concatenate([_grid_points(view, depth) for view, depth in zip(views, depths, strict=True)])
    found = []
    for view, depth in zip(views, depths, strict=True):
        at, z = view.project(points)
        column, row = np.rint(at).clip(-1, 1e6).astype(int).T
        inside = (z > 0) & (column >= 0) & (row >= 0) & (column < view.width) & (row < view.height)
        rows = np.flatnonzero(inside)
        agrees = np.abs(depth[row[rows], column[rows]] - z[rows]) < DEPTH_TOLERANCE * z[rows]
        rows = rows[agrees]
        found.append({int(k): (float(x), float(y)) for k, (x, y) in zip(rows, at[rows], strict=True)})
    return found


def _grid_points(view: View, depth: Array) -> NDArray[np.float64]:
    """World points (N, 3) at every ``GRID_PX``-th pixel that has depth."""
    rows, columns = np.mgrid[GRID_PX // 2 : view.height : GRID_PX, GRID_PX // 2 : view.width : GRID_PX].reshape(2, -1)
    z = depth[rows, columns].astype(np.float64)
    pixels = np.stack([columns, rows, np.ones(len(rows))], 1)[z > 0] * z[z > 0, None]
    return (pixels @ np.linalg.inv(view.K).T - view.t) @ view.R
