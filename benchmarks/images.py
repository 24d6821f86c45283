"""Where the time goes from an image to its descriptors: kornia's LocalFeature and HardNet8Feature, stage by stage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import kornia.feature as KF
import torch
import torch.nn.functional as F
from kornia.geometry.subpix import ConvQuadInterp3d
from kornia.geometry.transform import ScalePyramid
from torch import Tensor

from eval.core.results import format_table
from kornia_hardnet8 import HardNet8, HardNet8Feature, dog
from kornia_hardnet8.detectors import DetectorName
from kornia_hardnet8.errors import HardNet8Error
from kornia_hardnet8.feature import Selection
from kornia_hardnet8.fused import Precision
from kornia_hardnet8.patches import extract_patches

T = TypeVar("T")
STAGES = ("detection", "choice", "orientation", "patches", "description")


def textured_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise of all scales (1, 1, H, W) in [0, 1]: plenty of keypoints of every size."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 1, height, width)
    side = 4
    while side < min(height, width):
        noise = torch.rand(1, 1, -(-height // side) + 1, -(-width // side) + 1, generator=generator)
        image += side**0.5 * F.interpolate(noise, (height, width), mode="bicubic")
        side *= 2
    image += torch.rand(image.shape, generator=generator)
    return (image - image.min()) / (image.max() - image.min())


def measure(
    weights: str | Path, num_features: int, rounds: int, threads: int, height: int = 768, width: int = 1024
) -> dict[str, Any]:
    """Seconds of each stage on the CPU.

    Args:
        weights: of h8E512 with a projection of 128 dimensions.
        num_features: keypoints that are asked for.
        rounds: timed passes of each pipeline, in turn; medians are given.
        threads: of the CPU.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        ``rows``: pipeline, seconds of each of :data:`STAGES` and in all, keypoints, ratio to kornia's total, the
        largest difference between its patches and kornia's at kornia's frames; and the settings.
    """
    torch.set_num_threads(threads)
    image = textured_image(height, width)
    kornia = _Kornia(weights, num_features)
    pipelines: dict[str, Callable[[Tensor], tuple[dict[str, float], int]]] = {"kornia LocalFeature": kornia}
    detectors: tuple[DetectorName, ...] = ("dog", "sift-opencv")
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    selections: tuple[Selection, ...] = ("response", "matchability")
    kinds = [
        *product(("ours",), detectors, precisions, selections),
        *product(("h8small",), detectors, precisions[-1:], selections),
    ]
    for network, detector, precision, select in kinds:
        try:
            module = HardNet8(weights if network == "ours" else network)
            feature = HardNet8Feature(num_features, detector, module, precision=precision, select=select)
        except HardNet8Error:
            continue
        pipelines[f"{network} {detector} {feature.descriptor.precision} {select}"] = _Ours(feature)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    counts: dict[str, int] = {}
    with torch.inference_mode():
        for step in range(rounds + 1):
            for name, pipeline in pipelines.items():
                taken, counts[name] = pipeline(image)
                if step:  # the first pass warms up
                    seconds[name].append(taken)
        lafs = kornia.lafs
        theirs = KF.extract_patches_from_pyramid(image, lafs, 32)[0]
        differences = (extract_patches(image[0, 0], lafs[0], 32, level="floor") - theirs).abs().max()
    totals = {name: statistics.median(sum(p.values()) for p in passes) for name, passes in seconds.items()}
    rows = [
        {
            "name": name,
            "stages": {stage: statistics.median(p[stage] for p in passes) for stage in STAGES},
            "total_s": totals[name],
            "keypoints": counts[name],
            "ratio": next(iter(totals.values())) / totals[name],
        }
        for name, passes in seconds.items()
    ]
    return {
        "rows": rows, "image": [height, width], "num_features": num_features, "rounds": rounds, "threads": threads,
        "patch_difference": float(differences),
    }  # fmt: skip


def kornia_dog(num_features: int) -> torch.nn.Module:
    """Kornia's difference-of-Gaussians detector with the settings of ours, in either of its versions."""
    pyramid = ScalePyramid(3, dog.SIGMA, 32, double_image=True)
    if hasattr(KF, "DoGHardNet"):
        subpixel: dict[str, Any] = {"subpix_module": ConvQuadInterp3d()}
    else:  # before 0.9
        subpixel = {"nms_module": ConvQuadInterp3d(10)}
    detector: torch.nn.Module = KF.ScaleSpaceDetector(
        num_features, resp_module=KF.BlobDoG(), scale_pyr_module=pyramid, scale_space_response=True,
        minima_are_also_good=True, **subpixel,
    )  # fmt: skip
    return detector.eval()


class _Kornia:
    """DoG, gradient orientation, patches and HardNet8, all kornia's, as its LocalFeature strings them together."""

    def __init__(self, weights: str | Path, num_features: int) -> None:
        self.detector = kornia_dog(num_features)
        self.orienter = KF.LAFOrienter(32)
        self.network = KF.HardNet8(pretrained=False).eval()
        self.network.load_state_dict(HardNet8(weights).state_dict(), strict=True)
        self.lafs = torch.zeros(1, 0, 2, 3)

    def __call__(self, image: Tensor) -> tuple[dict[str, float], int]:
        taken: dict[str, float] = {"choice": 0.0}  # a part of its detection
        lafs, _ = _timed(taken, "detection", lambda: self.detector(image))
        oriented = _timed(taken, "orientation", lambda: self.orienter(lafs, image))
        self.lafs = KF.scale_laf(oriented, 2.0)
        patches = _timed(taken, "patches", lambda: KF.extract_patches_from_pyramid(image, self.lafs, 32)[0])
        _timed(taken, "description", lambda: self.network(patches))
        return taken, lafs.shape[1]


class _Ours:
    """HardNet8Feature, taken apart."""

    def __init__(self, feature: HardNet8Feature) -> None:
        self.feature = feature

    def __call__(self, image: Tensor) -> tuple[dict[str, float], int]:
        taken: dict[str, float] = {}
        orienter = self.feature.orienter
        candidates = _timed(taken, "detection", lambda: self.feature.detector.find(image[0, 0], None))
        lafs, _ = _timed(taken, "choice", lambda: self.feature.choose(image[0, 0], *candidates))
        if orienter is None:
            taken["orientation"] = 0.0
        else:
            lafs = _timed(taken, "orientation", lambda: orienter(lafs[None], image)[0])
        frames = torch.cat([lafs[:, :, :2] * 2.0, lafs[:, :, 2:]], dim=2)
        patches = _timed(taken, "patches", lambda: extract_patches(image[0, 0], frames, 32))
        _timed(taken, "description", lambda: self.feature.descriptor(patches))
        return taken, len(lafs)


def _timed(taken: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = work()
    taken[stage] = time.perf_counter() - start
    return result


def table(result: dict[str, Any]) -> str:
    """Seconds of each stage by pipeline."""
    rows = []
    for row in result["rows"]:
        stages = [f"{value:.2f}" for value in row["stages"].values()]
        rows.append([row["name"], *stages, f"{row['total_s']:.2f}", row["keypoints"], f"{row['ratio']:.2f}"])
    height, width = result["image"]
    stages = list(result["rows"][0]["stages"])
    title = f"{width} x {height}, {result['num_features']} keypoints; seconds"
    table = format_table([title, *stages, "all", "keypoints", "x kornia"], rows)
    return f"{table}\nlargest difference of our patches to kornia's: {result['patch_difference']:.1e}"
