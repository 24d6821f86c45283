"""From photographs to a COLMAP model: keypoints, matches, incremental mapping."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.arrays import read_npy
from common.colmap import check_written, load_pycolmap, read_model
from common.colmap_database import copy_database, open_database
from common.colmap_worker import extract_sift, sqlite_errors
from common.folders import claimed
from common.images import NOT_COLMAPS, image_size, pictures_below, read_luma, usable
from common.shell import progress
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.files import atomic_dir, atomic_path, read_json, write_json
from train.stores.writer import source_key

log = logging.getLogger(__name__)
SIFT = "sift"
MAX_KEYPOINTS = 4096  # of an image
MAX_RATIO = 0.85  # of the distances to the nearest and the second nearest descriptor, both ways
MIN_MODEL_IMAGES = 3
_SETTINGS = "settings.json"
_MADE_FROM = "made_from.json"
_MAPPED_TABLES = ("cameras", "images", "keypoints", "two_view_geometries")
_IMAGES_AT_ONCE = 8
COLMAP_SIDE_PX = 3200  # larger images are shrunk for SIFT
_KEPT_IN_MEMORY = 128  # images whose descriptors are

_Describe = Callable[[int], Tensor]  # id of an image -> (N, D) descriptors of its keypoints


def reconstruct(
    images: str | Path,
    work: str | Path,
    *,
    descriptor: str = SIFT,
    max_keypoints: int = MAX_KEYPOINTS,
    num_threads: int = 1,
) -> Path:
    """Reconstruct a folder of photographs; returns the folder of its largest model.

    SIFT keypoints of one orientation; every two images matched (mutual nearest neighbours, ratio 0.85 both ways) and
    verified by two-view geometry; incremental mapping. All of it lies in ``work`` (``database.db``, ``sparse/<n>/``),
    where an interrupted call goes on. The same images give the same model.

    Args:
        images: the folder.
        work: where the database and the models go.
        descriptor: ``"sift"``, or weights of this library (a bundled name or a file) to describe the keypoints with.
        max_keypoints: of an image, those of the largest scale, which COLMAP prefers too. Photographs whose longer side
            is above 3200 pixels are shrunk to that by COLMAP to find them.
        num_threads: that detect keypoints.

    Raises:
        MissingFileError: the folder is not there.
        DataError: fewer than two images, nothing can be reconstructed, or ``work`` is of other images or settings, or
            another process writes to it.
    """
    images, work = Path(images), Path(work)
    paths = _readable(pictures_below(images))
    names = [path.relative_to(images).as_posix() for path in paths]
    if len(names) < 2:
        raise DataError(f"{images} holds {len(names)} image, a reconstruction needs at least 2")
    with claimed(work):
        settings = {"images": source_key(paths), "descriptor": descriptor, "max_keypoints": max_keypoints}
        if not (work / _SETTINGS).is_file():
            write_json(work / _SETTINGS, settings)
        elif read_json(work / _SETTINGS) != settings:
            raise DataError(f"{work} holds the reconstruction of other images or settings: remove it or choose another")
        database = work / "database.db"
        if not (work / "sparse").is_dir():
            _warn_of_large(paths, names)
            batches = [names[first : first + _IMAGES_AT_ONCE] for first in range(0, len(names), _IMAGES_AT_ONCE)]
            done = extract_sift(database, images, batches, max_keypoints, num_threads)
            for _ in progress(done, len(batches), "keypoints", f"{_IMAGES_AT_ONCE} images"):
                pass
            with sqlite_errors(work):
                keep_largest(database, max_keypoints)
            with _opened(database) as opened:
                _match_all(opened, _sift(opened) if descriptor == SIFT else _own(descriptor, opened, images, work))
        return map_database(images, database, work / "sparse")


def _warn_of_large(paths: Sequence[Path], names: Sequence[str]) -> None:
    large = [name for name, path in zip(names, paths, strict=True) if max(image_size(path)) > COLMAP_SIDE_PX]
    if large:
        log.warning(
            "%d of %d photographs have more than %d pixels a side (%s%s): COLMAP shrinks them to detect",
            len(large), len(names), COLMAP_SIDE_PX, large[0], ", …" if len(large) > 1 else "",
        )  # fmt: skip


def _readable(paths: Sequence[Path]) -> list[Path]:
    """The pictures that both COLMAP and this program read; the others are named."""
    foreign = [path for path in paths if path.suffix.lower() in NOT_COLMAPS]
    for path in foreign:
        log.warning("left out: image %s is of a format that COLMAP does not read: make a JPEG of it", path)
    return usable(path for path in paths if path not in foreign)


def keep_largest(database: Path, max_keypoints: int) -> None:
    """Cut the keypoints of a database of ours to ``max_keypoints`` an image; COLMAP goes beyond to keep whole levels.

    Matches name rows, so that a database that has some is left alone: it was cut before.
    """
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        if opened.execute("SELECT COUNT(*) FROM matches").fetchone()[0]:
            return
        sizes = opened.execute("SELECT image_id FROM keypoints WHERE rows > ?", (max_keypoints,)).fetchall()
        for (image_id,) in sizes:
            rows, cols, data = opened.execute(
                "SELECT rows, cols, data FROM keypoints WHERE image_id = ?", (image_id,)
            ).fetchone()
            keypoints = np.frombuffer(data, np.float32).reshape(rows, cols)
            scales = np.linalg.norm(keypoints[:, [2, 4]], axis=1) if cols == 6 else keypoints[:, 2]
            kept = np.sort(np.argsort(-scales, kind="stable")[:max_keypoints])
            (descs,) = opened.execute("SELECT data FROM descriptors WHERE image_id = ?", (image_id,)).fetchone()
            described = np.frombuffer(descs, np.uint8).reshape(rows, -1)
            for table, array in (("keypoints", keypoints), ("descriptors", described)):
                opened.execute(
                    f"UPDATE {table} SET rows = ?, data = ? WHERE image_id = ?",
                    (len(kept), array[kept].tobytes(), image_id),
                )


def map_database(images: str | Path, database: str | Path, out: str | Path) -> Path:
    """Incremental mapping of a database with verified matches; returns the folder of the largest model in ``out``.

    ``out`` tells which database it was made from: of the same content it is not made again, of another it is made
    anew.

    Raises:
        MissingFileError: the images or the database are not there.
        DataError: the database holds no matches, no model comes out, or what is in ``out`` was not made here.
    """
    pycolmap = load_pycolmap()
    images, database, out = Path(images), Path(database), Path(out)
    if not database.is_file():
        raise MissingFileError(f"database {database} is not there")
    if not images.is_dir():
        raise MissingFileError(f"image folder {images} is not there")
    made_from = {"database": _content(database), "min_model_images": MIN_MODEL_IMAGES}
    if out.is_dir() and any(out.iterdir()) and not (out / _MADE_FROM).is_file():
        raise DataError(f"{out} is not known from which database it was made: remove it or choose another place")
    if not (out / _MADE_FROM).is_file() or read_json(out / _MADE_FROM) != made_from:
        with open_database(database) as opened:
            opened.check_mappable()
            total = len(opened.image_ids())
        options = pycolmap.IncrementalPipelineOptions()
        # with one thread and a seed, the same matches give the same model
        options.num_threads = options.mapper.num_threads = 1
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
        options.min_model_size = min(MIN_MODEL_IMAGES, total)
        # else COLMAP drops the points that two images alone see, and so every point of two photographs
        options.triangulation.ignore_two_view_tracks = total > 2
        steps = progress(itertools.count(), total=total, what="mapping", unit="image")
        if out.is_dir():
            shutil.rmtree(out)
        with atomic_dir(out) as temporary:
            copy = temporary / "database.db"
            copy_database(database, copy)
            try:
                pycolmap.incremental_mapping(
                    str(copy), str(images), str(temporary), options, next_image_callback=lambda: next(steps)
                )
            except (RuntimeError, ValueError, IndexError) as error:
                raise DataError(f"COLMAP cannot map {database}: {' '.join(str(error).split())}") from None
            for path in temporary.glob("database.db*"):
                path.unlink()
            steps.close()  # type: ignore[attr-defined]
            for model in temporary.iterdir():
                check_written(model, out)
            write_json(temporary / _MADE_FROM, made_from)
    models = [(_size(path), path) for path in sorted(out.iterdir()) if (path / "images.bin").is_file()]
    if not models:
        raise DataError(
            f"{images}: no images make a model (too few matches, or hardly another viewpoint?); see {database}"
        )
    (num_images, num_points), best = max(models, key=lambda model: model[0])
    log.info("%s: %d images, %d points; %d other model(s)", best, num_images, num_points, len(models) - 1)
    return best


def match_mutual(descs0: Tensor, descs1: Tensor, max_ratio: float = MAX_RATIO) -> np.ndarray:
    """Matches (M, 2), uint32: mutual nearest neighbours whose ratio to the second nearest passes both ways."""
    import kornia.feature as KF

    if min(len(descs0), len(descs1)) < 2:
        return np.empty((0, 2), np.uint32)
    _, matches = KF.match_smnn(descs0, descs1, max_ratio)
    return matches.cpu().numpy().astype(np.uint32).reshape(-1, 2)


def _match_all(database: Any, describe: _Describe) -> None:
    """Match and verify every two images of a database that are not matched yet."""
    pycolmap = load_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    options.ransac.num_threads = 1
    known = sorted(database.read_all_images(), key=lambda image: image.name)
    cameras = {image.image_id: database.read_camera(image.camera_id) for image in known}
    kept = functools.lru_cache(_KEPT_IN_MEMORY)(describe)
    places = functools.lru_cache(_KEPT_IN_MEMORY)(lambda i: np.asarray(database.read_keypoints(i), np.float64)[:, :2])
    pairs = list(itertools.combinations([image.image_id for image in known], 2))
    for a, b in progress(pairs, what="matches", unit="pair"):
        if database.exists_two_view_geometry(a, b):
            continue
        matches = match_mutual(kept(a), kept(b))
        geometry = pycolmap.TwoViewGeometry()
        if len(matches) >= options.min_num_inliers:
            geometry = pycolmap.estimate_two_view_geometry(
                cameras[a], places(a), cameras[b], places(b), matches, options
            )
        if not database.exists_matches(a, b):
            database.write_matches(a, b, matches)
        database.write_two_view_geometry(a, b, geometry)


def _sift(database: Any) -> _Describe:
    def describe(image_id: int) -> Tensor:
        rows = np.asarray(database.read_descriptors(image_id).data, np.float32)
        return torch.from_numpy(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))

    return describe


def _own(weights: str, database: Any, images: Path, work: Path) -> _Describe:
    """Descriptors of this library at the keypoints of a database, kept in ``work`` for a later call."""
    from kornia_hardnet8 import HardNet8
    from kornia_hardnet8.lafs import DEFAULT_MR_SIZE, lafs_from_colmap
    from kornia_hardnet8.patches import extract_patches

    network = HardNet8(weights)
    mr_size = float(network.metadata.get("mr_size", DEFAULT_MR_SIZE))
    names = {image.image_id: image.name for image in database.read_all_images()}
    for image_id in progress(sorted(names), what="descriptors", unit="image"):
        path = work / "descriptors" / f"{image_id}.npy"
        if path.is_file():
            continue
        lafs = lafs_from_colmap(np.asarray(database.read_keypoints(image_id)), mr_size)[0]
        gray = torch.from_numpy(read_luma(images / names[image_id]))
        with torch.inference_mode():
            descs = network(extract_patches(gray, lafs, network.patch_size))
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, descs.half().numpy())
    return lambda image_id: torch.from_numpy(read_npy(work / "descriptors" / f"{image_id}.npy")).float()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with sqlite_errors(path.parent), load_pycolmap().Database.open(str(path)) as database:
        yield database


def _content(database: Path) -> str:
    """Hash of what is mapped; the bytes of the file change whenever COLMAP opens it."""
    digest = hashlib.sha256()
    with open_database(database) as opened:
        for table in _MAPPED_TABLES:
            for row in opened.connection.execute(f"SELECT * FROM {table} ORDER BY rowid"):
                for value in row:
                    content = value if isinstance(value, bytes) else repr(value).encode()
                    digest.update(f"{type(value).__name__} {len(content)} ".encode())
                    digest.update(content)
    return digest.hexdigest()


def _size(model: Path) -> tuple[int, int]:
    """Images and points of a model."""
    whole = read_model(model)
    return len(whole.images), len(whole.point_ids)
