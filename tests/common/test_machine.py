"""What is asked of the machine, and what it is told."""

import os
import platform
import subprocess
import sys

import pytest

from common.machine import available_cores

FAULTS = """
import resource, sys
import torch
from common.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(30):
    torch.ones(10_000_000)  # until the holes that alignment leaves are taken
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of the GNU C library")
def test_the_pages_of_large_tensors_are_asked_for_once() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("default", "keep")
    }
    assert faults["keep"] < 100  # 40 MB are 9766 pages of 4 KiB, or 611 of 64 KiB
    assert faults["default"] > 5 * 600


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_the_cores_of_the_process_count() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert available_cores() == len(mine)


HOLES = """
import resource
import torch
from common.machine import give_freed_memory_back
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
torch.ones(4_000_000)  # given back at once: from now on blocks of this size are kept
blocks = [torch.ones(2_000_000) for _ in range(40)]
del blocks[::2]  # 160 MB in holes
before = resident_mib()
assert give_freed_memory_back()
print(before - resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of the GNU C library")
def test_holes_between_tensors_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True)
    assert float(done.stdout) > 100.0
