"""Features and matches computed elsewhere, read from a submission or from hloc's files."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.h5files import open_h5, read_h5
from common.images import read_gray
from common.shell import output_file, progress
from eval.features.extract import image_digest
from eval.features.imported import MATCH_TASKS, ImportedImage, write_imported
from eval.features.keypoints import Keypoints
from eval.imw.scene import Scene, find_scenes
from eval.imw.submission.archive import open_submission
from eval.imw.submission.files import check_scene, has_pairwise_keypoints
from eval.imw.submission.findings import Findings
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError

log = logging.getLogger(__name__)

Pairs = dict[tuple[str, str], NDArray[np.integer]]


@dataclass(frozen=True)
class ImportedScenes:
    """Images by the hash of their pixels, and matches (M, 2) by task and pair of hashes."""

    images: dict[str, ImportedImage]
    matches: dict[str, Pairs]


def scene_digests(scenes: Sequence[Scene]) -> dict[tuple[str, str], str]:
    """Hash of the pixels in gray of every image, by scene and image name."""
    names = [(scene, name) for scene in scenes for name in scene.images]
    return {
        (scene.name, name): image_digest(read_gray(scene.images[name]))
        for scene, name in progress(names, what="read images", unit="image")
    }


def import_submission(path: Path, scenes: Sequence[Scene]) -> ImportedScenes:
    """Read the files of a submission (a zip, its folder, or the folder of one scene) for the given scenes.

    Raises:
        DataError: a scene whose files are not there or not sound; the first fault is told.
        MissingFileError: no such file.
    """
    digests, imported = scene_digests(scenes), ImportedScenes({}, {})
    with open_submission(path) as root:
        for scene in scenes:
            folder = _scene_folder(root, scene, len(scenes) == 1)
            findings = Findings()
            names = sorted(scene.images)
            pairwise = has_pairwise_keypoints(folder / "keypoints.h5")
            check_scene(folder, scene.name, names, findings, pairwise=pairwise, to_hand_in=False)
            if findings.errors:
                more = f" (and {len(findings.errors) - 1} more)" if len(findings.errors) > 1 else ""
                raise DataError(f"{path}: {findings.errors[0].where}: {findings.errors[0].message}{more}")
            (_add_pairs if pairwise else _add_scene)(imported, folder, scene.name, names, digests)
    return imported


def import_hloc(features: Path, matches: Path | None, scenes: Sequence[Scene]) -> ImportedScenes:
    """Read hloc's ``features.h5`` (``<image>/{keypoints, descriptors (D, N), scores}``) and ``matches.h5``.

    Its keypoints have their origin at the centre of the first pixel, as ours. Images are found by their names without
    suffix, with the folders before them or without (``-`` and ``/`` count as ``_``), by the scene in their path where
    several have that name.

    Raises:
        DataError: an image of the scenes that the file lacks, arrays that do not fit, a pair that is missing.
    """
    digests, imported = scene_digests(scenes), ImportedScenes({}, {})
    groups = _image_groups(features)
    used = {key: _find_group(groups, *key, features) for key in digests}
    half = False
    for key, group in progress(used.items(), len(used), "read features", "image"):
        optional = [f"{group}/{name}" for name in ("descriptors", "scores") if name in groups[group]]
        arrays, _ = read_h5(features, [f"{group}/keypoints", *optional])
        half |= arrays[f"{group}/keypoints"].dtype == np.float16
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            values = {name.rpartition("/")[2]: np.asarray(array, np.float32) for name, array in arrays.items()}
        descs = values["descriptors"].T if "descriptors" in values else None
        _add_image(imported, digests[key], f"{features} [{group}]", values["keypoints"], descs, values.get("scores"))
    if half:
        log.warning("%s holds keypoints in half precision: 1500.3 px became 1500", features)
    if matches is not None:
        named = {group: digests[key] for key, group in used.items()}
        pairs = _hloc_matches(matches, named, imported)
        _check_all_pairs(pairs, scenes, digests, matches)
        for task in MATCH_TASKS:
            imported.matches[task] = pairs
    return imported


def _scene_folder(root: Path, scene: Scene, single: bool) -> Path:
    places = [root / scene.dataset / scene.name, root / scene.name, *sorted(root.glob(f"*/{scene.name}"))]
    if single:
        places.append(root)
    for place in places:
        if (place / "keypoints.h5").is_file():
            return place
    raise MissingFileError(f"{root} holds no keypoints.h5 of {scene.dataset}/{scene.name}")


def _add_scene(
    imported: ImportedScenes, folder: Path, scene: str, names: list[str], digests: Mapping[tuple[str, str], str]
) -> None:
    keypoints, _ = read_h5(folder / "keypoints.h5", names)
    columns: dict[str, dict[str, NDArray[Any]]] = {}
    for column, files in {
        "descriptors": ("descriptors.h5",),
        "scores": ("scores.h5",),
        "scales": ("scales.h5",),
        "angles": ("angles.h5", "orientations.h5"),
    }.items():
        for file in files:
            if (folder / file).is_file():
                columns[column] = read_h5(folder / file, names)[0]
    for name in names:
        values = {column: np.asarray(arrays[name], np.float32) for column, arrays in columns.items()}
        _add_image(
            imported,
            digests[scene, name],
            f"{folder}: {name}",
            keypoints[name],
            values.get("descriptors"),
            values.get("scores"),
            values.get("scales"),
            values.get("angles"),
        )
    for task in MATCH_TASKS:
        if (stored := _stored_matches(folder, task)) is not None:
            pairs = imported.matches.setdefault(task, {})
            for (one, two), rows in stored.items():
                pairs[digests[scene, one], digests[scene, two]] = rows


def _add_pairs(
    imported: ImportedScenes, folder: Path, scene: str, names: list[str], digests: Mapping[tuple[str, str], str]
) -> None:
    """Keypoints of pairs: an image has those of all its pairs, every place once, and its matches are those of stereo.

    Raises:
        DataError: no stereo matches.
    """
    matches = _stored_matches(folder, "stereo")
    if matches is None:
        raise DataError(f"{folder} holds keypoints of pairs, but neither matches.h5 nor matches_stereo.h5")
    keypoints, _ = read_h5(folder / "keypoints.h5")
    places: dict[tuple[str, str], NDArray[np.integer]] = {}
    for name in names:
        others = [other for other in names if other != name]
        stacked = [np.asarray(keypoints[f"{name}-{other}"], np.float32) for other in others]
        unique, rows = np.unique(np.concatenate(stacked), axis=0, return_inverse=True)
        ends = np.cumsum([len(points) for points in stacked])
        places |= zip([(name, other) for other in others], np.split(rows.ravel(), ends[:-1]), strict=True)
        _add_image(imported, digests[scene, name], f"{folder}: {name}", unique, None, None)
    pairs = imported.matches.setdefault("stereo", {})
    for (one, two), indices in matches.items():
        ends_of = places[one, two][indices[:, 0]], places[two, one][indices[:, 1]]
        pairs[digests[scene, one], digests[scene, two]] = np.column_stack(ends_of)


def _stored_matches(folder: Path, task: str) -> Pairs | None:
    """Matches (M, 2) by image names; None without a file of them."""
    for file in (f"matches_{task}.h5", f"matches_{task}_0.h5", "matches.h5"):
        if (folder / file).is_file():
            stored = read_h5(folder / file)[0]
            return {(key.split("-")[0], key.split("-")[1]): np.asarray(v).T.reshape(-1, 2) for key, v in stored.items()}
    return None


def _add_image(
    imported: ImportedScenes,
    digest: str,
    where: str,
    xy: NDArray[Any],
    descs: NDArray[Any] | None,
    scores: NDArray[Any] | None,
    sizes: NDArray[Any] | None = None,
    angles: NDArray[Any] | None = None,
) -> None:
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise DataError(f"{where}: keypoints are {xy.shape}, expected (N, 2)")
    count = len(xy)
    columns = {"descriptors": descs, "scores": scores, "scales": sizes, "angles": angles}
    for name, values in columns.items():
        wanted = (count, -1 if values is None else values.shape[-1]) if name == "descriptors" else (count,)
        if values is not None and (values.shape not in (wanted, (count, 1)) or not np.isfinite(values).all()):
            raise DataError(f"{where}: {name} {values.shape} for {count} keypoints, or some are not finite")
    if not np.isfinite(xy).all():
        raise DataError(f"{where}: a keypoint is not finite")
    keypoints = Keypoints.from_points(
        xy[:, :2],
        np.zeros(count) if scores is None else scores.ravel(),
        1.0 if sizes is None else sizes.ravel(),
    )
    if angles is not None:
        keypoints.angle[:] = angles.ravel()
    descs = None if descs is None else np.ascontiguousarray(descs, np.float32)
    image = ImportedImage(keypoints, descs, scores is not None)
    if digest in imported.images and not np.array_equal(imported.images[digest].keypoints.xy, image.keypoints.xy):
        raise DataError(f"{where}: two scenes hold this image with different keypoints: import them one by one")
    imported.images[digest] = image


def _image_groups(path: Path) -> dict[str, set[str]]:
    """Groups of an hloc file that hold keypoints, with all names in them."""
    groups = {name: inner for name, inner in _groups(path).items() if "keypoints" in inner}
    if not groups:
        raise DataError(f"{path} holds no <image>/keypoints, as hloc's features.h5 does")
    return groups


def _groups(path: Path) -> dict[str, set[str]]:
    """Every group with the names in it, be they arrays, groups or links; links are not followed."""
    import h5py

    groups: dict[str, set[str]] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            groups[name] = set(item)

    with open_h5(path) as file:
        file.visititems(look)
    return groups


def _find_group(groups: Mapping[str, set[str]], scene: str, name: str, path: Path) -> str:
    """The group of an image of a scene."""
    names = {group: _scene_names(group) for group in groups}
    candidates = [group for group in groups if _plain(name) in names[group]]
    if len(candidates) > 1:
        whole = [group for group in candidates if names[group][0] == _plain(name)]
        inside = [group for group in candidates if _plain(scene) in map(_plain, PurePosixPath(group).parts[:-1])]
        candidates = whole or inside or candidates
    if len(candidates) != 1:
        what = "nothing" if not candidates else f"several things ({', '.join(sorted(candidates)[:3])})"
        raise DataError(f"{path} holds {what} of the image {name!r} of scene {scene}")
    return candidates[0]


def _scene_names(group: str) -> list[str]:
    """What ``db/a.jpg`` can be called in a scene: ``db_a``, and ``a`` where folders are no part of names."""
    parts = PurePosixPath(group).with_suffix("").parts
    return [_plain("_".join(parts[first:])) for first in range(len(parts))]


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _hloc_matches(path: Path, digests: Mapping[str, str], imported: ImportedScenes) -> Pairs:
    """``<name 0>/<name 1>/matches0`` (names with ``/`` as ``-``), or ``<name 0>_<name 1>`` of older versions."""
    by_name = {re.sub("/", "-", group): digest for group, digest in digests.items()}
    pairs: Pairs = {}
    for group in _groups(path):
        names = _split_pair(group, by_name)
        if names is None:
            continue
        one, two = (by_name[name] for name in names)
        targets = read_h5(path, (f"{group}/matches0",))[0][f"{group}/matches0"]
        counts = len(imported.images[one].keypoints), len(imported.images[two].keypoints)
        if (
            targets.dtype.kind not in "iu"
            or targets.shape != counts[:1]
            or (targets.size and not -1 <= targets.min() <= targets.max() < counts[1])
        ):
            raise DataError(
                f"{path} [{group}]: matches0, {targets.dtype} {targets.shape}, does not fit {counts[0]} and "
                f"{counts[1]} keypoints"
            )
        rows = np.flatnonzero(targets >= 0)
        pairs[one, two] = np.column_stack([rows, targets[rows].astype(np.int64)])
    if not pairs:
        raise DataError(f"{path} holds no <image 0>/<image 1>/matches0 of the images that are imported")
    return pairs


def _split_pair(group: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    for separator in ("/", "_"):
        for place in (match.start() for match in re.finditer(separator, group)):
            one, two = group[:place], group[place + 1 :]
            if one in known and two in known:
                return one, two
    return None


def _check_all_pairs(pairs: Pairs, scenes: Sequence[Scene], digests: Mapping[tuple[str, str], str], path: Path) -> None:
    """Every pair that a scene lists has matches; pairs that hloc left out have none."""
    left_out = 0
    for scene in scenes:
        for one, two in scene.pairs(scene.thresholds[0]) if scene.thresholds else []:
            key = digests[scene.name, one], digests[scene.name, two]
            if key not in pairs and key[::-1] not in pairs:
                pairs[key] = np.zeros((0, 2), np.int64)
                left_out += 1
    if left_out:
        log.warning("%s lacks %d pairs of the scenes: they count as pairs without a match", path, left_out)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a scene, or a folder of scenes")
    source = parser.add_argument_group("source", "a submission, or hloc's files")
    source.add_argument(
        "--submission", type=Path, metavar="ZIP", help="submission, its folder, or the folder of one scene's h5 files"
    )
    source.add_argument(
        "--features", type=Path, metavar="FILE.h5", help="hloc's features: keypoints, descriptors, scores"
    )
    source.add_argument("--matches", type=Path, metavar="FILE.h5", help="hloc's matches of these features")
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE.h5", help="file of the imported features"
    )


def run(args: argparse.Namespace) -> None:
    """Read, check and write."""
    if (args.submission is None) == (args.features is None):
        raise UsageError("give either --submission or --features")
    if args.matches is not None and args.features is None:
        raise UsageError("--matches goes with --features; a submission has matches of its own")
    scenes = find_scenes(args.data)
    if args.submission is not None:
        imported = import_submission(args.submission, scenes)
    else:
        imported = import_hloc(args.features, args.matches, scenes)
    write_imported(args.out, imported.images, imported.matches)
    most = max(len(image.keypoints) for image in imported.images.values())
    pairs = max((len(pairs) for pairs in imported.matches.values()), default=0)
    print(f"{args.out}: {len(imported.images)} images with at most {most} keypoints, matches of {pairs} pairs")
    flags = " --matcher imported" if imported.matches else ""
    flags += " --task stereo" if list(imported.matches) == ["stereo"] else ""
    print(f"score it: python -m eval imw --data {args.data} --desc imported@{args.out} --keypoints {most}{flags}")
