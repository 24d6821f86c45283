"""Pictures of reconstructions: points and cameras from above and from the front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.core.viz import VERMILION, new_figure, save_figure

Floats = NDArray[np.float64]

_MAX_POINTS = 60_000


class Cameras(NamedTuple):
    """A set of cameras that is drawn in one colour."""

    label: str
    poses: Sequence[tuple[ArrayLike, ArrayLike]]
    """(R, t), world to camera."""
    color: str


def draw_model(path: Path, model: Any, title: str = "") -> Path:
    """Draw a pycolmap reconstruction as a PNG; returns the path."""
    images = [model.image(i) for i in sorted(model.reg_image_ids())]
    poses = [(p.rotation.matrix(), p.translation) for p in (image.cam_from_world() for image in images)]
    points = list(model.points3D.values())
    xyz = np.array([p.xyz for p in points], np.float64).reshape(-1, 3)
    colors = np.array([p.color for p in points], np.float64).reshape(-1, 3) / 255
    error, length = model.compute_mean_reprojection_error(), model.compute_mean_track_length()
    text = f"{len(poses)} images, {len(xyz)} points, {error:.2f} px, track length {length:.2f}"
    return draw_cameras(
        path, [Cameras("cameras", poses, VERMILION)], xyz, colors, "; ".join(filter(None, [title, text]))
    )


def draw_cameras(
    path: Path,
    cameras: Sequence[Cameras],
    points: ArrayLike | None = None,
    colors: ArrayLike | None = None,
    title: str = "",
) -> Path:
    """Draw cameras (as pyramids) and points from above and from the front as a PNG.

    Up is the mean of the cameras' up directions, right the mean of their right directions.

    Args:
        path: the picture.
        cameras: sets of cameras in one world, at least one camera altogether.
        points: (N, 3), or None.
        colors: (N, 3) in [0, 1] of the points.
        title: of the picture.
    """
    from matplotlib.collections import LineCollection

    poses = [(np.asarray(R, np.float64), np.asarray(t, np.float64)) for group in cameras for R, t in group.poses]
    centers = np.array([-R.T @ t for R, t in poses])
    xyz = np.asarray(points if points is not None else np.zeros((0, 3)), np.float64)
    axes3 = world_axes([R for R, _ in poses], centers)
    low, high = view_bounds(xyz, centers, axes3)
    size = 0.035 * float(np.max(high - low))
    figure, panels = new_figure(13.0, 6.9, 2)
    chosen = np.linspace(0, len(xyz) - 1, min(len(xyz), _MAX_POINTS)).astype(int)
    dot = float(np.clip(6000 / max(len(chosen), 1), 1.0, 6.0))
    shades = np.asarray(colors, np.float64)[chosen] if colors is not None and len(xyz) else "0.6"
    for panel, (horizontal, vertical, name) in zip(
        panels, ((0, 2, "from above"), (0, 1, "from the front")), strict=True
    ):
        view = axes3[[horizontal, vertical]]
        if len(chosen):
            at = xyz[chosen] @ view.T
            panel.scatter(at[:, 0], at[:, 1], s=dot, c=shades, linewidths=0)
        for group in cameras:
            lines = [line @ view.T for R, t in group.poses for line in _pyramid(R, t, size)]
            label = f"{group.label} ({len(group.poses)})"
            width = 0.9 if group is cameras[-1] else 2.2  # seen where the last set lies on top
            panel.add_collection(LineCollection(lines, colors=group.color, linewidths=width, label=label))
        middle, half = (low + high) / 2, float(np.max((high - low)[[horizontal, vertical]])) / 2
        panel.set_xlim(middle[horizontal] - half, middle[horizontal] + half)
        panel.set_ylim(middle[vertical] - half, middle[vertical] + half)
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize=9)
    panels[0].legend(fontsize=8, loc="best")
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
    return path


def world_axes(rotations: Sequence[Floats], centers: Floats) -> Floats:
    """Rows right, up, forward (3, 3) of the world as the cameras see it on the mean.

    Args:
        rotations: (3, 3) each, world to camera.
        centers: (N, 3) of the same cameras.
    """
    up = _unit(-np.mean([R[1] for R in rotations], axis=0))
    if up is None:  # cameras on all sides of something: the plane that they lie in
        up = np.linalg.svd(centers - centers.mean(axis=0))[2][2]
    right = np.mean([R[0] for R in rotations], axis=0)
    flat = _unit(right - up * (up @ right), 0.1)
    if flat is None:  # all around: any direction does
        candidate = np.eye(3)[np.argmin(np.abs(up))]
        flat = _unit(candidate - up * (up @ candidate))
    assert flat is not None
    return np.stack([flat, up, np.cross(up, flat)])


def _unit(vector: Floats, least: float = 1e-3) -> Floats | None:
    length = float(np.linalg.norm(vector))
    return vector / length if length > least else None


def view_bounds(points: Floats, centers: Floats, axes: Floats) -> tuple[Floats, Floats]:
    """Lower and upper bound (3,) of the view: all cameras, and the points without the outermost ones."""
    at = centers @ axes.T
    low, high = at.min(axis=0), at.max(axis=0)
    if len(points):
        seen = points @ axes.T
        low = np.minimum(low, np.percentile(seen, 2, axis=0))
        high = np.maximum(high, np.percentile(seen, 98, axis=0))
    margin = 0.06 * max(float(np.max(high - low)), 1e-9)
    return low - margin, high + margin


def _pyramid(R: ArrayLike, t: ArrayLike, size: float) -> list[Floats]:
    """Polylines (n, 3) of a camera: its image rectangle, a mark on its upper side, and the edges to its centre."""
    rotation, translation = np.asarray(R, np.float64), np.asarray(t, np.float64)
    corners = np.array([[-0.6, -0.45, 1], [0.6, -0.45, 1], [0.6, 0.45, 1], [-0.6, 0.45, 1], [-0.6, -0.45, 1]])
    mark = np.array([[-0.3, -0.45, 1], [0.0, -0.75, 1], [0.3, -0.45, 1]])
    apex = np.zeros(3)
    lines = [corners, mark, *(np.stack([apex, corner]) for corner in corners[:4])]
    return [(line * size - translation) @ rotation for line in lines]
