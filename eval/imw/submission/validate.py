"""Check a submission: all that the official validator checks, and what it forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.images import image_size
from common.shell import progress
from eval.imw.official import TASKS, TEST_SCENES, keypoint_category
from eval.imw.scene import RawScene, find_raw_scenes
from eval.imw.submission.archive import MAX_TOTAL_BYTES, open_submission
from eval.imw.submission.config import CONFIG_FILE, check_method, parse_config
from eval.imw.submission.files import MAX_KEYPOINTS, SceneFiles, check_scene
from eval.imw.submission.findings import Findings
from kornia_hardnet8.errors import DataError

_MAX_CONFIG_BYTES = 1 << 20


def validate(path: Path, data: Path, official: bool = False, max_total_bytes: int = MAX_TOTAL_BYTES) -> Findings:
    """Check a submission against the images of a data folder.

    Args:
        path: the zip, or its unpacked folder.
        data: ``DATASET/SCENE`` folders with images, or full scenes.
        official: check against the full list of test scenes instead of the scenes that ``data`` holds.
        max_total_bytes: of the unpacked zip.

    Returns:
        What is wrong, with the place of each.

    Raises:
        DataError, MissingFileError: a zip that is not opened, see :func:`open_submission`, or no data to check against.
    """
    scenes = find_raw_scenes(data)
    findings = Findings()
    with open_submission(path, max_total_bytes) as folder:
        methods = read_methods(folder, findings)
        config_is_sound = not any(finding.official for finding in findings.errors)
        pairwise = config_is_sound and any(m["config_common"].get("pairwise_keypoints", False) for m in methods)
        if official:
            scenes = _test_scenes(scenes, findings)
        by_scene = {}
        for dataset in dict.fromkeys(scene.dataset for scene in scenes):
            if not (folder / dataset).is_dir():
                message = "the folder of this dataset is missing (ignore this if it is intended)"
                findings.add(dataset, message, "dataset_missing", official=True)
        for scene in progress(scenes, what="check", unit="scene"):
            place = folder / scene.dataset / scene.name
            if place.is_dir():
                sizes = {name: image_size(path) for name, path in scene.images.items()}
                by_scene[scene.where] = check_scene(place, scene.where, list(scene.images), findings, sizes, pairwise)
            elif (folder / scene.dataset).is_dir():
                findings.add(scene.where, "the folder of this scene is missing", "scene_missing", official=True)
        findings.checked = list(by_scene)
        _find_unknown(folder, scenes, findings)
        for number, method in enumerate(methods if config_is_sound else []):
            where = CONFIG_FILE if len(methods) == 1 else f"{CONFIG_FILE} method {number}"
            check_agreement(method, by_scene, findings, where)
    return findings


def verdict(findings: Findings) -> str:
    """Whether a submission can be handed in: without an error, and with every official scene in it and checked."""
    if findings.errors:
        return "not ready to hand in"
    wanted = official_scenes()
    missing = [scene for scene in wanted if scene not in findings.checked]
    if missing:
        return (
            f"no fault in what was checked, but not ready to hand in: {len(wanted) - len(missing)} of {len(wanted)} "
            f"official scenes were checked, {missing[0]} was not (--official names all of them)"
        )
    return "ready to hand in"


def official_scenes() -> list[str]:
    """Every test scene of the challenge, ``DATASET/SCENE``."""
    return [f"{dataset}/{name}" for dataset, names in TEST_SCENES.items() for name in names]


def read_methods(folder: Path, findings: Findings) -> list[dict[str, Any]]:
    """The methods of ``config.json``; what is wrong with them is a finding."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        inner = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; it lies in {inner[0]}/: pack the content of that folder, not the folder" if inner else ""
        findings.add(CONFIG_FILE, f"is missing{hint}", "config_missing", official=True)
        return []
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        findings.add(CONFIG_FILE, f"is larger than {_MAX_CONFIG_BYTES} bytes", "config_huge")
        return []
    try:
        text = path.read_text(encoding="utf-8")
        methods = parse_config(text)
    except UnicodeDecodeError:
        findings.add(CONFIG_FILE, "is not UTF-8 text", "config_parse", official=True)
        return []
    except DataError as error:
        findings.add(CONFIG_FILE, str(error).removeprefix(f"{CONFIG_FILE} "), "config_parse", official=True)
        return []
    if not isinstance(methods, list):
        findings.add(CONFIG_FILE, "must hold a list of methods: put [ ] around it", "config_list", official=True)
        return []
    if len(methods) != 1:
        findings.add(CONFIG_FILE, f"holds {len(methods)} methods, the official import takes one", "config_methods")
    if parse_config(text, compat=True) != methods:
        message = "a text holds ',]' or ',}': the official reader deletes that comma"
        findings.add(CONFIG_FILE, message, "config_comma", "warning")
    for number, method in enumerate(methods):
        check_method(method, True, findings, CONFIG_FILE if len(methods) == 1 else f"{CONFIG_FILE} method {number}")
    return [method for method in methods if isinstance(method, dict)]


def check_agreement(
    method: Mapping[str, Any], scenes: Mapping[str, SceneFiles], findings: Findings, where: str = CONFIG_FILE
) -> None:
    """Whether a sound configuration and the files agree: keypoints, descriptors, matches."""
    counts = [count for scene in scenes.values() for count in scene.counts.values()]
    num = method["config_common"]["num_keypoints"]
    if counts and num != -1:
        most = max(counts)
        if most <= MAX_KEYPOINTS and most > num:
            matched = any(scene.match_files for scene in scenes.values())
            unscored = [name for name, scene in scenes.items() if not scene.has_scores]
            if matched:
                message = f"num_keypoints is {num}, but an image has {most}, and matches forbid to leave any out"
                findings.add(where, message, "num_keypoints")
            elif unscored:
                message = f"num_keypoints is {num}, but an image has {most}; scores.h5 is needed to choose"
                findings.add(f"{unscored[0]}/scores.h5", message, "scores_missing")
        elif most <= MAX_KEYPOINTS and keypoint_category(most) < num:
            message = f"num_keypoints is {num}, but no image has more than {most}: that is the smaller category"
            findings.add(where, message, "num_keypoints", "warning")
    for name, scene in scenes.items():
        dataset = name.partition("/")[0]
        for task in TASKS:
            entry = method.get(f"config_{dataset}_{task}")
            if entry is not None:
                _check_task(entry, f"config_{dataset}_{task}", name, scene, task, findings, where)


def _check_task(
    entry: Mapping[str, Any], path: str, scene_name: str, scene: SceneFiles, task: str, findings: Findings, where: str
) -> None:
    match_files = [name for name in scene.match_files if name == "matches.h5" or task in name]
    if entry["use_custom_matches"]:
        if not match_files:
            message = f"{path} says custom matches, but there is no file of {task} matches"
            findings.add(f"{scene_name}", message, "custom_without_files")
        return
    if match_files:
        message = f"{path} says use_custom_matches false: {match_files[0]} is not read"
        findings.add(f"{scene_name}/{match_files[0]}", message, "matches_unused", "warning")
    if not scene.has_descriptors and scene.match_files:
        findings.add(f"{scene_name}/descriptors.h5", f"is missing, but {path} asks to match", "descriptors_unmatched")
    dtype = scene.descriptor_dtype
    if dtype is None:
        return
    hamming = str(entry.get("matcher", {}).get("distance", "")).lower() == "hamming"
    if hamming != (dtype == np.uint8):
        message = f"{path} matches by {'hamming' if hamming else 'l1 or l2'}, but the descriptors are {dtype}"
        findings.add(where, message, "distance_dtype", "error" if hamming else "warning")


def _test_scenes(scenes: Sequence[RawScene], findings: Findings) -> list[RawScene]:
    """The official test scenes; one that the data folder lacks is a finding."""
    there = {scene.where: scene for scene in scenes}
    wanted = official_scenes()
    for name in wanted:
        if name not in there:
            findings.add(name, "the data folder lacks this test scene: it is not checked", "not_checked")
    return [there[name] for name in wanted if name in there]


def _find_unknown(folder: Path, scenes: Sequence[RawScene], findings: Findings) -> None:
    """Folders and files of the submission that belong to no scene that was checked."""
    known = {scene.where for scene in scenes}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != CONFIG_FILE:
            findings.add(path.name, "unknown file, nobody reads it", "unknown_file", "warning")
        elif path.is_dir():
            for inner in sorted(p for p in path.iterdir() if f"{path.name}/{p.name}" not in known):
                findings.add(
                    f"{path.name}/{inner.name}", "belongs to no scene that was checked", "not_checked", "warning"
                )
