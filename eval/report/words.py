"""What benchmarks and their scores are called, and what they mean, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

TITLES = {
    "imw": "Image matching: camera poses",
    "dev": "Development judgement",
    "hpatches": "HPatches: patches",
    "sequences": "Homography sequences",
    "brown": "Brown patches",
    "webcam": "Static cameras",
}
ABOUT = {
    "imw": "Two photographs (stereo) or a handful of them (multiview) of one place are matched, and the camera poses "
    "that follow are compared with known ones.",
    "dev": "Poses, planes and static cameras in one go: what a change to a descriptor is judged by while it is made.",
    "hpatches": "Patches of one place under changing light or viewpoint: told apart, matched between two images, found "
    "among many.",
    "sequences": "Photographs of planes, whose true mapping is known to the pixel.",
    "brown": "Pairs of patches of the same or of different points, from three landmarks.",
    "webcam": "One place seen by a camera that never moves, in another light, weather or season.",
}
# The scores whose bars open a section, with their names in words; what a section lacks is left out.
HEADLINES = {
    "imw": {
        "stereo/mAA@10": "Pose of two photographs",
        "multiview/mAA@10": "Poses of a handful of photographs",
    },
    "dev": {
        "poses/mAA@10": "Pose of two photographs",
        "homography/MMA@3": "Matches on planes",
        "webcam/mAP": "Static cameras",
    },
    "hpatches": {
        "verification/mAP": "Same patch or not",
        "matching/mAP": "Patches of two images matched",
        "retrieval/mAP": "A patch found among many",
    },
    "sequences": {
        "MMA@3": "Matches within 3 px",
        "HA@3": "Homographies within 3 px",
        "correct_nn": "Nearest descriptors that are right",
    },
    "brown": {
        "FPR95": "False alarms",
        "revisited/mAP": "Points of two images matched",
        "amos/mAP": "Static cameras",
    },
    "webcam": {"correct_nn": "Nearest descriptors that are right", "mAP": "A place found again"},
}
# Columns of a leaderboard, in order; what a section lacks is left out.
COLUMNS = {
    "imw": ("stereo/mAA@5", "stereo/mAA@10", "multiview/mAA@5", "multiview/mAA@10"),
    "dev": (
        *("poses/mAA@5", "poses/mAA@10", "poses/mAA@10_mean", "poses/AP"),
        *("homography/MMA@3", "homography/correct_nn", "webcam/correct_nn", "webcam/mAP"),
    ),
    "hpatches": (
        "verification/mAP",
        "matching/mAP",
        "retrieval/mAP",
        "verification/mAP_vl",
        "matching/mAP_vl",
        "retrieval/mAP_vl",
    ),
    "sequences": (
        *("MMA@1", "MMA@3", "MMA@5", "MMA@10", "correct_nn", "HA@1", "HA@3", "HA@5"),
        *("AUC@1", "AUC@3", "AUC@5", "repeatability", "i/HA@3", "v/HA@3", "i/repeatability", "v/repeatability"),
    ),
    "brown": ("FPR95", "FPR99", "AP", "revisited/mAP", "amos/correct_nn", "amos/mAP"),
    "webcam": ("correct_nn", "mAP"),
}
_MEANINGS = {
    "mAA": "Mean average accuracy: the share of pairs (or of pairs in bags of photographs) whose pose error is below a "
    "threshold, the mean over thresholds of 1°, 2° … up to the number after @. No pose counts as wrong.",
    "MMA": "Mean matching accuracy: the share of matches that lie within so many pixels of the true place.",
    "HA": "Homography accuracy: the share of pairs whose estimated homography moves the corners of the image by no "
    "more than so many pixels on the mean.",
    "AUC": "Area under the curve of the shares of homographies (or of right pairs) over the threshold, up to the "
    "number after @ in pixels.",
    "mAP": "Mean average precision: 1 when every right answer ranks before every wrong one. _vl: as VLFeat does it.",
    "AP": "Average precision of ranking right matches before wrong ones by their ratio or distance.",
    "correct_nn": "The share of places whose nearest descriptor in the other image is that of the same place.",
    "FPR95": "False positive rate at 95 % recall: the share of wrong pairs that pass a threshold which 95 % of the "
    "right ones pass. Lower is better.",
    "FPR99": "The same at 99 % recall. Lower is better.",
    "repeatability": "The share of keypoints that the detector finds at the same place in the other image.",
    "matching_score": "The share of keypoints in the common view whose match is right; _pre: before the geometry.",
    "ATE": "Trajectory error: distance of aligned camera centres to the true ones, in units of the scene. Lower "
    "is better.",
    "registered_ratio": "The share of photographs that got a pose.",
    "success": "The share of patches, or of bags, that came out right.",
    "track_length": "Photographs in which a point of the model is seen, the mean over points.",
    "num": "A count: keypoints, matches, inliers or points, the mean over pairs or bags.",
}


def measure_of(name: str) -> str:
    """What a score measures: its name without the task and the size of a bag."""
    return name.rpartition("/")[2]


def is_share(name: str) -> bool:
    """Whether a score lies in [0, 1]; else it is a count, a length or a distance."""
    return not measure_of(name).startswith(("num_", "seconds", "ATE", "track_length"))


def glossary(names: Iterable[str]) -> list[tuple[str, str]]:
    """(measure, meaning) of those that the names of scores use, in alphabetical order."""
    measures = {re.split(r"@|_vl$|_mean$", measure_of(name))[0] for name in names}
    used = {key for key in _MEANINGS for m in measures if m == key or m.startswith(f"{key}_")}
    return [(key, _MEANINGS[key]) for key in sorted(used, key=str.lower)]
