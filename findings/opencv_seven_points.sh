#!/usr/bin/env bash
# cv2.findFundamentalMat with FM_7POINT is the seven-point algorithm for seven matches only: for eight or more it is
# least median of squares, the very result of FM_LMEDS.
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
p0, p1, _ = two_views()
seven, _ = cv2.findFundamentalMat(p0[60:67], p1[60:67], cv2.FM_7POINT)
print("seven matches:", seven.shape, "(up to three matrices)")
same = []
for count in (8, 50, 200):
    first, mask = cv2.findFundamentalMat(p0[:count], p1[:count], cv2.FM_7POINT)
    second, _ = cv2.findFundamentalMat(p0[:count], p1[:count], cv2.FM_LMEDS)
    same.append(np.array_equal(first, second))
    print(f"{count} matches: FM_7POINT equals FM_LMEDS: {same[-1]}; {int(mask.sum())} inliers")
assert all(same)
EOF
