#!/usr/bin/env bash
# cv2.findEssentialMat with RANSAC or LMEDS returns a stack of up to ten matrices for exactly five matches, the USAC
# methods one; for four the former return None, the latter raise.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - "$folder" <<'EOF'
import cv2
import numpy as np

def two_views(num=200, wrong=60, noise=0.6, t=(-0.8, 0.1, 0.2)):
    """Matched pixels of two cameras of focal length 800 that see a cloud of points; the first ones are wrong."""
    rng = np.random.default_rng(0)
    R = cv2.Rodrigues(np.array([0.05, 0.2, -0.1]))[0]
    x0 = rng.uniform([-2, -2, 3], [2, 2, 9], (num, 3))
    x1 = x0 @ R.T + t
    p0, p1 = (800.0 * x[:, :2] / x[:, 2:] + 500.0 + rng.normal(0, noise, (num, 2)) for x in (x0, x1))
    p1[:wrong] = rng.uniform(0, 1000, (wrong, 2))
    return p0, p1, R

print("opencv", cv2.__version__)
p0, p1, _ = two_views(5, 0, 0.0)
K = np.array([[800.0, 0, 500], [0, 800, 500], [0, 0, 1]])
shapes, few = {}, {}
for name in ("RANSAC", "LMEDS", "USAC_DEFAULT", "USAC_MAGSAC"):
    E, mask = cv2.findEssentialMat(p0, p1, K, getattr(cv2, name), 0.999, 1.0)
    shapes[name] = E.shape
    try:
        few[name] = cv2.findEssentialMat(p0[:4], p1[:4], K, getattr(cv2, name), 0.999, 1.0)[0]
    except cv2.error:
        few[name] = "cv2.error"
    print(f"{name}: five matches {E.shape}, four matches {few[name]}")
assert shapes["RANSAC"][0] > 3 and shapes["LMEDS"][0] > 3
assert shapes["USAC_DEFAULT"] == shapes["USAC_MAGSAC"] == (3, 3)
assert few["RANSAC"] is None and few["USAC_DEFAULT"] == "cv2.error"
EOF
