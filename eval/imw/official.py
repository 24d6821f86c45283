"""Names and limits of the official benchmark."""

from __future__ import annotations

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
# Descriptors of more bytes need matches of their own.
MAX_DESCRIPTOR_BYTES = 512
DESCRIPTOR_WIDTHS = (64, 2048)


def keypoint_category(max_keypoints: int) -> int:
    """The smallest category that holds the largest number of keypoints of any image.

    Raises:
        DataError: more than the largest category.
    """
    fitting = [category for category in KEYPOINT_CATEGORIES if max_keypoints <= category]
    if not fitting:
        raise DataError(
            f"an image has {max_keypoints} keypoints, the benchmark takes at most {KEYPOINT_CATEGORIES[-1]}"
        )
    return fitting[0]
