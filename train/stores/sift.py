"""SIFT keypoints of OpenCV as arrays."""

from __future__ import annotations

import numpy as np

from common.images import load_cv2


def detect_sift(
    image: np.ndarray, contrast: float = 0.04, max_keypoints: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detect SIFT keypoints in a uint8 gray image.

    Args:
        image: (H, W).
        contrast: OpenCV's contrast threshold.
        max_keypoints: keep those of the largest response; 0 keeps all.

    Returns:
        xy (n, 2) with pixel centres at integers, sigma (n,) in pixels, angle (n,) in radians from x towards y.
    """
    cv2 = load_cv2()
    sift = cv2.SIFT_create(contrastThreshold=contrast, enable_precise_upscale=True)
    keypoints = sift.detect(image, None)
    rows = np.array([(*k.pt, k.size / 2, np.deg2rad(k.angle), k.response) for k in keypoints], dtype=np.float64)
    rows = rows.reshape(-1, 5)
    order = np.lexsort((rows[:, 3], rows[:, 2], rows[:, 1], rows[:, 0], -rows[:, 4]))
    rows = rows[order[: max_keypoints or None]]
    return rows[:, :2], rows[:, 2], rows[:, 3]
