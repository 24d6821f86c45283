"""Cut HPatches-format patches from a homography sequence: detections, clustering, jitter, resampling.

The published set was made by code that is not public; the ranges here are calibrated so that the median overlaps are
the stated ones (easy 0.85, hard 0.72).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from common.cache import demo_folder
from common.homography import warp_points
from common.hpatches import LEVEL_NAMES, LEVELS, NUM_TARGETS, PATCH_SIDE, TYPES, write_strip
from common.images import read_gray
from common.shell import output_folder, progress
from eval.core.image_sequences import ImageSequence, find_sequences
from eval.core.results import format_table
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_dir, write_json
from rendered.planes import write_planes

Floats = NDArray[np.float64]
Gray = NDArray[np.uint8]

DETECTORS = ("hessian", "harris", "dog")
# level -> (x of the scale, anisotropy and translation ranges; largest rotation in degrees)
JITTER = {"e": (0.13, 10.0), "h": (0.27, 20.0), "t": (0.40, 30.0)}
CALIBRATED_OVERLAP = {"e": 0.853, "h": 0.72, "t": 0.61}
_REDRAWS = 20


@dataclass(frozen=True)
class BuildSettings:
    """How patches are chosen and cut.

    Attributes:
        detections: strongest of each detector.
        max_patches: cap of a sequence.
        mr_size: half side of a region / detection scale sigma.
        max_overlap: of two circles (intersection over union); of more, one is kept.
        min_std: reference patches of lower contrast (grey levels) are dropped.
        seed: of the choice and of the jitter.
    """

    detections: int = 3000
    max_patches: int = 2000
    mr_size: float = 5.0
    max_overlap: float = 0.5
    min_std: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.detections < 1 or self.max_patches < 1:
            raise UsageError("detections and patches must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """What is stored and shown."""
        return asdict(self)


class Jitter(NamedTuple):
    """Perturbations of N frames in their unit circle: x -> linear x + shift."""

    linear: Floats
    """(N, 2, 2)."""
    shift: Floats
    """(N, 2) in radii."""
    rotation_deg: Floats
    """(N,)."""
    scale: Floats
    """(N,)."""
    anisotropy: Floats
    """(N,)."""


class BuiltSequence(NamedTuple):
    """Strips of one sequence, and what was done to each patch."""

    frames: Floats
    """(N, 2, 3) reference frames."""
    strips: dict[str, NDArray[np.uint8]]
    """type -> (N, 65, 65)."""
    jitters: dict[str, Jitter]
    """type (without ref) -> jitter."""
    overlaps: dict[str, Floats]
    """type (without ref) -> (N,) overlap with the frame before jitter."""

    def median_overlaps(self) -> dict[str, float]:
        """Median overlap of each noise level."""
        return {
            level: float(np.median([self.overlaps[f"{level}{k}"] for k in range(1, NUM_TARGETS + 1)]))
            for level in LEVELS
        }


def build_sequence(
    images: Sequence[Gray], homographies: Sequence[Floats], settings: BuildSettings, name: str = "the sequence"
) -> BuiltSequence:
    """Detect, choose, jitter and cut.

    Args:
        images: image 1 and its 5 targets, (H, W) each.
        homographies: H_1_2 … H_1_6.
        settings: how.
        name: for messages.

    Raises:
        DataError: not 5 targets, or fewer than 2 patches are left.
    """
    if len(images) != NUM_TARGETS + 1 or len(homographies) != NUM_TARGETS:
        raise DataError(f"{name} has {len(images)} images, HPatches strips need 1 + {NUM_TARGETS}")
    rng = np.random.default_rng(settings.seed)
    frames = np.concatenate([detect_frames(images[0], d, settings.detections, settings.mr_size) for d in DETECTORS])
    frames = frames[rng.permutation(len(frames))]
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    to_target = [np.eye(3), *homographies]
    seen = np.ones(len(frames), dtype=bool)
    for H, size in zip(to_target, sizes, strict=True):
        seen &= squares_inside(frames, H, size)
    frames = frames[seen]
    frames = frames[thin_circles(frames, settings.max_overlap)]
    pyramids = [pyramid(image) for image in images]
    reference = cut(pyramids[0], frames, np.eye(3))
    frames = frames[reference.reshape(len(frames), PATCH_SIDE**2).astype(np.float64).std(axis=1) >= settings.min_std]

    jitters: dict[str, Jitter] = {}
    keep = np.ones(len(frames), dtype=bool)
    for level in LEVELS:
        for k in range(1, NUM_TARGETS + 1):
            jitters[f"{level}{k}"], inside = draw_fitting(frames, level, homographies[k - 1], sizes[k], rng)
            keep &= inside
    chosen = np.flatnonzero(keep)[: settings.max_patches]
    if len(chosen) < 2:
        raise DataError(f"{name}: {len(chosen)} patches are left after the inside, overlap and contrast tests")
    frames = frames[chosen]
    jitters = {t: Jitter(*(part[chosen] for part in jitter)) for t, jitter in jitters.items()}
    strips = {"ref": cut(pyramids[0], frames, np.eye(3))}
    for strip in TYPES[1:]:
        k = int(strip[1])
        strips[strip] = cut(pyramids[k], jittered(frames, jitters[strip]), homographies[k - 1])
    overlaps = {t: circle_overlaps(jitter) for t, jitter in jitters.items()}
    return BuiltSequence(frames, strips, jitters, overlaps)


# --- regions ---------------------------------------------------------------------------------------------------------


def detect_frames(image: Gray, detector: str, num: int, mr_size: float) -> Floats:
    """Oriented square frames (N, 2, 3) of the strongest detections, half side ``mr_size`` sigma.

    ``hessian`` is kornia's scale-space detector, ``harris`` finds corners at several scales, ``dog`` is OpenCV's SIFT;
    one dominant orientation by a gradient histogram.
    """
    import kornia.feature as KF

    from eval.features.detect import DogSettings, detect_dog

    tensor = torch.from_numpy(image)[None, None].float() / 255.0
    with torch.inference_mode():
        if detector == "dog":
            keypoints = detect_dog(image, DogSettings(num=num, contrast=0.01, edge=10.0, upright=True))
            lafs = keypoints.lafs(mr_size)[None]
        elif detector == "harris":
            corners = torch.from_numpy(harris_corners(image, num)).float()
            scale = (mr_size * corners[None, :, 2])[:, :, None, None]
            lafs = KF.laf_from_center_scale_ori(corners[None, :, :2], scale, torch.zeros(1, len(corners), 1))
        else:
            module = KF.ScaleSpaceDetector(num, mr_size=mr_size, resp_module=KF.BlobHessian())
            lafs, responses = module(tensor)
            lafs = lafs[:, (responses[0] > 0) & (lafs[0, :, :, :2].abs().amax(dim=(1, 2)) > 0)]
        if lafs.shape[1]:
            lafs = KF.LAFOrienter(32)(lafs, tensor)
    frames = lafs[0].double().numpy()
    usable: Floats = frames[np.isfinite(frames).all(axis=(1, 2)) & (radii(frames) > 1.0)]
    return usable


def harris_corners(image: Gray, num: int) -> Floats:
    """The ``num`` strongest corners, (N, 3): x, y, sigma: local maxima of the Harris measure at each of some scales.

    A corner appears at several scales: the thinning of overlapping regions picks one.

    Source: Harris and Stephens 1988, scale-normalised as by Mikolajczyk and Schmid 2004.
    """
    gray = image.astype(np.float32) / 255.0
    strongest = [np.empty((0, 4))]
    for sigma in (1.6 * 2.0 ** (k / 2.0) for k in range(9)):
        if 8.0 * sigma > min(image.shape):
            break
        inner = 0.7 * sigma
        smooth = cv2.GaussianBlur(gray, (0, 0), inner)
        dx, dy = (inner * cv2.Scharr(smooth, cv2.CV_32F, *order) / 32.0 for order in ((1, 0), (0, 1)))
        xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), sigma) for product in (dx * dx, dy * dy, dx * dy))
        corner = xx * yy - xy * xy - 0.04 * (xx + yy) ** 2
        y, x = np.nonzero((corner > 1e-7) & (corner == cv2.dilate(corner, np.ones((3, 3), np.uint8))))
        strongest.append(np.column_stack([x, y, np.full(len(x), sigma), corner[y, x]]))
    corners = np.concatenate(strongest)
    order = np.argsort(-corners[:, 3], kind="stable")[:num]
    result: Floats = corners[order, :3]
    return result


def radii(frames: Floats) -> Floats:
    """Half side of each frame in pixels, (N,)."""
    result: Floats = np.sqrt(np.abs(np.linalg.det(frames[:, :, :2])))
    return result


def thin_circles(frames: Floats, max_overlap: float) -> NDArray[np.intp]:
    """Indices of frames kept greedily in their order: none overlaps an earlier kept one by more than the limit."""
    centres, r = frames[:, :, 2], radii(frames)
    free = np.ones(len(frames), dtype=bool)
    kept = []
    for i in range(len(frames)):
        if free[i]:
            kept.append(i)
            distance = np.linalg.norm(centres - centres[i], axis=1)
            free &= circle_iou(distance, r, r[i]) <= max_overlap
    return np.array(kept, dtype=np.intp)


def circle_iou(distance: Floats, r0: Floats, r1: float) -> Floats:
    """Intersection over union of circles of radius ``r0`` (N,) with one of radius ``r1`` at ``distance`` (N,)."""
    d = np.maximum(distance, 1e-12)
    a0 = np.arccos(np.clip((d**2 + r0**2 - r1**2) / (2 * d * r0), -1, 1))
    a1 = np.arccos(np.clip((d**2 + r1**2 - r0**2) / (2 * d * r1), -1, 1))
    lens = r0**2 * (a0 - np.sin(2 * a0) / 2) + r1**2 * (a1 - np.sin(2 * a1) / 2)
    union = np.pi * (r0**2 + r1**2) - lens
    result: Floats = np.where(distance >= r0 + r1, 0.0, lens / union)
    return result


def squares_inside(frames: Floats, H: Floats, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which squares [-1, 1]² of the frames lie inside an image of ``size`` (width, height) after ``H``, (N,)."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    points = np.einsum("nij,kj->nki", frames[:, :, :2], corners) + frames[:, None, :, 2]
    mapped = warp_points(points.reshape(-1, 2), H).reshape(-1, 4, 2)
    depth = points @ H[2, :2] + H[2, 2]
    same_side = (depth > 0).all(axis=1) | (depth < 0).all(axis=1)  # the horizon does not cross the square
    limit = np.array([size[0] - 1, size[1] - 1])
    return np.asarray(same_side & ((mapped >= 0) & (mapped <= limit)).all(axis=(1, 2)))


# --- jitter ----------------------------------------------------------------------------------------------------------


def draw_jitter(count: int, level: str, rng: np.random.Generator) -> Jitter:
    """Random perturbations of a noise level, for ``count`` frames."""
    x, most_degrees = JITTER[level]
    scale = 2.0 ** rng.uniform(-x, x, count)
    anisotropy = 2.0 ** (rng.uniform(-x, x, count) / 2.0)
    axis, turn = rng.uniform(0.0, np.pi, count), rng.uniform(-most_degrees, most_degrees, count)
    shift = rng.uniform(-x, x, (count, 2))
    stretch = np.zeros((count, 2, 2))
    stretch[:, 0, 0], stretch[:, 1, 1] = scale * anisotropy, scale / anisotropy
    linear = rotations(axis) @ stretch @ rotations(-axis) @ rotations(np.deg2rad(turn))
    return Jitter(linear, shift, turn, scale, anisotropy)


def draw_fitting(
    frames: Floats, level: str, H: Floats, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Jitter, NDArray[np.bool_]]:
    """Jitters whose mapped square lies inside the target, drawn again up to 20 times; and which frames got one."""
    jitter = draw_jitter(len(frames), level, rng)
    inside = squares_inside(jittered(frames, jitter), H, size)
    for _ in range(_REDRAWS):
        rows = np.flatnonzero(~inside)
        if not len(rows):
            break
        again = draw_jitter(len(rows), level, rng)
        for part, new in zip(jitter, again, strict=True):
            part[rows] = new
        inside[rows] = squares_inside(jittered(frames[rows], again), H, size)
    return jitter, inside


def jittered(frames: Floats, jitter: Jitter) -> Floats:
    """Frames after the perturbation, (N, 2, 3)."""
    linear = frames[:, :, :2] @ jitter.linear
    centre = frames[:, :, 2:] + frames[:, :, :2] @ jitter.shift[:, :, None]
    result: Floats = np.concatenate([linear, centre], axis=2)
    return result


def rotations(angles: Floats) -> Floats:
    """(N, 2, 2) rotations by angles in radians."""
    cos, sin = np.cos(angles), np.sin(angles)
    result: Floats = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
    return result


def circle_overlaps(jitter: Jitter, samples: int = 2000) -> Floats:
    """Intersection over union of the unit circle with its perturbed ellipse, (N,), to about 1 %.

    By ``samples`` points spread evenly over the circle.
    """
    k = np.arange(samples) + 0.5
    radius, angle = np.sqrt(k / samples), k * np.pi * (3.0 - np.sqrt(5.0))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    inverse = np.linalg.inv(jitter.linear)
    overlaps = np.empty(len(inverse))
    for i, (matrix, shift) in enumerate(zip(inverse, jitter.shift, strict=True)):
        back = (points - shift) @ matrix.T
        common = np.pi * np.mean((back**2).sum(axis=1) <= 1.0)
        overlaps[i] = common / (np.pi * (1.0 + abs(np.linalg.det(jitter.linear[i]))) - common)
    return overlaps


# --- resampling ------------------------------------------------------------------------------------------------------


def pyramid(image: Gray) -> list[Gray]:
    """The image and its halves; pixel i of a level lies at pixel 2 i of the level before."""
    levels = [image]
    while min(levels[-1].shape) >= 2 * PATCH_SIDE:
        levels.append(np.asarray(cv2.pyrDown(levels[-1]), np.uint8))
    return levels


def cut(levels: Sequence[Gray], frames: Floats, H: Floats) -> NDArray[np.uint8]:
    """Cut (N, 65, 65) patches of frames (N, 2, 3) of image 1 out of the image that ``H`` maps to.

    Every cell is mapped by ``H`` itself; the pyramid level is the one whose step is nearest to the cell's.
    """
    unit = (2.0 * np.arange(PATCH_SIDE) + 1.0) / PATCH_SIDE - 1.0
    cells = np.stack(np.meshgrid(unit, unit), axis=-1).reshape(-1, 2)
    patches = np.empty((len(frames), PATCH_SIDE, PATCH_SIDE), np.uint8)
    for i, frame in enumerate(frames):
        at = warp_points(cells @ frame[:, :2].T + frame[:, 2], H).reshape(PATCH_SIDE, PATCH_SIDE, 2)
        corners = at[[0, 0, -1, -1], [0, -1, -1, 0]]
        across = corners[1:] - corners[:-1]
        area = abs(across[0, 0] * across[1, 1] - across[0, 1] * across[1, 0]) / 2.0
        area += abs(across[1, 0] * across[2, 1] - across[1, 1] * across[2, 0]) / 2.0
        step = np.sqrt(max(area, 1e-12)) / (PATCH_SIDE - 1)
        level = int(np.clip(np.floor(np.log2(step) + 0.5), 0, len(levels) - 1))
        grid = (at / 2.0**level).astype(np.float32)
        x, y = np.ascontiguousarray(grid[..., 0]), np.ascontiguousarray(grid[..., 1])
        patches[i] = cv2.remap(levels[level], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return patches


def side_files(built: BuiltSequence) -> Mapping[str, Floats]:
    """The text files beside the strips: file name -> one number a patch; ``rotjitter`` in degrees."""
    count = len(built.frames)
    files: dict[str, Floats] = {}
    neutral = {"overlaps": 1.0, "rotjitter": 0.0, "trjitter": 0.0, "scjitter": 1.0, "anisjitter": 1.0}
    for name, value in neutral.items():
        files[f"ref.{name}"] = np.full(count, value)
    for strip, jitter in built.jitters.items():
        files[f"{strip}.overlaps"] = built.overlaps[strip]
        files[f"{strip}.rotjitter"] = jitter.rotation_deg
        files[f"{strip}.trjitter"] = np.linalg.norm(jitter.shift, axis=1)
        files[f"{strip}.scjitter"] = jitter.scale
        files[f"{strip}.anisjitter"] = jitter.anisotropy
    return files


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    defaults = BuildSettings()
    parser.add_argument(
        "--sequences", type=Path, required=True, metavar="DIR", help="sequences: images 1 … 6 and H_1_2 … H_1_6"
    )
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="new folder, one folder a sequence"
    )
    parser.add_argument("--detections", type=int, default=defaults.detections, help="strongest of each detector")
    parser.add_argument("--patches", type=int, default=defaults.max_patches, help="patches of a sequence, at most")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the choice of patches and their jitter")


def run(args: argparse.Namespace) -> None:
    """Build every sequence; print how far the jittered regions overlap."""
    settings = BuildSettings(detections=args.detections, max_patches=args.patches, seed=args.seed)
    rows = []
    with atomic_dir(args.out) as folder:
        sequences = find_sequences(args.sequences)
        for sequence in progress(sequences, what="hpatches-build", unit="sequence"):
            built = build_from_files(sequence, settings)
            write_sequence(built, [H for _, _, H in sequence.targets], folder / sequence.name)
            rows.append([sequence.name, len(built.frames), *built.median_overlaps().values()])
        write_json(folder / "build.json", {"settings": settings.to_dict(), "sequences": [s.name for s in sequences]})
    rows.append(["calibrated", "", *CALIBRATED_OVERLAP.values()])
    print(format_table(["sequence", "patches", *(f"{name} overlap" for name in LEVEL_NAMES.values())], rows))
    print(f"strips: {args.out} (python -m eval hpatches --data {args.out})")


def build_from_files(sequence: ImageSequence, settings: BuildSettings) -> BuiltSequence:
    """Build the strips of one sequence on disk."""
    numbers = [k for k, _, _ in sequence.targets]
    if numbers != list(range(2, NUM_TARGETS + 2)):
        raise DataError(f"{sequence.reference.parent}: targets are {numbers}, HPatches strips need 2 … 6")
    images = [read_gray(sequence.reference), *(read_gray(path) for _, path, _ in sequence.targets)]
    return build_sequence(images, [H for _, _, H in sequence.targets], settings, str(sequence.reference.parent))


def write_sequence(built: BuiltSequence, homographies: Sequence[np.ndarray], folder: Path) -> None:
    """Write strips, jitter files and homographies of one sequence."""
    folder.mkdir()
    for strip, patches in built.strips.items():
        write_strip(folder / f"{strip}.png", patches)
    for name, values in side_files(built).items():
        np.savetxt(folder / name, values, fmt="%.6g")
    for k, H in enumerate(homographies, 1):
        np.savetxt(folder / f"H_ref_{k}", H, fmt="%.12g")


PATCHES = 150  # a sequence


def cached_demo(seed: int = 0) -> Path:
    """The folder of the demo strips, built when it is missing; see :func:`common.cache.demo_folder`."""
    name = f"hpatches-demo-seed{seed}"
    return demo_folder(name, __name__, ("rendered", "eval.hpatches"), lambda folder: build_demo(folder, seed))


def build_demo(folder: Path, seed: int = 0, patches: int = PATCHES) -> Path:
    """Render walls, cut strips of them into ``folder`` (new); returns it."""
    settings = BuildSettings(detections=600, max_patches=patches, seed=seed)
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(folder) as temporary:
        for sequence in find_sequences(write_planes(Path(scratch) / "walls", seed)):
            built = build_from_files(sequence, settings)
            write_sequence(built, [H for _, _, H in sequence.targets], temporary / sequence.name)
    return folder
