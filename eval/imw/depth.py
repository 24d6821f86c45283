"""The stereo task judged by depth maps: repeatability of keypoints and reprojection distances of matches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache
from common.colmap import is_distorted, read_model
from common.geometry import relative_pose
from common.h5files import Arrays
from common.jobs import compute_all
from eval.core.pairs import BLOCK, MatchedPairs, Pair, split_rows
from eval.core.reprojection import matching_distances, score_depth
from eval.features import Keypoints
from eval.imw.scene import Camera, Scene, camera_hash, known_depth, read_depth
from kornia_hardnet8.errors import DataError, MissingFileError

_NO_DEPTH = -1.0


class PairDepth(NamedTuple):
    """What the depth maps of a pair say."""

    repeatability: NDArray[np.float64]
    """(10,) share of visible keypoints that are found again within 1 … 10 px, mean of both directions."""
    repeatability_official: NDArray[np.float64]
    """(10,) the same as the original counts it: projections above or left of the image, or behind it, are visible."""
    distances: NDArray[np.float64]
    """(M,) reprojection distance in the first image of every match, pixels; -1 without depth in both images."""

    def chosen(self, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Distances of the matches that have depth, of those in ``mask`` (M,)."""
        distances = self.distances if mask is None else self.distances[mask]
        return distances[distances != _NO_DEPTH]


class _DepthJob(NamedTuple):
    """What a worker needs for one block."""

    pairs: list[Pair]
    matches: list[NDArray[np.int32]]
    keypoints: dict[str, NDArray[np.floating]]
    cameras: dict[str, Camera]
    depth_maps: dict[str, Path]


def judge_depth(
    scene: Scene,
    matched: MatchedPairs,
    keypoints: Mapping[str, Keypoints],
    cache: Cache,
    executor: Executor | None = None,
    what: str = "depth",
) -> tuple[dict[Pair, PairDepth], float]:
    """Judge all matched pairs whose images both have a depth map; returns what was found and the seconds spent."""
    maps, work, kept = scene.depth_maps, [], []
    for block, matches, key in zip(matched.blocks, matched.matches, matched.keys, strict=True):
        rows = [row for row, pair in enumerate(block) if pair[0] in maps and pair[1] in maps]
        if not rows:
            continue
        pairs = [block[row] for row in rows]
        names = sorted({name for pair in pairs for name in pair})
        configuration = {
            "matches": key,
            "rows": rows,
            "depth": {name: scene.depth_hashes[name] for name in names},
            "cameras": camera_hash(pairs, scene.cameras),
        }
        job = _DepthJob(
            pairs,
            [matches[row] for row in rows],
            {name: keypoints[name].xy for name in names},
            {name: scene.cameras[name] for name in names},
            {name: maps[name].resolve() for name in names},
        )
        kept.append(job)
        work.append((configuration, job))
    results = compute_all(cache, "depth", work, _judge, executor, what, f"block of {BLOCK}")
    judged: dict[Pair, PairDepth] = {}
    for job, arrays in zip(kept, results, strict=True):
        distances = split_rows(arrays["distances"], np.array([len(m) for m in job.matches]))
        rows_of = zip(arrays["repeatability"], arrays["repeatability_official"], distances, strict=True)
        judged |= {pair: PairDepth(*row) for pair, row in zip(job.pairs, rows_of, strict=True)}
    return judged, sum(float(arrays["seconds"]) for arrays in results)


def _judge(job: _DepthJob) -> Arrays:
    """Repeatability and distances of a block of pairs."""
    start = time.perf_counter()
    maps = {name: read_depth(path) for name, path in job.depth_maps.items()}
    ours, official, distances = [], [], []
    for (first, second), rows in zip(job.pairs, job.matches, strict=True):
        one, two = job.cameras[first], job.cameras[second]
        dR, dt = relative_pose(one.R, one.t, two.R, two.t)
        arguments = job.keypoints[first], job.keypoints[second], maps[first], maps[second], one.K, two.K, dR, dt
        scores = score_depth(*arguments)
        ours.append(scores.repeatability)
        official.append(score_depth(*arguments, compat=True).repeatability)
        has_depth = scores.has_depth0[rows[:, 0]] & scores.has_depth1[rows[:, 1]]
        every = np.full(len(rows), _NO_DEPTH)
        every[has_depth] = matching_distances(rows, job.keypoints[first], scores)
        distances.append(every)
    return {
        "repeatability": np.array(ours),
        "repeatability_official": np.array(official),
        "distances": np.concatenate(distances),
        "seconds": np.array(time.perf_counter() - start),
    }


# Cleaned maps first.
_KINDS = ("geometric", "photometric")


class DenseModel:
    """A dense workspace: ``stereo/depth_maps/<image>.<kind>.bin``, and ``sparse`` with the cameras of its images.

    Args:
        folder: the workspace, made from the model that the scene is made from.

    Raises:
        MissingFileError: no such folder, or none of depth maps or of cameras in it.
        DataError: cameras that do not read.
    """

    def __init__(self, folder: Path) -> None:
        self.maps = folder / "stereo" / "depth_maps"
        sparse = folder / "sparse"
        for needed in (folder, self.maps, sparse):
            if not needed.is_dir():
                raise MissingFileError(
                    f"folder {needed} is not there: a dense workspace has stereo/depth_maps and sparse"
                )
        self._cameras: dict[str, Any] = {image.name: image.camera for image in read_model(sparse).images}

    def depth(self, image: str, K: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Depth (H, W) for a camera without distortion at the place of an image; None without a map.

        Args:
            image: its name in the model.
            K: calibration of the wanted map; pixel centres at integers.
            size: (width, height) of the wanted map.

        Returns:
            the nearest pixel of the workspace's map; 0 outside it and where it has no depth.

        Raises:
            DataError: a damaged map, or one that is not of its camera's size.
        """
        files = [self.maps / f"{image}.{kind}.bin" for kind in _KINDS]
        path = next((file for file in files if file.is_file()), None)
        camera = self._cameras.get(image)
        if path is None or camera is None:
            return None
        depth = read_depth_map(path)
        if depth.shape != (camera.height, camera.width):
            raise DataError(
                f"{path} is {depth.shape[1]} x {depth.shape[0]}, its camera {camera.width} x {camera.height}"
            )
        if is_distorted(camera) or not camera.focal_length_idxs():
            raise DataError(f"{path} is of a {camera.model_name} camera: a dense workspace has pinhole cameras")
        theirs = np.array(camera.calibration_matrix(), np.float64)
        theirs[:2, 2] -= 0.5
        return _resampled(depth, theirs, K, size)


def read_depth_map(path: Path) -> NDArray[np.float32]:
    """A depth map (H, W) of COLMAP; 0 where there is no depth.

    Raises:
        DataError: not such a file, or cut short.
    """
    content = path.read_bytes()
    fields = content[:64].split(b"&", 3)
    if len(fields) != 4 or not all(field.isdigit() for field in fields[:3]) or int(fields[2]) != 1:
        raise DataError(f"{path} is no depth map of COLMAP: expected `width&height&1&` and float32 values")
    width, height = int(fields[0]), int(fields[1])
    start = sum(len(field) + 1 for field in fields[:3])
    if len(content) - start != 4 * width * height:
        raise DataError(f"{path} is cut short: {len(content) - start} bytes for {width} x {height} float32 values")
    depth = np.frombuffer(content, np.float32, offset=start).reshape(height, width)
    return known_depth(depth)


def _resampled(
    depth: NDArray[np.float32], theirs: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map of a pinhole camera seen by another one at the same place: nearest pixels."""
    places = []
    for axis, length in enumerate(size):
        on_plane = (np.arange(length) - K[axis, 2]) / K[axis, axis]
        places.append(np.rint(on_plane * theirs[axis, axis] + theirs[axis, 2]).astype(np.int64))
    columns, rows = places
    inside = [(place >= 0) & (place < limit) for place, limit in zip(places, depth.shape[::-1], strict=True)]
    result = np.zeros((size[1], size[0]), np.float32)
    result[np.ix_(inside[1], inside[0])] = depth[np.ix_(rows[inside[1]], columns[inside[0]])]
    return result
