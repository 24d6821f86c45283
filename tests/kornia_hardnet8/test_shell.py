"""What all commands share."""

from __future__ import annotations

import argparse
import os

import pytest

from kornia_hardnet8._shell import available_cores, seed_number


@pytest.mark.parametrize("text", ["-1", "2147483648", "1.5", "x", ""])
def test_a_seed_that_generators_refuse_is_refused_by_the_parser(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"0 to 2\^31 - 1"):
        seed_number(text)
    assert seed_number("0") == 0
    assert seed_number("2147483647") == 2**31 - 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_the_cores_of_the_process_count() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert available_cores() == len(mine)
