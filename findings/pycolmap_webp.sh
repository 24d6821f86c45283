#!/usr/bin/env bash
# pycolmap does not read WebP: the image is left out of the database, by a line of the log and no error.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1 pillow==13.0.0
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path

from PIL import Image

import pycolmap

print("pycolmap", pycolmap.__version__)
folder = Path(sys.argv[1]) / "images"
folder.mkdir()
names = ["a.jpg", "b.png", "c.webp"]
for name in names:
    Image.linear_gradient("L").save(folder / name)
database = folder.parent / "database.db"
pycolmap.Database.open(database).close()
pycolmap.import_images(database, folder, pycolmap.CameraMode.AUTO, names)
with pycolmap.Database.open(database) as opened:
    there = sorted(image.name for image in opened.read_all_images())
print("asked for", names, "- in the database:", there)
assert there == ["a.jpg", "b.png"]
EOF
