"""What a run was computed with, for the record."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def describe_environment() -> dict[str, Any]:
    """Versions, processor and git commit, JSON values; what cannot be found out is None."""
    names = ("torch", "kornia", "numpy", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "command": sys.argv,
        **{name: importlib.metadata.version(name) for name in names},
    }


def git_commit() -> str | None:
    """The commit of the checkout, with ``+`` where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
