"""Patches from single photographs: views under random homographies and light, keypoints detected again in each."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.images import pictures_below, read_bgr
from common.jobs import ordered_map
from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import sha256_file
from train.stores.frames import MIN_INSIDE, cut, inside_share, similarity_frames
from train.stores.linking import Keypoints, carry, group, turn_between
from train.stores.sift import detect_sift
from train.stores.views import random_homography, render_view
from train.stores.writer import create_store, source_key

log = logging.getLogger(__name__)
MAX_KEYPOINTS = 3000  # of each view, the strongest
CONTRAST = 0.02
_TWIN_DISTANCE = 1.5  # sigma: labels this near, of like scale and direction, would be wrong negatives of each other
_TWIN_SCALE = 1.4
_TWIN_TURN = np.deg2rad(40.0)
_OCTAVE_FLATTENING = 0.5  # labels are drawn with weight (labels of their octave) ** -this


@dataclass(frozen=True)
class Built:
    """Counts of a finished build."""

    patches: int
    labels: int
    photos: int


@dataclass(frozen=True)
class PhotoPatches:
    """What one photograph gives: patches, labels from 0, the view (0 ... num_views - 1) and frame of each."""

    patches: np.ndarray
    labels: np.ndarray
    views: np.ndarray
    frames: np.ndarray
    problem: str = ""
    """Why the photograph cannot be used: then it gives nothing."""


def build_photos(
    folder: str | Path,
    out: str | Path,
    *,
    crop: float = 1.5,
    mr_size: float = 12.0,
    patch_size: int = 64,
    exclude: Sequence[str] = (),
    num_views: int = 6,
    max_labels: int = 700,
    seed: int = 0,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from a folder of single photographs.

    Of each photograph, ``num_views`` views are rendered (random perspective, any rotation, scale 0.5 ... 2, light,
    blur, noise, JPEG). SIFT is detected in each view on its own, and detections that the known homographies bring
    together are one label: at least two patches, cut in the detected similarity frames, errors of the detector
    included. Of near-twin labels one stays; at most ``max_labels`` a photograph, spread over the octaves of scale.
    A detection whose plain square lies less than 60 % inside the view and inside the photograph is not used.
    A photograph that cannot be used (damaged, too large, a side below ``patch_size``) is left out with a line.

    ``image_ids`` and ``cam_ids`` number the views: photograph * num_views + view.

    Raises:
        MissingFileError: the folder is not there.
        DataError: it holds no image, or no label comes out.
        UsageError: fewer than two views.
    """
    if num_views < 2 or max_labels < 1:
        raise UsageError("build photos needs at least 2 views and 1 label a photograph")
    folder = Path(folder)
    paths = [p for p in pictures_below(folder) if not any(fnmatch.fnmatch(p.name, pattern) for pattern in exclude)]
    if not paths:
        raise DataError(f"{folder}: every image is excluded")
    job = partial(
        photo_patches, crop=crop, mr_size=mr_size, patch_size=patch_size, num_views=num_views, max_labels=max_labels
    )
    key = ["photos", crop, mr_size, num_views, max_labels, seed, source_key(paths)]
    with create_store(out, patch_size, key=key) as writer:
        # the seed goes by name, so that a photograph gives the same patches whatever else is in the folder
        items = [(path, (seed, *path.relative_to(folder).as_posix().encode())) for path in paths]
        done = len(writer.records)
        offset = sum(record["labels"] for record in writer.records)
        left_out = 0
        results = ordered_map(job, items[done:], num_workers)
        for index, result in enumerate(progress(results, total=len(items) - done, what="photos", unit="photo"), done):
            if result.problem:
                log.warning("left out: %s", result.problem)
                left_out += 1
            ids = (index * num_views + result.views).astype(np.int32)
            writer.append(
                result.patches, labels=result.labels + offset, image_ids=ids, cam_ids=ids, frames=result.frames
            )
            labels = int(result.labels.max(initial=-1)) + 1
            offset += labels
            writer.commit({"labels": labels})
        used = sum(record["labels"] > 0 for record in writer.records)
        if not offset:
            unusable = f" ({left_out} of {len(items)} photographs cannot be used)" if left_out else ""
            raise DataError(f"{folder}: no keypoint was found again in a second view{unusable}")
        writer.meta = {
            "crop": float(crop),
            "mr_size": float(mr_size),
            "built": how or {},
            "sources": [{"name": p.relative_to(folder).as_posix(), "sha256": sha256_file(p)} for p in paths],
        }
    log.info("%s: %d patches of %d labels from %d of %d photographs", out, writer.count, offset, used, len(paths))
    if left_out:
        log.warning("%d photograph(s) left out, see above", left_out)
    return Built(writer.count, offset, used)


def photo_patches(
    item: tuple[Path, tuple[int, ...]], *, crop: float, mr_size: float, patch_size: int, num_views: int, max_labels: int
) -> PhotoPatches:
    """The patches of one photograph; ``item`` is its path and the seed of its views."""
    path, seed = item
    rng = np.random.default_rng(seed)
    try:
        photo = np.ascontiguousarray(read_bgr(path)[..., ::-1])
        if min(photo.shape[:2]) < patch_size:
            raise DataError(f"image {path} is {photo.shape[1]} x {photo.shape[0]} pixels, smaller than a patch")
    except DataError as error:
        return _nothing(patch_size, str(error))
    height, width = photo.shape[:2]
    views, keypoints = [], []
    for _ in range(num_views):
        view = render_view(photo, random_homography(width, height, rng), rng)
        found = Keypoints(*detect_sift(view.image, CONTRAST, MAX_KEYPOINTS))
        frames = similarity_frames(found.xy, found.sigma, found.angle, mr_size)
        inside = inside_share(frames, width, height) >= MIN_INSIDE
        inside &= inside_share(frames, width, height, np.linalg.inv(view.homography)) >= MIN_INSIDE
        views.append(view)
        keypoints.append(found.take(inside))
    homographies = [view.homography for view in views]
    groups = select(group(keypoints, homographies), keypoints, homographies, max_labels, rng)

    rows = np.concatenate([np.empty((0, 2), np.int64), *groups])
    labels = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    patches = np.empty((len(rows), patch_size, patch_size), np.uint8)
    frames = np.empty((len(rows), 2, 3), np.float32)
    for index, (view, points) in enumerate(zip(views, keypoints, strict=True)):
        mine = rows[:, 0] == index
        some = points.take(rows[mine, 1])
        frames[mine] = similarity_frames(some.xy, some.sigma, some.angle, mr_size)
        patches[mine] = cut(view.image, frames[mine], patch_size, crop)
    order = np.argsort(rows[:, 0], kind="stable")
    return PhotoPatches(patches[order], labels[order], rows[order, 0], frames[order])


def _nothing(patch_size: int, problem: str) -> PhotoPatches:
    none = np.empty(0, np.int64)
    empty = np.empty((0, patch_size, patch_size), np.uint8)
    return PhotoPatches(empty, none, none, np.empty((0, 2, 3), np.float32), problem)


def select(
    groups: list[np.ndarray],
    keypoints: list[Keypoints],
    homographies: list[np.ndarray],
    max_labels: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """At most ``max_labels`` of the groups, spread over scales, no two of them near-twins on the photograph."""
    from scipy.spatial import cKDTree

    if not groups:
        return []
    leads = []
    for members in groups:
        view, row = members[0]
        leads.append(carry(keypoints[view].take(np.array([row])), np.linalg.inv(homographies[view])))
    xy = np.concatenate([k.xy for k in leads])
    angle = np.concatenate([k.angle for k in leads])
    on_photo = np.concatenate([k.sigma for k in leads])
    seen = np.array([np.mean([np.log2(keypoints[v].sigma[r]) for v, r in members]) for members in groups])
    octave = np.floor(seen).astype(int)
    _, which, counts = np.unique(octave, return_inverse=True, return_counts=True)
    weight = counts[which] ** -_OCTAVE_FLATTENING
    order = np.argsort(-np.log(rng.random(len(groups))) / weight, kind="stable")  # weighted, without replacement
    near = cKDTree(xy).query_ball_point(xy, _TWIN_DISTANCE * on_photo)
    blocked = np.zeros(len(groups), bool)
    chosen = []
    for index in order:
        if blocked[index]:
            continue
        chosen.append(index)
        if len(chosen) == max_labels:
            break
        other = np.array(near[index])
        alike = np.abs(np.log(on_photo[other] / on_photo[index])) < np.log(_TWIN_SCALE)
        blocked[other[alike & (turn_between(angle[other], angle[index]) < _TWIN_TURN)]] = True
    return [groups[index] for index in sorted(chosen)]
