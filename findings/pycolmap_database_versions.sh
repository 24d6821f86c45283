#!/usr/bin/env bash
# A database that COLMAP 4 wrote is no database to COLMAP 3.13 and older, which say so by an SQL error or a missing
# factory; the model of the same run is read by all of them.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -q --disable-pip-version-check)
"${pip[@]}" numpy==2.4.6 pycolmap==4.2.1
for version in 4.0.4 3.13.0 3.11.1; do
    "${pip[@]}" --no-deps --target "$folder/$version" "pycolmap==$version"
done
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path

import pycolmap

pycolmap.logging.minloglevel = 3
folder = Path(sys.argv[1])
pycolmap.set_random_seed(0)
scene = pycolmap.SyntheticDatasetOptions()
scene.num_rigs, scene.num_cameras_per_rig, scene.num_frames_per_rig, scene.num_points3D = 1, 1, 4, 100
(folder / "model").mkdir()
with pycolmap.Database.open(folder / "database.db") as database:
    pycolmap.synthesize_dataset(scene, database).write(folder / "model")
EOF
for version in 4.0.4 3.13.0 3.11.1; do
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" - "$folder" "$version" <<'EOF'
import shutil
import sys
from pathlib import Path

import pycolmap

folder, version = Path(sys.argv[1]), sys.argv[2]
pycolmap.logging.minloglevel = 3
shutil.copy(folder / "database.db", folder / f"{version}.db")
try:
    (folder / f"out{version}").mkdir()
    (folder / "images").mkdir(exist_ok=True)
    models = pycolmap.incremental_mapping(folder / f"{version}.db", folder / "images", folder / f"out{version}")
    answer = f"{len(models)} model(s)"
except RuntimeError as error:
    answer = f"RuntimeError: {error}"
images = pycolmap.Reconstruction(folder / "model").num_reg_images()
print(f"pycolmap {pycolmap.__version__}: database of 4.2.1: {answer}; its model: {images} images")
assert ("RuntimeError" in answer) == (version < "4")
assert images == 4
EOF
done
