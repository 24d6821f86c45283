#!/usr/bin/env bash
# COLMAP's max_num_features is no maximum, and what it keeps are the coarsest scales, not the strongest responses: whole
# levels of the scale space are kept until the limit is passed. With a limit of 1000 an image here has twice as many.
# Cut them yourself where budgets must be equal. Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 pycolmap==4.2.1
cat >"$folder/program.py" <<'EOF'
import sys
from pathlib import Path

import cv2
import numpy as np
import pycolmap

folder = Path(sys.argv[1])
print("pycolmap", pycolmap.__version__)
random = np.random.default_rng(0)
image = np.full((480, 640), 128.0)
for sigma in (1, 2, 4, 8, 16, 32):  # structure of every size
    noise = cv2.GaussianBlur(random.standard_normal(image.shape), (0, 0), sigma)
    image += 18 * noise / noise.std()
(folder / "images").mkdir()
cv2.imwrite(str(folder / "images" / "a.png"), image.clip(0, 255).astype(np.uint8))


def keypoints(limit: int) -> np.ndarray:
    database = folder / f"{limit}.db"
    options = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1)
    options.sift.max_num_features = limit
    pycolmap.extract_features(database, folder / "images", extraction_options=options)
    with pycolmap.Database.open(database) as opened:
        return np.asarray(opened.read_keypoints(1))


def scales(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.abs(rows[:, 2] * rows[:, 5] - rows[:, 3] * rows[:, 4]))


every = keypoints(100_000)
print(f"all: {len(every)} keypoints, scales from {scales(every).min():.2f}")
as_found = []
for limit in (100, 500, 1000, 2000):
    rows = keypoints(limit)
    places = len(np.unique(rows[:, :2], axis=0))
    coarsest = np.sort(scales(every))[-len(rows):]  # as many keypoints, chosen by scale
    shared = float((scales(rows) >= coarsest[0]).mean())
    print(f"limit {limit}: {len(rows)} keypoints at {places} places; {shared:.0%} are among the {len(rows)} coarsest")
    as_found.append(places > limit and shared > 0.8)
sys.exit(not all(as_found))
EOF
"$folder/venv/bin/python" "$folder/program.py" "$folder" 2>"$folder/errors" || { cat "$folder/errors"; exit 1; }
