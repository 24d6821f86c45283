#!/usr/bin/env bash
# An image that the points of a model do not place, COLMAP 4's mapper tries to place by its matches alone
# (structure_less_registration_fallback, on by default), with a slow minimal solver. How long it tries when all of its
# matches are wrong depends on mapper.abs_pose_min_inlier_ratio: with the default of 0.25 more than ten times as long as
# with 0.7, for a model with as many images. Exits non-zero when the former is less than three times as slow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pycolmap

folder = Path(sys.argv[1])
print("pycolmap", pycolmap.__version__)
pycolmap.logging.minloglevel = 2
pycolmap.set_random_seed(0)
scene = pycolmap.SyntheticDatasetOptions()
scene.num_rigs, scene.num_cameras_per_rig, scene.num_frames_per_rig, scene.num_points3D = 2, 1, 6, 200
with pycolmap.Database.open(folder / "scene.db") as database:
    pycolmap.synthesize_dataset(scene, database)
    images = sorted(database.read_all_images(), key=lambda image: image.image_id)
    stranger = images[-1].image_id  # of another place: it keeps matches with the rest, and all of them are wrong
    rng = np.random.default_rng(0)
    for other in images[:-1]:
        pair = (other.image_id, stranger)
        if database.exists_matches(*pair):
            database.delete_matches(*pair)
            database.delete_two_view_geometry(*pair)
        sizes = [database.num_keypoints_for_image(i) for i in pair]
        rows = np.stack([rng.permutation(min(sizes))[:40], rng.permutation(min(sizes))[:40]], axis=1).astype(np.uint32)
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
        geometry.F = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
        geometry.inlier_matches = rows
        database.write_matches(*pair, rows)
        database.write_two_view_geometry(*pair, geometry)

seconds, placed = {}, {}
for ratio in (0.25, 0.7):
    out = folder / str(ratio)
    out.mkdir()
    shutil.copy(folder / "scene.db", out / "database.db")
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = options.mapper.num_threads = 1
    options.multiple_models = options.extract_colors = False
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
    options.mapper.abs_pose_min_inlier_ratio = ratio
    start = time.perf_counter()
    models = pycolmap.incremental_mapping(out / "database.db", folder, out, options)
    seconds[ratio] = time.perf_counter() - start
    placed[ratio] = max((model.num_reg_images() for model in models.values()), default=0)
    print(f"abs_pose_min_inlier_ratio {ratio}: {placed[ratio]} of {len(images)} images, {seconds[ratio]:.1f} s")
sys.exit(not (placed[0.25] == placed[0.7] > 2 and seconds[0.25] > 3 * seconds[0.7]))
EOF
