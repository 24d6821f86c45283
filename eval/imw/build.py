"""Make a scene of the IMW layout from a COLMAP model and its images."""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.colmap import ModelImage, is_distorted, load_pycolmap, open_model
from common.h5files import write_h5
from common.images import read_bgr
from common.shell import output_folder, progress
from eval.imw.depth import DenseModel
from eval.imw.scene import THRESHOLDS, Camera, all_pairs, open_scene, pair_key
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.files import atomic_dir, write_json

log = logging.getLogger(__name__)

FORMAT = "imw-scene/1"
# Pairs with more than this many common points go to the multiview task (official scenes: 100).
VISIBILITY_THRESHOLD = 1
# Smallest co-visibility of the pairs that hold a bag together.
BAG_COVISIBILITY = 0.1
_KEPT_SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".png": ".png"}
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class SceneImage:
    """One registered image of a model, undistorted.

    Attributes:
        name: its name in the scene.
        source: the image file.
        size: (width, height), pixels, of the undistorted image.
        camera: calibration; pixel centres at integers.
        points: position (x, y) of each observed 3-D point, by point id.
        distorted: the COLMAP camera when the image must be undistorted, else None.
    """

    name: str
    source: Path
    size: tuple[int, int]
    camera: Camera
    points: dict[int, tuple[float, float]]
    distorted: Any = None


def build_scene(
    images: Path,
    model: Path,
    out: Path,
    bags: Mapping[int, int] | None = None,
    seed: int = 0,
    dense: Path | None = None,
) -> list[str]:
    """Write the scene ``out/set_100`` from a COLMAP model (binary or text) and the folder of its images.

    Images of cameras with distortion are undistorted; others are copied byte by byte. ``-`` and ``/`` in names become
    ``_``. Nothing is left behind when it fails.

    Args:
        images: folder that the image names of the model are relative to.
        model: folder with ``cameras``, ``images`` and ``points3D`` as ``.bin`` or ``.txt``.
        out: a folder that does not exist or is empty.
        bags: number of bags by bag size; sizes that the scene cannot fill give fewer bags.
        seed: of the choice of bags.
        dense: a dense workspace of the model, for depth maps.

    Returns:
        The names of the images in the scene, sorted.

    Raises:
        MissingFileError: a folder or an image that is not there.
        DataError: a model that does not read, fewer than two images, clashing names, an image that does not decode or
            is not of its camera's size; a dense workspace without a depth map of these images.
    """
    views = read_model(images, model)
    if not any(view.points for view in views):
        raise DataError(f"the COLMAP model {model} has no 3-D points: pairs of a scene are chosen by what both see")
    if dense is None:
        return write_scene(views, out, bags, seed)
    workspace = DenseModel(dense)
    depths = {}
    for view in views:
        depth = workspace.depth(view.source.relative_to(images).as_posix(), view.camera.K, view.size)
        if depth is not None:
            depths[view.name] = depth
    if not depths:
        raise DataError(
            f"{workspace.maps} holds no depth map of the {len(views)} images: expected <image>.geometric.bin"
        )
    return write_scene(views, out, bags, seed, depths)


def write_scene(
    views: Sequence[SceneImage],
    out: Path,
    bags: Mapping[int, int] | None = None,
    seed: int = 0,
    depths: Mapping[str, NDArray[np.float32]] | None = None,
) -> list[str]:
    """Write the scene ``out/set_100`` from views sorted by name, and depth maps by name; see :func:`build_scene`."""
    with atomic_dir(out) as temporary:
        root = temporary / "set_100"
        for folder in ("images", "calibration", "visibility", "new-vis-pairs", "sub_set"):
            (root / folder).mkdir(parents=True)
        files = []
        for view in progress(views, what="images", unit="image"):
            files.append(_write_image(view, root / "images"))
            camera = {"K": view.camera.K, "R": view.camera.R, "T": view.camera.t}
            write_h5(root / "calibration" / f"calibration_{view.name}.h5", camera)
        names = [view.name for view in views]
        write_lines(root / "images.txt", [f"images/{file}" for file in files])
        write_lines(root / "calibration.txt", [f"calibration/calibration_{name}.h5" for name in names])
        write_lines(root / "visibility.txt", [f"visibility/{name}.txt" for name in names])
        _write_visibility(views, root / "visibility")
        for name, depth in (depths or {}).items():
            write_h5(root / "depth_maps" / f"{name}.h5", {"depth": depth})
        if depths:
            write_lines(root / "depth_maps.txt", [f"depth_maps/{name}.h5" for name in names])
        covisible = covisibilities(views)
        write_pair_lists(root / "new-vis-pairs", covisible)
        edges = [pair for pair, value in covisible.items() if value >= BAG_COVISIBILITY]
        made = _write_bags(root / "sub_set", dict(zip(names, files, strict=True)), edges, bags or {}, seed)
        about = {
            "format": FORMAT,
            "visibility_threshold": VISIBILITY_THRESHOLD,
            "num_images": len(names),
            "undistorted": sum(view.distorted is not None for view in views),
            "bags": made,
            "depth_maps": len(depths or {}),
            "seed": seed,
        }
        write_json(root / "scene.json", about)
    return names


def _write_bags(
    folder: Path, files: Mapping[str, str], edges: Sequence[tuple[str, str]], bags: Mapping[int, int], seed: int
) -> dict[str, int]:
    """Draw bags of each size and write their lists; ``files``: by name. Returns how many there are of each size."""
    made = {}
    for size, count in sorted(bags.items()):
        drawn = connected_bags(list(files), edges, size, count, seed)
        made[str(size)] = len(drawn)
        if len(drawn) < count:
            log.info("%d of %d bags of %d images: the scene has no more", len(drawn), count, size)
        for index, bag in enumerate(drawn):
            write_lines(folder / f"{size}bag_{index:03d}.txt", [f"images/{files[name]}" for name in bag])
    return made


def read_model(images: Path, model: Path) -> list[SceneImage]:
    """The registered images of a COLMAP model, sorted by their name in the scene."""
    registered = open_model(model, images).images
    names = scene_names([image.name for image in registered])
    views = [_view(names[image.name], images / image.name, image) for image in registered]
    return sorted(views, key=lambda view: view.name)


def scene_names(files: Sequence[str]) -> dict[str, str]:
    """Scene name by image file name: no suffix, with ``_`` for ``-`` (pair keys are split there) and for folders.

    Raises:
        DataError: two files get one name.
    """
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for file in files:
        name = os.path.splitext(file)[0].replace("-", "_").replace("/", "_").replace("\\", "_")
        if name in owners:
            raise DataError(f"the images {owners[name]!r} and {file!r} would both be called {name!r} in the scene")
        owners[name] = file
        names[file] = name
    return names


def covisibility(
    points1: NDArray[np.float64], points2: NDArray[np.float64], size1: tuple[int, int], size2: tuple[int, int]
) -> float:
    """Smaller of two shares: bounding box of the common points / image area, one for each image; in [0, 1].

    Args:
        points1: positions (N, 2) of the common points in image 1, pixels; N = 0 gives 0.
        points2: the same in image 2.
        size1: (width, height) of image 1.
        size2: (width, height) of image 2.

    Source: IMW benchmark.
    """
    if len(points1) == 0:
        return 0.0
    shares = [np.ptp(p, axis=0).prod() / (w * h) for p, (w, h) in ((points1, size1), (points2, size2))]
    return float(min(shares))


def covisibilities(views: Sequence[SceneImage]) -> dict[tuple[str, str], float]:
    """Co-visibility of every pair of views, larger name first, sorted as the names are."""
    by_name = {view.name: view for view in views}
    result = {}
    for first, second in all_pairs([view.name for view in views]):
        one, two = by_name[first], by_name[second]
        common = sorted(one.points.keys() & two.points.keys())
        result[first, second] = covisibility(
            np.array([one.points[p] for p in common], np.float64),
            np.array([two.points[p] for p in common], np.float64),
            one.size,
            two.size,
        )
    return result


def write_pair_lists(folder: Path, covisible: Mapping[tuple[str, str], float]) -> None:
    """Write ``keys-th-0.0.npy`` … ``keys-th-0.9.npy``: the pairs whose co-visibility is at least the threshold."""
    for threshold in THRESHOLDS:
        keys = [pair_key(pair) for pair, value in covisible.items() if value >= float(threshold)]
        np.save(folder / f"keys-th-{threshold}.npy", np.array(keys, dtype=np.str_), allow_pickle=False)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a list file of the layout."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _view(name: str, source: Path, image: ModelImage) -> SceneImage:
    """One registered image; observations are moved to where the undistorted image shows them."""
    camera, seen = image.camera, image.point_ids >= 0
    ids, xy = image.point_ids[seen], image.xy[seen]
    if not camera.focal_length_idxs():
        raise DataError(f"image {source}: a pinhole camera cannot show what its {camera.model_name} camera sees")
    distorted = camera if is_distorted(camera) else None
    if distorted is not None:
        pycolmap = load_pycolmap()
        camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), distorted)
        rays = np.asarray(distorted.cam_from_img(xy), np.float64).reshape(-1, 2)
        xy = np.asarray(camera.img_from_cam(np.column_stack([rays, np.ones(len(rays))])), np.float64).reshape(-1, 2)
        shown = np.isfinite(xy).all(axis=1)  # a fisheye sees more than any plane
        ids, xy = ids[shown], xy[shown]
    K = np.array(camera.calibration_matrix(), np.float64)
    if not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0:
        raise DataError(f"image {source}: COLMAP cannot undistort its {camera.model_name} camera")
    K[:2, 2] -= 0.5  # COLMAP's origin is the corner of the first pixel, ours its centre
    points = {point: (x, y) for point, (x, y) in zip(ids.tolist(), xy.tolist(), strict=True)}
    return SceneImage(name, source, (camera.width, camera.height), Camera(K, image.R, image.t), points, distorted)


def _write_image(view: SceneImage, folder: Path) -> str:
    """Copy or undistort one image; returns its file name."""
    image = read_bgr(view.source)
    suffix = _KEPT_SUFFIXES.get(view.source.suffix.lower())
    if view.distorted is None and suffix is not None:
        shutil.copyfile(view.source, folder / f"{view.name}{suffix}")
        return f"{view.name}{suffix}"
    import cv2

    if view.distorted is not None:
        image = _undistort(image, view.distorted)
    suffix = suffix or ".png"
    done, encoded = cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == ".jpg" else [])
    if not done:
        raise DataError(f"image {view.source} could not be written as {suffix}")
    (folder / f"{view.name}{suffix}").write_bytes(encoded.tobytes())
    return f"{view.name}{suffix}"


def _undistort(image: NDArray[np.uint8], camera: Any) -> NDArray[np.uint8]:
    pycolmap = load_pycolmap()
    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image))
    undistorted, _ = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
    return np.ascontiguousarray(undistorted.to_array())


def _write_visibility(views: Sequence[SceneImage], folder: Path) -> None:
    """One file an image: common points with each other image, on the side of the larger name alone, itself -1."""
    for row, view in enumerate(views):
        counts = [len(view.points.keys() & other.points.keys()) for other in views[:row]]
        counts += [-1] + [0] * (len(views) - row - 1)
        write_lines(folder / f"{view.name}.txt", [str(count) for count in counts])


# Draws without a new bag after which the scene counts as exhausted, for each bag asked for.
_DRAWS_PER_BAG = 50


def connected_bags(
    names: Sequence[str], edges: Iterable[tuple[str, str]], size: int, count: int, seed: int
) -> list[list[str]]:
    """Draw distinct sets of ``size`` names that the edges connect.

    A bag grows from a random name by random neighbours of what it holds.

    Args:
        names: all names.
        edges: pairs of names.
        size: names in a bag, at least 2.
        count: bags wanted; fewer come back when the graph has no more (or no more are found).
        seed: of the draws.

    Returns:
        Bags in the order of drawing, each in the order of ``names``.
    """
    neighbours: dict[str, set[str]] = {name: set() for name in names}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    order = {name: index for index, name in enumerate(names)}
    rng = np.random.default_rng([seed, size])
    bags: dict[tuple[str, ...], None] = {}
    wanted = min(count, math.comb(len(names), size))
    for _ in range(_DRAWS_PER_BAG * count):
        if len(bags) >= wanted:
            break
        bag = {names[int(rng.integers(len(names)))]}
        while len(bag) < size:
            border = sorted(set().union(*(neighbours[name] for name in bag)) - bag, key=order.__getitem__)
            if not border:
                break
            bag.add(border[int(rng.integers(len(border)))])
        if len(bag) == size:
            bags.setdefault(tuple(sorted(bag, key=order.__getitem__)))
    return [list(bag) for bag in bags]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the model's images")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="COLMAP model: cameras, images, points3D, binary or text",
    )
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="the scene: a new or empty folder"
    )
    parser.add_argument(
        "--bags",
        default="5:20,10:10,25:5",
        metavar="SIZE:COUNT,…",
        help="bags of images for the multiview task, as far as the scene has them",
    )
    parser.add_argument(
        "--dense",
        type=Path,
        metavar="DIR",
        help="dense workspace of the model (stereo/depth_maps, sparse): also write depth maps",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of bags")


def run(args: argparse.Namespace) -> int:
    """Make the scene and print what it holds."""
    names = build_scene(args.images, args.model, args.out, parse_bags(args.bags), args.seed, args.dense)
    bags = open_scene(args.out).bags
    made = ", ".join(f"{len(of_size)} bags of {size}" for size, of_size in bags.items()) or "no bags"
    print(f"{args.out}: {len(names)} images, {len(names) * (len(names) - 1) // 2} pairs, {made}")
    return 0


def parse_bags(text: str) -> dict[int, int]:
    """Read ``5:20,10:10``: 20 bags of 5 images and 10 of 10; an empty text gives none."""
    bags: dict[int, int] = {}
    for part in filter(None, text.split(",")):
        size, colon, count = part.partition(":")
        if not colon or not size.isdecimal() or not count.isdecimal() or int(size) < 2 or int(size) in bags:
            raise UsageError(f"--bags {text}: {part!r} is not SIZE:COUNT (size at least 2, each once), e.g. 5:20,10:10")
        bags[int(size)] = int(count)
    return bags
