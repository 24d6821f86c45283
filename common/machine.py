"""What the computation runs on: cores, memory, and what is written down about them."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; whether it could be told so.

    The GNU C library maps every array above 32 MB anew, and the kernel clears it page by page: with activations of
    that size this took 30 % of a training step on a CPU. Kept, the process stays at the size that it once reached, some
    tenths more than its largest need. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def give_freed_memory_back() -> bool:
    """Give the memory of freed tensors back to the system, between parts of a work; whether it could be done.

    The GNU C library keeps blocks of up to 32 MB, and what it keeps falls into pieces that no large tensor fits into:
    matching 25 photographs pair by pair ended at 590 MB instead of 360.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def git_revision() -> str | None:
    """Commit of the checkout, ``+`` when files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        revision, status = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.strip() + ("+" if status.strip() else "")


def describe_environment() -> dict[str, Any]:
    """Versions, processor and git commit, JSON values; what cannot be found out is None."""
    import torch

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
