"""The multiview task: bags of images reconstructed by COLMAP, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import Cache
from common.colmap import load_pycolmap
from common.h5files import Arrays
from common.jobs import compute_all
from common.metrics import bag_accuracy_histogram, maa_from_histogram, max_error_deg
from eval.core.matchers import Matcher
from eval.core.matching import MatcherSettings
from eval.core.multiview_metrics import BagCounts, bag_pose_errors, bag_statistics, covisible_pairs
from eval.core.pairs import Pair, match_pairs
from eval.core.results import Score, nested_mean
from eval.core.trajectory import camera_centre, trajectory_error
from eval.features.extract import Features
from eval.imw import colmap_bag
from eval.imw.scene import Scene, all_pairs
from eval.imw.stereo import MAA_DEGREES
from kornia_hardnet8.errors import DataError, UsageError

OK = "ok"
NO_MODEL = "no model"
# Outcomes that the same input gives again; others (crash, time limit) are tried again by the next run.
_REPEATABLE = (OK, NO_MODEL)


# Largest ratio of the published baselines.
MULTIVIEW_RATIO = 0.95


@dataclass(frozen=True)
class MultiviewSettings:
    """Everything that the multiview task depends on beside scene and features.

    The ratio's default is that of the published baselines.
    """

    matcher: Matcher = field(default_factory=lambda: MatcherSettings(threshold=MULTIVIEW_RATIO))
    seed: int = 0
    time_limit_s: float = 1800.0
    """Of one bag; a bag that takes longer has failed."""
    ate_iters: int | None = None
    """Alignments that are tried for the trajectory error; None: see :func:`trajectory_error`."""

    def __post_init__(self) -> None:
        """Check the time limit."""
        if not self.time_limit_s > 0:
            raise UsageError(f"--bag-timeout must be positive seconds, got {self.time_limit_s}")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return {
            "matcher": self.matcher.to_dict(),
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "ate_iters": self.ate_iters,
            "colmap": colmap_bag.settings(self.seed),
        }


class Bag(NamedTuple):
    """What became of one bag."""

    name: str
    """As ``5bag_000``."""
    images: list[str]
    status: str
    """``ok``, ``no model``, or what happened to its process: a failed bag unless ``ok``."""
    errors: NDArray[np.float64]
    """(n (n - 1) / 2, 2) rotation and translation error of all pairs in the order of the bag, radians; infinite where
    an image is not registered."""
    poses: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    """R (3, 3) and t (3,) of the registered images, in the coordinates of the model."""
    track_lengths: NDArray[np.int32]
    """Distinct images of every 3-D point."""
    reprojection_px: float
    ate: float | None
    """Trajectory error as the original computes it; None for fewer than 3 registered images."""
    ate_corrected: float | None
    """The same with a least-squares similarity."""
    num_matches: float
    """Mean over all pairs of the bag, those that COLMAP does not get included."""
    seconds: float

    @property
    def size(self) -> int:
        """Images of the bag."""
        return len(self.images)

    @property
    def counts(self) -> BagCounts | None:
        """For :func:`eval.core.multiview_metrics.bag_statistics`; None when it failed."""
        return BagCounts(len(self.poses), self.track_lengths.tolist()) if self.status == OK else None


@dataclass(frozen=True)
class MultiviewScene:
    """The multiview task of one descriptor on one scene."""

    scene: Scene
    bags: list[Bag]
    seconds: dict[str, float]

    def by_size(self) -> dict[int, list[Bag]]:
        """Bags by size, ascending."""
        sizes = sorted({bag.size for bag in self.bags})
        return {size: [bag for bag in self.bags if bag.size == size] for size in sizes}


class _BagJob(NamedTuple):
    """What a worker needs for one bag."""

    image_dir: Path
    files: list[str]
    keypoints: list[NDArray[np.floating]]
    pairs: list[tuple[int, int]]
    matches: list[NDArray[np.int32]]
    seed: int
    time_limit_s: float


def run_multiview(
    scene: Scene,
    features: Mapping[str, Features],
    settings: MultiviewSettings,
    cache: Cache,
    executor: Executor | None = None,
    label: str = "",
    device: torch.device | None = None,
) -> MultiviewScene:
    """Reconstruct every bag of a scene and judge the poses; what is in the cache is not done again.

    Args:
        scene: with bags and visibility files.
        features: of every image.
        settings: everything else.
        cache: of all stages.
        executor: where pairs are matched and bags reconstructed; None: here, one after the other.
        label: shown with the progress.
        device: where descriptors are compared; default: the CPU.

    Raises:
        DataError: the scene has no bags, or no visibility files.
    """
    pycolmap = load_pycolmap()
    missing = scene.left_out().get("multiview")
    if missing is not None:
        raise DataError(f"scene {scene.name} has {missing}: the multiview task needs them")
    bags = [(name, images) for group in scene.bags.values() for name, images in group.items()]
    # all pairs of a bag are matched, as the number of matches is a mean over them; COLMAP gets those that are visible
    wanted = sorted({pair for _, images in bags for pair in all_pairs(images)}, reverse=True)
    matched = match_pairs(wanted, features, settings.matcher, cache, executor, f"{label}: match for bags", device)
    matches = matched.by_pair()
    matcher, colmap = settings.matcher.to_dict(), colmap_bag.settings(settings.seed)
    work = []
    for _, images in bags:
        job = _job(scene, images, bag_pairs(scene, images), features, matches, settings)
        configuration = {
            "features": [features[name].key for name in images],
            "images": [scene.image_hashes[name] for name in images],
            "pairs": job.pairs,
            "matcher": matcher,
            "colmap": colmap,
            "pycolmap": pycolmap.__version__,
        }
        work.append((configuration, job))
    results = compute_all(cache, "bags", work, reconstruct_bag, executor, f"{label}: COLMAP", "bag", _is_repeatable)
    judged = []
    for (name, images), arrays in zip(bags, results, strict=True):
        num_matches = float(np.mean([len(matches[pair]) for pair in all_pairs(images)]))
        judged.append(_judge(scene, name, images, num_matches, arrays, settings.ate_iters))
    return MultiviewScene(scene, judged, {"match": matched.seconds, "colmap": sum(bag.seconds for bag in judged)})


def bag_pairs(scene: Scene, images: Sequence[str]) -> list[Pair]:
    """The pairs of a bag with more common points than the scene's threshold, larger name first.

    The count may stand on either side of the visibility matrix.

    Source: IMW benchmark.
    """
    assert scene.visibility is not None
    order = list(scene.images)
    places = [order.index(name) for name in images]
    pairs = covisible_pairs(scene.visibility, scene.visibility_threshold, places)
    chosen = {(max(images[i], images[j]), min(images[i], images[j])) for i, j in pairs}
    return sorted(chosen, reverse=True)


def reconstruct_bag(job: _BagJob) -> Arrays:
    """Reconstruct one bag in a process of its own; whatever happens to that is a status."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bag-") as folder:
        given, result, log = (Path(folder) / name for name in ("job.npz", "result.npz", "log.txt"))
        np.savez(
            given,
            image_dir=np.array(str(job.image_dir)),
            files=np.array(job.files, dtype=np.str_),
            keypoints=np.concatenate(job.keypoints),
            num_keypoints=np.array([len(points) for points in job.keypoints]),
            pairs=np.array(job.pairs, np.int64).reshape(-1, 2),
            matches=np.concatenate([*job.matches, np.zeros((0, 2), np.int32)]),
            num_matches=np.array([len(rows) for rows in job.matches]),
            seed=np.array(job.seed),
        )
        status = _run_process(given, result, log, job.time_limit_s)
        arrays: Arrays = {}
        if status == OK:
            with np.load(result, allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in loaded.files}
            status = OK if arrays["registered"].any() else NO_MODEL
    n = len(job.files)
    failed = {
        "num_models": np.array(0),
        "registered": np.zeros(n, bool),
        "R": np.full((n, 3, 3), np.nan),
        "t": np.full((n, 3), np.nan),
        "track_lengths": np.zeros(0, np.int32),
        "reprojection_px": np.array(0.0),
    }
    spent = np.array(time.perf_counter() - start)
    return {**failed, **arrays, "status": np.array(status.encode()), "seconds": spent}


def _run_process(given: Path, result: Path, log: Path, time_limit_s: float) -> str:
    """``ok`` when the process wrote its result, else what happened to it."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-P", "-m", colmap_bag.__name__, str(given), str(result), str(given.parent)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is answered here
        )
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {time_limit_s:g} s"
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    if code != 0 or not result.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"failed: {lines[-1][:300] if lines else f'exit code {code}'}"
    return OK


def _job(
    scene: Scene,
    images: Sequence[str],
    pairs: Sequence[Pair],
    features: Mapping[str, Features],
    matches: Mapping[Pair, NDArray[np.int32]],
    settings: MultiviewSettings,
) -> _BagJob:
    place = {name: index for index, name in enumerate(images)}
    return _BagJob(
        scene.root.resolve(),
        [scene.images[name].relative_to(scene.root).as_posix() for name in images],
        [features[name].keypoints.xy for name in images],
        [(place[a], place[b]) for a, b in pairs],
        [matches[pair] for pair in pairs],
        settings.seed,
        settings.time_limit_s,
    )


def _judge(
    scene: Scene, name: str, images: list[str], num_matches: float, arrays: Arrays, ate_iters: int | None
) -> Bag:
    """Compare the poses of a reconstructed bag with the true ones."""
    registered = [image for image, there in zip(images, arrays["registered"], strict=True) if there]
    poses = {image: (arrays["R"][k], arrays["t"][k]) for k, image in enumerate(images) if arrays["registered"][k]}
    true = {image: (scene.cameras[image].R, scene.cameras[image].t) for image in images}
    errors = bag_pose_errors(images, poses, true)
    centres, expected = (np.array([camera_centre(*p[image]) for image in registered]) for p in (poses, true))
    official, corrected = (
        trajectory_error(centres, expected, np.random.RandomState(0), compat, ate_iters) for compat in (True, False)
    )
    return Bag(
        name=name,
        images=images,
        status=arrays["status"].item().decode(),
        errors=np.array([errors[pair] for pair in combinations(images, 2)]),
        poses=poses,
        track_lengths=arrays["track_lengths"],
        reprojection_px=float(arrays["reprojection_px"]),
        ate=official,
        ate_corrected=corrected,
        num_matches=num_matches,
        seconds=float(arrays["seconds"]),
    )


def _is_repeatable(arrays: Arrays) -> bool:
    return arrays["status"].item().decode() in _REPEATABLE


# name -> value of one bag; None where a bag has none (a failed bag has no points, few cameras no trajectory error)
_VALUES: dict[str, Callable[[Bag], float | None]] = {
    **{f"mAA@{k}": lambda bag, k=k: bag_maa(bag, k) for k in MAA_DEGREES},  # type: ignore[misc]
    "registered_ratio": lambda bag: len(bag.poses) / bag.size,
    "success_rate": lambda bag: float(bag.status == OK),
    "num_points": lambda bag: float(len(bag.track_lengths)) if bag.status == OK else None,
    "track_length": lambda bag: _track_length(bag) if bag.status == OK else None,
    "ATE": lambda bag: bag.ate,
    "ATE_corrected": lambda bag: bag.ate_corrected,
    "num_matches": lambda bag: bag.num_matches,
}


def bag_maa(bag: Bag, max_deg: int = 10) -> float:
    """MAA over all pairs of a bag; an image that is not registered fails in all its pairs."""
    return float(maa_from_histogram(bag_accuracy_histogram([max_error_deg(bag.errors)]), max_deg))


def multiview_scores(scenes: Sequence[MultiviewScene], seed: int = 0) -> dict[str, Score]:
    """Scores over scenes: in each the mean over bag sizes, with the same weight, of the mean over bags.

    Failed bags count with mAA 0 and no registered image; numbers of points and tracks are over the others, as in the
    original. ``ATE`` is the original's, ``ATE_corrected`` with an alignment that is a similarity. ``n`` counts bags.
    Then mAA for each bag size.
    """
    groups = [list(result.by_size().values()) for result in scenes]
    scores = {f"multiview/{name}": _score(name, groups, seed) for name in _VALUES}
    for size in sorted({size for result in scenes for size in result.by_size()}):
        of_size = [[result.by_size()[size]] for result in scenes if size in result.by_size()]
        scores |= {f"multiview/{size}bag/mAA@{k}": _score(f"mAA@{k}", of_size, seed) for k in MAA_DEGREES}
    return scores


def multiview_scene(result: MultiviewScene, seed: int = 0) -> dict[str, Any]:
    """What is reported of one scene: its scores, the same for each bag size, and the failed bags by reason."""
    failed = [bag.status for bag in result.bags if bag.status != OK]
    return {
        **multiview_scores([result], seed),
        "multiview/by_bag_size": {
            str(size): {
                **{name: _score(name, [[bags]], seed) for name in _VALUES},
                "official": {**bag_statistics([bag.counts for bag in bags])},
            }
            for size, bags in result.by_size().items()
        },
        "failed_bags": {status: failed.count(status) for status in sorted(set(failed))},
    }


def multiview_bags(result: MultiviewScene) -> list[dict[str, Any]]:
    """One dictionary a bag, called ``pair`` as in every results file; ``errors_deg`` in the order of its pairs."""
    return [
        {
            "task": "multiview",
            "scene": result.scene.name,
            "group": f"{bag.size}bag",
            "pair": bag.name,
            "images": bag.images,
            "status": bag.status,
            **{name: value(bag) for name, value in _VALUES.items()},
            "num_registered": len(bag.poses),
            "reprojection_px": bag.reprojection_px if bag.status == OK else None,
            "errors_deg": max_error_deg(bag.errors),
            "seconds": bag.seconds,
        }
        for bag in result.bags
    ]


def _score(name: str, scenes: Sequence[Sequence[Sequence[Bag]]], seed: int) -> Score:
    value = _VALUES[name]
    values = [[[v for bag in bags if (v := value(bag)) is not None] for bags in groups] for groups in scenes]
    return nested_mean(values, seed)


def _track_length(bag: Bag) -> float:
    """Mean images of a point; 0 without points."""
    return float(np.mean(bag.track_lengths)) if len(bag.track_lengths) else 0.0
