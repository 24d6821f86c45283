"""``--ds demo``: a patch store of drawn pictures, for trying things without any data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from common.cache import demo_folder
from common.images import load_cv2
from train.stores.photos import PhotoSettings, build_photos

NUM_PICTURES, HEIGHT, WIDTH = 6, 480, 640


def demo_store() -> Path:
    """The folder of the store, built in half a minute when it is missing; see :func:`common.cache.demo_folder`.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    return demo_folder("demo-patches", __name__, ("train.stores", "common", "kornia_hardnet8"), _build)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(NUM_PICTURES):
            load_cv2().imwrite(str(Path(temporary) / f"{number}.png"), draw_picture(number))
        build_photos(temporary, folder, PhotoSettings(num_views=4, max_labels=200))


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
