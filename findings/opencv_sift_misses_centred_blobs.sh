#!/usr/bin/env bash
# OpenCV's SIFT can miss the plainest blob there is: one whose centre lies right on a sample of the scale space, or
# right between two. Moved by a third of a pixel it is found.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - "$folder" <<'EOF'
import cv2
import numpy as np

def blob(x, y, sigma):
    v, u = np.mgrid[:201, :201]
    return (40 + 180 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2))).round().astype(np.uint8)

print("opencv", cv2.__version__)
sift = cv2.SIFT_create(contrastThreshold=0.002, enable_precise_upscale=True)
counts = {place: len(sift.detect(blob(*place, 9.0), None)) for place in ((100.0, 90.0), (100.4, 90.3))}
for place, count in counts.items():
    print(f"blob of sigma 9 at {place}: {count} keypoints")
assert counts[100.0, 90.0] == 0
assert counts[100.4, 90.3] > 0
EOF
