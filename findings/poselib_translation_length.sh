#!/usr/bin/env bash
# The translation of poselib's relative pose is not of length 1: bundle adjustment moves it.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 poselib==2.0.5
"$folder/venv/bin/python" - "$folder" <<'EOF'
import cv2
import numpy as np
import poselib

def two_views(num=200, wrong=60, noise=0.6, t=(-0.8, 0.1, 0.2)):
    """Matched pixels of two cameras of focal length 800 that see a cloud of points; the first ones are wrong."""
    rng = np.random.default_rng(0)
    R = cv2.Rodrigues(np.array([0.05, 0.2, -0.1]))[0]
    x0 = rng.uniform([-2, -2, 3], [2, 2, 9], (num, 3))
    x1 = x0 @ R.T + t
    p0, p1 = (800.0 * x[:, :2] / x[:, 2:] + 500.0 + rng.normal(0, noise, (num, 2)) for x in (x0, x1))
    p1[:wrong] = rng.uniform(0, 1000, (wrong, 2))
    return p0, p1, R

print("opencv", cv2.__version__, "poselib 2.0.5")
lengths = []
camera = {"model": "PINHOLE", "width": 1000, "height": 1000, "params": [800, 800, 500, 500]}
for noise in (0.2, 0.5, 1.0, 2.0, 3.0):
    p0, p1, _ = two_views(noise=noise)
    pose, _ = poselib.estimate_relative_pose(p0, p1, camera, camera, {"max_epipolar_error": 2.0}, {})
    lengths.append(float(np.linalg.norm(pose.t)))
    print(f"noise {noise} px: |t| = {lengths[-1]:.6f}")
assert max(abs(length - 1) for length in lengths) > 1e-5
EOF
