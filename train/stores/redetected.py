"""Patches of fixed cameras in the frames of keypoints detected again in every photograph."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.jobs import worker_map
from common.shell import progress
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.frames import MIN_INSIDE, Cut, cut, detect_sift, inside_share, similarity_frames
from train.stores.linking import Detections, group
from train.stores.photos import CONTRAST, MAX_KEYPOINTS, select
from train.stores.view_folders import ViewImage, list_views, read_view_image, view_key
from train.stores.writer import Built, create_store, source_hashes

MIN_IMAGES = 3  # between two images 8 to 23 % of coincidences are chance (counted on real cameras, one image shifted)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RedetectedSettings(Cut):
    """At most ``max_sets`` labels of a view, chosen by ``seed``, beside how they are cut in the keypoints' frames."""

    max_sets: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sets < 1:
            raise UsageError("build amos needs a positive --max-sets")


def build_redetected(
    root: str | Path,
    out: str | Path,
    settings: RedetectedSettings = RedetectedSettings(),
    *,
    masks: str | Path | None = None,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store of kind ``tuples`` from a folder of views (see :func:`list_views` for the layout).

    SIFT is detected in every image of a view on its own; detections that coincide in place, scale and direction are
    one label, where three images (both of a view of two) have it: what a detector finds again in other light and
    seasons, with its errors. Patches are cut in the detected similarity frames. At most ``max_sets`` labels a view,
    spread over the octaves of scale; of near-twins one stays. ``image_ids`` and ``cam_ids`` number the images.

    Raises:
        MissingFileError, DataError: see :func:`list_views`; or nothing is found again.
    """
    root, seed = Path(root), settings.seed
    views = list_views(root, masks)
    key = ["redetected", settings.crop, settings.mr_size, settings.max_sets, seed, view_key(views, masks)]
    with create_store(out, settings.patch_size, key=key) as writer, worker_map(num_workers) as run:
        done = len(writer.records)
        labels_of = {view.name: record["labels"] for view, record in zip(views, writer.records, strict=False)}
        labels_before, images_before = sum(labels_of.values()), sum(len(view.images) for view in views[:done])
        passes = range(2 * sum(len(view.images) for view in views[done:]))
        steps = progress(passes, what="amos", unit="image")
        for view in views[done:]:
            job = partial(_detect, mask=view.mask, mr_size=settings.mr_size)
            keypoints = [k for k, _ in zip(run(job, view.images), steps, strict=False)]
            rng = np.random.default_rng((seed, *view.name.encode()))
            count, chosen = _seen_again(keypoints, settings.max_sets, rng)
            frames = [similarity_frames(k.xy, k.sigma, k.angle, settings.mr_size) for k, _ in chosen]
            tasks = zip(view.images, frames, strict=True)
            cuts = run(partial(_cut, settings=settings), tasks)
            for index, (patches, _) in enumerate(zip(cuts, steps, strict=False)):
                ids = np.full(len(patches), images_before + index)
                labels = chosen[index][1] + labels_before
                writer.append(patches, labels=labels, image_ids=ids, cam_ids=ids, frames=frames[index])
            labels_of[view.name] = count
            writer.commit({"labels": count})
            labels_before += count
            images_before += len(view.images)
        if not labels_before:
            raise DataError(f"{root}: no keypoint was found again in a second image")
        writer.meta = {
            "crop": float(settings.crop),
            "mr_size": float(settings.mr_size),
            "views": [{"name": v.name, "images": len(v.images), "labels": labels_of[v.name]} for v in views],
            "built": how or {},
            "sources": source_hashes((image.path for view in views for image in view.images), root),
        }
    for name, count in labels_of.items():
        log.info("%s: %d places", name, count)
    return Built(writer.count, labels_before, {"views": len(views)})


def _seen_again(
    keypoints: list[Detections], max_sets: int, rng: np.random.Generator
) -> tuple[int, list[tuple[Detections, np.ndarray]]]:
    """How many labels the keypoints of a view's images give; of each image the keypoints that have one, and theirs."""
    same = [np.eye(3)] * len(keypoints)
    enough = min(MIN_IMAGES, len(keypoints))
    groups = [g for g in group(keypoints, same) if len(g) >= enough]
    groups = select(groups, keypoints, same, max_sets, rng)
    rows = np.concatenate([np.empty((0, 2), np.int64), *groups])
    labels = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    of_image = [np.flatnonzero(rows[:, 0] == index) for index in range(len(keypoints))]
    return len(groups), [(k.take(rows[m, 1]), labels[m]) for k, m in zip(keypoints, of_image, strict=True)]


def _detect(image: ViewImage, mask: np.ndarray | None, mr_size: float) -> Detections:
    pixels = read_view_image(image)
    height, width = pixels.shape
    detected = Detections(*detect_sift(pixels, CONTRAST, MAX_KEYPOINTS))
    frames = similarity_frames(detected.xy, detected.sigma, detected.angle, mr_size)
    keep = inside_share(frames, width, height) >= MIN_INSIDE
    if image.homography is not None:
        from_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        to_file = np.linalg.inv(from_corner) @ image.homography @ from_corner
        keep &= inside_share(frames, *image.file_size, to_file) >= MIN_INSIDE
    if mask is not None:
        column, row = np.rint(detected.xy).astype(int).T
        keep &= mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return detected.take(keep)


def _cut(task: tuple[ViewImage, np.ndarray], settings: RedetectedSettings) -> np.ndarray:
    image, frames = task
    return cut(read_view_image(image), frames, settings.patch_size, settings.crop)
