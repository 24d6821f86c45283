"""``python -m eval webcam``: find the same place again in another picture of a fixed camera.

Keypoints of one picture are described in both at the same frames, so the true partner of a patch has its own index.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.folders import fingerprint
from common.images import SUFFIXES, folders_in, pictures_in, read_gray, reduce_image, usable
from common.shell import progress
from eval.core.benchmark import Benchmark, rows_by_scene
from eval.core.distances import identity_matching
from eval.core.options import add_descriptor_flags, add_run_flags, load_descriptors
from eval.core.results import Result, Score, format_table, mean_over_scenes
from eval.features import Descriptor, Keypoints
from eval.features.detect import DogSettings, detect_dog
from eval.features.keypoints import spread_places
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE

# score -> what each pair says of it
SCORES = {"correct_nn": "correct_nn", "mAP": "ap"}


@dataclass(frozen=True)
class WebcamSettings:
    """The protocol of static cameras.

    Attributes:
        keypoints: places of a picture, the strongest.
        spacing_px: no two places are nearer than this.
        contrast: OpenCV's contrastThreshold of the detector.
        edge: OpenCV's edgeThreshold.
        mr_size: half side of a patch / sigma.
        max_side_px: larger pictures are reduced to this long side (area interpolation).
        max_pairs: pairs of pictures a camera.
        seed: of the choice of pairs.
    """

    keypoints: int = 1024
    spacing_px: float = 4.0
    contrast: float = 0.002
    edge: float = 10.0
    mr_size: float = DEFAULT_MR_SIZE
    max_side_px: int = 1024
    max_pairs: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keypoints < 1 or self.max_pairs < 1 or self.max_side_px < 1:
            raise UsageError("keypoints, pairs and the long side must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return asdict(self)


def find_cameras(root: str | Path) -> dict[str, list[Path]]:
    """Pictures of each camera: folders below ``root``, or ``root`` itself, with at least two pictures that decode."""
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder of camera folders")
    if len(here := usable(pictures_in(root))) > 1:
        return {root.resolve().name: here}
    cameras = {folder.name: paths for folder in folders_in(root) if len(paths := usable(pictures_in(folder))) > 1}
    if not cameras:
        raise DataError(f"{root} holds no folder with two or more pictures that decode ({', '.join(SUFFIXES)})")
    return cameras


def choose_pairs(count: int, most: int, seed: int) -> list[tuple[int, int]]:
    """At most ``most`` pairs (i < j) of ``count`` pictures, in order."""
    pairs = list(combinations(range(count), 2))
    if len(pairs) <= most:
        return pairs
    chosen = np.random.default_rng(seed).choice(len(pairs), most, replace=False)
    return [pairs[i] for i in sorted(chosen)]


def read_reduced(path: Path, max_side_px: int) -> NDArray[np.uint8]:
    """Gray picture, its long side at most ``max_side_px``."""
    return reduce_image(read_gray(path), max_side_px)[0]


def places_of(image: NDArray[np.uint8], settings: WebcamSettings) -> Keypoints:
    """The places of a picture that are looked for in the others."""
    detector = DogSettings(num=1 << 30, contrast=settings.contrast, edge=settings.edge)
    return spread_places(detect_dog(image, detector), settings.spacing_px, settings.keypoints)


def judge_pair(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    places: Keypoints,
    descriptor: Descriptor,
    mr_size: float = DEFAULT_MR_SIZE,
) -> dict[str, float]:
    """Describe ``places`` in both pictures and match them.

    Returns:
        ``correct_nn``: share of places whose nearest neighbour is itself; ``ap``: average precision of the ranking by
        distance with all places as positives (trapezoid). Both 0 without a place.
    """
    if len(places) == 0:
        return {"correct_nn": 0.0, "ap": 0.0}
    descs = [descriptor.describe_image(image, places, mr_size).numpy() for image in (first, second)]
    scores = identity_matching(descs[0], descs[1])
    return {"correct_nn": scores["success"], "ap": scores["ap"]}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = WebcamSettings()
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder a camera, or one camera")
    add_descriptor_flags(parser, whole=False)
    group = parser.add_argument_group("protocol")
    group.add_argument("--keypoints", type=int, default=defaults.keypoints, help="places of a picture")
    group.add_argument("--pairs", type=int, default=defaults.max_pairs, help="pairs of pictures a camera, at most")
    group.add_argument("--mr-size", type=float, default=defaults.mr_size, help="half side of a patch / sigma")
    group.add_argument("--max-side", type=int, default=defaults.max_side_px, help="long side of a picture, pixels")
    add_run_flags(parser, "webcam")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor on every camera."""
    settings = WebcamSettings(
        keypoints=args.keypoints,
        max_pairs=args.pairs,
        mr_size=args.mr_size,
        max_side_px=args.max_side,
        seed=args.seed,
    )
    cameras = find_cameras(args.data)
    descriptors = load_descriptors(args)
    dataset = {
        "name": args.data.resolve().name,
        "cameras": {name: len(paths) for name, paths in cameras.items()},
        "fingerprint": fingerprint(p for paths in cameras.values() for p in paths),
    }
    with Benchmark.open("webcam", args, dataset, settings.to_dict()) as benchmark:
        rows = judge_cameras(benchmark, cameras, descriptors, settings)
        for descriptor in descriptors:
            scenes = rows_by_scene(rows[descriptor.name])
            values = {
                scene: {name: [row[key] for row in pairs] for name, key in SCORES.items()}
                for scene, pairs in scenes.items()
            }
            benchmark.result(
                descriptor,
                {name: mean_over_scenes([of[name] for of in values.values()], settings.seed) for name in SCORES},
                {scene: {name: float(np.mean(of[name])) for name in SCORES} for scene, of in values.items()},
                rows[descriptor.name],
                about={"detector": "dog-opencv"},
            )
        benchmark.finish(table(benchmark.results), args.json)


def judge_cameras(
    benchmark: Benchmark,
    cameras: Mapping[str, Sequence[Path]],
    descriptors: Sequence[Descriptor],
    settings: WebcamSettings,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of all pairs of all cameras by descriptor; a picture is read once, its places are found once.

    Raises:
        DataError: pictures of one camera that differ in size.
    """
    rows: dict[str, list[dict[str, Any]]] = {descriptor.name: [] for descriptor in descriptors}
    for name, paths in cameras.items():
        pictures = [read_reduced(path, settings.max_side_px) for path in paths]
        if len({p.shape for p in pictures}) > 1:
            sizes = sorted({f"{p.shape[1]} x {p.shape[0]}" for p in pictures})
            raise DataError(f"{paths[0].parent}: pictures of one camera differ in size ({', '.join(sizes)})")
        pairs = choose_pairs(len(paths), settings.max_pairs, settings.seed)
        places = {i: places_of(pictures[i], settings) for i in sorted({i for i, _ in pairs})}
        for i, j in progress(pairs, what=f"webcam {name}", unit="pair"):
            pair = {"scene": name, "pair": [paths[i].name, paths[j].name], "num_places": len(places[i])}
            for descriptor in descriptors:
                with benchmark.timed(descriptor, "describe_and_match"):
                    scores = judge_pair(pictures[i], pictures[j], places[i], descriptor, settings.mr_size)
                rows[descriptor.name].append({**pair, **scores})
    return rows


def table(results: Sequence[Result]) -> str:
    """One line a descriptor, and one a camera when there are several."""
    head = ("descriptor", "correct NN", "mAP", "pairs")
    rows: list[tuple[Any, ...]] = []
    for result in results:
        scores: dict[str, Score] = result.scores
        rows.append((result.method["descriptor"], scores["correct_nn"], scores["mAP"], scores["mAP"].n))
        if len(result.per_scene) > 1:
            rows += [(f"  {name}", s["correct_nn"], s["mAP"], "") for name, s in result.per_scene.items()]
    return format_table(head, rows)
