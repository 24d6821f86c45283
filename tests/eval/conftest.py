"""Six photographs of a rendered yard with known poses and known focal length; a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rendered.render import Development, Light, ShadowMap, View, develop, radiance
from rendered.solids import Box, Sheet
from rendered.textures import Painter, f32

SIZE = (384, 288)
FOCAL = 400.0


@dataclass(frozen=True)
class Yard:
    """A folder of photographs; poses are world to camera, by file name."""

    images: Path
    poses: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    folder = tmp_path_factory.mktemp("yard") / "my photos"
    (folder / "zweite Straße").mkdir(parents=True)
    rng = np.random.default_rng(0)
    paint = [
        Painter(rng, 8, 6, 60).tint((0.6, 0.5, 0.4)).shade(0.35 * Painter(rng, 8, 6, 60).noise(0.6, 5, 0.9)).done()
        for _ in range(4)
    ]
    solids = [
        Sheet((-10, 10, 0), (20, 0, 0), (0, -20, 0), [paint[0]]),
        Box((0, 6, 0), (14, 1, 6), [paint[1]] * 5),
        Box((-4, 2.5, 0), (2.5, 2.5, 3), [paint[2]] * 5, yaw=0.5),
        Box((3.5, 1.5, 0), (2, 3, 2.2), [paint[3]] * 5, yaw=-0.3),
    ]
    light = Light((0.3, -0.6, 0.8), (1.6, 1.5, 1.4), (0.7, 0.75, 0.85), (0.9, 0.9, 0.95), 0.9)
    center = f32([0, 2, 0])
    shadows = (ShadowMap.of(solids, light.sun, center), ShadowMap.of(solids, (0.05, 0.02, 1), center))
    how = Development(0.0, (1.0, 1.0, 1.0), 1.0, 0.8, 0.5, (0.0, 0.0), 0.01, 0.1)
    sky = Painter(rng, 14, 6, 30).noise(3.0, 4, 0.6)
    poses = {}
    for k, x in enumerate(np.linspace(-4.5, 4.5, 6)):
        name = f"{'zweite Straße/' if k > 3 else ''}bild {k}.jpg"
        R, t = look_at(np.array([x, -8.0 + 0.3 * (k % 2), 1.8 + 0.4 * (k % 3)]), np.array([0.0, 3.0, 1.5]))
        K = np.array([[FOCAL, 0, (SIZE[0] - 1) / 2], [0, FOCAL, (SIZE[1] - 1) / 2], [0, 0, 1]])
        picture = develop(radiance(solids, View(K, R, t, *SIZE), light, shadows, sky), how, rng)
        done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert done
        (folder / name).write_bytes(encoded.tobytes())
        poses[name] = (R, t)
    return Yard(folder, poses)


def look_at(
    center: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ center


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[Path, str, int], Any]:
    """``browser(page, probe, width)``: what the script ``probe`` returns in that page, which must not complain."""
    program = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs a chromium")

    def run(page: Path, probe: str, width: int) -> Any:
        script = (
            "<script>addEventListener('load', () => setTimeout(() => {"
            f"document.title = JSON.stringify((() => {{{probe}}})()); }}, 1500));</script></body>"
        )
        probed = tmp_path / "probed.html"
        probed.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
        flags = [
            *("--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
            *("--enable-logging=stderr", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"),
            # A window is no narrower than 500 pixels: two of the screen make one of the page.
            *(f"--window-size={2 * width},1800", "--force-device-scale-factor=2", "--dump-dom"),
        ]
        line = [program, *flags, probed.as_uri()]
        seen = subprocess.run(line, capture_output=True, text=True, timeout=200, check=True)
        assert "CONSOLE" not in seen.stderr, seen.stderr
        return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", seen.stdout, re.S)[1]))

    return run
