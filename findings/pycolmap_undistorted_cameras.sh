#!/usr/bin/env bash
# COLMAP's undistorter makes PINHOLE cameras, but leaves a camera whose distortion is exactly zero as it is: an undistorted
# folder can hold SIMPLE_RADIAL, which tools that read such folders (3D Gaussian splatting) refuse.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 pycolmap==4.2.1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path

import pycolmap
from PIL import Image

print("pycolmap", pycolmap.__version__)
root, models = Path(sys.argv[1]), {}
for k in (0.0, 0.05):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 3, 50
    options.camera_width, options.camera_height = 320, 240
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [280.0, 160.0, 120.0, k]
    model = pycolmap.synthesize_dataset(options)
    images, sparse, out = (root / str(k) / name for name in ("images", "sparse", "out"))
    images.mkdir(parents=True)
    sparse.mkdir()
    for image in model.images.values():
        image.name = f"{image.image_id}.jpg"
        Image.new("RGB", (320, 240), (90, 120, 150)).save(images / image.name)
    model.write(sparse)
    pycolmap.undistort_images(out, sparse, images)
    (camera,) = pycolmap.Reconstruction(out / "sparse").cameras.values()
    models[k] = camera.model_name
    print(f"SIMPLE_RADIAL with k = {k}, undistorted: {camera.model_name} {camera.params.tolist()}")
sys.exit(models != {0.0: "SIMPLE_RADIAL", 0.05: "PINHOLE"})
EOF
