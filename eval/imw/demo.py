"""The built-in scene: a rendered market square in the layout of the IMW benchmark, made when it is first asked for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common.cache import demo_folder

SCENE_NAME = "market_square"
BAGS = {5: 4, 10: 2}


def cached_scene(seed: int = 0) -> Path:
    """The folder of the scene, rendered when it is missing; see :func:`common.cache.demo_folder`."""
    name = f"demo-seed{seed}/{SCENE_NAME}"
    return demo_folder(name, __name__, ("rendered", "eval.imw"), lambda folder: build(folder, seed))


def build(folder: Path, seed: int = 0) -> Path:
    """Render the scene into ``folder`` (new or empty): 12 photographs in ``folder/set_100``, with exact depth maps.

    The same seed gives the same files on one machine; about 20 s on one core. Returns ``folder``.

    Raises:
        DataError: the folder is there and not empty.
        MissingDependencyError: OpenCV or h5py is not installed.
    """
    from common.shell import progress
    from eval.imw import build as imw
    from eval.imw.scene import Camera
    from kornia_hardnet8.files import atomic_dir
    from rendered import town
    from rendered.render import observations

    with atomic_dir(folder) as temporary, tempfile.TemporaryDirectory(dir=temporary) as photographs:
        shots = list(progress(town.photographs(seed), town.NUM_VIEWS, what="rendering", unit="image"))
        seen = observations([shot.view for shot in shots], [shot.depth for shot in shots])
        views, depths = [], {}
        for number, (shot, points) in enumerate(zip(shots, seen, strict=True)):
            file = Path(photographs) / f"view_{number:02d}.jpg"
            file.write_bytes(shot.jpeg)
            camera = Camera(shot.view.K, shot.view.R, shot.view.t)
            views.append(imw.SceneImage(file.stem, file, (shot.view.width, shot.view.height), camera, points))
            depths[file.stem] = shot.depth
        imw.write_scene(views, temporary / "scene", BAGS, seed, depths)
        (temporary / "scene" / "set_100").rename(temporary / "set_100")
        shutil.rmtree(temporary / "scene")
    return folder
