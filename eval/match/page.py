"""The page of ``eval match``: the matches of two photographs, and those that the ratio test left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.geometry import epipolar_squared
from common.homography import reprojection_errors
from eval.core.estimators import EstimatorSettings
from eval.core.homography_estimators import HomographySettings
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings, match_ratios, official_match
from eval.match.photo_cameras import PhotoCamera
from eval.match.photos import PhotoFeatures, PhotoMatch
from eval.pages.render import Candidates, Geometry, write_pair_page

Floats = NDArray[np.float64]


class Matched(NamedTuple):
    """Two photographs, how they were matched, and what came of it."""

    photos: tuple[PhotoFeatures, PhotoFeatures]
    matcher: Matcher
    geometry: EstimatorSettings | HomographySettings
    pair: PhotoMatch
    cameras: Sequence[PhotoCamera]
    """Of both, for an estimator of E; else none."""


def write_match_page(path: Path, names: tuple[str, str], matched: Matched, kind: str, facts: str, made: str) -> Path:
    """Write the page; returns its path.

    Args:
        path: the page.
        names: of the photographs.
        matched: what it shows.
        kind: of geometry: ``fundamental matrix``, ``essential matrix`` or ``homography``.
        facts: a line below the heading.
        made: how it was made, a sentence.
    """
    ratio, threshold_px = tested_ratio(matched.matcher), matched.geometry.threshold_px
    explained = (
        f"The geometry was estimated once, by {matched.geometry.method}, from the matches of the command. Its pixels "
        "are those of the photographs as features were found in them, reduced. "
    )
    if ratio is not None:
        explained += (
            f"Matches above the command's ratio of {ratio:g} took no part in that; they agree where they lie within "
            f"{threshold_px:g} px of the geometry."
        )
    has_model = matched.pair.model is not None
    shown = Geometry(kind if has_model else "", threshold_px, fundamental(matched) if has_model else None)
    return write_pair_page(
        path,
        names,
        (matched.photos[0].image, matched.photos[1].image),
        with_left_out(matched),
        shown,
        ratio,
        facts=facts,
        explained=explained,
        made=made,
    )


def tested_ratio(matcher: Matcher) -> float | None:
    """The largest ratio of first to second distance that a matcher lets pass; None where it tests none, or another."""
    if isinstance(matcher, MatcherSettings) and matcher.filter == "snn_ratio_pairwise":
        return matcher.threshold
    return None


def with_left_out(matched: Matched) -> Candidates:
    """The matches of a pair, then those that its ratio test left out, judged by the same geometry."""
    (one, two), matcher, pair = matched.photos, matched.matcher, matched.pair
    rows, descs = pair.matches, (one.features.descs, two.features.descs)
    symmetric = not isinstance(matcher, MatcherSettings) or matcher.symmetric != "none"
    ratios = match_ratios(*descs, torch.from_numpy(rows), symmetric)
    limit = tested_ratio(matcher)
    if limit is not None:
        assert isinstance(matcher, MatcherSettings)
        others = official_match(
            *descs,
            torch.from_numpy(one.features.keypoints.xy),
            torch.from_numpy(two.features.keypoints.xy),
            replace(matcher, filter="none", threshold=None),
        )
        other_ratios = match_ratios(*descs, others, symmetric)
        is_left_out = other_ratios > limit
        rows = np.concatenate([rows, others[is_left_out].numpy()])
        ratios = torch.cat([ratios.clamp(max=limit), other_ratios[is_left_out]])
        places = np.column_stack([one.kpts[rows[:, 0]], two.kpts[rows[:, 1]]])
        first = np.sort(np.unique(places, axis=0, return_index=True)[1])  # of equal places the match of the run
        rows, ratios = rows[first], ratios[torch.from_numpy(first)]
    errors = errors_px(matched, rows)
    agrees = np.concatenate([pair.inliers, errors[len(pair.inliers) :] <= matched.geometry.threshold_px])
    at = np.column_stack([one.full_kpts[rows[:, 0]], two.full_kpts[rows[:, 1]]])
    return Candidates(at, ratios.numpy(), errors, agrees)


def errors_px(matched: Matched, rows: NDArray[np.int64]) -> Floats:
    """Distance of matches (M, 2) to what the geometry expects, (M,), in pixels of the reduced images; NaN without one.

    To the epipolar lines it is the root mean square of both images.
    """
    model, photos, cameras = matched.pair.model, matched.photos, matched.cameras
    if model is None:
        return np.full(len(rows), np.nan)
    to_full = [np.vstack([photo.to_full, [0, 0, 1]]) for photo in photos]
    points = [photo.kpts[rows[:, k]] for k, photo in enumerate(photos)]
    to_model = to_full
    if cameras:  # as pinhole cameras of the reduced images would see them
        focal_px = [c.focal_px / np.sqrt(np.linalg.det(m[:2, :2])) for c, m in zip(cameras, to_full, strict=True)]
        points = [
            camera.normalize(photo.full_kpts[rows[:, k]]) * focal_px[k]
            for k, (camera, photo) in enumerate(zip(cameras, photos, strict=True))
        ]
        to_model = [np.diag([1 / focal, 1 / focal, 1.0]) for focal in focal_px]
    if isinstance(matched.geometry, HomographySettings):
        return reprojection_errors(points[0], points[1], np.linalg.inv(to_model[1]) @ model @ to_model[0])
    F = to_model[1].T @ model @ to_model[0]
    return np.asarray(np.sqrt(epipolar_squared(points[0], points[1], F) / 2), np.float64)


def fundamental(matched: Matched) -> Floats | None:
    """F (3, 3) between the full photographs, for their epipolar lines: distortion is left out; None of a homography."""
    model = matched.pair.model
    if model is None or isinstance(matched.geometry, HomographySettings):
        return None
    if not matched.cameras:
        return model
    first, second = (_to_rays(c, photo.image) for c, photo in zip(matched.cameras, matched.photos, strict=True))
    return np.asarray(second.T @ model @ first, np.float64)


def _to_rays(camera: PhotoCamera, image: NDArray[np.uint8]) -> Floats:
    """The inverse calibration (3, 3) of a photograph as it is in its middle."""
    middle = np.array([image.shape[1], image.shape[0]]) / 2
    start, right, down = camera.normalize(middle + np.array([[0, 0], [1, 0], [0, 1]]))
    slope = np.column_stack([right - start, down - start])
    return np.vstack([np.column_stack([slope, start - slope @ middle]), [0, 0, 1]])
