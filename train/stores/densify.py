"""More labels from a COLMAP model: keypoints of pairs of images linked by the known geometry instead of by a matcher.

The tracks of a model are what one matcher found, in the main its strongest and easiest keypoints. Here SIFT is detected
again, weak keypoints too; where the model's points are dense enough to say where a keypoint lies in another image, a
keypoint that is there is linked to it, whatever both look like.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from common.colmap import open_model
from common.images import read_luma
from common.jobs import ordered_map
from common.shell import progress
from kornia_hardnet8.errors import DataError
from train.stores.colmap_model import Observations
from train.stores.frames import cut, detect_sift, similarity_frames
from train.stores.linking import Detections, group_links, mutual_links

CONTRAST = 0.005
MAX_KEYPOINTS = 4000  # of an image, the strongest
MIN_COMMON = 12  # points that both images of a pair see
MAX_EDGE = 0.15  # of a triangle of points, as a share of the image's long side
MAX_DEPTH_RATIO = 1.25  # of a triangle's farthest and nearest corner
MAX_EPIPOLAR_PX = 1.5
MIN_CORRELATION = 0.3  # of the patches: two things that are there by chance correlate less nine times in ten
_THUMB = 16  # side of the patches that are correlated


@dataclass(frozen=True)
class PosedImage:
    """One registered image.

    Attributes:
        camera: pycolmap's; its pixels have their origin at the corner.
        rotation, translation: world to camera, (3, 3) and (3,).
        ids, xy: points that it sees, ascending, and where, pixel centres at integers, (n,) and (n, 2).
        points: the same in the world, (n, 3).
    """

    path: Path
    camera: Any
    rotation: np.ndarray
    translation: np.ndarray
    ids: np.ndarray
    xy: np.ndarray
    points: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return int(self.camera.width), int(self.camera.height)

    def rays(self, xy: np.ndarray) -> np.ndarray:
        """Directions (n, 3) in the camera with z = 1 of pixels (n, 2)."""
        return np.column_stack([self.camera.cam_from_img(np.ascontiguousarray(xy) + 0.5), np.ones(len(xy))])

    def project(self, world: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of world points (n, 3); NaN behind the camera."""
        inside = world @ self.rotation.T + self.translation
        front = inside[:, 2] > 1e-9
        inside[~front] = 1.0
        pixels = np.asarray(self.camera.img_from_cam(inside)) - 0.5
        pixels[~front] = np.nan
        return pixels


def open_views(images: Path, model: Path) -> list[PosedImage]:
    """The registered images of a model, by name.

    Raises:
        DataError: the folder holds no COLMAP model.
    """
    reconstruction = open_model(model, images)
    views = []
    for image in reconstruction.images:
        if not image.camera.focal_length_idxs():
            raise DataError(f"image {images / image.name} is of a {image.camera.model_name} camera: not with --dense")
        ids, first = np.unique(image.point_ids, return_index=True)
        ids, first = ids[ids >= 0], first[ids >= 0]
        at = np.searchsorted(reconstruction.point_ids, ids)
        path = images / image.name
        views.append(
            PosedImage(path, image.camera, image.R, image.t, ids, image.xy[first] - 0.5, reconstruction.xyz[at])
        )
    return views


def densify(images: Path, model: Path, num_workers: int = 0) -> list[Observations]:
    """Keypoints detected again, and which of them show the same: observations whose ``points`` number the groups.

    Args:
        images: folder of the model's images.
        model: folder of the COLMAP model.
        num_workers: processes.

    Returns:
        One entry an image, those of the model in order of name.

    Raises:
        DataError: no model, an image of another size than the model says, or nothing could be linked.
    """
    views = open_views(images, model)
    detected = list(progress(ordered_map(_detect, views, num_workers), len(views), what="detect", unit="image"))
    pairs = [
        (a, b)
        for a, b in combinations(range(len(views)), 2)
        if len(np.intersect1d(views[a].ids, views[b].ids, assume_unique=True)) >= MIN_COMMON
    ]
    jobs = ((views[a], views[b], detected[a], detected[b]) for a, b in pairs)
    linked = progress(ordered_map(_link, jobs, num_workers), len(pairs), what="link", unit="pair")
    counts = [len(keypoints.xy) for keypoints, _ in detected]
    groups = group_links(counts, [(a, b, links) for (a, b), links in zip(pairs, linked, strict=True)])
    if not groups:
        raise DataError(f"{model}: its points are too few to say where keypoints of one image lie in another")
    rows = np.concatenate(groups)
    labels = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    result = []
    for index, (view, (keypoints, _)) in enumerate(zip(views, detected, strict=True)):
        here = rows[:, 0] == index
        chosen = keypoints.take(rows[here, 1])
        result.append(Observations(view.path, index, view.size, chosen.xy, labels[here], chosen.sigma, chosen.angle))
    return result


def carry_by_depth(keypoints: Detections, view: PosedImage, other: PosedImage) -> Detections:
    """The keypoints of one image as another one sees them; NaN where the model does not say.

    Between points that both images see the surface is taken as plane (linear inverse depth in each triangle of
    them), so that what hides the surface in either image hides its corners too. Scale and direction follow the
    local affine map.
    """
    from scipy.spatial import Delaunay, QhullError

    out = Detections(*(np.full_like(a, np.nan) for a in (keypoints.xy, keypoints.sigma, keypoints.angle)))
    _, here, _ = np.intersect1d(view.ids, other.ids, assume_unique=True, return_indices=True)
    corners = view.xy[here]
    depth = (view.points[here] @ view.rotation.T + view.translation)[:, 2]
    in_front = depth > 0
    corners, inverse = corners[in_front], 1.0 / depth[in_front]
    try:
        mesh = Delaunay(corners)
    except (QhullError, ValueError):  # too few points, or all on a line
        return out
    triangle = mesh.find_simplex(keypoints.xy)
    edges = corners[mesh.simplices] - corners[np.roll(mesh.simplices, 1, axis=1)]
    at_corners = inverse[mesh.simplices]
    small = np.linalg.norm(edges, axis=2).max(axis=1) <= MAX_EDGE * max(view.size)
    flat = at_corners.max(axis=1) <= MAX_DEPTH_RATIO * at_corners.min(axis=1)
    usable = np.flatnonzero((triangle >= 0) & (small & flat)[triangle])
    if not len(usable):
        return out
    simplex = triangle[usable]
    to_weights, last = mesh.transform[simplex, :2], mesh.transform[simplex, 2]

    def project(xy: np.ndarray) -> np.ndarray:
        two = np.einsum("nij,nj->ni", to_weights, xy - last)
        weights = np.column_stack([two, 1.0 - two.sum(axis=1)])
        local = view.rays(xy) / np.sum(weights * at_corners[simplex], axis=1)[:, None]
        return other.project((local - view.translation) @ view.rotation)

    xy = keypoints.xy[usable]
    step = 0.5 * np.eye(2)
    local = np.stack([project(xy + s) - project(xy - s) for s in step], axis=2)  # of one pixel along x, along y
    area = local[:, 0, 0] * local[:, 1, 1] - local[:, 0, 1] * local[:, 1, 0]
    angle = keypoints.angle[usable]
    turned = np.einsum("nij,nj->ni", local, np.column_stack([np.cos(angle), np.sin(angle)]))
    good = area > 0
    rows = usable[good]
    out.xy[rows] = project(xy)[good]
    out.sigma[rows] = keypoints.sigma[rows] * np.sqrt(area[good])
    out.angle[rows] = np.arctan2(turned[good, 1], turned[good, 0])
    return out


def epipolar_px(view: PosedImage, other: PosedImage, xy: np.ndarray, other_xy: np.ndarray) -> np.ndarray:
    """Larger distance (n,) of points to the epipolar line of their partner, in pixels of the mean focal length."""
    rotation = other.rotation @ view.rotation.T
    t = other.translation - rotation @ view.translation
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    essential = cross @ rotation
    rays, other_rays = view.rays(xy), other.rays(other_xy)
    lines, other_lines = other_rays @ essential, rays @ essential.T
    residual = np.abs(np.sum(other_rays * other_lines, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        both = [
            residual / np.hypot(line[:, 0], line[:, 1]) * v.camera.mean_focal_length()
            for line, v in ((lines, view), (other_lines, other))
        ]
    result: np.ndarray = np.maximum(*both)
    return result


def _detect(view: PosedImage) -> tuple[Detections, np.ndarray]:
    """Keypoints, and their standardised small patches (n, 256)."""
    image = read_luma(view.path)
    if image.shape != view.size[::-1]:
        width, height = view.size
        raise DataError(f"{view.path} is {image.shape[1]} x {image.shape[0]} pixels, the model says {width} x {height}")
    keypoints = Detections(*detect_sift(image, CONTRAST, MAX_KEYPOINTS))
    frames = similarity_frames(keypoints.xy, keypoints.sigma, keypoints.angle, 12.0)
    thumbs = cut(image, frames, _THUMB, 1.0).reshape(len(frames), -1).astype(np.float32)
    thumbs -= thumbs.mean(axis=1, keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-6
    return keypoints, thumbs


def _link(
    job: tuple[PosedImage, PosedImage, tuple[Detections, np.ndarray], tuple[Detections, np.ndarray]],
) -> np.ndarray:
    """Pairs (m, 2) of rows of the keypoints of two images that show the same."""
    view, other, (keypoints, thumbs), (others, other_thumbs) = job
    links = mutual_links(carry_by_depth(keypoints, view, other), others)
    one, two = links.T
    near = epipolar_px(view, other, keypoints.xy[one], others.xy[two]) <= MAX_EPIPOLAR_PX
    alike = np.sum(thumbs[one] * other_thumbs[two], axis=1) >= MIN_CORRELATION
    result: np.ndarray = links[near & alike]
    return result
