#!/usr/bin/env bash
# OpenCV reads a TIFF of floats as a colour picture when it has three channels, and not at all when it has one: such a
# file decodes only unchanged. Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - 2>/dev/null <<'EOF'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)
values = np.random.default_rng(0).random((40, 50)).astype(np.float32)
flags = {"colour, any depth": cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, "unchanged": cv2.IMREAD_UNCHANGED}
found = {}
for channels in (1, 3):
    image = values if channels == 1 else np.dstack([values] * 3)
    for name, flag in flags.items():
        read = cv2.imdecode(cv2.imencode(".tif", image)[1], flag)
        found[channels, name] = read is not None
        print(f"{channels} channel(s), {name}: {'nothing' if read is None else (read.shape, str(read.dtype))}")
expected = {(1, "colour, any depth"): False, (1, "unchanged"): True, (3, "colour, any depth"): True, (3, "unchanged"): True}
sys.exit(found != expected)
EOF
