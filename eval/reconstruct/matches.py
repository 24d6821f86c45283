"""Matches of pairs of photographs and their geometric verification by COLMAP, both kept in the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.colmap import load_pycolmap
from common.machine import available_cores
from common.shell import progress
from eval.core.pairs import BLOCK, Pair, match_pairs, split_rows
from eval.reconstruct.describe import DescribedPhoto
from eval.reconstruct.settings import ReconstructSettings
from kornia_hardnet8.lafs import colmap_from_lafs

_MATRICES = ("E", "F", "H")


class Verified(NamedTuple):
    """One pair after matching and verification."""

    pair: Pair
    matches: NDArray[Any]
    """(M, 2) rows of the keypoints of both images."""
    config: int
    """COLMAP's kind of two-view geometry; 0 and 1: none."""
    matrices: dict[str, NDArray[np.float64]]
    """``E``, ``F``, ``H`` (3, 3), those that COLMAP found."""
    inliers: NDArray[Any]
    """(I, 2)."""
    match_s: float
    """Seconds that matching took when it was done, a share of all."""
    verify_s: float
    """Seconds that verification took when it was done."""

    @property
    def is_verified(self) -> bool:
        """COLMAP found a geometry that enough matches agree with."""
        return self.config not in (0, 1) and len(self.inliers) > 0

    def geometry(self) -> Any:
        """As COLMAP's class."""
        geometry = load_pycolmap().TwoViewGeometry()
        geometry.config = self.config
        for name, matrix in self.matrices.items():
            setattr(geometry, name, matrix)
        geometry.inlier_matches = np.ascontiguousarray(self.inliers, np.uint32)
        return geometry


def match_and_verify(
    pairs: Sequence[Pair],
    described: Mapping[str, DescribedPhoto],
    cameras: Mapping[str, Any],
    settings: ReconstructSettings,
    cache: Cache,
    executor: Executor | None = None,
    device: torch.device | None = None,
) -> Iterator[Verified]:
    """Match pairs of images and verify them, block by block on all cores; results come in order.

    Verification is COLMAP's with its own settings and a seed: essential matrix where both focal lengths are known,
    else fundamental matrix or homography.

    Args:
        pairs: names.
        described: by name.
        cameras: pycolmap's, by name.
        settings: matcher, seed.
        cache: what is there is not done again.
        executor: where pairs are matched; None: here.
        device: where descriptors are compared.
    """
    features = {name: item.features for name, item in described.items()}
    matched = match_pairs(pairs, features, settings.matcher, cache, executor, device=device)
    blocks = list(zip(matched.blocks, matched.matches, matched.keys, strict=True))
    for block, matches, key in progress(blocks, what="verify", unit=f"block of {BLOCK} pairs"):
        about = {
            "matches": key,
            "sizes_and_turns": [[[*described[n].size, described[n].photo.orientation] for n in p] for p in block],
            "cameras": [[_camera_text(cameras[name]) for name in pair] for pair in block],
            "pycolmap": load_pycolmap().__version__,
            "seed": settings.seed,
        }
        _, verified = cache.compute(
            "verified", about, partial(_verify, block, matches, described, cameras, settings.mr_size, settings.seed)
        )
        inliers = split_rows(verified["inliers"], verified["counts"])
        seconds = (matched.seconds / len(pairs), float(verified["seconds"]) / len(block))
        for row, pair in enumerate(block):
            matrices = {n: verified[n][row] for n in _MATRICES if np.isfinite(verified[n][row]).all()}
            yield Verified(pair, matches[row], int(verified["configs"][row]), matrices, inliers[row], *seconds)


def _verify(
    block: Sequence[Pair],
    matches: Sequence[NDArray[Any]],
    described: Mapping[str, DescribedPhoto],
    cameras: Mapping[str, Any],
    mr_size: float,
    seed: int,
) -> dict[str, NDArray[Any]]:
    start = time.perf_counter()
    pycolmap = load_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = seed
    names = {name for pair in block for name in pair}
    points = {name: colmap_from_lafs(described[name].lafs, mr_size)[:, :2].astype(np.float64) for name in names}

    def one(pair: Pair, matched: NDArray[np.int64]) -> Any:
        if len(matched) < options.min_num_inliers:
            return pycolmap.TwoViewGeometry()
        (a, b), rows = pair, np.ascontiguousarray(matched, np.uint32)
        geometry = pycolmap.estimate_two_view_geometry(cameras[a], points[a], cameras[b], points[b], rows, options)
        # COLMAP's own verification keeps no less
        return geometry if len(geometry.inlier_matches) >= options.min_num_inliers else pycolmap.TwoViewGeometry()

    with ThreadPoolExecutor(available_cores()) as pool:  # COLMAP computes without Python's lock
        geometries = list(pool.map(one, block, matches))
    inliers = [np.asarray(g.inlier_matches, np.int64).reshape(-1, 2) for g in geometries]
    arrays = {name: np.stack([_matrix(getattr(geometry, name)) for geometry in geometries]) for name in _MATRICES}
    return {
        **arrays,
        "configs": np.array([int(g.config) for g in geometries], np.int64),
        "inliers": np.concatenate(inliers).astype(np.int32),
        "counts": np.array([len(i) for i in inliers], np.int64),
        "seconds": np.array(time.perf_counter() - start),
    }


def _matrix(value: Any) -> NDArray[np.float64]:
    """A matrix, NaN where COLMAP has none."""
    return np.full((3, 3), np.nan) if value is None else np.asarray(value, np.float64)


def _camera_text(camera: Any) -> str:
    return f"{camera.model_name} {camera.params_to_string()} {camera.has_prior_focal_length}"
