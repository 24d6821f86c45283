"""``python -m train build amos``: the same places cut in all photographs of fixed cameras (AMOS patches of 2020)."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.spatial import cKDTree

from common.jobs import Map, worker_map
from common.shell import progress, seed_number
from kornia_hardnet8.errors import DataError, UsageError
from train.stores.flags import add_cut, add_output, how_built, number_crop, refuse_idle
from train.stores.frames import Cut, cut_alike, similarity_frames
from train.stores.hessian import BASE, INITIAL_THRESHOLD, Maxima, at_most, local_maxima
from train.stores.redetected import RedetectedSettings, build_redetected
from train.stores.view_folders import ViewFolder, ViewImage, list_views, read_view_image, view_key
from train.stores.views import transfer
from train.stores.writer import Built, StoreWriter, create_store, source_hashes

log = logging.getLogger(__name__)
PATCH_SIZE = 96
CROP = 1.5  # training takes the central 64 of 96 pixels
FEW_PLACES = 50  # a view with fewer is warned of: the 2020 default of --base suits large pictures
_BAND = 32  # rows of which the median is taken at once
_KEPT_BYTES = 2**28  # images of a view up to this size stay in memory between the two looks at them
_CUT_AT_ONCE, _CUT_SAMPLES = 8, 2**25  # images of a view, and pixels of their patches, that are cut together
_ROUNDING = 1e-9
SEEN_RADIUS = 10.0  # pixels: a place is seen in an image where the detector fires this near


@dataclass(frozen=True)
class AmosSettings:
    """What decides the places of a view and how they are cut.

    Attributes:
        base: half the side of the smallest places in pixels.
        threshold: least response of the detector; doubled where more than ``max_sets`` places have it.
        reference: image that the detector runs on.
        patch_mask: a place is visible only where the detector fires again.
        max_sets: places kept of each view.
        patch_size: side of a stored patch in pixels.
        seed: of the angles.
    """

    base: float = BASE
    threshold: float = INITIAL_THRESHOLD
    reference: Literal["mean", "median"] = "mean"
    patch_mask: bool = False
    max_sets: int = 2000
    patch_size: int = PATCH_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.base <= 0 or self.max_sets < 1 or self.threshold <= 0:
            raise UsageError("build amos needs a positive --base, --threshold and --max-sets")
        if self.patch_size % 2 or self.patch_size < 8:
            raise UsageError(f"build amos needs an even --patch-size of 8 and more, got {self.patch_size}")


@dataclass(frozen=True)
class Places:
    """What is cut in every image of a view: upright ``squares`` (n, 2, 3) and plain ``frames``, turned and smaller."""

    squares: np.ndarray
    frames: np.ndarray
    threshold: float


_Kept: TypeAlias = tuple[ViewImage, np.ndarray | None]  # pixels in the frame of the reference; None: to be read again


# Settings of one detector and their defaults: the parser has none, to tell which were given.
_OF_DETECTOR: dict[str, dict[str, Any]] = {
    "sift": {"crop": str(Cut.crop), "mr_size": Cut.mr_size},
    "hessian": {"base": BASE, "threshold": INITIAL_THRESHOLD, "reference": "mean", "patch_mask": False},
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="DIR/<camera>[_...]/ with images, and homographies where they moved"
    )
    parser.add_argument("--masks", type=Path, metavar="DIR", help="DIR/<camera>.png, non-zero where usable")
    parser.add_argument(
        "--detector",
        choices=("hessian", "sift"),
        default="hessian",
        help="hessian: the same places cut in all images, 96-pixel patches with a crop and support of their own; "
        "sift: keypoints detected again in each image",
    )
    add_output(parser)
    add_cut(parser, of_detector="with --detector sift: ")
    parser.add_argument("--max-sets", type=int, default=2000, metavar="N", help="places kept of each view")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of angles and choices")
    hessian = parser.add_argument_group("hessian detector")
    hessian.add_argument("--base", type=float, metavar="PIXELS", help="half side of the smallest places (default: 30)")
    hessian.add_argument("--threshold", type=float, help="least response; doubled above --max-sets (default: 0.00016)")
    hessian.add_argument("--reference", choices=("mean", "median"), help="image it runs on (default: mean)")
    hessian.add_argument(
        "--patch-mask",
        action="store_true",
        default=None,
        help="a place is visible only where the detector finds it again",
    )


def run(args: argparse.Namespace) -> None:
    """Build by the detector that is asked for, and say what came out."""
    for detector, defaults in _OF_DETECTOR.items():
        given = {name: getattr(args, name) for name in defaults}
        if detector != args.detector:
            refuse_idle(given, f"--detector {args.detector}")
        else:
            vars(args).update({name: default for name, default in defaults.items() if given[name] is None})
    chosen: dict[str, Any] = {"max_sets": args.max_sets, "seed": args.seed}
    where: dict[str, Any] = {"masks": args.masks, "num_workers": args.num_workers, "how": how_built(args, "amos")}
    if args.detector == "sift":
        crop, side = number_crop(args, "amos"), args.patch_size or Cut.patch_size
        cutting = RedetectedSettings(crop, args.mr_size, side, **chosen)
        built = build_redetected(args.folder, args.out, cutting, **where)
    else:
        side = args.patch_size or PATCH_SIZE
        settings = AmosSettings(args.base, args.threshold, args.reference, args.patch_mask, patch_size=side, **chosen)
        built = build_amos(args.folder, args.out, settings, **where)
    print(f"{args.out}: {built}")


def build_amos(
    root: str | Path,
    out: str | Path,
    settings: AmosSettings = AmosSettings(),
    *,
    masks: str | Path | None = None,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store of kind ``views`` from a folder of views (see :func:`list_views` for the layout).

    In each view, places are local maxima of the Hessian on the mean (or median) image; each is cut in all images at
    one random angle. A place that is a square of half side s = base * sigma fills the cut of 1.5 * patch_size pixels;
    its central patch_size are stored and the central two thirds of these are the plain patch: half side 4/9 s.

    ``labels`` are places, ``cam_ids`` views; rows go by view, image, place. ``visible`` says where the stored square
    lies inside the file, and with ``patch_mask`` also that the detector fires within 10 pixels there. Places of a
    view whose stored squares touch are ``collisions``. ``frames`` belong to the reference image.

    An interrupted build goes on with the view that it was at.

    Raises:
        MissingFileError, DataError: see :func:`list_views`; or no place is found in any view.
    """
    root = Path(root)
    views = list_views(root, masks)
    names = ("base", "max_sets", "threshold", "reference", "patch_mask", "seed")
    key = ["amos", *(getattr(settings, name) for name in names), view_key(views, masks)]
    with create_store(out, settings.patch_size, key=key) as writer, worker_map(num_workers) as run:
        done = len(writer.records)
        steps = progress(range(2 * sum(len(view.images) for view in views[done:])), what="amos", unit="image")
        for number, view in enumerate(views[done:], done):
            image, kept = _reference_and_images(view, settings.reference, run, steps)
            rng = np.random.default_rng((settings.seed, *view.name.encode()))
            places = find_places(image, view.mask, settings, rng)
            at_once = min(_CUT_AT_ONCE, -(-len(kept) // max(1, num_workers)))
            cuts = _cut_in_images(kept, places, settings, at_once, run)
            first_image = sum(len(earlier.images) for earlier in views[:number])
            _append_view(writer, number, first_image, places, (cut for cut, _ in zip(cuts, steps, strict=False)))
        squares = [np.array(record["squares"]).reshape(-1, 2, 3) for record in writer.records]
        thresholds = [record["threshold"] for record in writer.records]
        if not any(map(len, squares)):
            raise DataError(f"{root}: no place found in any view: a smaller --base or --threshold finds more")
        writer.set_collisions(*_collisions_of_views(squares, settings.patch_size))
        writer.meta = {
            "kind": "views",
            "crop": CROP,
            "mr_size": None,  # a place is as wide as its window, no keypoint has a scale
            "views": [
                {"name": view.name, "images": len(view.images), "labels": len(placed), "threshold": threshold}
                for view, placed, threshold in zip(views, squares, thresholds, strict=True)
            ],
            "built": how or {},
            "sources": source_hashes((image.path for view in views for image in view.images), root),
        }
    _log_places(views, squares, thresholds, settings)
    return Built(writer.count, sum(map(len, squares)), {"views": len(views)})


def _log_places(
    views: Sequence[ViewFolder], squares: Sequence[np.ndarray], thresholds: Sequence[float], settings: AmosSettings
) -> None:
    """How many places each view has, with a hint where they are few."""
    for view, placed, threshold in zip(views, squares, thresholds, strict=True):
        few = len(placed) < FEW_PLACES and threshold <= settings.threshold  # else there were more than --max-sets
        width, height = view.images[0].size
        hint = f" in {width} x {height} pixels: a --base below {settings.base:g} finds more" if few else ""
        log.log(logging.WARNING if few else logging.INFO, "%s: %d places%s", view.name, len(placed), hint)


def _reference_and_images(
    view: ViewFolder, kind: Literal["mean", "median"], run: Map, steps: Iterator[int]
) -> tuple[np.ndarray, list[_Kept]]:
    """Read a view: its reference image, and its images with their pixels unless these are too many to keep."""
    width, height = view.images[0].size
    keep = len(view.images) * width * height <= _KEPT_BYTES
    kept: list[_Kept] = []

    def read() -> Iterator[np.ndarray]:
        for image, pixels, _ in zip(view.images, run(read_view_image, view.images), steps, strict=False):
            kept.append((image, pixels if keep else None))
            yield pixels

    return reference_image(read(), kind), kept


def _cut_in_images(
    kept: list[_Kept], places: Places, settings: AmosSettings, at_once: int, run: Map
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Patches (n, S, S) of the places, and which of them are visible (n,), image by image."""
    samples = max(1, len(places.squares)) * settings.patch_size**2
    at_once = max(1, min(at_once, _CUT_SAMPLES // samples))
    batches = [kept[start : start + at_once] for start in range(0, len(kept), at_once)]
    for patches, visible in run(partial(_cut_batch, places=places, settings=settings), batches):
        yield from zip(patches, visible, strict=True)


def _append_view(
    writer: StoreWriter, view: int, first_image: int, places: Places, cuts: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Add the rows of a view; its labels follow those of the views before."""
    count = len(places.squares)
    labels = sum(len(record["squares"]) for record in writer.records) + np.arange(count)
    for image, (patches, visible) in enumerate(cuts, first_image):
        writer.append(
            patches, labels=labels, frames=places.frames, visible=visible,
            image_ids=np.full(count, image), cam_ids=np.full(count, view),
        )  # fmt: skip
    writer.commit({"threshold": places.threshold, "squares": places.squares.tolist()})


def reference_image(images: Iterable[np.ndarray], kind: Literal["mean", "median"] = "mean") -> np.ndarray:
    """Mean or median of uint8 images, as float32 in 0..1."""
    if kind == "median":
        with tempfile.TemporaryFile() as file:  # all images of a view are more than memory may hold
            count, shape = 0, (0, 0)
            for image in images:
                file.write(np.ascontiguousarray(image).tobytes())
                count, shape = count + 1, (image.shape[0], image.shape[1])
            file.flush()
            stack = np.memmap(file, np.uint8, "r", shape=(count, *shape))
            bands = [np.median(stack[:, top : top + _BAND], axis=0) for top in range(0, shape[0], _BAND)]
        return (np.concatenate(bands) / 255).astype(np.float32)
    total, count = np.zeros((), np.int64), 0
    for image in images:
        total = total + image if count == 0 else np.add(total, image, out=total)
        count += 1
    return (total / (count * 255)).astype(np.float32)


def find_places(image: np.ndarray, mask: np.ndarray | None, settings: AmosSettings, rng: np.random.Generator) -> Places:
    """The places of a view's reference image (H, W) in 0..1 whose stored square lies inside it."""
    squares, used = detect_squares(image, mask, settings.base, settings.max_sets, settings.threshold)
    squares = squares[squares_inside(squares, image.shape[1], image.shape[0], settings.patch_size)]
    angles = np.deg2rad(rng.uniform(-180, 180, size=len(squares)))
    # the cut counts from the corner of the first pixel: half a pixel up and left of pixel centres
    centres = squares[:, :, 2] - 0.5
    return Places(squares, similarity_frames(centres, squares[:, 0, 0], angles, 2 / 3 / CROP), used)


def detect_squares(
    image: np.ndarray, mask: np.ndarray | None, base: float, max_sets: int, threshold: float
) -> tuple[np.ndarray, float]:
    """Upright frames (n, 2, 3) of half side base * sigma at the maxima, and the threshold that left these."""
    maxima, used = at_most(local_maxima(image, base, mask=mask, floor=threshold), max_sets, threshold)
    nothing = np.zeros(len(maxima.xy))
    return similarity_frames(maxima.xy, maxima.scale, nothing, 1.0), used


def cut_maps(squares: np.ndarray, patch_size: int) -> np.ndarray:
    """Affine maps (n, 2, 3) from the cut of int(1.5 * patch_size) pixels to the image, corner of the first pixel 0."""
    big = int(1.5 * patch_size)
    maps = np.array(squares, dtype=np.float64)
    half = np.sqrt(np.abs(np.linalg.det(maps[:, :, :2])))
    maps[:, :, :2] *= 2 / big
    maps[:, :, 2] -= half[:, None]
    return maps


def square_corners(squares: np.ndarray, patch_size: int) -> np.ndarray:
    """Corners (n, 4, 2) of the stored square in the image: upper left, lower left, lower right, upper right."""
    low = (int(1.5 * patch_size) - patch_size) / 2
    high = low + patch_size
    corners = np.array([[low, low], [low, high], [high, high], [high, low]])
    maps = cut_maps(squares, patch_size)
    result: np.ndarray = np.einsum("nij,kj->nki", maps[:, :, :2], corners) + maps[:, None, :, 2]
    return result


def squares_inside(squares: np.ndarray, width: int, height: int, patch_size: int) -> np.ndarray:
    """Which stored squares have all corners in [0, width - 1] x [0, height - 1]."""
    corners = square_corners(squares, patch_size)
    return np.asarray(
        ((corners >= -_ROUNDING) & (corners <= np.array([width - 1, height - 1]) + _ROUNDING)).all(axis=(1, 2))
    )


def collisions(squares: np.ndarray, patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which upright stored squares of one view intersect or touch each other, itself left out.

    Returns:
        starts (n + 1,) and items: the squares that k collides with are ``items[starts[k]:starts[k + 1]]``.
    """
    corners = square_corners(squares, patch_size)
    low, high = corners.min(axis=1), corners.max(axis=1)
    counts, items = [0], [np.empty(0, np.int64)]
    for index in range(len(squares)):
        touching = ((low <= high[index]) & (high >= low[index])).all(axis=1)
        touching[index] = False
        items.append(np.flatnonzero(touching))
        counts.append(len(items[-1]))
    return np.cumsum(counts), np.concatenate(items)


def _collisions_of_views(squares: list[np.ndarray], patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`collisions` of all views, labels numbered through."""
    starts, items = [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
    collided = labels = 0
    for placed in squares:
        own_starts, own_items = collisions(placed, patch_size)
        starts.append(own_starts[1:] + collided)
        items.append(own_items + labels)
        collided += len(own_items)
        labels += len(placed)
    return np.concatenate(starts), np.concatenate(items)


def seen_in(image: np.ndarray, squares: np.ndarray, base: float, threshold: float) -> np.ndarray:
    """Which places (n,) have a detection of an image (H, W) in 0..1 within 10 pixels of their centre, of any scale."""
    maxima: Maxima = local_maxima(image, base, floor=threshold)
    if not len(maxima.xy) or not len(squares):
        return np.zeros(len(squares), bool)
    distance, _ = cKDTree(maxima.xy).query(squares[:, :, 2])
    return np.asarray(distance <= SEEN_RADIUS)


def _cut_batch(batch: list[_Kept], places: Places, settings: AmosSettings) -> tuple[np.ndarray, np.ndarray]:
    """Patches (C, n, S, S) of the places in C images, and which of them are visible (C, n)."""
    images = np.stack([read_view_image(image) if pixels is None else pixels for image, pixels in batch])
    visible = np.ones((len(batch), len(places.squares)), bool)
    corners = square_corners(places.squares, settings.patch_size)
    for (image, _), pixels, row in zip(batch, images, visible, strict=True):
        if image.homography is not None:
            there = transfer(image.homography, corners.reshape(-1, 2)).reshape(corners.shape)
            row &= ((there >= 0) & (there <= image.file_size)).all(axis=(1, 2))
        if settings.patch_mask:
            row &= seen_in(pixels / np.float32(255), places.squares, settings.base, places.threshold)
    return cut_alike(images, places.frames, settings.patch_size, CROP), visible
