"""What the C library does with blocks that are given back."""

from __future__ import annotations

import torch

# The largest block whose release makes the GNU C library keep freed memory of that size, and twice that in all.
_KEPT_BYTES = 32 * 2**20 - 8192


def keep_freed_blocks() -> None:
    """Have what is freed from now on kept for the next tensor: else each large one is mapped and cleared anew.

    That is a tenth of the time of a network or a detector on a CPU. One block, never touched, is taken and given back.
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)
