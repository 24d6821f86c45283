#!/usr/bin/env bash
# A pycolmap.Camera with the right parameters counts as an uncalibrated one: estimate_two_view_geometry takes the
# fundamental matrix, without a warning, unless has_prior_focal_length is set, which is False by default. Before a
# façade, which leaves that matrix nearly open, it costs degrees. Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
cat >"$folder/program.py" <<'EOF'
import sys

import numpy as np
import pycolmap

print("pycolmap", pycolmap.__version__)
random = np.random.default_rng(0)
angle = 0.2
R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
t = np.array([-1.0, 0.1, 0.05])
matches = np.repeat(np.arange(300, dtype=np.uint32)[:, None], 2, axis=1)
options = pycolmap.TwoViewGeometryOptions(compute_relative_pose=True, force_H_use=False, max_H_inlier_ratio=1.0)
options.ransac.random_seed = 0
options.ransac.max_error = 1.0


def pixels(points: np.ndarray) -> np.ndarray:
    return points[:, :2] / points[:, 2:] * 500 + [320, 240] + random.normal(scale=0.5, size=(len(points), 2))


def estimate(first: np.ndarray, second: np.ndarray, known: bool | None) -> tuple[str, float]:
    camera = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[500, 500, 320, 240])
    if known is not None:
        camera.has_prior_focal_length = known
    geometry = pycolmap.estimate_two_view_geometry(camera, first, camera, second, matches, options)
    turned = geometry.cam2_from_cam1.rotation.matrix() @ R.T
    error = np.degrees(np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1)))
    return pycolmap.TwoViewGeometryConfiguration(geometry.config).name, float(error)


rows = {None: [], True: []}
for _ in range(20):  # a façade with a few points before it
    scene = random.uniform([-3, -2, 5.99], [3, 2, 6.01], (300, 3))
    scene[:8, 2] -= random.uniform(0.3, 0.6, 8)
    first, second = pixels(scene), pixels(scene @ R.T + t)
    for known, found in rows.items():
        found.append(estimate(first, second, known))
medians = {}
for known, found in rows.items():
    medians[known] = np.median([error for _, error in found])
    names = ", ".join(sorted({name for name, _ in found}))
    said = "by default" if known is None else known
    print(f"has_prior_focal_length {said}: {names}; median error of the rotation {medians[known]:.2f} degrees")
expected = {None: "UNCALIBRATED", True: "CALIBRATED"}
as_said = all(name == expected[known] for known, found in rows.items() for name, _ in found)
sys.exit(not (as_said and medians[None] > 5 * medians[True]))
EOF
"$folder/venv/bin/python" "$folder/program.py"
