"""How the C library's allocator treats the tensors of a training step."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


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
