#!/usr/bin/env bash
# USAC_DEFAULT, USAC_FAST and USAC_ACCURATE give one and the same essential matrix, bit for bit: for
# cv2.findEssentialMat they are three names of one method (of fundamental matrices they differ).
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
K = np.array([[800.0, 0, 500], [0, 800, 500], [0, 0, 1]])
methods = ("USAC_DEFAULT", "USAC_FAST", "USAC_ACCURATE", "USAC_MAGSAC")
same_F = []
for noise in (0.5, 1.5, 3.0):
    p0, p1, _ = two_views(600, 300, noise)
    E = {m: cv2.findEssentialMat(p0, p1, K, getattr(cv2, m), 0.9999, 1.0, 10000)[0].tobytes() for m in methods}
    F = {m: cv2.findFundamentalMat(p0, p1, getattr(cv2, m), 1.0, 0.9999, 10000)[0].tobytes() for m in methods}
    print(f"noise {noise} px: {len(set(E.values()))} different E, {len(set(F.values()))} different F of {len(methods)} methods")
    assert E["USAC_DEFAULT"] == E["USAC_FAST"] == E["USAC_ACCURATE"] != E["USAC_MAGSAC"]
    same_F.append(F["USAC_DEFAULT"] == F["USAC_FAST"] == F["USAC_ACCURATE"])
assert not all(same_F)
EOF
