"""``--ds demo``: a patch store of drawn pictures, for trying things without any data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from common import images
from common.images import load_cv2
from kornia_hardnet8 import lafs, patches
from kornia_hardnet8.errors import DataError
from train.stores import frames, linking, photos, sift, views, writer
from train.stores.photos import PhotoSettings, build_photos

NUM_PICTURES, HEIGHT, WIDTH = 6, 480, 640
_MADE_BY = (photos, views, linking, sift, frames, writer, images, lafs, patches)


def demo_store() -> Path:
    """The folder of the store, built in half a minute when it is missing.

    It lies in ``$XDG_CACHE_HOME`` (default ``~/.cache``), under a name that changes with the code that makes it.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_by = (Path(__file__), *(Path(str(module.__file__)) for module in _MADE_BY))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in made_by)).hexdigest()[:12]
    out = root / "kornia-hardnet8" / f"demo-patches-{version}"
    if (out / "meta.json").is_file():
        return out
    cv2 = load_cv2()
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(NUM_PICTURES):
            cv2.imwrite(str(Path(temporary) / f"{number}.png"), draw_picture(number))
        try:
            build_photos(temporary, out, PhotoSettings(num_views=4, max_labels=200))
        except DataError:
            if not (out / "meta.json").is_file():  # another process was faster
                raise
    return out


def draw_picture(seed: int) -> np.ndarray:
    """A gray picture (HEIGHT, WIDTH) of overlapping shapes and texture at many scales, uint8."""
    cv2 = load_cv2()
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH), 128.0, np.float32)
    for size in np.geomspace(120, 4, 500):
        x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        corners = np.stack([x + size * np.cos(angles), y + size * np.sin(angles)], 1)
        layer = image.copy()
        cv2.fillPoly(layer, [np.rint(corners * 16).astype(np.int32)], float(rng.uniform(20, 235)), cv2.LINE_AA, 4)
        image = layer
    for sigma, strength in ((1.0, 6.0), (3.0, 10.0), (10.0, 12.0)):
        noise = cv2.GaussianBlur(rng.standard_normal(image.shape).astype(np.float32), (0, 0), sigma)
        image += strength * noise / noise.std()
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
