"""``python -m train build photos``: patches from single photographs.

Views are drawn under random homographies and light, and keypoints are detected again in each.
"""

from __future__ import annotations

import argparse
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
from common.shell import progress, seed_number
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.flags import add_cut, add_output, how_built, number_crop
from train.stores.frames import MIN_INSIDE, Cut, cut, detect_sift, inside_share, similarity_frames
from train.stores.linking import Detections, carry, group, turn_between
from train.stores.views import random_homography, render_view
from train.stores.writer import Built, create_store, source_hashes, source_key

log = logging.getLogger(__name__)
MAX_KEYPOINTS = 3000  # of each view, the strongest
CONTRAST = 0.02
_TWIN_DISTANCE = 1.5  # sigma: labels this near, of like scale and direction, would be wrong negatives of each other
_TWIN_SCALE = 1.4
_TWIN_TURN = np.deg2rad(40.0)
_OCTAVE_FLATTENING = 0.5  # labels are drawn with weight (labels of their octave) ** -this


@dataclass(frozen=True)
class PhotoSettings(Cut):
    """What decides the patches of a photograph, beside how they are cut in the keypoints' frames.

    Attributes:
        num_views: views made of it.
        max_labels: labels kept of it.
        seed: of the views.
    """

    num_views: int = 6
    max_labels: int = 700
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_views < 2 or self.max_labels < 1:
            raise UsageError("build photos needs at least 2 views and 1 label a photograph")


@dataclass(frozen=True)
class PhotoPatches:
    """What one photograph gives: patches, labels from 0, the view (0 ... num_views - 1) and frame of each."""

    patches: np.ndarray
    labels: np.ndarray
    views: np.ndarray
    frames: np.ndarray
    problem: str = ""
    """Why the photograph cannot be used: then it gives nothing."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of photographs")
    add_output(parser)
    add_cut(parser)
    parser.add_argument("--exclude", nargs="+", default=[], metavar="GLOB", help="file names to leave out")
    parser.add_argument("--views", type=int, default=6, metavar="N", help="views made of each photograph")
    parser.add_argument("--max-labels", type=int, default=700, metavar="N", help="labels kept of each photograph")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the views")


def run(args: argparse.Namespace) -> None:
    """Build, and say what came out."""
    settings = PhotoSettings(
        number_crop(args, "photos"), args.mr_size, args.patch_size or Cut.patch_size,
        num_views=args.views, max_labels=args.max_labels, seed=args.seed,
    )  # fmt: skip
    how = how_built(args, "photos")
    built = build_photos(args.folder, args.out, settings, exclude=args.exclude, num_workers=args.num_workers, how=how)
    print(f"{args.out}: {built}")


def build_photos(
    folder: str | Path,
    out: str | Path,
    settings: PhotoSettings = PhotoSettings(),
    *,
    exclude: Sequence[str] = (),
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
    """
    folder = Path(folder)
    paths = [p for p in pictures_below(folder) if not any(fnmatch.fnmatch(p.name, pattern) for pattern in exclude)]
    if not paths:
        raise DataError(f"{folder}: every image is excluded")
    num_views, seed = settings.num_views, settings.seed
    key = ["photos", settings.crop, settings.mr_size, num_views, settings.max_labels, seed, source_key(paths)]
    with create_store(out, settings.patch_size, key=key) as writer:
        # the seed goes by name, so that a photograph gives the same patches whatever else is in the folder
        items = [(path, (seed, *path.relative_to(folder).as_posix().encode())) for path in paths]
        done = len(writer.records)
        offset = sum(record["labels"] for record in writer.records)
        left_out = 0
        results = ordered_map(partial(photo_patches, settings=settings), items[done:], num_workers)
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
            "crop": float(settings.crop),
            "mr_size": float(settings.mr_size),
            "built": how or {},
            "sources": source_hashes(paths, folder),
        }
    log.info("%s: %d patches of %d labels from %d of %d photographs", out, writer.count, offset, used, len(paths))
    if left_out:
        log.warning("%d photograph(s) left out, see above", left_out)
    return Built(writer.count, offset, {"photographs": used})


def photo_patches(item: tuple[Path, tuple[int, ...]], settings: PhotoSettings) -> PhotoPatches:
    """The patches of one photograph; ``item`` is its path and the seed of its views."""
    path, seed = item
    rng = np.random.default_rng(seed)
    try:
        photo = np.ascontiguousarray(read_bgr(path)[..., ::-1])
        if min(photo.shape[:2]) < settings.patch_size:
            raise DataError(f"image {path} is {photo.shape[1]} x {photo.shape[0]} pixels, smaller than a patch")
    except DataError as error:
        return _nothing(settings.patch_size, str(error))
    height, width = photo.shape[:2]
    views, keypoints = [], []
    for _ in range(settings.num_views):
        view = render_view(photo, random_homography(width, height, rng), rng)
        detected = Detections(*detect_sift(view.image, CONTRAST, MAX_KEYPOINTS))
        frames = similarity_frames(detected.xy, detected.sigma, detected.angle, settings.mr_size)
        inside = inside_share(frames, width, height) >= MIN_INSIDE
        inside &= inside_share(frames, width, height, np.linalg.inv(view.homography)) >= MIN_INSIDE
        views.append(view)
        keypoints.append(detected.take(inside))
    homographies = [view.homography for view in views]
    groups = select(group(keypoints, homographies), keypoints, homographies, settings.max_labels, rng)

    rows = np.concatenate([np.empty((0, 2), np.int64), *groups])
    labels = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    patches = np.empty((len(rows), settings.patch_size, settings.patch_size), np.uint8)
    frames = np.empty((len(rows), 2, 3), np.float32)
    for index, (view, points) in enumerate(zip(views, keypoints, strict=True)):
        here = rows[:, 0] == index
        chosen = points.take(rows[here, 1])
        frames[here] = similarity_frames(chosen.xy, chosen.sigma, chosen.angle, settings.mr_size)
        patches[here] = cut(view.image, frames[here], settings.patch_size, settings.crop)
    order = np.argsort(rows[:, 0], kind="stable")
    return PhotoPatches(patches[order], labels[order], rows[order, 0], frames[order])


def _nothing(patch_size: int, problem: str) -> PhotoPatches:
    none = np.empty(0, np.int64)
    empty = np.empty((0, patch_size, patch_size), np.uint8)
    return PhotoPatches(empty, none, none, np.empty((0, 2, 3), np.float32), problem)


def select(
    groups: list[np.ndarray],
    keypoints: list[Detections],
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
