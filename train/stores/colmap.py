"""Patches from a COLMAP model: one label for each 3-D point."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.images import read_luma
from common.jobs import ordered_map
from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import sha256_file
from train.stores.colmap_model import Observations, load_observations
from train.stores.frames import MIN_INSIDE, cut, inside_share, similarity_frames
from train.stores.writer import create_store, source_key

log = logging.getLogger(__name__)
FIXED_SIDE = 64  # pixels: the window of the 2020 recipe
MATCH_RADIUS = 1.5  # pixels between an observation and the re-detected keypoint that lends it scale and orientation


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
    max_patches: int | None = None,
    dense: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from images and a COLMAP model (binary or text).

    A patch is cut in the similarity frame of the keypoint: half side ``crop * mr_size * sigma``, turned by its
    orientation, at the observed position. Sigma and orientation come from ``features`` (HDF5: one float32 dataset
    n x 4 = x, y, sigma, orientation an image, rows as points2D; or a COLMAP database), by default ``features.h5`` or
    ``database.db`` in or beside the model folder, else from SIFT keypoints detected again, the nearest within 1.5
    pixels. An observation whose plain square lies less than 60 % inside the image is dropped. ``crop="fixed"`` cuts
    the axis-aligned 64-pixel windows of the 2020 recipe instead. With ``max_patches``, random points are kept, each
    with all its patches, as long as these are not more. ``dense`` takes other labels than the model's points: see
    :func:`train.stores.densify.densify`.

    Returns:
        What was kept and dropped.

    Raises:
        MissingFileError: a folder, or an image of the model, is not there.
        DataError: the model does not load, an image does not decode or has another size, or nothing is left.
    """
    images, model = Path(images), Path(model)
    check_settings(features, crop, max_patches, dense)
    views = load_observations(images, model, None if dense else features)
    if dense:
        from train.stores.densify import densify

        views = densify(images, model, num_workers)
    fixed = crop == "fixed"
    undetected = 0
    if fixed:
        patch_size = FIXED_SIDE
    elif any(view.sigma is None for view in views):
        views, undetected = _lend_frames(views, num_workers)
    before = _count(views)
    views = [_inside(view, crop, mr_size) for view in views]
    border = before - _count(views)
    points, short = _choose_points(views, min_track, max_patches, seed)
    views = [view.take(np.isin(view.points, points)) for view in views]
    if not len(points):
        raise DataError(f"{model}: no point is seen in {min_track} images with a usable patch")

    used = [view for view in views if len(view.xy)]
    key = ["colmap", mr_size, crop, _content(used), source_key(view.path for view in used)]
    with create_store(out, patch_size, key=key) as writer:
        job = partial(_cut_view, mr_size=mr_size, crop=crop, patch_size=patch_size)
        rest = used[len(writer.records) :]
        cuts = progress(ordered_map(job, rest, num_workers), total=len(rest), what="cut", unit="image")
        for view, (patches, frames) in zip(rest, cuts, strict=True):
            ids = np.full(len(patches), view.image_id, dtype=np.int32)
            labels = np.searchsorted(points, view.points)
            writer.append(patches, labels=labels, image_ids=ids, cam_ids=ids, frames=frames)
            writer.commit({})
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


def check_settings(
    features: str | Path | None, crop: float | Literal["fixed"], max_patches: int | None, dense: bool
) -> None:
    """Raise a UsageError for settings of :func:`build_colmap` that are wrong whatever the model is."""
    if max_patches is not None and max_patches < 2:
        raise UsageError(f"--max-patches must be at least 2, got {max_patches}")
    if dense and (features is not None or crop == "fixed"):
        raise UsageError("--dense detects its own keypoints: it goes without --features and --crop fixed")


def some_points(points: np.ndarray, counts: np.ndarray, max_patches: int, seed: int) -> np.ndarray:
    """Random ``points``, ascending, whose ``counts`` of patches together are at most ``max_patches``.

    They are taken in random order until the next one would be too many.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    return np.sort(points[order[: np.searchsorted(np.cumsum(counts[order]), max_patches, side="right")]])


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


def _count(views: list[Observations]) -> int:
    return sum(len(view.xy) for view in views)


def _lend_frames(views: list[Observations], num_workers: int) -> tuple[list[Observations], int]:
    """The observations that a SIFT keypoint detected again lends sigma and angle, and how many there are without."""
    jobs = ordered_map(_redetect, views, num_workers)
    redetected = list(progress(jobs, total=len(views), what="detect", unit="image"))
    found = [view.take(np.isfinite(view.sigma)) for view in redetected if view.sigma is not None]
    return found, _count(redetected) - _count(found)


def _inside(view: Observations, crop: float | Literal["fixed"], mr_size: float) -> Observations:
    """The observations whose patch is inside the image, or enough of it."""
    if crop == "fixed":
        return view.take(fixed_windows(view.xy, *view.size)[1])
    return view.take(inside_share(_frames(view, mr_size), *view.size) >= MIN_INSIDE) if len(view.xy) else view


def _choose_points(
    views: list[Observations], min_track: int, max_patches: int | None, seed: int
) -> tuple[np.ndarray, int]:
    """The points that enough images see, ascending, and how many observations those have that too few see."""
    seen = np.concatenate([np.unique(view.points) for view in views])
    points, counts = np.unique(seen, return_counts=True)
    points, counts = points[counts >= min_track], counts[counts >= min_track]
    short = _count(views) - int(counts.sum())
    return (points if max_patches is None else some_points(points, counts, max_patches, seed)), short


def _content(views: list[Observations]) -> str:
    """Hash of what is cut."""
    digest = hashlib.sha256()
    for view in views:
        for array in (view.xy, view.points, view.sigma, view.angle):
            digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


def _frames(view: Observations, mr_size: float) -> np.ndarray:
    assert view.sigma is not None
    assert view.angle is not None
    return similarity_frames(view.xy, view.sigma, view.angle, mr_size)


def _open_view(view: Observations) -> np.ndarray:
    image = read_luma(view.path)
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
