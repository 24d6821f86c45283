"""``--data demo``: strips cut from rendered walls, made when they are first asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.demo import demo_folder
from eval.core.image_sequences import find_sequences
from eval.hpatches.build import BuildSettings
from eval.hpatches.build_command import build_from_files, write_sequence
from kornia_hardnet8.files import atomic_dir
from rendered.planes import write_planes

PATCHES = 150  # a sequence


def cached_demo(seed: int = 0) -> Path:
    """The folder of the demo strips, built when it is missing; see :func:`common.demo.demo_folder`."""
    name = f"hpatches-demo-seed{seed}"
    return demo_folder(name, __name__, ("rendered", "eval.hpatches"), lambda folder: build_demo(folder, seed))


def build_demo(folder: Path, seed: int = 0, patches: int = PATCHES) -> Path:
    """Render walls, cut strips of them into ``folder`` (new); returns it."""
    settings = BuildSettings(detections=600, max_patches=patches, seed=seed)
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(folder) as temporary:
        for sequence in find_sequences(write_planes(Path(scratch) / "walls", seed)):
            built = build_from_files(sequence, settings)
            write_sequence(built, [H for _, _, H in sequence.targets], temporary / sequence.name)
    return folder
