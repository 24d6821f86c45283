"""COLMAP's incremental mapper with a progress bar, a seed and an end by Ctrl-C."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.colmap import load_pycolmap
from common.shell import progress
from eval.reconstruct.settings import ReconstructSettings
from kornia_hardnet8.errors import DataError

# Smaller models than COLMAP's default of 10 are kept beside the first one.
_MIN_MODEL_SIZE = 3
# Global bundle adjustment comes when the model has grown by 30 % instead of COLMAP's 10 %, and ends when the cost falls
# by less than this share instead of after all iterations: a third less time (docs/reconstruct-measured.md).
_GROWTH = 1.3
_TOLERANCE = 1e-5
# The share of inliers, 0.25 by default, that bounds RANSAC's trials for the pose of an image. Where the points of the
# model do not give it, COLMAP tries its matches alone, with a slow solver: photographs of another place, whose matches
# are all wrong, used up all trials.
_LEAST_INLIERS = 0.7
# Where the models together hold less than this share of the images, initial pairs of forward motion are allowed, as in
# a street (COLMAP: by 0.95 of its way at most), with smaller triangulation angles, in degrees (COLMAP: 16).
_FEW = 0.25
_AHEAD = 1.0
_AHEAD_ANGLE = 8.0
# COLMAP drops the points that two images alone see, and so every point of two photographs.
_PAIR = 2


def map_incrementally(database: Path, images: Path, settings: ReconstructSettings, num_images: int) -> list[Any]:
    """Models of a database, the one with the most registered images first, then the most points.

    Args:
        database: with verified matches.
        images: folder of the photographs, for the colours of points.
        settings: intrinsics, seed and threads.
        num_images: in the database; of two, the points that both see are kept, which COLMAP by default does not do.

    Returns:
        pycolmap reconstructions; none when no pair of images starts one.

    Raises:
        DataError: the mapper fails.
    """
    options = _options(settings, num_images)
    models = _map(database, images, options, num_images)
    if len(registered(models)) < _FEW * num_images:
        options.mapper.init_max_forward_motion, options.mapper.init_min_tri_angle = _AHEAD, _AHEAD_ANGLE
        again = _map(database, images, options, num_images)
        models = again if len(registered(again)) > len(registered(models)) else models
    return models


def registered(models: Sequence[Any]) -> set[str]:
    """Names of the images that have a pose in any of the models."""
    return {model.image(index).name for model in models for index in model.reg_image_ids()}


def _map(database: Path, images: Path, options: Any, num_images: int) -> list[Any]:
    """The models that COLMAP makes, the largest first."""
    pycolmap = load_pycolmap()
    events: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
    token = pycolmap.CancellationToken()
    outcome: list[Any] = []

    def two_more() -> None:
        events.put(True)
        events.put(True)

    def work() -> None:
        scratch = Path(tempfile.mkdtemp(prefix="kornia-hardnet8-"))
        try:
            by_index = pycolmap.incremental_mapping(
                database,
                images,
                scratch,
                options,
                initial_image_pair_callback=two_more,
                next_image_callback=lambda: events.put(True),
                cancellation_token=token,
            )
            outcome.append(by_index)
        except Exception as error:
            outcome.append(error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            events.put(None)

    thread = threading.Thread(target=work, name="mapper", daemon=True)
    thread.start()
    try:
        for _ in progress(iter(events.get, None), total=num_images, what="register", unit="image"):
            pass
    except KeyboardInterrupt:
        token.cancel()
        raise
    finally:
        thread.join()
    if isinstance(outcome[0], Exception):
        raise DataError(f"COLMAP's mapper failed: {' '.join(str(outcome[0]).split())}")
    return sorted(outcome[0].values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))


def _options(settings: ReconstructSettings, num_images: int) -> Any:
    options = load_pycolmap().IncrementalPipelineOptions()
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = settings.seed
    options.num_threads = options.mapper.num_threads = settings.num_threads or -1
    options.min_model_size = min(_MIN_MODEL_SIZE, num_images)
    options.triangulation.ignore_two_view_tracks = num_images > _PAIR
    options.ba_global_frames_ratio = options.ba_global_points_ratio = _GROWTH
    options.ba_global_function_tolerance = options.ba_local_function_tolerance = _TOLERANCE
    # Redundant points wait for a second step with fixed cameras: a quarter to a half less time for 100 images.
    options.mapper.ba_global_ignore_redundant_points3D = True
    options.mapper.abs_pose_min_inlier_ratio = _LEAST_INLIERS
    options.ba_refine_focal_length = options.ba_refine_extra_params = settings.camera.refine
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = settings.camera.refine
    return options
