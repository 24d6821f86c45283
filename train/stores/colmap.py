"""Patches from a COLMAP model: one label for each 3-D point."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kornia_hardnet8._files import sha256_file
from kornia_hardnet8._shell import progress
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, missing_extra
from train.stores.frames import MIN_INSIDE, cut, inside_share, similarity_frames
from train.stores.images import ordered_map, read_gray
from train.stores.store import create_store

log = logging.getLogger(__name__)
FIXED_SIDE = 64  # pixels: the window of the 2020 recipe
MATCH_RADIUS = 1.5  # pixels between an observation and the re-detected keypoint that lends it scale and orientation


@dataclass(frozen=True)
class Observations:
    """What one image sees: ``xy`` (n, 2) with pixel centres at integers, ``points`` (n,) labels, sigma and angle."""

    path: Path
    image_id: int
    size: tuple[int, int]
    xy: np.ndarray
    points: np.ndarray
    sigma: np.ndarray | None
    angle: np.ndarray | None

    def take(self, keep: np.ndarray) -> Observations:
        """The rows that ``keep`` selects."""
        sigma = None if self.sigma is None else self.sigma[keep]
        angle = None if self.angle is None else self.angle[keep]
        return replace(self, xy=self.xy[keep], points=self.points[keep], sigma=sigma, angle=angle)


@dataclass(frozen=True)
class Built:
    """Counts of a finished build."""

    patches: int
    labels: int
    images: int
    dropped_border: int
    dropped_undetected: int
    dropped_short: int


def build_colmap(
    images: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    crop: float | Literal["fixed"] = 1.5,
    mr_size: float = 12.0,
    patch_size: int = 64,
    min_track: int = 2,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from images and a COLMAP model (binary or text).

    A patch is cut in the similarity frame of the keypoint: half side ``crop * mr_size * sigma``, turned by its
    orientation, at the observed position. Sigma and orientation come from ``features`` (HDF5: one float32 dataset
    n x 4 = x, y, sigma, orientation an image, rows as points2D), by default the file ``features.h5`` in or beside
    the model folder, else from SIFT keypoints detected again, the nearest within 1.5 pixels. An observation whose
    plain square lies less than 60 % inside the image is dropped. ``crop="fixed"`` cuts the axis-aligned 64-pixel
    windows of the 2020 recipe instead.

    Returns:
        What was kept and dropped.

    Raises:
        MissingFileError: a folder, or an image of the model, is not there.
        DataError: the model does not load, an image does not decode or has another size, or nothing is left.
    """
    images, model = Path(images), Path(model)
    views = load_observations(images, model, find_features(model, features))
    fixed = crop == "fixed"
    undetected = border = 0
    if not fixed and any(view.sigma is None for view in views):
        jobs = ordered_map(_redetect, views, num_workers)
        redetected = list(progress(jobs, total=len(views), what="detect", unit="image"))
        views = [view.take(np.isfinite(view.sigma)) for view in redetected if view.sigma is not None]
        undetected = sum(len(view.xy) for view in redetected) - sum(len(view.xy) for view in views)
    before = sum(len(view.xy) for view in views)
    if fixed:
        patch_size = FIXED_SIDE
        views = [view.take(fixed_windows(view.xy, *view.size)[1]) for view in views]
    else:
        views = [
            view.take(inside_share(_frames(view, mr_size), *view.size) >= MIN_INSIDE) if len(view.xy) else view
            for view in views
        ]
    border = before - sum(len(view.xy) for view in views)

    seen = np.concatenate([np.unique(view.points) for view in views])
    points, counts = np.unique(seen, return_counts=True)
    points = points[counts >= min_track]
    before = sum(len(view.xy) for view in views)
    views = [view.take(np.isin(view.points, points)) for view in views]
    short = before - sum(len(view.xy) for view in views)
    if not len(points):
        raise DataError(f"{model}: no point is seen in {min_track} images with a usable patch")

    with create_store(out, patch_size) as writer:
        job = partial(_cut_view, mr_size=mr_size, crop=crop, patch_size=patch_size)
        used = [view for view in views if len(view.xy)]
        cuts = progress(ordered_map(job, used, num_workers), total=len(used), what="cut", unit="image")
        for view, (patches, frames) in zip(used, cuts, strict=True):
            ids = np.full(len(patches), view.image_id, dtype=np.int32)
            labels = np.searchsorted(points, view.points)
            writer.append(patches, labels=labels, image_ids=ids, cam_ids=ids, frames=frames)
        built = Built(writer.count, len(points), len(used), border, undetected, short)
        writer.meta = {
            "crop": 1.0 if fixed else float(crop),
            "mr_size": None if fixed else float(mr_size),
            "built": how or {},
            "dropped": {"border": border, "undetected": undetected, "short_track": short},
            "sources": [{"name": v.path.relative_to(images).as_posix(), "sha256": sha256_file(v.path)} for v in used],
        }
    log.info(
        "%s: %d patches of %d points in %d images; left out: %d at the border, %d without a keypoint, %d of too "
        "short tracks", out, built.patches, built.labels, built.images, border, undetected, short,
    )  # fmt: skip
    return built


def find_features(model: Path, features: str | Path | None) -> Path | None:
    """The features file: as named, else ``features.h5`` in or beside the model folder, else None."""
    if features is not None:
        if not Path(features).is_file():
            raise MissingFileError(f"features file {features} is not there")
        return Path(features)
    for folder in (model, model.resolve().parent):
        if (folder / "features.h5").is_file():
            return folder / "features.h5"
    return None


def load_observations(images: Path, model: Path, features: Path | None) -> list[Observations]:
    """Read the model: the observations of triangulated points of each image, images sorted by name.

    ``points`` holds the 3-D point ids of the model; of several observations of a point in one image the first counts.
    """
    try:
        import pycolmap
    except ImportError:
        raise missing_extra("pycolmap", "train") from None
    if not images.is_dir():
        raise MissingFileError(f"image folder {images} is not there")
    if not model.is_dir():
        raise MissingFileError(f"model folder {model} is not there")
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except Exception as error:  # pycolmap raises ValueError, RuntimeError, or its own, by what is wrong
        raise DataError(f"{model} is not a COLMAP model: {str(error).splitlines()[0]}") from None
    registered = sorted(reconstruction.images.values(), key=lambda image: image.name)
    missing = [image.name for image in registered if not (images / image.name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingFileError(f"images of the model {model} are not in {images}: {', '.join(missing[:3])}{more}")
    if len(registered) < 2:
        raise DataError(f"{model}: {len(registered)} image(s), at least 2 are needed")
    views = []
    for index, image in enumerate(registered):
        ids = np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], dtype=np.int64)
        xy = np.array([p.xy for p in image.points2D], dtype=np.float64).reshape(-1, 2) - 0.5  # corner origin
        first = np.zeros(len(ids), dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        sigma = angle = None
        if features is not None:
            rows = _read_features(features, image.name, len(ids))
            sigma, angle = rows[:, 2], rows[:, 3]
        size = (int(image.camera.width), int(image.camera.height))
        view = Observations(images / image.name, index, size, xy, ids, sigma, angle)
        views.append(view.take(first & (ids >= 0)))
    return views


def fixed_windows(xy: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 2) of the 64-pixel windows around ``xy`` and whether each is strictly inside, as in 2020.

    The corner is rounded half to even.
    """
    left_top = np.asarray(xy, dtype=np.float64) - FIXED_SIDE / 2
    limit = np.array([width - 1, height - 1]) - FIXED_SIDE
    keep = np.asarray(((left_top > 0) & (left_top < limit)).all(axis=-1))
    return np.rint(left_top).astype(np.int64), keep


def cut_fixed(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The windows (n, 64, 64) of a gray image whose upper left pixels are ``corners`` (n, 2)."""
    windows = [image[y : y + FIXED_SIDE, x : x + FIXED_SIDE] for x, y in corners]
    return np.stack(windows) if windows else np.empty((0, FIXED_SIDE, FIXED_SIDE), np.uint8)


def _frames(view: Observations, mr_size: float) -> np.ndarray:
    assert view.sigma is not None
    assert view.angle is not None
    return similarity_frames(view.xy, view.sigma, view.angle, mr_size)


def _read_features(features: Path, name: str, count: int) -> np.ndarray:
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "train") from None
    try:
        with h5py.File(features, "r") as file:
            if name not in file:
                raise DataError(f"{features} has no dataset {name!r}")
            rows = np.asarray(file[name], dtype=np.float64)
    except OSError as error:
        raise DataError(f"{features} does not read: {error}") from None
    if rows.shape != (count, 4):
        raise DataError(f"{features}: {name} is {rows.shape}, the model has {count} points2D: expected ({count}, 4)")
    if not np.isfinite(rows).all() or (rows[:, 2] <= 0).any():
        raise DataError(f"{features}: {name} has a scale that is not positive or a number that is not finite")
    return rows


def _open_view(view: Observations) -> np.ndarray:
    image = read_gray(view.path)
    if image.shape != view.size[::-1]:
        raise DataError(
            f"{view.path} is {image.shape[1]} x {image.shape[0]} pixels, the model says {view.size[0]} x {view.size[1]}"
        )
    return image


def _redetect(view: Observations) -> Observations:
    """Sigma and angle from the nearest SIFT keypoint; NaN where none is within MATCH_RADIUS."""
    from scipy.spatial import cKDTree

    from train.stores.sift import detect_sift

    xy, sigma, angle = detect_sift(_open_view(view), contrast=0.0)
    nothing = np.full(len(view.xy), np.nan)
    if not len(xy) or not len(view.xy):
        return replace(view, sigma=nothing, angle=nothing)
    _, nearest = cKDTree(xy).query(view.xy, distance_upper_bound=MATCH_RADIUS)
    found = nearest < len(xy)
    nearest = np.where(found, nearest, 0)
    return replace(view, sigma=np.where(found, sigma[nearest], np.nan), angle=np.where(found, angle[nearest], np.nan))


def _cut_view(
    view: Observations, mr_size: float, crop: float | Literal["fixed"], patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    image = _open_view(view)
    if crop == "fixed":
        corners, _ = fixed_windows(view.xy, *view.size)
        half = FIXED_SIDE / 2
        one = np.ones(len(corners))
        return cut_fixed(image, corners), similarity_frames(corners + half - 0.5, one, 0 * one, half)
    frames = _frames(view, mr_size)
    return cut(image, frames, patch_size, crop), frames


def parse_crop(text: str) -> float | Literal["fixed"]:
    """``"fixed"``, or the stored side as a multiple (at least 1) of the plain side."""
    if text == "fixed":
        return "fixed"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= 4.0:
        raise UsageError(f"--crop must be 'fixed' or a number in 1 ... 4, got {text!r}")
    return value
