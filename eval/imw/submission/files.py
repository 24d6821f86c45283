"""The h5 files of one scene of a submission, checked entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import may_unpack
from common.h5files import refusal
from eval.imw.official import DESCRIPTOR_WIDTHS, KEYPOINT_CATEGORIES, MAX_DESCRIPTOR_BYTES
from eval.imw.submission.findings import Entries, Findings

MAX_KEYPOINTS = KEYPOINT_CATEGORIES[-1]
SIDE_FILES = ("scores.h5", "scales.h5", "angles.h5", "orientations.h5", "affine.h5")
MATCH_FILES = ("matches.h5", "matches_multiview.h5", "matches_stereo.h5", "matches_stereo_0.h5")
# No entry of a valid file is larger; a larger one is not read into memory.
_MAX_ENTRY_BYTES = 256 << 20
# Of what is only scored here.
_WIDEST_DESCRIPTOR = 4096
_MAX_KEYS = 200_000
# Keypoints may lie this far outside, pixels: refined positions do.
_MARGIN_PX = 1.0

# What h5py raises for damaged files, in whatever it is asked.
_H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class SceneFiles:
    """What was found of one scene, for the checks against config.json."""

    counts: dict[str, int] = field(default_factory=dict)
    """Keypoints by image."""
    has_descriptors: bool = False
    descriptor_dtype: np.dtype[Any] | None = None
    """None when the file does not read."""
    match_files: list[str] = field(default_factory=list)
    has_scores: bool = False


def check_scene(
    folder: Path,
    where: str,
    names: list[str],
    findings: Findings,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    pairwise: bool = False,
    to_hand_in: bool = True,
) -> SceneFiles:
    """Check the files of a scene.

    Args:
        folder: holds ``keypoints.h5`` and the others.
        where: how messages name it.
        names: the images of the scene.
        findings: grows.
        sizes: (width, height) by image name; None leaves out whether keypoints lie inside.
        pairwise: keypoints are stored by pair.
        to_hand_in: descriptors are of a type and width that the benchmark takes.

    Returns:
        What the checks against the configuration need.
    """
    scene_files = SceneFiles()
    files = sorted(path.name for path in folder.iterdir())
    scene_files.match_files = [name for name in files if name.startswith("match")]
    scene_files.has_descriptors = "descriptors.h5" in files
    scene_files.has_scores = "scores.h5" in files
    for name in files:
        if name not in ("keypoints.h5", "descriptors.h5", *SIDE_FILES) and name not in scene_files.match_files:
            findings.add(f"{where}/{name}", "unknown file, nobody reads it", "unknown_file", "warning")
    if "keypoints.h5" not in files:
        findings.add(f"{where}/keypoints.h5", "is missing", "keypoints_missing", official=True)
    else:
        _check_keypoints(folder / "keypoints.h5", where, names, findings, scene_files, sizes, pairwise)
    if "descriptors.h5" in files:
        _check_descriptors(folder / "descriptors.h5", where, names, findings, scene_files, to_hand_in)
    elif not scene_files.match_files:
        message = "neither descriptors nor a file of matches"
        findings.add(f"{where}/descriptors.h5", message, "descriptors_missing", official=True)
    for name in SIDE_FILES:
        if name in files:
            _check_side_file(folder / name, where, names, findings, scene_files)
    _check_match_file_names(where, findings, scene_files.match_files)
    for name in scene_files.match_files:
        _check_matches(folder / name, where, names, findings, scene_files)
    return scene_files


@contextmanager
def open_entries(path: Path, where: str, findings: Findings, kind: str) -> Iterator[dict[str, Any] | None]:
    """The datasets of a flat h5 file by key; None when the file does not open.

    Links to other files, data kept outside and entries too large to be honest are findings, and are not followed.
    """
    import h5py

    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(path, "r"))
            keys = sorted(file) if len(file) <= _MAX_KEYS else None
        except _H5_ERRORS as error:
            message = f"damaged or no HDF5 file: {' '.join(str(error).split())}"
            findings.add(where, message, kind, official=True)
            yield None
            return
        if keys is None:
            findings.add(where, f"{len(file)} keys: refused as too many", "h5_huge")
            yield None
            return
        entries: dict[str, Any] = {}
        refused = Entries(findings, where, len(keys))
        for key in keys:
            try:
                fault = refusal(file, key, path, "fiub")
                if fault is None and file[key].nbytes > _MAX_ENTRY_BYTES:
                    fault = "huge", f"holds {file[key].shape} numbers: refused as too large"
                if fault is None:
                    entries[key] = file[key]
                else:
                    refused.add(key, fault[1], f"h5_{fault[0]}")
            except _H5_ERRORS as error:
                refused.add(key, f"does not open: {' '.join(str(error).split())}", kind)
        refused.close()
        total = sum(dataset.nbytes for dataset in entries.values())
        if not may_unpack(total, path.stat().st_size):
            findings.add(where, f"declares {total} bytes of numbers: refused as too large", "h5_huge")
            entries = {}
        yield entries


def has_pairwise_keypoints(path: Path) -> bool:
    """Whether a ``keypoints.h5`` holds keypoints of pairs: names of images have no ``-``."""
    with open_entries(path, path.name, Findings(), "") as entries:
        return any("-" in key for key in entries or ())


@contextmanager
def _open_filled(path: Path, scene: str, findings: Findings, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """How messages name the file, and its entries: none, with a finding, when it does not open or is empty."""
    where = f"{scene}/{path.name}"
    with open_entries(path, where, findings, f"{what}_damaged") as entries:
        if entries is not None and not entries:
            findings.add(where, "is empty", f"{what}_empty", official=True)
        yield where, entries or {}


def _read(entries: Entries, key: str, stored: Any) -> NDArray[Any] | None:
    """The numbers of an entry; None with a finding when they do not decode, or some is not finite."""
    try:
        values = np.asarray(stored[()])
    except _H5_ERRORS as error:
        entries.add(key, f"does not decode: {' '.join(str(error).split())}", "h5_damaged")
        return None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        entries.add(key, f"{int((~np.isfinite(values)).sum())} numbers are NaN or infinite", "not_finite")
        return None
    return values


def _check_keys(where: str, keys: Mapping[str, Any], expected: list[str], findings: Findings, kind: str) -> None:
    missing, extra = sorted(set(expected) - keys.keys()), sorted(keys.keys() - set(expected))
    if missing or extra:
        parts = [f"{len(missing)} of {len(expected)} are missing: {missing[0]} …"] if missing else []
        parts += [f"{len(extra)} are unknown: {extra[0]} …"] if extra else []
        findings.add(where, f"keys differ from the images, {' and '.join(parts)}", kind, official=True)


def _check_keypoints(
    path: Path,
    scene: str,
    names: list[str],
    findings: Findings,
    scene_files: SceneFiles,
    sizes: Mapping[str, tuple[int, int]] | None,
    pairwise: bool,
) -> None:
    with _open_filled(path, scene, findings, "keypoints") as (where, entries):
        if not entries:
            return
        expected = names
        if pairwise:
            expected = [f"{a}-{b}" for a in names for b in names if a != b]
            message = "keypoints of pairs: the benchmark takes them, its validator knows keypoints of images alone"
            findings.add(where, message, "keypoints_of_pairs", "warning", official=True)
        _check_keys(where, entries, expected, findings, "keypoints_keys")
        wrong = Entries(findings, where, len(entries))
        for position, (key, stored) in enumerate(entries.items()):
            if len(stored.shape) != 2 or stored.shape[1] != 2:
                message = f"expected (N, 2) x y, got {stored.shape}"
                wrong.add(key, message, "keypoints_shape", official=position == 0)
                continue
            scene_files.counts[key] = stored.shape[0]
            if stored.shape[0] > MAX_KEYPOINTS:
                message = f"{stored.shape[0]} keypoints, at most {MAX_KEYPOINTS} are taken"
                wrong.add(key, message, "keypoints_too_many", official=True)
                continue
            if stored.dtype.kind != "f":
                wrong.add(key, f"expected floating point, got {stored.dtype}", "keypoints_type", "warning")
            values = _read(wrong, key, stored)
            if values is None:
                continue
            _check_positions(wrong, key, values, (sizes or {}).get(key.partition("-")[0] if pairwise else key))
        wrong.close()


def _check_positions(wrong: Entries, key: str, xy: NDArray[Any], size: tuple[int, int] | None) -> None:
    repeated = len(xy) - len(np.unique(xy, axis=0))
    if repeated > len(xy) // 2 > 0:
        wrong.add(key, f"{repeated} of {len(xy)} rows repeat another", "keypoints_repeated", "warning")
    if size is not None and len(xy):
        outside = ((xy < -_MARGIN_PX) | (xy > np.array(size) - 1 + _MARGIN_PX)).any(axis=1)
        if outside.any():
            message = f"{int(outside.sum())} of {len(xy)} lie outside the {size[0]} x {size[1]} image"
            wrong.add(key, message, "keypoints_outside")


def _check_descriptors(
    path: Path, scene: str, names: list[str], findings: Findings, scene_files: SceneFiles, to_hand_in: bool
) -> None:
    low, high = DESCRIPTOR_WIDTHS if to_hand_in else (1, _WIDEST_DESCRIPTOR)
    types = (np.float32, np.uint8) if to_hand_in else (np.float64, np.float32, np.float16, np.uint8)
    with _open_filled(path, scene, findings, "descriptors") as (where, entries):
        if not entries:
            return
        _check_keys(where, entries, names, findings, "descriptors_keys")
        wrong = Entries(findings, where, len(entries))
        first = next(iter(entries.values()))
        scene_files.descriptor_dtype = first.dtype
        for position, (key, stored) in enumerate(entries.items()):
            if len(stored.shape) != 2 or not low <= stored.shape[1] <= high:
                message = f"expected (N, {low} to {high}), got {stored.shape}"
                wrong.add(key, message, "descriptors_shape", official=position == 0)
                continue
            size = stored.shape[1] * stored.dtype.itemsize
            if to_hand_in and not scene_files.match_files and size > MAX_DESCRIPTOR_BYTES:
                message = f"{size} bytes a descriptor, at most {MAX_DESCRIPTOR_BYTES} without matches of your own"
                wrong.add(key, message, "descriptors_need_matches", official=position == 0)
            if stored.dtype not in types:
                wrong.add(key, f"expected float32 (uint8 for binary ones), got {stored.dtype}", "descriptors_type")
            if len(first.shape) == 2 and (stored.shape[1], stored.dtype) != (first.shape[1], first.dtype):
                message = f"{stored.shape[1]} x {stored.dtype}, the first entry {first.shape[1]} x {first.dtype}"
                wrong.add(key, message, "descriptors_unequal")
            _check_count(wrong, key, stored.shape[0], scene_files)
            _read(wrong, key, stored)
        wrong.close()


def _check_side_file(path: Path, scene: str, names: list[str], findings: Findings, scene_files: SceneFiles) -> None:
    """Scores, scales, angles, affine shapes: the official validator never opens them."""
    where = f"{scene}/{path.name}"
    with open_entries(path, where, findings, "side_damaged") as entries:
        if entries is None:
            return
        missing = sorted(set(names) - entries.keys())
        if missing:
            findings.add(where, f"{len(missing)} of {len(names)} images are missing: {missing[0]} …", "side_keys")
        wrong = Entries(findings, where, len(entries))
        for key, stored in entries.items():
            tail = stored.shape[1:]
            good = tail == (2, 2) if path.name == "affine.h5" else tail in ((), (1,))
            if not stored.shape or not good:
                expected = "(N, 2, 2)" if path.name == "affine.h5" else "(N,) or (N, 1)"
                wrong.add(key, f"expected {expected}, got {stored.shape}", "side_shape")
                continue
            _check_count(wrong, key, stored.shape[0], scene_files)
            _read(wrong, key, stored)
        wrong.close()


def _check_count(wrong: Entries, key: str, count: int, scene_files: SceneFiles) -> None:
    if key in scene_files.counts and count != scene_files.counts[key]:
        wrong.add(key, f"{count} rows, but {scene_files.counts[key]} keypoints", "unequal_counts")


def _check_match_file_names(where: str, findings: Findings, files: list[str]) -> None:
    for name in files:
        if name not in MATCH_FILES:
            official = name in ("matches_stereo_1.h5", "matches_stereo_2.h5")
            message = "one run of stereo matches is taken" if official else "unknown file of matches, nobody reads it"
            findings.add(
                f"{where}/{name}", message, "matches_extra_file" if official else "unknown_file", official=official
            )
    known = [name for name in files if name in MATCH_FILES]
    if "matches.h5" in known:
        if len(known) > 1:
            others = ", ".join(name for name in known if name != "matches.h5")
            message = f"matches.h5 serves both tasks, so {others} must not be there"
            findings.add(where, message, "matches_extra_file", official=True)
    elif known:
        stereo = [name for name in known if "stereo" in name]
        if "matches_multiview.h5" not in known:
            findings.add(f"{where}/matches_multiview.h5", "is missing", "matches_multiview_missing", official=True)
        if not stereo:
            findings.add(f"{where}/matches_stereo.h5", "is missing", "matches_stereo_missing", official=True)
        if len(stereo) > 1:
            findings.add(where, f"both {' and '.join(stereo)}: one is read", "matches_stereo_twice", "warning")


def _check_matches(path: Path, scene: str, names: list[str], findings: Findings, scene_files: SceneFiles) -> None:
    expected = {f"{max(a, b)}-{min(a, b)}" for position, a in enumerate(names) for b in names[:position]}
    with _open_filled(path, scene, findings, "matches") as (where, entries):
        if not entries:
            return
        if len(entries) != len(expected):
            missing = sorted(expected - entries.keys())
            example = f": {missing[0]} … missing" if missing else ""
            message = f"{len(entries)} pairs, expected {len(expected)}{example}"
            findings.add(where, message, "matches_key_count", official=True)
        elif entries.keys() != expected:
            wrong_key = min(entries.keys() - expected)
            message = f"{wrong_key!r} is not <name1>-<name2> of two images with the larger name first"
            findings.add(where, message, "matches_key_names", official=True)
        wrong = Entries(findings, where, len(entries))
        for position, (key, stored) in enumerate(entries.items()):
            if len(stored.shape) != 2 or stored.shape[0] != 2:
                message = f"expected (2, M), got {stored.shape}"
                wrong.add(key, message, "matches_shape", official=position == 0)
                continue
            if stored.dtype.kind not in "iu" and stored.shape[1]:
                wrong.add(key, f"expected integers, got {stored.dtype}", "matches_type")
                continue
            values = _read(wrong, key, stored)
            if values is not None and values.size:
                _check_indices(wrong, key, values, scene_files)
        wrong.close()


def _check_indices(wrong: Entries, key: str, matches: NDArray[Any], scene_files: SceneFiles) -> None:
    for row, name in enumerate(key.split("-")[:2]):
        pairwise = f"{name}-{key.split('-')[1 - row]}" if key.count("-") == 1 else name
        count = scene_files.counts.get(name, scene_files.counts.get(pairwise))
        low, high = int(matches[row].min()), int(matches[row].max())
        if low < 0 or (count is not None and high >= count):
            message = f"row {row} has indices {low} … {high}, but {name} has {count} keypoints"
            wrong.add(key, message, "matches_index")
            return
    if len(np.unique(matches, axis=1).T) < matches.shape[1]:
        wrong.add(key, "a match stands twice", "matches_repeated", "warning")
