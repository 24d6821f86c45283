"""Write a submission: features, matches where they are ours, and ``config.json``, packed as a zip."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache
from common.h5files import Arrays, write_h5
from common.images import read_bgr
from common.jobs import compute_all
from common.shell import progress
from eval.core.estimators import BASELINE, OFFICIAL_METHODS, EstimatorSettings, estimate_fundamental
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.core.pairs import Pair, match_pairs
from eval.features import Method, WholeFeature
from eval.features.detect import DogSettings
from eval.features.extract import Features, extract
from eval.imw.multiview import MULTIVIEW_RATIO
from eval.imw.official import DESCRIPTOR_WIDTHS, MAX_DESCRIPTOR_BYTES, keypoint_category
from eval.imw.scene import RawScene, all_pairs, pair_key
from eval.imw.submission.config import CONFIG_FILE, GEOM_PARAMETERS, check_method
from eval.imw.submission.findings import Findings
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_path
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

log = logging.getLogger(__name__)

TRACKS = {"2k": 2048, "8k": 8000}


@dataclass(frozen=True)
class SubmissionSettings:
    """Everything that a submission depends on beside method and images.

    Attributes:
        detector: of keypoints; its ``num`` is the limit of the track.
        mr_size: half side of a patch / sigma.
        stereo: matcher of the stereo task.
        multiview: matcher of the multiview task.
        estimator: of the fundamental matrix.
        custom_matches: store matches instead of letting the benchmark match; the stereo ones are the estimator's
            inliers.
        pairwise: with ``custom_matches``: store the inliers' places by pair, for stereo alone, and nothing by image.
        seed: of the estimator, for custom matches.
    """

    detector: DogSettings = field(default_factory=DogSettings)
    mr_size: float = DEFAULT_MR_SIZE
    stereo: Matcher = field(default_factory=MatcherSettings)
    multiview: Matcher = field(default_factory=lambda: MatcherSettings(threshold=MULTIVIEW_RATIO))
    estimator: EstimatorSettings = BASELINE
    custom_matches: bool = False
    pairwise: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """What was packed: images, keypoints (mean and largest number), bytes of the zip, seconds."""

    num_images: int
    mean_keypoints: float
    max_keypoints: int
    num_bytes: int
    seconds: float
    config: list[dict[str, Any]]


def write_submission(
    scenes: Sequence[RawScene],
    method: Method,
    settings: SubmissionSettings,
    metadata: Mapping[str, Any],
    out: Path,
    cache: Cache,
    executor: Executor | None = None,
) -> Written:
    """Describe (and match) every scene and pack the zip, whole or not at all.

    Args:
        scenes: see :func:`eval.imw.scene.find_raw_scenes`.
        method: descriptor or whole local feature.
        settings: everything else.
        metadata: of the challenge, see :data:`PLACEHOLDERS`.
        out: the zip.
        cache: of features and matches, which is the one of ``eval imw``.
        executor: where pairs are matched.

    Raises:
        UsageError: descriptors that the benchmark does not take.
        DataError: no keypoints at all, a descriptor that is not finite, metadata that the benchmark refuses.
    """
    start = time.perf_counter()
    if not settings.pairwise:
        check_width(method, settings.custom_matches)
    if not settings.custom_matches:  # what the benchmark cannot do is refused before anything is described
        for matcher in (settings.stereo, settings.multiview):
            official_matcher(matcher)
        official_geom(settings.estimator)
    _check_metadata(metadata)
    counts: list[int] = []
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=_folder(out)) as temporary:
        root = Path(temporary)
        for scene in scenes:
            features = _describe(scene, method, settings, cache)
            counts += [len(image.keypoints) for image in features.values()]
            folder = root / scene.dataset / scene.name
            if settings.pairwise:
                _write_pairs(folder, scene, features, settings, cache, executor)
                continue
            write_features(folder, features, isinstance(method, WholeFeature))
            if settings.custom_matches:
                _write_matches(folder, scene, features, settings, cache, executor)
        if max(counts) == 0:
            raise DataError(f"{method.name} finds no keypoint in any of {len(counts)} images")
        num = -1 if settings.pairwise else category_of(max(counts), settings.detector.num)
        datasets = list(dict.fromkeys(scene.dataset for scene in scenes))
        config = [make_config(method, settings, datasets, metadata, num)]
        (root / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _pack(root, out)
    size = out.stat().st_size
    return Written(len(counts), float(np.mean(counts)), max(counts), size, time.perf_counter() - start, config)


def check_width(method: Method, custom_matches: bool) -> None:
    """Refuse descriptors that the benchmark does not take.

    Raises:
        UsageError: too narrow, too wide, or too many bytes without matches.
    """
    low, high = DESCRIPTOR_WIDTHS
    if not low <= method.dim <= high:
        raise UsageError(f"{method.name}: {method.dim} dimensions, the benchmark takes {low} to {high}")
    size = 4 * method.dim
    if size > MAX_DESCRIPTOR_BYTES and not custom_matches:
        raise UsageError(
            f"{method.name}: {size} bytes a descriptor, the benchmark matches at most {MAX_DESCRIPTOR_BYTES}: "
            "take dim=128, or --custom-matches"
        )


def write_features(folder: Path, features: Mapping[str, Features], whole: bool) -> None:
    """Write ``keypoints.h5``, ``descriptors.h5``, ``scores.h5``, and for keypoints with scale and direction those.

    Keypoints are float64 pixels, descriptors float32, scales OpenCV's ``size``, angles degrees as OpenCV's.
    """
    columns: dict[str, Arrays] = {"keypoints": {}, "descriptors": {}, "scores": {}}
    for name, image in features.items():
        descs = image.descs.numpy().astype(np.float32)
        if not (np.isfinite(descs).all() and np.isfinite(image.keypoints.xy).all()):
            raise DataError(f"image {name}: a keypoint or descriptor is not finite")
        columns["keypoints"][name] = image.keypoints.xy.astype(np.float64)
        columns["descriptors"][name] = descs
        columns["scores"][name] = image.keypoints.response.astype(np.float32)
        if not whole:
            columns.setdefault("scales", {})[name] = image.keypoints.size.astype(np.float32)
            columns.setdefault("angles", {})[name] = image.keypoints.angle.astype(np.float32)
        if image.keypoints.shape is not None:
            columns.setdefault("affine", {})[name] = image.keypoints.shape.astype(np.float32)
    for file, arrays in columns.items():
        write_h5(folder / f"{file}.h5", arrays)


def category_of(max_keypoints: int, num: int) -> int:
    """The number of keypoints to declare: that of the track, or of the smaller one if every image fits into it."""
    category = keypoint_category(max_keypoints)
    if category < num:
        log.warning(
            "warning: no image has more than %d keypoints, so this is an entry of the %d category",
            max_keypoints,
            category,
        )
    return category


def make_config(
    method: Method,
    settings: SubmissionSettings,
    datasets: Sequence[str],
    metadata: Mapping[str, Any],
    num_keypoints: int,
) -> dict[str, Any]:
    """The method dictionary of ``config.json``; names are lower-cased.

    Raises:
        UsageError: an estimator that the benchmark does not have.
        DataError: the dictionary does not pass the benchmark's checks.
    """
    keypoint, descriptor = keypoint_name(method, settings.detector), official_name(method.token.name)
    track = "pairs" if settings.pairwise else next(name for name, num in TRACKS.items() if num == num_keypoints)
    label = "-".join([*dict.fromkeys([keypoint, descriptor]), *(["custom"] if settings.custom_matches else []), track])
    config: dict[str, Any] = {
        "metadata": dict(metadata),
        "config_common": {
            "json_label": label,
            "keypoint": keypoint,
            "descriptor": descriptor,
            "num_keypoints": num_keypoints,
            **({"pairwise_keypoints": True} if settings.pairwise else {}),
        },
    }
    for dataset in datasets:
        if settings.custom_matches:
            custom = {"use_custom_matches": True, "custom_matches_name": f"{descriptor}-matches"}
            config[f"config_{dataset}_stereo"] = {**custom, "geom": {"method": "cv2-8pt"}}
            if not settings.pairwise:
                config[f"config_{dataset}_multiview"] = {**custom, "colmap": {}}
        else:
            builtin = {"use_custom_matches": False, "outlier_filter": {"method": "none"}}
            stereo, multiview = official_matcher(settings.stereo), official_matcher(settings.multiview)
            geom = official_geom(settings.estimator)
            config[f"config_{dataset}_stereo"] = {**builtin, "matcher": stereo, "geom": geom}
            config[f"config_{dataset}_multiview"] = {**builtin, "matcher": multiview, "colmap": {}}
    findings = Findings()
    check_method(config, True, findings)
    for finding in findings:
        if finding.kind == "placeholder":  # said where the metadata are read; the author fills them in
            continue
        if finding.level == "error":
            raise DataError(f"the configuration would not be taken: {finding}")
        log.warning("%s", finding)
    return config


def official_matcher(matcher: Matcher) -> dict[str, Any]:
    """The ``matcher`` dictionary of a configuration: the inverse of :meth:`MatcherSettings.from_official`.

    Raises:
        UsageError: a matcher that the benchmark does not have.
    """
    if not isinstance(matcher, MatcherSettings):
        name = matcher.to_dict()["matcher"]
        raise UsageError(f"the benchmark has no matcher {name}: with --custom-matches its matches are handed in")
    filtering: dict[str, Any] = {"type": matcher.filter}
    if matcher.filter != "none":
        filtering["threshold"] = matcher.threshold
    if matcher.filter == "fginn_ratio_pairwise":
        filtering["fginn_radius"] = matcher.fginn_radius
    enabled = matcher.symmetric != "none"
    official: dict[str, Any] = {
        "method": "nn",
        "distance": matcher.distance.upper() if matcher.distance != "hamming" else "Hamming",
        "flann": False,
        "num_nn": matcher.num_nn,
        "filtering": filtering,
        "symmetric": {"enabled": enabled, **({"reduce": matcher.symmetric} if enabled else {})},
    }
    if matcher.max_distance is not None:
        official["descriptor_distance_filter"] = {"threshold": matcher.max_distance}
    return official


def official_geom(estimator: EstimatorSettings) -> dict[str, Any]:
    """The ``geom`` dictionary of a configuration: the inverse of :meth:`EstimatorSettings.from_official`.

    Raises:
        UsageError: an estimator that the benchmark does not have.
    """
    names = {ours: theirs for theirs, ours in OFFICIAL_METHODS.items() if not theirs.endswith("-laf")}
    if estimator.method not in names:
        raise UsageError(
            f"the benchmark has no estimator {estimator.method}: it has {', '.join(names)}; "
            "with --custom-matches its inliers are handed in"
        )
    values = {
        "threshold": estimator.threshold_px,
        "confidence": estimator.confidence,
        "max_iter": estimator.max_iters,
        "error_type": estimator.error_type,
        "degeneracy_check": estimator.degeneracy_check,
    }
    name = names[estimator.method]
    return {"method": name, **{key: values[key] for key in GEOM_PARAMETERS[name]}}


def keypoint_name(method: Method, detector: DogSettings) -> str:
    """Name of the keypoints in a configuration."""
    if isinstance(method, WholeFeature):
        return official_name(method.token.name)
    further = {
        "matchability": detector.select == "matchability",
        "upright": detector.upright,
        "affnet": detector.affine_weights is not None,
    }
    parts = ["dog", *(name for name, used in further.items() if used)]
    return "-".join(parts)


def official_name(text: str) -> str:
    """A name of a-z, 0-9, - and . alone."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _describe(scene: RawScene, method: Method, settings: SubmissionSettings, cache: Cache) -> dict[str, Features]:
    return {
        name: extract(read_bgr(path), method, settings.detector, cache, settings.mr_size)
        for name, path in progress(scene.images.items(), len(scene.images), f"{scene.where}: describe", "image")
    }


def _write_matches(
    folder: Path,
    scene: RawScene,
    features: Mapping[str, Features],
    settings: SubmissionSettings,
    cache: Cache,
    executor: Executor | None,
) -> None:
    """Write the matches of every pair: verified ones for stereo, where all count as inliers, filtered for multiview."""
    pairs = all_pairs(list(scene.images))
    multiview = match_pairs(pairs, features, settings.multiview, cache, executor, f"{scene.where}: match (multiview)")
    write_h5(folder / "matches_multiview.h5", _by_key(multiview.by_pair()))
    write_h5(folder / "matches_stereo.h5", _by_key(_verified(scene, features, settings, cache, executor)))


def _write_pairs(
    folder: Path,
    scene: RawScene,
    features: Mapping[str, Features],
    settings: SubmissionSettings,
    cache: Cache,
    executor: Executor | None,
) -> None:
    """Write the places of the verified matches of every pair, ``a-b`` those in a, and matches that count them."""
    keypoints: Arrays = {}
    matches: Arrays = {}
    for (one, two), rows in _verified(scene, features, settings, cache, executor).items():
        for column, key in enumerate((pair_key((one, two)), pair_key((two, one)))):
            keypoints[key] = features[(one, two)[column]].keypoints.xy[rows[:, column]].astype(np.float64)
        matches[pair_key((one, two))] = np.tile(np.arange(len(rows), dtype=np.int32), (2, 1))
    write_h5(folder / "keypoints.h5", keypoints)
    write_h5(folder / "matches.h5", matches)


def _by_key(matches: Mapping[Pair, NDArray[np.int32]]) -> Arrays:
    return {pair_key(pair): np.ascontiguousarray(rows.T.reshape(2, -1), np.int32) for pair, rows in matches.items()}


@dataclass(frozen=True)
class _VerifyJob:
    points: list[tuple[NDArray[np.floating], NDArray[np.floating]]]
    estimator: EstimatorSettings
    seed: int


def _verified(
    scene: RawScene,
    features: Mapping[str, Features],
    settings: SubmissionSettings,
    cache: Cache,
    executor: Executor | None,
) -> dict[Pair, NDArray[np.int32]]:
    """The inliers among the stereo matches of every pair."""
    pairs = all_pairs(list(scene.images))
    matched = match_pairs(pairs, features, settings.stereo, cache, executor, f"{scene.where}: match (stereo)")
    work = []
    for block, key, matches in zip(matched.blocks, matched.keys, matched.matches, strict=True):
        points = [
            (features[a].keypoints.xy[rows[:, 0]], features[b].keypoints.xy[rows[:, 1]])
            for (a, b), rows in zip(block, matches, strict=True)
        ]
        configuration = {"matches": key, "estimator": settings.estimator.to_dict(), "seed": settings.seed}
        work.append((configuration, _VerifyJob(points, settings.estimator, settings.seed)))
    inliers = compute_all(cache, "verified", work, _inliers, executor, f"{scene.where}: verify", "block")
    verified: dict[Pair, NDArray[np.int32]] = {}
    for block, matches, arrays in zip(matched.blocks, matched.matches, inliers, strict=True):
        masks = np.split(arrays["inliers"].astype(bool), np.cumsum([len(rows) for rows in matches])[:-1])
        verified |= {pair: rows[mask] for pair, rows, mask in zip(block, matches, masks, strict=True)}
    return verified


def _inliers(job: _VerifyJob) -> Arrays:
    masks = [estimate_fundamental(x0, x1, job.estimator, job.seed).inliers for x0, x1 in job.points]
    return {"inliers": np.concatenate(masks) if masks else np.zeros(0, bool)}


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    """What the benchmark asks of metadata, before any image is described."""
    findings = Findings()
    common = {"json_label": "x", "keypoint": "x", "descriptor": "x", "num_keypoints": 2048}
    check_method({"metadata": dict(metadata), "config_common": common}, False, findings, "metadata")
    for finding in findings:
        if finding.kind not in ("no_task", "placeholder"):
            raise DataError(f"the metadata would not be taken: {finding}")


def _folder(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _pack(root: Path, out: Path) -> None:
    """Zip a folder: the same files give the same bytes, whatever the clock says."""
    date = time.mktime((1980, 1, 2, 0, 0, 0, 0, 0, -1))  # zips know no date before 1980
    with (
        atomic_path(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            os.utime(path, (date, date))
            archive.write(path, path.relative_to(root).as_posix())
