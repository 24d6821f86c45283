"""Names and limits of the official benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kornia_hardnet8.errors import DataError

TEST_SCENES: dict[str, tuple[str, ...]] = {
    "phototourism": (
        "british_museum",
        "florence_cathedral_side",
        "lincoln_memorial_statue",
        "london_bridge",
        "milan_cathedral",
        "mount_rushmore",
        "piazza_san_marco",
        "sagrada_familia",
        "st_pauls_cathedral",
    ),
    "pragueparks": ("pond", "lizard", "tree_new"),
    "googleurban": (
        "amsterdam",
        "bangkok",
        "barcelona",
        "buenos_aires",
        "cambridge",
        "cannes",
        "chicago",
        "helsinki",
        "madrid",
        "mountain_view",
        "new_orleans",
        "san_francisco",
        "singapore",
        "sydney",
        "tokyo",
        "toronto",
        "zurich",
    ),
}
DATASETS = tuple(TEST_SCENES)
TASKS = ("stereo", "multiview")
KEYPOINT_CATEGORIES = (2048, 8000)
DESCRIPTOR_BYTES_CATEGORIES = (128, 512, 2048, 4096, 8192)
# Descriptors of more bytes need matches of their own.
MAX_DESCRIPTOR_BYTES = 512
DESCRIPTOR_WIDTHS = (64, 2048)


def keypoint_category(max_keypoints: int) -> int:
    """The smallest category that holds the largest number of keypoints of any image.

    Raises:
        DataError: more than the largest category.
    """
    return _smallest(KEYPOINT_CATEGORIES, max_keypoints, "an image has {} keypoints")


def descriptor_category(num_bytes: int) -> int:
    """The smallest category that holds a descriptor of so many bytes.

    Raises:
        DataError: more than the largest category.
    """
    return _smallest(DESCRIPTOR_BYTES_CATEGORIES, num_bytes, "a descriptor has {} bytes")


def _smallest(categories: tuple[int, ...], value: int, what: str) -> int:
    for category in categories:
        if value <= category:
            return category
    raise DataError(f"{what.format(value)}, the benchmark takes at most {categories[-1]}")


def matching_folder(task: Mapping[str, Any]) -> str:
    """Name of the official result folder of the matching stage of a task's configuration."""
    if task.get("use_custom_matches"):
        return str(task["custom_matches_name"]).lower()
    matcher = task["matcher"]
    symmetric, filtering = matcher["symmetric"], matcher["filtering"]
    kind, threshold = str(filtering["type"]).lower(), filtering.get("threshold")
    if kind == "none" or threshold == 1:  # the ratio test is applied all the same
        filtered = "nofilter"
    elif kind.startswith("fginn"):
        filtered = f"filter-fginn-pairwise-{threshold}-{filtering['fginn_radius']}"
    else:
        filtered = f"filter-{kind}-{threshold}"
    parts = [
        str(matcher["method"]),
        "flann" if matcher["flann"] else "bf",
        f"numnn-{matcher['num_nn']}",
        f"dist-{matcher['distance']}",
        f"sym-{symmetric['reduce']}" if symmetric["enabled"] else "nosym",
        filtered,
    ]
    if cap := matcher.get("descriptor_distance_filter"):
        parts.append(f"maxdist-{cap['threshold']:.3f}")
    return "_".join(parts).lower()


def geometry_folder(task: Mapping[str, Any]) -> str:
    """Name of the official result folder of the geometry stage of a stereo configuration."""
    geom = task["geom"]
    method = str(geom["method"]).lower()
    parts = [method]
    if "threshold" in geom:
        parts.append(f"th_{geom['threshold']}")
    if "confidence" in geom:
        parts.append(f"conf_{geom['confidence']}")
    if "max_iter" in geom:
        parts.append(f"{'max_iter' if method.startswith('cmp-degensac') else 'maxiter'}_{geom['max_iter']}")
    if "error_type" in geom:
        parts.append(f"error_{geom['error_type']}")
    if "degeneracy_check" in geom:
        parts.append(f"degencheck_{geom['degeneracy_check']}")
    if "postprocess" in geom:
        parts.append(f"postprocess_{geom['postprocess']}")
    return "_".join(parts).lower()
