"""``--data demo``: strips cut from rendered walls, made when they are first asked for."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from pathlib import Path

from eval.core.image_sequences import find_sequences
from eval.hpatches import build, build_command
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import atomic_dir
from rendered import planes, textures

PATCHES = 150  # a sequence


def cached_demo(seed: int = 0) -> Path:
    """The folder of the demo strips, built when it is missing; processes that need it at the same time share it.

    It lies in ``$XDG_CACHE_HOME`` (default ``~/.cache``), under a name that changes with the code that makes it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    code = "".join(inspect.getsource(module) for module in (planes, textures, build, build_command))
    digest = hashlib.sha256(code.encode()).hexdigest()[:12]
    folder = root / "kornia-hardnet8" / f"hpatches-demo-{digest}-seed{seed}"
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    try:
        return build_demo(folder, seed)
    except (DataError, OSError):
        if folder.is_dir():  # another process was faster
            return folder
        raise


def build_demo(folder: Path, seed: int = 0, patches: int = PATCHES) -> Path:
    """Render walls, cut strips of them into ``folder`` (new); returns it."""
    settings = build.BuildSettings(detections=600, max_patches=patches, seed=seed)
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(folder) as temporary:
        for sequence in find_sequences(planes.write_planes(Path(scratch) / "walls", seed)):
            built = build_command.build_from_files(sequence, settings)
            build_command.write_sequence(built, [H for _, _, H in sequence.targets], temporary / sequence.name)
    return folder
