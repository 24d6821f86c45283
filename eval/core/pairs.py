"""Matches of image pairs, in blocks that are jobs of their own and lie in the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.h5files import Arrays, read_h5
from common.jobs import compute_all, map_on_threads
from common.machine import give_freed_memory_back
from eval.core.matchers import Matcher, gains_from_threads, match_images
from eval.features.extract import Features

Pair = tuple[str, str]

# Pairs in one cached file: what an interrupted run loses at most.
BLOCK = 32
# Descriptors of so many images stay in memory between the pairs of a worker.
IMAGES_IN_MEMORY = 64


class MatchedPairs(NamedTuple):
    """Matches of pairs, block by block."""

    blocks: list[list[Pair]]
    matches: list[list[NDArray[np.int32]]]
    """(M, 2) keypoint indices of every pair of every block."""
    keys: list[str]
    """Cache key of every block."""
    seconds: float

    def by_pair(self) -> dict[Pair, NDArray[np.int32]]:
        """Matches (M, 2) of every pair."""
        rows = zip(self.blocks, self.matches, strict=True)
        return {pair: rows_of for block, matches in rows for pair, rows_of in zip(block, matches, strict=True)}


class _MatchJob(NamedTuple):
    """What a worker needs for one block: descriptors are read from the cache by path."""

    pairs: list[tuple[int, int]]
    images: list[Features]
    """Without their descriptors."""
    descriptors: list[Path]
    matcher: Matcher
    device: str


def match_pairs(
    pairs: Sequence[Pair],
    features: Mapping[str, Features],
    matcher: Matcher,
    cache: Cache,
    executor: Executor | None = None,
    what: str = "match",
    device: torch.device | None = None,
) -> MatchedPairs:
    """Match pairs of images on a device (default: CPU), in blocks that are independent jobs, or read from the cache."""
    blocks = [list(pairs[start : start + BLOCK]) for start in range(0, len(pairs), BLOCK)]
    settings = matcher.to_dict()
    configurations = [
        {"features": [[features[name].key for name in pair] for pair in block], "matcher": settings} for block in blocks
    ]
    work = [
        (configuration, _job(block, features, matcher, cache, device))
        for configuration, block in zip(configurations, blocks, strict=True)
    ]
    # one process uses a GPU best, and workers elsewhere may have none
    workers = executor if device is None or device.type == "cpu" else None
    results = compute_all(cache, "matches", work, _match, workers, what, f"block of {BLOCK}")
    return MatchedPairs(
        blocks,
        [split_rows(arrays["matches"], arrays["counts"]) for arrays in results],
        [cache.key("matches", configuration) for configuration in configurations],
        sum(float(arrays["seconds"]) for arrays in results),
    )


def split_rows(rows: NDArray[Any], counts: NDArray[Any]) -> list[NDArray[Any]]:
    """Rows that lie one block below the other, apart."""
    return np.split(rows, np.cumsum(counts)[:-1]) if len(counts) else []


def _job(
    block: Sequence[Pair],
    features: Mapping[str, Features],
    matcher: Matcher,
    cache: Cache,
    device: torch.device | None,
) -> _MatchJob:
    names = list(dict.fromkeys(name for pair in block for name in pair))
    place = {name: index for index, name in enumerate(names)}
    return _MatchJob(
        [(place[a], place[b]) for a, b in block],
        [features[name]._replace(descs=torch.zeros(0)) for name in names],
        [_stored(cache, features[name]) for name in names],
        matcher,
        str(device or "cpu"),
    )


def stored_descriptors(cache: Cache, features: Features) -> Tensor:
    """The descriptors (N, D) of an image, which the cache holds."""
    return _read_descriptors(_stored(cache, features))


def _stored(cache: Cache, features: Features) -> Path:
    """The file that holds the descriptors of an image."""
    paths = [cache.root.resolve() / stage / f"{features.key}.h5" for stage in ("descriptors", "features")]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_descriptors(path: Path) -> Tensor:
    return torch.from_numpy(read_h5(path, ("descs",))[0]["descs"])


def _match(job: _MatchJob) -> Arrays:
    """Matches of a block of pairs, one below the other, with their counts."""
    start = time.perf_counter()

    def match(pair: tuple[int, int]) -> NDArray[np.int32]:
        one, two = (job.images[k]._replace(descs=_descriptors(job.descriptors[k], job.device)) for k in pair)
        return match_images(one, two, job.matcher).cpu().numpy().astype(np.int32).reshape(-1, 2)

    on_threads = job.device == "cpu" and gains_from_threads(job.matcher)
    blocks = list(map_on_threads(match, job.pairs) if on_threads else map(match, job.pairs))
    give_freed_memory_back()
    return {
        "matches": np.concatenate(blocks) if blocks else np.zeros((0, 2), np.int32),
        "counts": np.array([len(matches) for matches in blocks], np.int64),
        "seconds": np.array(time.perf_counter() - start),
    }


@lru_cache(maxsize=IMAGES_IN_MEMORY)
def _descriptors(path: Path, device: str) -> Tensor:
    return _read_descriptors(path).to(device)
