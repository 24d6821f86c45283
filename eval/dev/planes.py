"""Homography sequences and fixed cameras: what one descriptor finds where the true partner of each point is known."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache
from common.homography import corner_error
from common.images import read_gray, reduce_image
from eval.core.distances import identity_matching
from eval.core.homography_estimators import estimate_homography
from eval.core.image_sequences import ImageSequence
from eval.core.matching import mutual_nn
from eval.dev.data import DevSettings, resize_matrix
from eval.dev.poses import own_features
from eval.features import Descriptor, Keypoints, Method, WholeFeature
from eval.features.extract import detect
from eval.features.keypoints import spread_places
from eval.sequences.protocols import LocalFeatures, match_pair
from eval.webcam.command import choose_pairs
from kornia_hardnet8.errors import DataError

HA_THRESHOLDS_PX = (1, 3, 5)
EVERY_KEYPOINT = 1 << 30


class PreparedSequence(NamedTuple):
    """A homography sequence with its images read (first the reference) and its keypoints detected."""

    name: str
    numbers: list[int]
    images: list[NDArray[np.uint8]]
    homographies: list[NDArray[np.float64]]
    """From image 1 to each other one."""
    keypoints: list[Keypoints]
    keys: list[str]
    paths: list[Path]


class PreparedCamera(NamedTuple):
    """The pictures of a fixed camera, the judged pairs, and the places of every first picture of a pair."""

    name: str
    files: list[str]
    images: list[NDArray[np.uint8]]
    pairs: list[tuple[int, int]]
    places: dict[int, Keypoints]
    keys: list[str]


def prepare_sequence(name: str, sequence: ImageSequence, settings: DevSettings, cache: Cache) -> PreparedSequence:
    """Read and detect."""
    paths = [sequence.reference, *(path for _, path, _ in sequence.targets)]
    images, scales = zip(*(reduce_image(read_gray(path), settings.max_side_px) for path in paths), strict=True)
    back = np.linalg.inv(resize_matrix(*scales[0]))
    homographies = [
        resize_matrix(*scale) @ H @ back for (_, _, H), scale in zip(sequence.targets, scales[1:], strict=True)
    ]
    keypoints, keys = zip(*(detect(image, settings.detector, cache) for image in images), strict=True)
    numbers = [number for number, _, _ in sequence.targets]
    return PreparedSequence(name, numbers, list(images), homographies, list(keypoints), list(keys), paths)


def judge_sequence(
    prepared: PreparedSequence, descriptor: Method, settings: DevSettings, cache: Cache
) -> tuple[list[dict[str, Any]], float]:
    """Rows of the pairs (1, k) with ``MMA@1`` … ``MMA@10``, ``correct_nn``, ``HA@1|3|5``; and seconds."""
    described = []
    if isinstance(descriptor, WholeFeature):
        described = [own_features(path, descriptor, settings, cache) for path in prepared.paths]
        identity = descriptor.identity(settings.detector.num)
    else:
        identity = descriptor.identity(settings.mr_size)
    configuration = {
        "keypoints": [one.key for one in described] or prepared.keys,
        "homographies": [H.tolist() for H in prepared.homographies],
        "estimator": settings.homography.to_dict(),
        "seed": settings.seed,
        **identity,
    }

    def make() -> dict[str, NDArray[Any]]:
        start = time.perf_counter() - sum(one.seconds for one in described)
        if isinstance(descriptor, WholeFeature):
            features = [LocalFeatures(f.keypoints.xy, f.keypoints.response, f.descs) for f in described]
        else:
            features = [
                LocalFeatures(kpts.xy, kpts.response, descriptor.describe_image(image, kpts, settings.mr_size))
                for image, kpts in zip(prepared.images, prepared.keypoints, strict=True)
            ]
        rows = [
            _judge_plane(features[0], other, H, prepared.images[0].shape, settings)
            for other, H in zip(features[1:], prepared.homographies, strict=True)
        ]
        columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
        return {**columns, "seconds": np.array(time.perf_counter() - start)}

    pairs = [f"1-{number}" for number in prepared.numbers]
    return _rows(pairs, cache.compute("dev-homography", configuration, make)[1])


def prepare_camera(name: str, files: list[Any], settings: DevSettings, cache: Cache) -> PreparedCamera:
    """Read the pictures and find the places that are looked for.

    Raises:
        DataError: pictures of one camera that differ in size.
    """
    images = [reduce_image(read_gray(path), settings.max_side_px)[0] for path in files]
    if len({image.shape for image in images}) > 1:
        sizes = sorted({f"{image.shape[1]} x {image.shape[0]}" for image in images})
        raise DataError(f"{files[0].parent}: pictures of one camera differ in size ({', '.join(sizes)})")
    pairs = choose_pairs(len(images), settings.webcam_pairs, settings.seed)
    detector = replace(settings.detector, num=EVERY_KEYPOINT)
    detected = [detect(image, detector, cache) for image in images]
    places = {
        i: spread_places(detected[i][0], settings.spacing_px, max(1, settings.detector.num // 2)) for i, _ in pairs
    }
    return PreparedCamera(name, [path.name for path in files], images, pairs, places, [key for _, key in detected])


def judge_camera(
    prepared: PreparedCamera, descriptor: Descriptor, settings: DevSettings, cache: Cache
) -> tuple[list[dict[str, Any]], float]:
    """Rows with ``correct_nn`` and ``mAP``: the places of each pair's first picture, cut in both; and seconds."""
    configuration = {
        "pictures": prepared.keys,
        "pairs": prepared.pairs,
        "places": settings.detector.num // 2,
        "spacing_px": settings.spacing_px,
        **descriptor.identity(settings.mr_size),
    }

    def make() -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        descs = {
            i: descriptor.describe_image(prepared.images[i], places, settings.mr_size)
            for i, places in prepared.places.items()
        }
        rows = []
        for i, j in prepared.pairs:
            other = descriptor.describe_image(prepared.images[j], prepared.places[i], settings.mr_size)
            scores = identity_matching(descs[i].numpy(), other.numpy()) if len(other) else {"success": 0.0, "ap": 0.0}
            rows.append((scores["success"], scores["ap"]))
        correct, ap = np.array(rows, np.float64).T
        return {"correct_nn": correct, "mAP": ap, "seconds": np.array(time.perf_counter() - start)}

    pairs = [f"{prepared.files[i]}-{prepared.files[j]}" for i, j in prepared.pairs]
    return _rows(pairs, cache.compute("dev-webcam", configuration, make)[1])


def _judge_plane(
    first: LocalFeatures, second: LocalFeatures, H: NDArray[np.float64], shape: tuple[int, ...], settings: DevSettings
) -> dict[str, float]:
    scores = match_pair(first, second, H)
    matches = mutual_nn(first.descs, second.descs).matches.numpy()
    estimate = estimate_homography(
        first.xy[matches[:, 0]], second.xy[matches[:, 1]], settings.homography, seed=settings.seed
    )
    error = corner_error(estimate.H, H, shape[1], shape[0])
    numbers = {name: float(str(value or 0)) for name, value in scores.items()}  # nothing to be found counts as 0
    return {**numbers, **{f"HA@{t}": float(error <= t) for t in HA_THRESHOLDS_PX}, "corner_error_px": error}


def _rows(pairs: list[str], stored: dict[str, NDArray[Any]]) -> tuple[list[dict[str, Any]], float]:
    """One dictionary a pair of the stored columns, and the seconds that they took."""
    columns = {name: values.tolist() for name, values in stored.items() if values.ndim}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{"pair": pair, **row} for pair, row in zip(pairs, rows, strict=True)], float(stored["seconds"])
