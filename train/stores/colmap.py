"""``python -m train build colmap``: patches from a COLMAP model, one label for each 3-D point."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.folders import claimed
from common.images import read_luma
from common.jobs import ordered_map
from common.shell import progress, seed_number
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import refuse_filled
from train.stores.colmap_model import Observations, load_observations
from train.stores.flags import add_cut, add_output, how_built, parse_crop, refuse_idle
from train.stores.frames import MIN_INSIDE, Cut, cut, inside_share, similarity_frames
from train.stores.writer import Built, create_store, source_hashes, source_key

log = logging.getLogger(__name__)
FIXED_SIDE = 64  # pixels: the window of the 2020 recipe
MATCH_RADIUS = 1.5  # pixels between an observation and the re-detected keypoint that lends it scale and orientation


@dataclass(frozen=True)
class ColmapSettings(Cut):
    """What decides which patches of a model are stored, beside how they are cut in the keypoints' frames.

    Attributes:
        fixed: cut the axis-aligned 64-pixel windows of the 2020 recipe instead.
        min_track: images that must see a point.
        max_patches: keep random points, each with all its patches, as long as these are not more; None: all.
        dense: other labels than the model's points, see :func:`train.stores.densify.densify`.
        seed: of the points kept by ``max_patches``.
    """

    fixed: bool = False
    min_track: int = 2
    max_patches: int | None = None
    dense: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_patches is not None and self.max_patches < 2:
            raise UsageError(f"--max-patches must be at least 2, got {self.max_patches}")
        if self.dense and self.fixed:
            raise UsageError(_DENSE_ALONE)


_DENSE_ALONE = "--dense detects its own keypoints: it goes without --features and --crop fixed"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the model's images")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="COLMAP model: a folder, binary or text; or a database.db with verified matches, to be mapped; without it "
        "the photographs are reconstructed",
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="HDF5 with x, y, sigma, orientation for each 2-D point, or the COLMAP database of the model (default: "
        "features.h5 or database.db in or beside the model folder; without one, SIFT is detected again)",
    )
    add_output(parser)
    add_cut(parser, fixed="; 'fixed' = axis-aligned windows of 64 pixels")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="more labels: SIFT detected again, weak ones too, linked by the geometry of the model, not by tracks",
    )
    parser.add_argument("--min-track", type=int, default=2, metavar="N", help="images that must see a point")
    parser.add_argument("--max-patches", type=int, metavar="N", help="keep random points with at most N patches in all")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the points kept by --max-patches")
    mapping = parser.add_argument_group("reconstruction, without --model or of a database")
    mapping.add_argument(
        "--work", type=Path, metavar="DIR", help="where database and models are kept (default: STORE.colmap)"
    )
    mapping.add_argument(
        "--descriptor",
        metavar="NAME",
        help="sift, or weights of this library: a bundled name such as h8E512, or a file (default: sift)",
    )
    mapping.add_argument("--max-keypoints", type=int, metavar="N", help="SIFT keypoints of an image (default: 4096)")


def run(args: argparse.Namespace) -> None:
    """Reconstruct where there is no model, and build."""
    crop = parse_crop(args.crop)
    settings = ColmapSettings(
        1.0 if crop == "fixed" else crop, args.mr_size, args.patch_size or Cut.patch_size,
        fixed=crop == "fixed", min_track=args.min_track, max_patches=args.max_patches, dense=args.dense, seed=args.seed,
    )  # fmt: skip
    if args.dense and args.features is not None:
        raise UsageError(_DENSE_ALONE)
    refuse_filled(args.out)
    model, features = _model_of(args)
    built = build_colmap(
        args.images, model, args.out, settings,
        features=features, num_workers=args.num_workers, how=how_built(args, "colmap"),
    )  # fmt: skip
    print(f"{args.out}: {built}")


def _model_of(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The model that is named, or the one that is mapped for it; and the features that go with it, where known."""
    model, features = args.model, args.features
    detecting = {"descriptor": args.descriptor, "max_keypoints": args.max_keypoints}
    if model is not None:
        refuse_idle(detecting if model.is_file() else {"work": args.work, **detecting}, f"--model {model}")
        if not model.is_file():
            return model, features
    from common.colmap_database import has_scales
    from train.stores.reconstruct import map_database, reconstruct

    work = args.work or args.out.with_name(f"{args.out.name}.colmap")
    if not args.dense:
        features = features or model or work / "database.db"
    if model is not None:
        if features == model and not has_scales(model):
            log.info("%s holds no scales: SIFT is detected again", model)
            features = None
        with claimed(work):
            return map_database(args.images, model, work / "sparse"), features
    given = {name: value for name, value in detecting.items() if value is not None}
    return reconstruct(args.images, work, num_threads=max(1, args.num_workers), **given), features


def build_colmap(
    images: str | Path,
    model: str | Path,
    out: str | Path,
    settings: ColmapSettings = ColmapSettings(),
    *,
    features: str | Path | None = None,
    num_workers: int = 0,
    how: dict[str, Any] | None = None,
) -> Built:
    """Build a store from images and a COLMAP model (binary or text).

    A patch is cut in the similarity frame of the keypoint: half side ``crop * mr_size * sigma``, turned by its
    orientation, at the observed position. Sigma and orientation come from ``features`` (HDF5: one float32 dataset
    n x 4 = x, y, sigma, orientation an image, rows as points2D; or a COLMAP database), by default ``features.h5`` or
    ``database.db`` in or beside the model folder, else from SIFT keypoints detected again, the nearest within 1.5
    pixels. An observation whose plain square lies less than 60 % inside the image is dropped. ``meta["dropped"]``
    counts what is left out.

    Raises:
        MissingFileError: a folder, or an image of the model, is not there.
        DataError: the model does not load, an image does not decode or has another size, or nothing is left.
    """
    images, model = Path(images), Path(model)
    if settings.dense and features is not None:
        raise UsageError(_DENSE_ALONE)
    views = load_observations(images, model, None if settings.dense else features)
    if settings.dense:
        from train.stores.densify import densify

        views = densify(images, model, num_workers)
    views, points, dropped = _select(views, settings, num_workers)
    if not len(points):
        raise DataError(f"{model}: no point is seen in {settings.min_track} images with a usable patch")

    used = [view for view in views if len(view.xy)]
    crop = "fixed" if settings.fixed else settings.crop
    key = ["colmap", settings.mr_size, crop, _content(used), source_key(view.path for view in used)]
    with create_store(out, FIXED_SIDE if settings.fixed else settings.patch_size, key=key) as writer:
        job = partial(_cut_view, settings=settings)
        rest = used[len(writer.records) :]
        cuts = progress(ordered_map(job, rest, num_workers), total=len(rest), what="cut", unit="image")
        for view, (patches, frames) in zip(rest, cuts, strict=True):
            ids = np.full(len(patches), view.image_id, dtype=np.int32)
            labels = np.searchsorted(points, view.points)
            writer.append(patches, labels=labels, image_ids=ids, cam_ids=ids, frames=frames)
            writer.commit({})
        writer.meta = {
            "crop": 1.0 if settings.fixed else float(settings.crop),
            "mr_size": None if settings.fixed else float(settings.mr_size),
            "built": how or {},
            "dropped": dropped,
            "sources": source_hashes((view.path for view in used), images),
        }
    log.info(
        "%s: %d patches of %d points in %d images; left out: %d at the border, %d without a keypoint, %d of too "
        "short tracks", out, writer.count, len(points), len(used), *dropped.values(),
    )  # fmt: skip
    return Built(writer.count, len(points), {"images": len(used)})


def _select(
    views: list[Observations], settings: ColmapSettings, num_workers: int
) -> tuple[list[Observations], np.ndarray, dict[str, int]]:
    """The observations that are stored, their points ascending, and how many are left out for which reason."""
    undetected = 0
    if not settings.fixed and any(view.sigma is None for view in views):
        views, undetected = _lend_frames(views, num_workers)
    before = _count(views)
    views = [_inside(view, settings) for view in views]
    border = before - _count(views)
    points, short = _choose_points(views, settings.min_track, settings.max_patches, settings.seed)
    dropped = {"border": border, "undetected": undetected, "short_track": short}
    return [view.take(np.isin(view.points, points)) for view in views], points, dropped


def random_points(points: np.ndarray, counts: np.ndarray, max_patches: int, seed: int) -> np.ndarray:
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
    framed = [view.take(np.isfinite(view.sigma)) for view in redetected if view.sigma is not None]
    return framed, _count(redetected) - _count(framed)


def _inside(view: Observations, settings: ColmapSettings) -> Observations:
    """The observations whose patch is inside the image, or enough of it."""
    if settings.fixed:
        return view.take(fixed_windows(view.xy, *view.size)[1])
    if not len(view.xy):
        return view
    return view.take(inside_share(_frames(view, settings.mr_size), *view.size) >= MIN_INSIDE)


def _choose_points(
    views: list[Observations], min_track: int, max_patches: int | None, seed: int
) -> tuple[np.ndarray, int]:
    """The points that enough images see, ascending, and how many observations those have that too few see."""
    seen = np.concatenate([np.unique(view.points) for view in views])
    points, counts = np.unique(seen, return_counts=True)
    points, counts = points[counts >= min_track], counts[counts >= min_track]
    short = _count(views) - int(counts.sum())
    return (points if max_patches is None else random_points(points, counts, max_patches, seed)), short


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

    from train.stores.frames import detect_sift

    xy, sigma, angle = detect_sift(_open_view(view), contrast=0.0)
    nothing = np.full(len(view.xy), np.nan)
    if not len(xy) or not len(view.xy):
        return replace(view, sigma=nothing, angle=nothing)
    _, nearest = cKDTree(xy).query(view.xy, distance_upper_bound=MATCH_RADIUS)
    is_near = nearest < len(xy)
    nearest = np.where(is_near, nearest, 0)
    sigma, angle = (np.where(is_near, values[nearest], np.nan) for values in (sigma, angle))
    return replace(view, sigma=sigma, angle=angle)


def _cut_view(view: Observations, settings: ColmapSettings) -> tuple[np.ndarray, np.ndarray]:
    image = _open_view(view)
    if settings.fixed:
        corners, _ = fixed_windows(view.xy, *view.size)
        half = FIXED_SIDE / 2
        one = np.ones(len(corners))
        return cut_fixed(image, corners), similarity_frames(corners + half - 0.5, one, 0 * one, half)
    frames = _frames(view, settings.mr_size)
    return cut(image, frames, settings.patch_size, settings.crop), frames
