"""A small development folder: a rendered scene with poses, a homography sequence, a fixed camera."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rendered.render import Development, Light, ShadowMap, View, depth_map, develop, observations, radiance
from rendered.solids import Box, Sheet
from rendered.textures import Painter, f32

PLAIN = Development(0.0, (1.0, 1.0, 1.0), 1.0, 0.8, 0.4, (0.0, 0.0), 0.005, 0.1)
DAY = Light((-0.4, -0.6, 0.8), (2.5, 2.4, 2.2), (0.4, 0.5, 0.6), (0.8, 0.9, 1.0), 0.3)
H_TRUE = np.array([[0.9, 0.12, 8.0], [-0.1, 0.95, 22.0], [1e-4, -5e-5, 1.0]])


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dev")
    pictures = write_pose_scene(root / "poses" / "yard")
    plane = root / "planes" / "wall"
    plane.mkdir(parents=True)
    first = pictures[0]
    cv2.imwrite(str(plane / "1.png"), first)
    cv2.imwrite(str(plane / "2.png"), cv2.warpPerspective(first, H_TRUE, (360, 300), borderMode=cv2.BORDER_REFLECT))
    np.savetxt(plane / "H_1_2", H_TRUE)
    camera = root / "webcam" / "still"
    camera.mkdir(parents=True)
    cv2.imwrite(str(camera / "a.png"), first)
    cv2.imwrite(str(camera / "b.png"), first)
    cv2.imwrite(str(camera / "c.png"), (first.astype(float) * 0.4).astype(np.uint8))
    strips = root / "hpatches" / "i_x"
    strips.mkdir(parents=True)
    for name in ("ref", "e1", "h1", "t1"):
        cv2.imwrite(str(strips / f"{name}.png"), first[:65, :65])
    return root


def write_pose_scene(folder: Path) -> list[NDArray[np.uint8]]:
    """Three views with a COLMAP model (text) and ``cameras_KRt.txt``, both with corner-origin pixels."""
    rng = np.random.default_rng(0)
    wall = Painter(rng, 6, 4, 60).masonry(0.5, 0.3, (0.6, 0.5, 0.4), 0.02).posters(25).done()
    floor = Painter(rng, 10, 8, 40).pavers(0.5).posters(12).done()
    solids = [
        Sheet((-5, 4, 0), (10, 0, 0), (0, -8, 0), [floor]),
        Box((0, 4, 0), (6, 0.5, 4), [wall]),
        Box((-1.2, 1.5, 0), (1.2, 1, 1.3), [wall], yaw=0.4, offset=(1.0, 0.7)),
        Box((1.5, 0.8, 0), (1.4, 1, 1.6), [wall], yaw=-0.3, offset=(2.5, 1.5)),
        Box((0.1, 2.8, 0), (1.3, 1, 2.4), [wall], yaw=0.2, offset=(3.5, 0.2)),
    ]
    views = [_look(np.array(c)) for c in ((-1.5, -4.5, 1.8), (0.3, -5.0, 2.1), (1.9, -4.3, 1.7))]
    shadows = tuple(ShadowMap.of(solids, toward, f32([0, 1, 0])) for toward in (DAY.sun, (0.05, 0.02, 1)))
    sky = np.zeros((64, 64), np.float32)
    pictures = [develop(radiance(solids, v, DAY, (shadows[0], shadows[1]), sky), PLAIN, rng)[..., ::-1] for v in views]
    seen = observations(views, [depth_map(solids, view) for view in views])
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    rows, cameras, images, tracks = ["# name …"], [], [], {}
    for k, (view, picture, points) in enumerate(zip(views, pictures, seen, strict=True), 1):
        cv2.imwrite(str(folder / "images" / f"v{k}.png"), picture)
        fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2] + 0.5, view.K[1, 2] + 0.5
        cameras.append(f"{k} PINHOLE {view.width} {view.height} {fx} {fy} {cx} {cy}")
        numbers = [view.width, view.height, fx, fy, cx, cy, *view.R.ravel(), *view.t]
        rows.append(" ".join([f"v{k}.png", *map(str, numbers)]))
        images.append(f"{k} {' '.join(map(str, _quaternion(view.R)))} {' '.join(map(str, view.t))} {k} v{k}.png")
        chosen = [point for point in points if point % 7 == 0]
        images.append(" ".join(f"{points[p][0] + 0.5} {points[p][1] + 0.5} {p + 1}" for p in chosen))
        for index, point in enumerate(chosen):
            tracks.setdefault(point, []).append(f"{k} {index}")
    sparse = {"cameras": cameras, "images": images}
    sparse["points3D"] = [f"{p + 1} 0 0 0 0 0 0 0 {' '.join(track)}" for p, track in tracks.items()]
    for name, lines in sparse.items():
        (folder / "sparse" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "cameras_KRt.txt").write_text("\n".join(rows) + "\n")
    return pictures


def _look(center: NDArray[np.float64]) -> View:
    forward = np.array([0, 2.0, 1.2]) - center
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return View(np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]), R, -R @ center, 320, 240)


def _quaternion(R: NDArray[np.float64]) -> list[float]:
    w = np.sqrt(1 + np.trace(R)) / 2
    x, y, z = (R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1])
    return [w, *(np.array([x, y, z]) / (4 * w)).tolist()]
