"""Pictures of both tasks: matches coloured by their true errors, accuracy curves, bags against the truth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.geometry import epipolar_squared, essential_from_pose, relative_pose
from common.images import read_bgr
from eval.core.pairs import Pair
from eval.core.trajectory import MIN_CAMERAS, Alignment, align, camera_centre, spread
from eval.core.viz import PALETTE, VERMILION, Cameras, draw_accuracy_curves, draw_cameras, draw_judged_matches
from eval.imw.multiview import MultiviewScene
from eval.imw.scene import Camera, pair_key
from eval.imw.stereo import StereoScene, headline_pairs


def draw_pairs(folder: Path, descriptors: Sequence[str], results: Sequence[StereoScene], count: int) -> list[Path]:
    """Draw the ``count`` best, median and worst pairs of one scene for every method; returns the pictures.

    The pairs are ranked by the pose errors of the first method, so that all are seen on the same ones. Above are the
    inliers of the estimate, below what it rejected, coloured by their true epipolar error.
    """
    pictures = []
    for pair, rank in ranked_pairs(results[0], count).items():
        for name, scene in zip(descriptors, results, strict=True):
            pictures.append(_draw(folder / _file(scene.scene.name, rank, pair_key(pair), name), name, scene, pair))
    return pictures


def ranked_pairs(result: StereoScene, count: int) -> dict[Pair, str]:
    """The ``count`` best, median and worst pairs by pose error, each once, with its rank (``best`` …)."""
    ranked = [judged.pair for judged in sorted(headline_pairs(result), key=lambda judged: judged.error_deg)]
    if count < 1:
        return {}
    start = max(0, (len(ranked) - count) // 2)
    chosen: dict[Pair, str] = {}
    for rank, pairs in (
        ("best", ranked[:count]),
        ("median", ranked[start : start + count]),
        ("worst", ranked[-count:]),
    ):
        for pair in pairs:
            chosen.setdefault(pair, rank)
    return chosen


def draw_accuracy(folder: Path, descriptors: Sequence[str], results: Sequence[StereoScene]) -> Path:
    """Draw the share of pairs of one scene below each pose error for every method; returns the picture."""
    errors = {
        name: [p.error_deg for p in headline_pairs(scene)] for name, scene in zip(descriptors, results, strict=True)
    }
    name = results[0].scene.name
    return draw_accuracy_curves(folder / _file(name, "accuracy"), errors, title=f"{name}, stereo")


def draw_bags(folder: Path, descriptor: str, result: MultiviewScene) -> list[Path]:
    """Draw every reconstructed bag of three cameras and more from above against the truth; returns the pictures."""
    pictures = []
    for bag in result.bags:
        if len(bag.poses) < MIN_CAMERAS:
            continue
        true = {name: (result.scene.cameras[name].R, result.scene.cameras[name].t) for name in bag.images}
        names = list(bag.poses)
        centres = [np.array([camera_centre(*poses[name]) for name in names]) for poses in (bag.poses, true)]
        fitted = align(centres[0], centres[1])
        moved = [move_pose(*bag.poses[name], fitted) for name in names]
        error = float(np.sqrt(np.mean(np.sum((fitted(centres[0]) - centres[1]) ** 2, axis=1))))
        share = error / max(spread(centres[1]), 1e-12)
        cameras = [
            Cameras("true", list(true.values()), PALETTE[6]),
            Cameras("reconstructed, aligned", moved, VERMILION),
        ]
        title = (
            f"{result.scene.name}, {bag.name}, {descriptor}: centres off by {100 * share:.1f} % of their spread (RMS)"
        )
        file = folder / _file(result.scene.name, bag.name, descriptor)
        pictures.append(draw_cameras(file, cameras, title=title))
    return pictures


def move_pose(
    R: NDArray[np.float64], t: NDArray[np.float64], alignment: Alignment
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A pose, world to camera, in the world that an alignment x -> s A x + b leads to; depths grow by s."""
    rotation = np.asarray(R, np.float64) @ alignment.R.T
    return rotation, alignment.scale * np.asarray(t, np.float64) - rotation @ alignment.t


def true_errors_px(
    points0: NDArray[np.floating], points1: NDArray[np.floating], camera0: Camera, camera1: Camera
) -> NDArray[np.float64]:
    """Distance of matched points (M, 2) to the epipolar lines of the true pose: root mean square of both images."""
    dR, dt = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
    F = np.linalg.inv(camera1.K).T @ essential_from_pose(dR, dt) @ np.linalg.inv(camera0.K)
    errors: NDArray[np.float64] = np.sqrt(epipolar_squared(points0, points1, F) / 2)
    return errors


def _draw(path: Path, descriptor: str, result: StereoScene, pair: Pair) -> Path:
    judged = next(p for p in result.pairs if p.pair == pair)
    scene, (first, second) = result.scene, pair
    kpts0, kpts1 = result.keypoints[first].xy, result.keypoints[second].xy
    rows = judged.matches
    errors = true_errors_px(kpts0[rows[:, 0]], kpts1[rows[:, 1]], scene.cameras[first], scene.cameras[second])
    image0, image1 = (np.ascontiguousarray(read_bgr(scene.images[name])[..., ::-1]) for name in pair)
    pose = f"pose error {judged.error_deg:.1f}°" if np.isfinite(judged.error_deg) else "no pose"
    title = f"{scene.name}, {pair_key(pair)}, {descriptor}: {pose}"
    return draw_judged_matches(path, image0, image1, kpts0, kpts1, rows, judged.inliers, errors, title=title)


def _file(*parts: str) -> str:
    """A name of a picture."""
    return re.sub(r"[^\w.+-]+", "_", "_".join(parts)) + ".png"
