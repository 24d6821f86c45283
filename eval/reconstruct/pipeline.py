"""Photographs to features, matches, database, model."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.cache import Cache
from common.colmap import check_written, load_pycolmap
from common.colmap_worker import sqlite_errors
from common.folders import claimed
from eval.core.results import environment, strict
from eval.features import Method, load_method
from eval.reconstruct.database import make_database, write_pair
from eval.reconstruct.describe import describe_photos
from eval.reconstruct.likely import likely_pairs
from eval.reconstruct.mapping import map_incrementally, registered
from eval.reconstruct.matches import match_and_verify
from eval.reconstruct.pairs import read_pairs
from eval.reconstruct.photos import converted, find_photos
from eval.reconstruct.settings import CameraSettings, ReconstructSettings
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_dir, atomic_path, read_json, write_json

log = logging.getLogger(__name__)

FORMAT = "reconstruction/1"

# Verified matches of the pair that COLMAP starts with.
_START_INLIERS = 100
_MOST_NAMED = 10


@dataclass(frozen=True)
class Outcome:
    """A finished reconstruction: its models (pycolmap), the largest first, and what ``summary.json`` says."""

    models: list[Any]
    summary: dict[str, Any]


def reconstruct(
    images: str | Path,
    method: Method | str,
    out: str | Path,
    settings: ReconstructSettings | None = None,
    pairs_file: str | Path | None = None,
    cache: Cache | None = None,
    executor: Executor | None = None,
    device: torch.device | None = None,
) -> Outcome:
    """Reconstruct a folder of photographs.

    Writes ``out/database.db``, ``out/sparse/<k>/`` (``cameras``, ``images``, ``points3D``, ``rigs``, ``frames`` as
    ``.bin``; 0 is the largest model) and ``out/summary.json``. Features, matches and verified pairs are kept in the
    cache: an interrupted run goes on from there.

    Args:
        images: folder of the photographs, with folders below it.
        method: a descriptor (for DoG keypoints) or a whole local feature, or the token of one.
        out: a new folder, or one of an earlier reconstruction, which is replaced.
        settings: see :class:`ReconstructSettings`.
        pairs_file: a list of pairs to match, whatever ``settings.num_matched``; None: the likely ones.
        cache: default ``out/cache``.
        executor: where pairs are matched; None: in this process.
        device: where descriptors are compared, default CPU.

    Raises:
        UsageError: ``out`` holds a database or model that is not of this command.
        DataError: another process writes to ``out``; photographs that cannot be used; or no model at all (the database
            is there to look at).
    """
    images, out = Path(images), Path(out)
    method = load_method(method) if isinstance(method, str) else method
    load_pycolmap()  # before the work, not after
    check_out(out)
    with claimed(out):
        settings, cache = settings or ReconstructSettings(), cache or Cache(out / "cache")
        return _reconstruct(images, method, out, settings, pairs_file, cache, executor, device)


def _reconstruct(
    images: Path,
    method: Method,
    out: Path,
    settings: ReconstructSettings,
    pairs_file: str | Path | None,
    cache: Cache,
    executor: Executor | None,
    device: torch.device | None,
) -> Outcome:
    clock = _Clock()
    images, photos = converted(images, find_photos(images, leave_out=out), out / "converted")
    described, unreadable = describe_photos(photos, method, settings, cache)
    by_name = {item.photo.name: item for item in described}
    names = list(by_name)
    clock.note("describe")
    if pairs_file is not None:
        pairs = read_pairs(Path(pairs_file), names, unreadable)
    else:
        features = {name: item.features for name, item in by_name.items()}
        pairs = likely_pairs(names, features, settings.num_matched or len(names), cache, device)
    clock.note("pairs")
    write_json(out / "summary.json", {"format": FORMAT, "complete": False})
    for name in ("sparse", "undistorted"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("model.html", "model.png", "points.ply"):
        (out / name).unlink(missing_ok=True)
    database, counts = out / "database.db", []
    pycolmap = load_pycolmap()
    with atomic_path(database) as temporary:
        with sqlite_errors(out):
            ids, cameras = make_database(temporary, images, described, settings.camera, settings.mr_size)
        assumed = [] if settings.camera.params else [n for n in names if not cameras[n].has_prior_focal_length]
        _tell_of_assumed(assumed, settings.camera)
        with pycolmap.Database.open(temporary) as opened:
            for pair in match_and_verify(pairs, by_name, cameras, settings, cache, executor, device):
                a, b = pair.pair
                with sqlite_errors(out):
                    write_pair(opened, (ids[a], ids[b]), pair.matches, pair.geometry())
                counts.append(len(pair.inliers) if pair.is_verified else 0)
                clock.add({"match": pair.match_s, "verify": pair.verify_s})
    clock.start()
    models = map_incrementally(database, images, settings, len(names))
    clock.note("map")
    _write_models(models, out / "sparse")
    verified = [count for count in counts if count]
    summary = {
        "format": FORMAT,
        "complete": True,
        "images": {"folder": images, "found": len(photos), "unreadable": unreadable, "focal_assumed": assumed},
        "method": {"feature": method.name, "weights_sha256": method.weights_sha256},
        "settings": settings.to_dict(),
        "pairs": {"matched": len(pairs), "verified": len(verified), "most_inliers": max(verified, default=0)},
        "models": [describe_model(model) for model in models],
        "not_registered": [name for name in names if name not in registered(models[:1])],
        "seconds": clock.seconds,
        "environment": environment(),
    }
    write_json(out / "summary.json", strict(summary))
    if not models:
        raise DataError(
            f"no model: {len(verified)} of {len(pairs)} pairs of images have verified matches, the best one "
            f"{max(verified, default=0)}; {_advice(max(verified, default=0))} ({database})"
        )
    return Outcome(models, summary)


def check_out(out: Path) -> None:
    """Refuse a folder whose database or model is someone else's."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; a folder is needed")
    summary = read_json(out / "summary.json") if (out / "summary.json").is_file() else None
    if isinstance(summary, dict) and summary.get("format") == FORMAT:
        return
    for name in ("database.db", "sparse"):
        if (out / name).exists():
            raise UsageError(f"{out / name} is there and not from this command: choose another --out")


def describe_model(model: Any) -> dict[str, Any]:
    """Counts and means of one pycolmap reconstruction; errors in pixels."""
    return {
        "registered": model.num_reg_images(),
        "points": model.num_points3D(),
        "observations": model.compute_num_observations(),
        "mean_reprojection_error_px": float(model.compute_mean_reprojection_error()),
        "mean_track_length": float(model.compute_mean_track_length()),
        "mean_observations_per_image": float(model.compute_mean_observations_per_reg_image()),
        "cameras": [
            {"model": camera.model_name, "size": [camera.width, camera.height], "params": list(camera.params)}
            for camera in model.cameras.values()
        ],
    }


def _write_models(models: Sequence[Any], sparse: Path) -> None:
    """Write ``sparse/0`` …: all of them or nothing."""
    if not models:
        return
    with atomic_dir(sparse) as temporary:
        for index, model in enumerate(models):
            (temporary / str(index)).mkdir()
            model.write(temporary / str(index))
            check_written(temporary / str(index), sparse)


class _Clock:
    """Seconds by stage: of this run, or what the stage took when its cached result was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self._last = time.perf_counter()

    def note(self, stage: str) -> None:
        now = time.perf_counter()
        self.add({stage: now - self._last})
        self._last = now

    def add(self, seconds: dict[str, float]) -> None:
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value


def _tell_of_assumed(names: Sequence[str], settings: CameraSettings) -> None:
    """Name the photographs whose EXIF holds no focal length."""
    if not names:
        return
    listed = ", ".join(names[:_MOST_NAMED]) + (" …" if len(names) > _MOST_NAMED else "")
    refined = "assumed and refined" if settings.refine else "assumed"
    shared = settings.mode in ("single", "per-folder")
    log.info(
        "%d photograph(s) without a focal length in EXIF (%s): 1.2 times the longer side is %s%s", len(names), listed,
        refined, "" if shared else "; if one camera at one zoom took all, --cameras single lets them share it",
    )  # fmt: skip


def _advice(most_inliers: int) -> str:
    """Why no pair of images starts a model."""
    if most_inliers < _START_INLIERS:
        return f"COLMAP needs a pair with about {_START_INLIERS}"
    return (
        "that is enough, but the photographs show too little parallax, or one flat thing alone: take them from places "
        "farther apart"
    )
