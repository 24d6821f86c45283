#!/usr/bin/env bash
# COLMAP's mapper makes no model of two photographs, however many matches they have: it drops the tracks that two
# images alone see (triangulation.ignore_two_view_tracks).
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
import tempfile
from pathlib import Path

import pycolmap

print("pycolmap", pycolmap.__version__)
pycolmap.logging.minloglevel = 3
folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
pycolmap.set_random_seed(0)
scene = pycolmap.SyntheticDatasetOptions()
scene.num_rigs, scene.num_cameras_per_rig, scene.num_frames_per_rig, scene.num_points3D = 1, 1, 2, 400
with pycolmap.Database.open(folder / "database.db") as database:
    pycolmap.synthesize_dataset(scene, database)
(folder / "images").mkdir()
counts = {}
for ignore in (True, False):
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = 2
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
    options.triangulation.ignore_two_view_tracks = ignore
    out = folder / str(ignore)
    out.mkdir()
    models = pycolmap.incremental_mapping(folder / "database.db", folder / "images", out, options)
    counts[ignore] = [(model.num_reg_images(), model.num_points3D()) for model in models.values()]
    print(f"ignore_two_view_tracks={ignore}: (images, points) of the models: {counts[ignore]}")
assert counts[True] == []
assert counts[False] and counts[False][0][0] == 2
EOF
