#!/usr/bin/env bash
# OpenCV's SIFT gives every place a quarter of a pixel too far right and below, at every scale, unless it is created
# with enable_precise_upscale=True.
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
plain, precise = cv2.SIFT_create(), cv2.SIFT_create(enable_precise_upscale=True)
offsets = {"default": [], "enable_precise_upscale": []}
for sigma in (2, 3, 5, 7, 9):
    for name, sift in zip(offsets, (plain, precise)):
        (x, y), *_ = [k.pt for k in sift.detect(blob(100.4, 90.3, sigma), None)]
        offsets[name].append((x - 100.4, y - 90.3))
        print(f"blob at (100.40, 90.30), sigma {sigma}: {name} finds ({x:.2f}, {y:.2f})")
means = {name: np.mean(values, axis=0) for name, values in offsets.items()}
print({name: mean.round(3).tolist() for name, mean in means.items()})
assert np.abs(means["default"] - 0.25).max() < 0.05
assert np.abs(means["enable_precise_upscale"]).max() < 0.05
EOF
