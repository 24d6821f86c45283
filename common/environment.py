"""What a run was computed with, for the record."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

import torch

from common.shell import git_revision


def describe_environment() -> dict[str, Any]:
    """Versions, processor and git commit, JSON values; what cannot be found out is None."""
    names = ("torch", "kornia", "numpy", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git_commit": git_revision(),
        "command": sys.argv,
        **{name: importlib.metadata.version(name) for name in names},
    }
