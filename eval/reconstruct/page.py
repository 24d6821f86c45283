"""A reconstruction as one page: the model to turn, its cameras with their photographs, and what each of them sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images import exif_orientation, read_bgr, reduce_image
from eval.core.viz import view_bounds, world_axes
from eval.pages.render import embedded_photo, packed, render_page, write_page
from eval.reconstruct.photos import stored_from_upright, turn_upright

Floats = NDArray[np.float64]

# What a page may hold: about 9.5 MB in all, base64 (4 bytes for 3) included.
_MAX_POINTS = 60_000
_MAX_OBSERVATIONS = 200_000
_PHOTO_BYTES = 6_000_000
_PHOTO_SIDES_PX = (1024, 800, 640, 512, 400, 320, 256, 192, 128, 96, 64)
_FEWEST_BYTES_PER_PIXEL = 0.08  # of a photograph as a JPEG in base64
_FULL_ERROR_PX = 4.0


def write_model_page(
    path: Path, model: Any, images: Path, title: str, left_out: Sequence[str] = (), made: str = ""
) -> Path:
    """Write a pycolmap reconstruction as an HTML page; returns the path.

    Args:
        path: the page.
        model: with at least one registered image.
        images: folder of the photographs.
        title: heading of the page.
        left_out: names of photographs that are not in the model.
        made: how the model was made, a sentence.
    """
    names = [model.image(index).name for index in sorted(model.reg_image_ids())]
    orientations = {name: exif_orientation(images / name) for name in names}
    chosen = choose_points(model)
    data = model_data(model, orientations, chosen)
    data["pictures"] = embedded_photos([images / name for name in names], list(orientations.values()))
    error, length = model.compute_mean_reprojection_error(), model.compute_mean_track_length()
    total = model.num_points3D()
    facts = (
        f"{len(names)} of {len(names) + len(left_out)} photographs, {total:,} points; "
        f"mean reprojection error {error:.2f} px; a point is seen in {length:.1f} photographs on the mean"
    )
    shown = "All points are shown." if len(chosen) == total else f"{len(chosen):,} of {total:,} points are shown."
    page = render_page(
        "reconstruct/model.html", title=title, facts=facts, shown=shown, left_out=left_out, made=made, data=data
    )
    write_page(path, page)
    return path


def choose_points(model: Any) -> list[int]:
    """Ids of the points that a page shows: all, or as many as it may hold, evenly chosen."""
    ids = sorted(model.point3D_ids())
    most = min(_MAX_POINTS, int(len(ids) * _MAX_OBSERVATIONS / max(model.compute_num_observations(), 1)))
    return [ids[row] for row in np.linspace(0, len(ids) - 1, min(len(ids), most)).round().astype(int)]


def model_data(model: Any, orientations: Mapping[str, int], chosen: Sequence[int]) -> dict[str, Any]:
    """What the script of the page reads, but for the photographs; cameras are in the order of ``orientations``.

    The world is turned so that y is up and z comes out of the screen, moved and scaled so that the model lies within
    about 1 of the origin. Places in photographs are those of the photographs as they are to be seen.

    Args:
        model: pycolmap's.
        orientations: EXIF orientation of every registered image, by name.
        chosen: ids of the points to show.
    """
    images = [model.find_image_with_name(name) for name in orientations]
    points = [model.points3D[index] for index in chosen]
    xyz = np.array([point.xyz for point in points], np.float64).reshape(-1, 3)
    rotations = [image.cam_from_world().rotation.matrix() for image in images]
    centres = np.array([image.projection_center() for image in images])
    axes = world_axes(rotations, centres)
    low, high = view_bounds(xyz, centres, axes)
    axes, middle = axes * [[1], [1], [-1]], (low + high) / 2 * [1, 1, -1]
    scale = 2 / float(np.max(high - low))
    seen: dict[int, list[tuple[int, int]]] = {image.image_id: [] for image in images}
    for row, point in enumerate(points):
        for element in point.track.elements:
            seen[element.image_id].append((row, element.point2D_idx))
    cameras = []
    for image, orientation, rotation, centre in zip(images, orientations.values(), rotations, centres, strict=True):
        rows = dict(seen[image.image_id])  # a point that is seen twice is shown once
        stored = np.array([image.point2D(index).xy for index in rows.values()], np.float64).reshape(-1, 2)
        cameras.append(
            {
                "name": image.name,
                "centre": ((axes @ centre - middle) * scale).round(6).tolist(),
                "corners": (corner_rays(image.camera, orientation) @ rotation @ axes.T).round(5).tolist(),
                "index": packed(np.array(list(rows), np.uint32)),
                "at": packed(upright_shares(stored, image.camera, orientation)),
            }
        )
    errors = np.array([point.error for point in points], np.float64)
    num_images = np.array([len({e.image_id for e in point.track.elements}) for point in points], np.int64)
    return {
        "points": {
            "count": len(points),
            "xyz": packed(((xyz @ axes.T - middle) * scale).astype(np.float32)),
            "rgb": packed(np.array([point.color for point in points], np.uint8).reshape(-1, 3)),
            "error": packed(np.clip(errors / _FULL_ERROR_PX * 255, 0, 255).round().astype(np.uint8)),
            "seen": packed(np.minimum(num_images, 255).astype(np.uint8)),
        },
        "cameras": cameras,
    }


def corner_rays(camera: Any, orientation: int) -> Floats:
    """Directions (4, 3) in a camera's frame, of depth 1, to the corners of its photograph.

    From the upper left corner clockwise, of the photograph as EXIF says that it is to be seen.
    """
    width, height = _upright_size(camera, orientation)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64) - 0.5
    to_stored = stored_from_upright(orientation, (camera.width, camera.height))
    stored = corners @ to_stored[:, :2].T + to_stored[:, 2] + 0.5  # COLMAP's first pixel begins at 0
    rays = np.asarray(camera.cam_from_img(stored), np.float64)
    if not np.isfinite(rays).all():  # beyond what the distortion of the model can undo
        centre = [camera.principal_point_x, camera.principal_point_y]
        rays = (stored - centre) / [camera.focal_length_x, camera.focal_length_y]
    return np.column_stack([rays, np.ones(4)])


def upright_shares(stored: Floats, camera: Any, orientation: int) -> NDArray[np.uint16]:
    """Places (N, 2) in COLMAP's pixels as shares of width and height of the upright photograph; 65535: 1."""
    to_stored = stored_from_upright(orientation, (camera.width, camera.height))
    upright = (stored - 0.5 - to_stored[:, 2]) @ np.linalg.inv(to_stored[:, :2]).T
    shares = (upright + 0.5) / _upright_size(camera, orientation)
    return np.clip(shares * 65535, 0, 65535).round().astype(np.uint16)


def embedded_photos(paths: Sequence[Path], orientations: Sequence[int], limit: int = _PHOTO_BYTES) -> list[str]:
    """Photographs, upright, as data URIs: at the largest of some sizes at which they hold ``limit`` bytes together."""
    likely = np.sqrt(limit / max(len(paths), 1) / _FEWEST_BYTES_PER_PIXEL)
    sides = [side for side in _PHOTO_SIDES_PX if side <= likely] or [_PHOTO_SIDES_PX[-1]]
    photos = [
        reduce_image(turn_upright(read_bgr(path), turn), sides[0])[0]
        for path, turn in zip(paths, orientations, strict=True)
    ]
    for side in sides:
        pictures = [embedded_photo(photo, side, quality=75) for photo in photos]
        if sum(map(len, pictures)) <= limit:
            break
    return pictures


def _upright_size(camera: Any, orientation: int) -> tuple[int, int]:
    """(width, height) of a photograph as it is to be seen."""
    size = (camera.width, camera.height)
    return size[::-1] if orientation >= 5 else size
