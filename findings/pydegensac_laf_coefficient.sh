#!/usr/bin/env bash
# pydegensac's laf_consistensy_coef (sic) never takes a match out of the mask: true places whose affine frames
# disagree by a right angle stay inliers.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 pydegensac==0.3.0
"$folder/venv/bin/python" - "$folder" <<'EOF'
import cv2
import numpy as np
import pydegensac

def two_views(num=200, wrong=60, noise=0.6, t=(-0.8, 0.1, 0.2)):
    """Matched pixels of two cameras of focal length 800 that see a cloud of points; the first ones are wrong."""
    rng = np.random.default_rng(0)
    R = cv2.Rodrigues(np.array([0.05, 0.2, -0.1]))[0]
    x0 = rng.uniform([-2, -2, 3], [2, 2, 9], (num, 3))
    x1 = x0 @ R.T + t
    p0, p1 = (800.0 * x[:, :2] / x[:, 2:] + 500.0 + rng.normal(0, noise, (num, 2)) for x in (x0, x1))
    p1[:wrong] = rng.uniform(0, 1000, (wrong, 2))
    return p0, p1, R

print("opencv", cv2.__version__, "pydegensac 0.3.0")
p0, p1, _ = two_views(noise=0.1)
frames0, frames1 = (np.column_stack([p, np.tile([10.0, 0, 0, 10], (len(p), 1))]) for p in (p0, p1))
frames1[60:80, 2:] = [0, 10, -10, 0]
for coefficient in (-1.0, 2.0, 0.01):
    _, mask = pydegensac.findFundamentalMatrix(frames0, frames1, 0.75, 0.9999, 10000, coefficient, seed=0)
    print(f"coefficient {coefficient}: {mask[60:80].sum()} of 20 matches with turned frames, "
          f"{mask[80:].sum()} of 120 with like frames, {mask[:60].sum()} of 60 wrong ones are inliers")
    if coefficient == 2.0:
        assert mask[60:80].mean() > 0.7
EOF
