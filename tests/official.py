"""Steps of the benchmarks' own code that no command takes, against their published values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.geometry import Floats, as_matches, as_points, epipolar_squared, essential_from_pose
from common.metrics import evaluate_R_t, max_error_deg
from eval.brown.revisited import Distance, Mode, revisited_aps
from eval.core.trajectory import trajectory_error
from eval.hpatches.tasks import (
    RETRIEVAL_HEADER,
    VERIFICATION_HEADER,
    PatchList,
    PatchPairs,
    RetrievalTask,
    VerificationTask,
    retrieval_paths,
    verification_paths,
)
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import atomic_path


def rotation_from_quaternion(qvec: ArrayLike) -> Floats:
    """Rotation matrix of a unit quaternion (w, x, y, z), the order of COLMAP's text files."""
    w, x, y, z = np.asarray(qvec, dtype=np.float64).ravel()
    return np.array(
        [
            [1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * w * z, 2 * z * x + 2 * w * y],
            [2 * x * y + 2 * w * z, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * w * x],
            [2 * z * x - 2 * w * y, 2 * y * z + 2 * w * x, 1 - 2 * x * x - 2 * y * y],
        ]
    )


def symmetric_epipolar_squared(points0_n: ArrayLike, points1_n: ArrayLike, dR: ArrayLike, dt: ArrayLike) -> Floats:
    """Squared distances to the true epipolar lines of both images, summed, (N,), in normalised coordinates.

    NaN or infinite for a point on the epipole.

    Source: IMW benchmark.
    """
    F = essential_from_pose(dR, dt)
    return epipolar_squared(points0_n, points1_n, F)


def pose_error_deg(R_gt: ArrayLike, t_gt: ArrayLike, R: ArrayLike, t: ArrayLike) -> float:
    """The larger of rotation and translation error in degrees, [0, 180]; see :func:`evaluate_R_t`."""
    return float(max_error_deg([evaluate_R_t(R_gt, t_gt, R, t)])[0])


def revisited_map(
    descs: NDArray[np.generic],
    labels: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    distance: Distance = "euclidean",
    mode: Mode = "fixed",
) -> float | None:
    """Mean of :func:`revisited_aps`; None without an image to judge."""
    aps = revisited_aps(descs, labels, image_ids, distance, mode)
    return float(np.mean(list(aps.values()))) if aps else None


def matched_points(
    matches: ArrayLike, kpts0: ArrayLike, kpts1: ArrayLike, minimum: int = 8
) -> tuple[Floats, Floats] | None:
    """Coordinates (M, 2) of matches (M, 2), or None for a single match or fewer than ``minimum``.

    Source: IMW benchmark.
    """
    pairs = as_matches(matches)
    if len(pairs) < max(minimum, 2):
        return None
    return as_points(kpts0)[pairs[:, 0]], as_points(kpts1)[pairs[:, 1]]


def affine_frames(kpts: ArrayLike, scales: ArrayLike, angles_deg: ArrayLike, shapes: ArrayLike | None = None) -> Floats:
    """Frames x, y, a11, a12, a21, a22 of side factor 12 for degensac with affine shapes, (N, 6).

    Args:
        kpts: (N, >= 2) pixels.
        scales: (N,).
        angles_deg: (N,), as OpenCV gives them.
        shapes: (N, 2, 2), multiplied from the right.

    Source: IMW benchmark.
    """
    points = as_points(kpts)
    angles = np.deg2rad(np.asarray(angles_deg, dtype=np.float64).ravel())
    cos, sin = np.cos(angles), np.sin(angles)
    rotations = np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2)
    frames = 12.0 * np.asarray(scales, dtype=np.float64).reshape(-1, 1, 1) * rotations
    if shapes is not None:
        frames = frames @ np.asarray(shapes, dtype=np.float64)
    return np.column_stack([points, frames.reshape(-1, 4)])


def mean_trajectory_error(
    bags: Iterable[tuple[ArrayLike, ArrayLike] | None], seed: int = 0, compat: bool = False
) -> float:
    """Mean ATE over bags (estimated, true centres); failed bags (None) and those below 3 cameras are left out.

    NaN when none is left.
    """
    rng = np.random.RandomState(seed)
    errors: Sequence[float | None] = [trajectory_error(*bag, rng, compat) for bag in bags if bag is not None]
    values = [error for error in errors if error is not None]
    return float(np.mean(values)) if values else math.nan


def descriptor_category(num_bytes: int) -> int:
    """The smallest category that holds a descriptor of so many bytes."""
    categories = [size for size in (128, 512, 2048, 4096, 8192) if num_bytes <= size]
    if not categories:
        raise DataError(f"a descriptor has {num_bytes} bytes, the benchmark takes at most 8192")
    return categories[0]


def matching_folder(task: Mapping[str, Any]) -> str:
    """Name of the official result folder of the matching stage of a task's configuration."""
    if task.get("use_custom_matches"):
        return str(task["custom_matches_name"]).lower()
    matcher = task["matcher"]
    symmetric, filtering = matcher["symmetric"], matcher["filtering"]
    kind, threshold = str(filtering["type"]).lower(), filtering.get("threshold")
    if kind == "none" or threshold == 1:  # the ratio test is applied all the same
        filtered = "nofilter"
    elif kind.startswith("fginn"):
        filtered = f"filter-fginn-pairwise-{threshold}-{filtering['fginn_radius']}"
    else:
        filtered = f"filter-{kind}-{threshold}"
    parts = [
        str(matcher["method"]),
        "flann" if matcher["flann"] else "bf",
        f"numnn-{matcher['num_nn']}",
        f"dist-{matcher['distance']}",
        f"sym-{symmetric['reduce']}" if symmetric["enabled"] else "nosym",
        filtered,
    ]
    if cap := matcher.get("descriptor_distance_filter"):
        parts.append(f"maxdist-{cap['threshold']:.3f}")
    return "_".join(parts).lower()


def geometry_folder(task: Mapping[str, Any]) -> str:
    """Name of the official result folder of the geometry stage of a stereo configuration."""
    geom = task["geom"]
    method = str(geom["method"]).lower()
    parts = [method]
    if "threshold" in geom:
        parts.append(f"th_{geom['threshold']}")
    if "confidence" in geom:
        parts.append(f"conf_{geom['confidence']}")
    if "max_iter" in geom:
        parts.append(f"{'max_iter' if method.startswith('cmp-degensac') else 'maxiter'}_{geom['max_iter']}")
    if "error_type" in geom:
        parts.append(f"error_{geom['error_type']}")
    if "degeneracy_check" in geom:
        parts.append(f"degencheck_{geom['degeneracy_check']}")
    if "postprocess" in geom:
        parts.append(f"postprocess_{geom['postprocess']}")
    return "_".join(parts).lower()


def write_verification(task: VerificationTask, folder: Path, split: str) -> None:
    """Write the three files of a split in the official form."""
    for field, path in verification_paths(folder, split).items():
        pairs: PatchPairs = getattr(task, field)
        names = pairs.names
        columns = [getattr(pairs, f.name).tolist() for f in fields(pairs)[1:]]
        rows = (
            f"{names[s1]},{t1},{i1},{names[s2]},{t2},{i2}\n" for s1, t1, i1, s2, t2, i2 in zip(*columns, strict=True)
        )
        _write_rows(path, VERIFICATION_HEADER, rows)


def write_retrieval(task: RetrievalTask, folder: Path, split: str) -> None:
    """Write the two files of a split in the official form."""
    for field, path in retrieval_paths(folder, split).items():
        patches: PatchList = getattr(task, field)
        pairs = zip(patches.s.tolist(), patches.idx.tolist(), strict=True)
        _write_rows(path, RETRIEVAL_HEADER, (f"{patches.names[s]},{i}\n" for s, i in pairs))


def _write_rows(path: Path, header: str, rows: object) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(header + "\n")
        file.writelines(rows)  # type: ignore[arg-type]
