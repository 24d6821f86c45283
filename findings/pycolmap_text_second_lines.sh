#!/usr/bin/env bash
# In a text model every image has two lines, the second one empty for an image without keypoints. Without these empty
# lines COLMAP takes every other image for keypoints and says nothing. Exits non-zero when that is no longer so.
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
lines = [f"{k} 1 0 0 0 {-k} 0 0 1 {k}.png" for k in (1, 2, 3, 4)]
counts = {}
for kind, gap in (("with empty lines", "\n\n"), ("without", "\n")):
    place = Path(sys.argv[1]) / kind
    place.mkdir()
    (place / "cameras.txt").write_text("1 PINHOLE 64 48 60 60 32 24\n")
    (place / "images.txt").write_text(gap.join(lines) + gap)
    (place / "points3D.txt").write_text("")
    counts[kind] = pycolmap.Reconstruction(str(place)).num_images()
    print(f"4 images written {kind}: {counts[kind]} read")
sys.exit(counts != {"with empty lines": 4, "without": 2})
EOF
