"""The built-in scene: a rendered market square in the layout of the IMW benchmark, made when it is first asked for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kornia_hardnet8.errors import DataError

SCENE_NAME = "market_square"
_DRAWN_BY = ("rendered/render.py", "rendered/solids.py", "rendered/textures.py", "rendered/town.py")
_WRITTEN_BY = ("eval/imw/demo_scene.py", "eval/imw/build.py", "eval/imw/bags.py")


def build(folder: Path, seed: int = 0) -> Path:
    """Render the scene into ``folder`` (new or empty): 12 photographs in ``folder/set_100``, with exact depth maps.

    The same seed gives the same files on one machine; about 20 s on one core. Returns ``folder``.

    Raises:
        DataError: the folder is there and not empty.
        MissingDependencyError: OpenCV or h5py is not installed.
    """
    from eval.imw.demo_scene import write

    return write(Path(folder), seed)


def cached_scene(seed: int = 0) -> Path:
    """The folder of the scene, rendered when it is missing; processes that need it at the same time share it.

    It lies in ``$XDG_CACHE_HOME`` (default ``~/.cache``), under a name that changes with the code that draws it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = root / "kornia-hardnet8" / f"demo-{_drawing_hash()}-seed{seed}"
    folder = home / SCENE_NAME
    if (folder / "set_100").is_dir():
        return folder
    try:
        return build(folder, seed)
    except (DataError, OSError):
        if (folder / "set_100").is_dir():  # another process was faster
            return folder
        raise


def _drawing_hash() -> str:
    folder = Path(__file__).parents[2]
    sources = [folder / name for name in (*_DRAWN_BY, *_WRITTEN_BY)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
