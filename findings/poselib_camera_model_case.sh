#!/usr/bin/env bash
# poselib takes a camera model in small letters for a camera without calibration, without a word: no inlier is left.
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
p0, p1, _ = two_views()
counts = {}
for model in ("PINHOLE", "pinhole"):
    camera = {"model": model, "width": 1000, "height": 1000, "params": [800, 800, 500, 500]}
    pose, info = poselib.estimate_relative_pose(p0, p1, camera, camera, {"max_epipolar_error": 1.0}, {})
    counts[model] = info["num_inliers"]
    print(f"{model}: {info['num_inliers']} of {len(p0)} inliers, |t| = {np.linalg.norm(pose.t):.4f}")
assert counts["PINHOLE"] > 80
assert counts["pinhole"] < 10
EOF
