#!/usr/bin/env bash
# cv2.recoverPose lets only points within 50 baselines vote: of a camera that only turned hardly one does, and the
# rotation that it returns can be that of the wrong decomposition. Its overload with distanceThresh hears all.
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

def angle(A, B):
    return np.degrees(np.arccos(np.clip((np.trace(A.T @ B) - 1) / 2, -1, 1)))


print("opencv", cv2.__version__)
p0, p1, R = two_views(wrong=0, noise=0.3, t=(0, 0, 0))
x0, x1 = (p0 - 500) / 800, (p1 - 500) / 800
E, _ = cv2.findEssentialMat(x0, x1, np.eye(3), cv2.RANSAC, 0.9999, 1 / 800)
votes, R50, _, _ = cv2.recoverPose(E, x0, x1)
far, Rfar, _, _, _ = cv2.recoverPose(E, x0, x1, np.eye(3), distanceThresh=1e9)
print(f"recoverPose: {votes} of {len(x0)} votes, rotation off by {angle(R, R50):.1f} degrees")
print(f"with distanceThresh=1e9: {far} votes, rotation off by {angle(R, Rfar):.1f} degrees")
assert votes < 0.1 * len(x0)
assert far > 0.4 * len(x0)
assert angle(R, Rfar) < 1
EOF
