"""One bag through COLMAP's mapper, in a process of its own.

``python -m eval.imw.colmap_bag JOB.npz RESULT.npz [FOLDER]``: the process imports neither torch nor kornia, so that it
starts quickly. With FOLDER it ends when its standard input does, and removes that folder: so it does not outlive the
one that started it.

Source: IMW benchmark; the values are the defaults of COLMAP 3.5, which the original runs on.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.colmap import load_pycolmap
from eval.core.multiview_metrics import best_model

CAMERA_MODEL = "SIMPLE_RADIAL"
FOCAL_LENGTH_FACTOR = 1.2
# Pairs with fewer matches are not handed over.
MIN_MATCHES = 2
# Smaller models are dropped, as COLMAP 3.5 does; today's COLMAP keeps a first model of any size.
MIN_MODEL_SIZE = 3

VERIFICATION: dict[str, Any] = {
    "min_num_inliers": 15,
    "min_E_F_inlier_ratio": 0.95,
    "max_H_inlier_ratio": 0.8,
    "detect_watermark": True,
    "multiple_ignore_watermark": True,
    "multiple_models": False,
    "use_sampson_refinement": False,
    "ransac": {
        "max_error": 4.0,
        "confidence": 0.999,
        "min_num_trials": 30,
        "max_num_trials": 10_000,
        "min_inlier_ratio": 0.25,
    },
}
MAPPER: dict[str, Any] = {
    "min_num_matches": 15,
    "multiple_models": True,
    "max_num_models": 50,
    "max_model_overlap": 20,
    "min_model_size": MIN_MODEL_SIZE,
    "init_num_trials": 200,
    "structure_less_registration_fallback": False,
    "extract_colors": False,
    "num_threads": 1,
    "min_focal_length_ratio": 0.1,
    "max_focal_length_ratio": 10.0,
    "max_extra_param": 1.0,
    "ba_refine_focal_length": True,
    "ba_refine_principal_point": False,
    "ba_refine_extra_params": True,
    "ba_local_max_num_iterations": 25,
    "ba_local_max_refinements": 2,
    "ba_local_max_refinement_change": 0.001,
    "ba_global_frames_ratio": 1.1,
    "ba_global_points_ratio": 1.1,
    "ba_global_frames_freq": 500,
    "ba_global_points_freq": 250_000,
    "ba_global_max_num_iterations": 50,
    "ba_global_max_refinements": 5,
    "ba_global_max_refinement_change": 0.0005,
    "mapper": {
        "init_min_num_inliers": 100,
        "init_max_error": 4.0,
        "init_max_forward_motion": 0.95,
        "init_min_tri_angle": 16.0,
        "init_max_reg_trials": 2,
        "abs_pose_max_error": 12.0,
        "abs_pose_min_num_inliers": 30,
        "abs_pose_min_inlier_ratio": 0.25,
        "ba_local_num_images": 6,
        "filter_max_reproj_error": 4.0,
        "filter_min_tri_angle": 1.5,
        "max_reg_trials": 3,
        "num_threads": 1,
    },
    "triangulation": {
        "create_max_angle_error": 2.0,
        "continue_max_angle_error": 2.0,
        "merge_max_reproj_error": 4.0,
        "complete_max_reproj_error": 4.0,
        "complete_max_transitivity": 5,
        "re_max_angle_error": 5.0,
        "re_min_ratio": 0.2,
        "re_max_trials": 1,
        "min_angle": 1.5,
        "ignore_two_view_tracks": True,
    },
}


def settings(seed: int) -> dict[str, Any]:
    """Everything that is handed to COLMAP, for one seed of all its random choices."""
    mapper, triangulation = ({**MAPPER[part], "random_seed": seed} for part in ("mapper", "triangulation"))
    return {
        "camera_model": CAMERA_MODEL,
        "default_focal_length_factor": FOCAL_LENGTH_FACTOR,
        "smallest_model": MIN_MODEL_SIZE,
        "verification": {**VERIFICATION, "ransac": {**VERIFICATION["ransac"], "random_seed": seed}},
        "mapper": {**MAPPER, "random_seed": seed, "mapper": mapper, "triangulation": triangulation},
    }


def reconstruct(
    image_dir: Path,
    files: Sequence[str],
    keypoints: Sequence[NDArray[np.floating]],
    pairs: Sequence[tuple[int, int]],
    matches: Sequence[NDArray[np.integer]],
    seed: int,
    folder: Path,
) -> dict[str, NDArray[Any]]:
    """Reconstruct one bag.

    Keypoints are handed over unshifted and the true calibration is not used, as in the original.

    Args:
        image_dir: where the images lie; COLMAP reads their size and the focal length of their EXIF data.
        files: their names in it.
        keypoints: (N, 2) pixels of each.
        pairs: indices of matched images.
        matches: (M, 2) of each pair; pairs with fewer than two are left out.
        seed: of all random choices; one seed gives the same poses again.
        folder: for the database and the models; empty.

    Returns:
        ``num_models`` of three images and more; of the one with the most: ``registered`` (n,) bool, ``R`` (n, 3, 3)
        and ``t`` (n, 3) world to camera (NaN where not registered), ``track_lengths`` (P,) distinct images of every
        point, ``reprojection_px`` the mean error. Nothing registered and no points when there is no model.
    """
    pycolmap = load_pycolmap()
    options = settings(seed)
    database, listed = folder / "database.db", folder / "pairs.txt"
    _create_database(database, image_dir, files, options)
    lines = []
    with pycolmap.Database.open(database) as opened:
        ids = {image.name: image.image_id for image in opened.read_all_images()}
        unread = [file for file in files if file not in ids]
        if unread:
            raise ValueError(f"COLMAP does not read {image_dir / unread[0]}")
        for file, points in zip(files, keypoints, strict=True):
            opened.write_keypoints(ids[file], np.ascontiguousarray(points[:, :2], np.float32))
        for (a, b), rows in zip(pairs, matches, strict=True):
            if len(rows) >= MIN_MATCHES:
                opened.write_matches(ids[files[a]], ids[files[b]], np.ascontiguousarray(rows, np.uint32))
                lines.append(f"{files[a]} {files[b]}\n")
    models: dict[int, Any] = {}
    if lines:
        listed.write_text("".join(lines), encoding="utf-8")
        verification = _filled(pycolmap.TwoViewGeometryOptions(), options, "verification")
        pycolmap.verify_matches(database, listed, verification)
        (folder / "models").mkdir()
        pipeline = _filled(pycolmap.IncrementalPipelineOptions(), options, "mapper")
        models = pycolmap.incremental_mapping(database, image_dir, folder / "models", pipeline)
    kept = [models[index] for index in sorted(models) if models[index].num_reg_images() >= options["smallest_model"]]
    return _outcome(files, kept)


def _create_database(database: Path, image_dir: Path, files: Sequence[str], options: Mapping[str, Any]) -> None:
    """A new database with the images and a camera for each."""
    pycolmap = load_pycolmap()
    pycolmap.Database.open(database).close()
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = options["camera_model"]
    reader.default_focal_length_factor = options["default_focal_length_factor"]
    pycolmap.import_images(database, image_dir, pycolmap.CameraMode.PER_IMAGE, list(files), reader)


def _outcome(files: Sequence[str], models: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """What :func:`reconstruct` returns of its models."""
    poses = [_poses(model) for model in models]
    best = best_model([list(of_model.values()) for of_model in poses])
    registered, R, t = np.zeros(len(files), bool), np.full((len(files), 3, 3), np.nan), np.full((len(files), 3), np.nan)
    if best < 0:
        nothing = np.zeros(0, np.int32)
        return _result(len(models), registered, R, t, nothing, 0.0)
    for index, file in enumerate(files):
        if file in poses[best]:
            registered[index] = True
            R[index], t[index] = poses[best][file]
    model = models[best]
    lengths = [len({element.image_id for element in p.track.elements}) for p in model.points3D.values()]
    error = float(model.compute_mean_reprojection_error())
    return _result(len(models), registered, R, t, np.array(lengths, np.int32), error)


def main(job: Path, result: Path, folder: Path | None = None) -> None:
    """Run the job of a file and write what it gives to another."""
    if folder is not None:
        threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    start = time.perf_counter()
    with np.load(job, allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    with tempfile.TemporaryDirectory(dir=result.parent) as models:
        outcome = reconstruct(
            Path(str(arrays["image_dir"])),
            arrays["files"].tolist(),
            np.split(arrays["keypoints"], np.cumsum(arrays["num_keypoints"])[:-1]),
            [(int(a), int(b)) for a, b in arrays["pairs"]],
            np.split(arrays["matches"], np.cumsum(arrays["num_matches"])[:-1]) if len(arrays["pairs"]) else [],
            int(arrays["seed"]),
            Path(models),
        )
    outcome["seconds"] = np.array(time.perf_counter() - start)
    np.savez(result, **outcome)  # type: ignore[arg-type]  # none of the names is that of an argument


def _result(
    num_models: int,
    registered: NDArray[np.bool_],
    R: NDArray[np.float64],
    t: NDArray[np.float64],
    track_lengths: NDArray[np.int32],
    reprojection_px: float,
) -> dict[str, NDArray[Any]]:
    return {
        "num_models": np.array(num_models),
        "registered": registered,
        "R": R,
        "t": t,
        "track_lengths": track_lengths,
        "reprojection_px": np.array(reprojection_px),
    }


def _filled(target: Any, options: Mapping[str, Any], part: str) -> Any:
    """COLMAP's options with our values; a name that this version does not know is an error."""
    target.mergedict(dict(options[part]))
    return target


def _poses(model: Any) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    poses = {image.name: image.cam_from_world() for image in images}
    return {name: (np.array(pose.rotation.matrix()), np.array(pose.translation)) for name, pose in poses.items()}


def _end_with_parent(folder: Path) -> None:
    """Standard input is a pipe from the parent that ends with it: then nobody else removes the folder of the job."""
    sys.stdin.read()
    for _ in range(10):  # COLMAP may be writing
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
    os._exit(1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
