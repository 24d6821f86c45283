#!/usr/bin/env bash
# COLMAP writes the name of an image with a blank into a text model and reads back only its first word; a binary model
# keeps it. Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path

import pycolmap

print("pycolmap", pycolmap.__version__)
model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions())
first = min(model.images)
model.image(first).name = "south wall 1.png"
names = {}
for kind in ("binary", "text"):
    place = Path(sys.argv[1]) / kind
    place.mkdir()
    getattr(model, f"write_{kind}")(str(place))
    names[kind] = pycolmap.Reconstruction(str(place)).image(first).name
    print(f"written 'south wall 1.png' as {kind}, read {names[kind]!r}")
sys.exit(names != {"binary": "south wall 1.png", "text": "south"})
EOF
