"""Labels from the geometry of a model: a textured plane seen by three cameras that really stand apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.colmap import ColmapSettings
from train.stores.densify import carry_by_depth, densify, epipolar_px, open_views
from train.stores.linking import Detections, carry, turn_between

REPOSITORY = Path(__file__).parents[3]
FOCAL, WIDTH, HEIGHT = 320.0, 320, 240
K = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])  # pixel centres at integers


def _pose(yaw_deg: float, roll_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """A camera 2 in front of the origin, turned about it; the plane is z = 0."""
    yaw, roll = np.deg2rad([yaw_deg, roll_deg])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return about_z @ about_y, np.array([0.0, 0.0, 2.0])


POSES = [_pose(0, 0), _pose(25, 10), _pose(-20, -15)]
# from the plane to each image
HOMOGRAPHIES = [K @ np.column_stack([R[:, :2], t]) for R, t in POSES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, textures) -> Path:
    """``images/`` and ``sparse/`` of a text model with a grid of points on the plane."""
    folder = tmp_path_factory.mktemp("plane")
    (folder / "images").mkdir()
    (folder / "sparse").mkdir()
    texture = textures(finest=1.5)
    to_plane = np.array([[0.005, 0, -1.6], [0, 0.005, -1.2], [0, 0, 1]])  # of the texture's pixels
    grid = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 19), np.linspace(-0.65, 0.65, 14)), axis=-1).reshape(-1, 2)
    tracks: dict[int, list[str]] = {}
    lines = []
    for number, ((R, t), H) in enumerate(zip(POSES, HOMOGRAPHIES, strict=True), 1):
        image = cv2.warpPerspective(texture, H @ to_plane, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image.round().astype(np.uint8))
        x, y, w = H @ np.column_stack([grid, np.ones(len(grid))]).T
        xy = np.column_stack([x / w, y / w])
        seen = np.flatnonzero(((xy > 0) & (xy < [WIDTH - 1, HEIGHT - 1])).all(axis=1))
        for row, point in enumerate(seen):
            tracks.setdefault(point + 1, []).append(f"{number} {row}")
        axis = cv2.Rodrigues(R)[0].ravel()
        half = np.linalg.norm(axis) / 2
        q = [np.cos(half), *(axis * (np.sin(half) / (2 * half) if half else 0.5))]
        lines.append(" ".join(map(repr, map(float, [*q, *t]))).join([f"{number} ", f" 1 {number}.png"]))
        lines.append(" ".join(f"{xy[p, 0] + 0.5} {xy[p, 1] + 0.5} {p + 1}" for p in seen))
    (folder / "sparse/cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {WIDTH / 2} {HEIGHT / 2}\n")
    (folder / "sparse/images.txt").write_text("\n".join(lines) + "\n")
    points = [f"{p} {grid[p - 1, 0]} {grid[p - 1, 1]} 0 9 9 9 0.1 {' '.join(track)}" for p, track in tracks.items()]
    (folder / "sparse/points3D.txt").write_text("\n".join(points) + "\n")
    return folder


def _transfer(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    x, y, w = H @ np.column_stack([xy, np.ones(len(xy))]).T
    return np.column_stack([x / w, y / w])


def test_keypoints_are_carried_as_the_plane_carries_them(model: Path) -> None:
    view, other, _ = open_views(model / "images", model / "sparse")
    rng = np.random.default_rng(0)
    keypoints = Detections(rng.uniform(60, 180, (50, 2)), rng.uniform(1, 4, 50), rng.uniform(-3, 3, 50))
    between = HOMOGRAPHIES[1] @ np.linalg.inv(HOMOGRAPHIES[0])
    true, found = carry(keypoints, between), carry_by_depth(keypoints, view, other)
    np.testing.assert_allclose(found.xy, true.xy, atol=1e-3)
    np.testing.assert_allclose(found.sigma, true.sigma, rtol=1e-3)
    assert turn_between(found.angle, true.angle).max() < 1e-3
    assert epipolar_px(view, other, keypoints.xy, true.xy).max() < 1e-3
    aside = epipolar_px(view, other, keypoints.xy, true.xy + np.array([0, 5.0]))  # the baseline is nearly level
    assert 4.5 < aside.min() < aside.max() < 6


def test_where_no_points_are_nothing_is_known(model: Path) -> None:
    view, other, _ = open_views(model / "images", model / "sparse")
    corner = Detections(np.array([[1.0, 1.0]]), np.ones(1), np.zeros(1))
    assert np.isnan(carry_by_depth(corner, view, other).xy).all()


def test_groups_show_one_place_and_there_are_many(model: Path) -> None:
    views = densify(model / "images", model / "sparse")
    places = [_transfer(np.linalg.inv(H), v.xy) for H, v in zip(HOMOGRAPHIES, views, strict=True)]
    labels = np.concatenate([v.points for v in views])
    assert len(np.unique(labels)) > 250
    assert np.unique(labels, return_counts=True)[1].min() >= 2
    distances = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        _, rows_a, rows_b = np.intersect1d(views[a].points, views[b].points, return_indices=True)
        distances.append(np.linalg.norm(places[a][rows_a] - places[b][rows_b], axis=1) * FOCAL / 2)  # about pixels
        assert len(rows_a) > 60
    assert np.percentile(np.concatenate(distances), 95) < 2.0


def test_command_builds_a_store(model: Path, tmp_path: Path, correlate) -> None:
    arguments = ["build", "colmap", "--images", str(model / "images"), "--model", str(model / "sparse"), "--dense"]
    done = subprocess.run(
        [sys.executable, "-m", "train", *arguments, "--out", str(tmp_path / "store"), "--num-workers", "0"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = PatchStore.open(tmp_path / "store")
    assert store.meta["num_labels"] > 150
    labels = np.asarray(store.labels)
    order = np.argsort(labels, kind="stable")
    same = labels[order][1:] == labels[order][:-1]
    first, second = order[:-1][same], order[1:][same]
    patches = np.asarray(store.patches)
    assert np.median(correlate(patches[first], patches[second])) > 0.7
    assert np.median(np.abs(correlate(patches[first], patches[np.roll(second, 5)]))) < 0.4


def test_what_cannot_be_done_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dense detects its own keypoints"):
        ColmapSettings(dense=True, fixed=True)
    few = tmp_path / "few"
    few.mkdir()
    (few / "cameras.txt").write_bytes((model / "sparse/cameras.txt").read_bytes())
    poses = (model / "sparse/images.txt").read_text().splitlines()[0::2]
    (few / "images.txt").write_text("\n\n".join(poses) + "\n\n")
    (few / "points3D.txt").write_text("")
    with pytest.raises(DataError, match="its points are too few"):
        densify(model / "images", few)
