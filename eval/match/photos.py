"""Two photographs: their features, their matches, and one geometry of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.geometry import essential_from_pose, parallax_deg
from common.images import exif_orientation, read_bgr, reduce_image
from eval.core.essential import estimate_essential, pose_of_a_plane
from eval.core.estimators import EstimatorSettings, estimate_fundamental
from eval.core.homography_estimators import HomographySettings, estimate_homography
from eval.core.matchers import Matcher, match_images
from eval.features import Method
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.match.photo_cameras import PhotoCamera
from eval.reconstruct.photos import enlarging, turn_upright
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

Floats = NDArray[np.float64]
# COLMAP asks for as many verified matches: degensac finds eight or nine in any two photographs.
FEW_INLIERS = 15
# Share of the inliers that a homography must have for a plane.
_FLAT = 0.95


class PhotoFeatures(NamedTuple):
    """Keypoints and descriptors of one photograph, seen upright."""

    image: NDArray[np.uint8]
    """(H, W, 3) in OpenCV's order, upright, of full size."""
    features: Features
    """Of the image that they were found in, reduced."""
    to_full: Floats
    """The affine map (2, 3) from those pixels to those of the full image."""

    @property
    def kpts(self) -> Floats:
        """(N, 2) pixels of the reduced image."""
        return self.features.keypoints.xy.astype(np.float64)

    @property
    def full_kpts(self) -> Floats:
        """(N, 2) pixels of the full upright image."""
        moved: Floats = self.kpts @ self.to_full[:, :2].T + self.to_full[:, 2]
        return moved


class RelativePose(NamedTuple):
    """Where the second camera is, seen from the first: x1 = R x0 + t."""

    R: Floats
    """(3, 3)."""
    t: Floats
    """(3,), of length 1: photographs do not tell how long it is."""
    parallax_deg: float
    """Median angle between the rays of the inliers."""


class PhotoMatch(NamedTuple):
    """What two photographs have in common."""

    matches: NDArray[np.int64]
    """(M, 2) keypoint indices."""
    inliers: NDArray[np.bool_]
    """(M,) of the model."""
    model: Floats | None
    """F or H (3, 3) between the full upright images: x1' F x0 = 0, x1 ~ H x0; or E between points normalised by the
    cameras; None without one."""
    reason: str
    """Why there is no model; empty with one."""
    pose: RelativePose | None = None
    """Of calibrated photographs."""
    is_flat: bool = False
    """Whether a homography has nearly all inliers of F or E: epipolar lines and the pose are not sure then."""


def photo_features(
    path: Path, method: Method, detector: DogSettings, max_side_px: int, mr_size: float = DEFAULT_MR_SIZE
) -> PhotoFeatures:
    """Features of a photograph, turned as EXIF says and reduced to ``max_side_px``."""
    image = turn_upright(read_bgr(path), exif_orientation(path))
    reduced, scale = reduce_image(image, max_side_px)
    features = extract(reduced, method, detector, Cache(None), mr_size)
    return PhotoFeatures(image, features, enlarging(scale))


def match_photos(
    one: PhotoFeatures,
    two: PhotoFeatures,
    matcher: Matcher,
    geometry: EstimatorSettings | HomographySettings,
    seed: int = 0,
    device: torch.device | None = None,
    cameras: Sequence[PhotoCamera] = (),
) -> PhotoMatch:
    """Match two photographs and estimate one geometry; its threshold is in pixels of the reduced images.

    ``cameras``: of both, for an estimator of E.
    """
    features = [item.features._replace(descs=item.features.descs.to(device or "cpu")) for item in (one, two)]
    matches = match_images(features[0], features[1], matcher).cpu().numpy()
    points0, points1 = one.kpts[matches[:, 0]], two.kpts[matches[:, 1]]
    to0, to1 = (np.linalg.inv(np.vstack([item.to_full, [0, 0, 1]])) for item in (one, two))
    model: Floats | None
    if isinstance(geometry, HomographySettings):
        homography = estimate_homography(points0, points1, geometry, seed=seed)
        model = None if homography.H is None else np.linalg.inv(to1) @ homography.H @ to0
        return PhotoMatch(matches, homography.inliers, model, homography.reason)
    if geometry.is_calibrated:
        return _match_calibrated(one, two, matches, geometry, seed, cameras)
    estimate = estimate_fundamental(points0, points1, geometry, seed)
    model = None if estimate.F is None else to1.T @ estimate.F[0] @ to0
    is_flat = _homography_of_a_plane(points0[estimate.inliers], points1[estimate.inliers]) is not None
    return PhotoMatch(matches, estimate.inliers, model, estimate.reason, is_flat=is_flat)


def _match_calibrated(
    one: PhotoFeatures,
    two: PhotoFeatures,
    matches: NDArray[np.int64],
    geometry: EstimatorSettings,
    seed: int,
    cameras: Sequence[PhotoCamera],
) -> PhotoMatch:
    """The pose of two calibrated photographs, by points as pinhole cameras of the reduced images would see them."""
    rays, points, calibrations = [], [], []
    for item, camera, rows in zip((one, two), cameras, matches.T, strict=True):
        focal_px = camera.focal_px / float(np.sqrt(item.to_full[0, 0] * item.to_full[1, 1]))
        rays.append(camera.normalize(item.full_kpts[rows]))
        points.append(rays[-1] * focal_px)
        calibrations.append(np.diag([focal_px, focal_px, 1.0]))
    estimate = estimate_essential(points[0], points[1], calibrations[0], calibrations[1], geometry, seed)
    if estimate.R is None or estimate.t is None:
        return PhotoMatch(matches, estimate.inliers, None, estimate.reason)
    E, R, t = estimate.E, estimate.R, estimate.t
    seen = [of_one[estimate.inliers] for of_one in rays]
    H = _homography_of_a_plane(points[0][estimate.inliers], points[1][estimate.inliers])
    if H is not None:
        R, t = pose_of_a_plane(np.linalg.inv(calibrations[1]) @ H @ calibrations[0], R, t, seen[0], seen[1])
        E = essential_from_pose(R, t)
    pose = RelativePose(R, t, float(np.median(parallax_deg(seen[0], seen[1], R))))
    return PhotoMatch(matches, estimate.inliers, E, "", pose, H is not None)


def _homography_of_a_plane(points0: Floats, points1: Floats) -> Floats | None:
    """The homography that has nearly all of the inliers of F or E, given as points (N, 2) in pixels; else None."""
    if len(points0) < FEW_INLIERS:
        return None
    homography = estimate_homography(points0, points1, HomographySettings())
    return homography.H if homography.inliers.mean() > _FLAT else None
