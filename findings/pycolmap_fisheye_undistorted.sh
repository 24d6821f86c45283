#!/usr/bin/env bash
# Camera.is_undistorted() of COLMAP looks at the distortion parameters, not at the kind of camera: a fisheye whose
# parameters are 0, or that has none, "is undistorted". Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
"$folder/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import pycolmap

print("pycolmap", pycolmap.__version__)
ray, said = np.array([[1.0, 0.0, 1.0]]), {}
for kind, params in (
    ("PINHOLE", [300, 300, 320, 240]), ("FISHEYE", [300, 300, 320, 240]), ("OPENCV_FISHEYE", [300, 300, 320, 240, 0, 0, 0, 0])
):
    camera = pycolmap.Camera(model=kind, width=640, height=480, params=params)
    said[kind] = camera.is_undistorted()
    x = camera.img_from_cam(ray)[0][0] - 320
    print(f"{kind}: is_undistorted() {said[kind]}; a ray at 45 degrees lies {x:.1f} px from the centre, 300 for a pinhole")
sys.exit(not all(said.values()))
EOF
