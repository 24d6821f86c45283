#!/usr/bin/env bash
# poselib takes any option and says nothing of those that it does not know: a misspelt threshold leaves the default. The
# threshold of F and E is max_epipolar_error, that of homographies max_reproj_error, and each is nothing to the other.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 poselib==2.0.5
cat >"$folder/program.py" <<'EOF'
import sys

import numpy as np
import poselib

print("poselib", poselib.__version__)
random = np.random.default_rng(0)
angle = 0.1
R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
t = np.array([-1.0, 0.1, 0.05])


def pixels(points: np.ndarray) -> np.ndarray:
    return points[:, :2] / points[:, 2:] * 500 + [320, 240] + random.normal(size=(len(points), 2))


scene = random.uniform([-2, -2, 4], [2, 2, 8], (300, 3))
first, second = pixels(scene), pixels(scene @ R.T + t)
wall = np.column_stack([scene[:, :2], np.full(300, 6.0)])
on_wall = pixels(wall), pixels(wall @ R.T + t)


def inliers(options: dict[str, float]) -> tuple[int, int]:
    of_f = poselib.estimate_fundamental(first, second, options, {})[1]["num_inliers"]
    of_h = poselib.estimate_homography(*on_wall, options, {})[1]["num_inliers"]
    print(f"{options}: {of_f} inliers of F, {of_h} of H")
    return of_f, of_h


default = inliers({})
epipolar, reprojection = inliers({"max_epipolar_error": 0.3}), inliers({"max_reproj_error": 0.3})
unknown = [inliers({name: 0.3}) for name in ("max_epipolar_err", "max_error", "threshold")]
each_its_own = epipolar[0] < default[0] / 2 and epipolar[1] == default[1]
each_its_own &= reprojection[0] == default[0] and reprojection[1] < default[1] / 2
sys.exit(not (each_its_own and all(found == default for found in unknown)))
EOF
"$folder/venv/bin/python" "$folder/program.py"
