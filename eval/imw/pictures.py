"""Pictures of the stereo task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.geometry import epipolar_squared, essential_from_pose, relative_pose
from eval.images import read_bgr
from eval.imw.scene import Camera, Pair, pair_key
from eval.imw.stereo import StereoScene
from eval.imw.stereo_results import headline_pairs
from eval.viz import draw_matches


def draw_pairs(folder: Path, descriptors: Sequence[str], found: Sequence[StereoScene], count: int) -> list[Path]:
    """Draw the inliers of ``count`` pairs of one scene for every descriptor; returns the pictures.

    The pairs are spread evenly from the easiest to the hardest of the first descriptor (one: the median), so that all
    descriptors are seen on the same ones. Lines are right when they lie within 3 px of the true epipolar lines.
    """
    pictures = []
    for pair in spread_pairs(found[0], count):
        for name, scene in zip(descriptors, found, strict=True):
            file = re.sub(r"[^\w.+-]+", "_", f"{scene.scene.name}_{pair_key(pair)}_{name}")
            pictures.append(_draw(folder / f"{file}.png", name, scene, pair))
    return pictures


def spread_pairs(found: StereoScene, count: int) -> list[Pair]:
    """``count`` pairs evenly spread over the ranks of the pose error; fewer when there are fewer."""
    ranked = sorted(headline_pairs(found), key=lambda judged: judged.error_deg)
    if not ranked or count < 1:
        return []
    last = len(ranked) - 1
    ranks = np.linspace(0, last, count).round().astype(int).tolist() if count > 1 else [last // 2]
    return [ranked[rank].pair for rank in dict.fromkeys(ranks)]


def true_errors_px(
    points0: NDArray[np.floating], points1: NDArray[np.floating], camera0: Camera, camera1: Camera
) -> NDArray[np.float64]:
    """Distance of matched points (M, 2) to the epipolar lines of the true pose: root mean square of both images."""
    dR, dt = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
    F = np.linalg.inv(camera1.K).T @ essential_from_pose(dR, dt) @ np.linalg.inv(camera0.K)
    errors: NDArray[np.float64] = np.sqrt(epipolar_squared(points0, points1, F) / 2)
    return errors


def _draw(path: Path, descriptor: str, found: StereoScene, pair: Pair) -> Path:
    judged = next(p for p in found.pairs if p.pair == pair)
    scene, (first, second) = found.scene, pair
    kpts0, kpts1 = found.keypoints[first].xy, found.keypoints[second].xy
    inliers = judged.matches[judged.inliers]
    errors = true_errors_px(kpts0[inliers[:, 0]], kpts1[inliers[:, 1]], scene.cameras[first], scene.cameras[second])
    image0, image1 = (np.ascontiguousarray(read_bgr(scene.images[name])[..., ::-1]) for name in pair)
    pose = f"pose error {judged.error_deg:.1f}°" if np.isfinite(judged.error_deg) else "no pose"
    draw_matches(path, image0, image1, kpts0, kpts1, inliers, errors, title=f"{descriptor}, inliers, {pose}")
    return path
