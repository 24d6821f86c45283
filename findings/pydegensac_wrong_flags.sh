#!/usr/bin/env bash
# pydegensac's symmetric check (on by default) clears the wrong flags of the inlier mask: matches that lie nearest to
# their epipolar lines go, and those farthest from them stay. Without the check the mask is that of the matrix.
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

def distances(F, p0, p1):
    """Sampson's, and to both epipolar lines as one."""
    h0, h1 = (np.column_stack([p, np.ones(len(p))]) for p in (p0, p1))
    l1, l0 = h0 @ F.T, h1 @ F
    a, b = (l1[:, :2] ** 2).sum(1), (l0[:, :2] ** 2).sum(1)
    residual = (h1 * l1).sum(1) ** 2
    return np.sqrt(residual / (a + b)), np.sqrt(residual / a + residual / b)


print("opencv", cv2.__version__, "pydegensac 0.3.0")
p0, p1, _ = two_views(300, 150, 1.5)
betters = 0
for seed in range(10):
    order = np.random.default_rng(seed).permutation(len(p0))
    a, b = p0[order], p1[order]
    F, mask = pydegensac.findFundamentalMatrix(a, b, 1.5, 0.9999, 5000, seed=seed)
    sampson, symmetric = distances(F, a, b)
    cleared = (sampson <= 1.5) & ~mask
    better = cleared & (symmetric < np.median(symmetric[mask])) & (sampson < np.median(sampson[mask]))
    betters += better.sum()
    F2, mask2 = pydegensac.findFundamentalMatrix(a, b, 1.5, 0.9999, 5000, symmetric_error_check=False, seed=seed)
    assert np.array_equal(mask2, distances(F2, a, b)[0] <= 1.5)
    print(f"order {seed}: {mask.sum()} flagged, up to {symmetric[mask].max():.2f} px from the lines; {cleared.sum()} cleared, "
          f"at {np.sort(symmetric[cleared]).round(2).tolist()} px; {better.sum()} of them fit better than most that stayed")
assert betters > 0
EOF
