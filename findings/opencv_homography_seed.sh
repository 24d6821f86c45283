#!/usr/bin/env bash
# cv2.setRNGSeed does not reach cv2.findHomography's RANSAC (nor findFundamentalMat, findEssentialMat): every seed
# gives the same matrix.
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
p0, p1, _ = two_views(noise=2.0)
K = np.array([[800.0, 0, 500], [0, 800, 500], [0, 0, 1]])
calls = {
    "findHomography": lambda: cv2.findHomography(p0, p1, cv2.RANSAC, 3.0, maxIters=50)[0],
    "findFundamentalMat": lambda: cv2.findFundamentalMat(p0, p1, cv2.FM_RANSAC, 1.0, 0.99, 50)[0],
    "findEssentialMat": lambda: cv2.findEssentialMat(p0, p1, K, cv2.RANSAC, 0.99, 1.0, 50)[0],
}
for name, call in calls.items():
    results = []
    for seed in range(6):
        cv2.setRNGSeed(seed)
        results.append(call().tobytes())
    print(f"{name}: {len(set(results))} different result(s) of 6 seeds")
    assert len(set(results)) == 1
EOF
