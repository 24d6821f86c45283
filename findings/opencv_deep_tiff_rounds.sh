#!/usr/bin/env bash
# OpenCV turns pictures of 16 bits a sample into 8 bits in two ways: by v >> 8, and for colour TIFFs by rounding v / 257.
# The same picture as PNG and as TIFF gives other pixels. Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - <<'EOF'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)
gray = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
shifted, rounded = (gray >> 8).astype(np.uint8), np.rint(gray / 257).astype(np.uint8)
ways = {}
for suffix in (".png", ".tif"):
    for kind, image in (("gray", gray), ("colour", np.dstack([gray] * 3))):
        read = cv2.imdecode(cv2.imencode(suffix, image)[1], cv2.IMREAD_COLOR)[..., 0]
        way = "v >> 8" if (read == shifted).all() else "round(v / 257)" if (read == rounded).all() else "neither"
        ways[suffix, kind] = way
        print(f"{kind:6} {suffix}: {way}")
sys.exit(len(set(ways.values())) == 1)
EOF
