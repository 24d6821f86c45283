"""SIGTERM and Ctrl-C outside a command's work: while its modules are imported, and while the interpreter is torn down.

Both take seconds, for torch's sake. This module imports nothing that does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LINES = {signal.SIGTERM: b"error: stopped by SIGTERM\n", signal.SIGINT: b"error: interrupted\n"}


@contextmanager
def answered_signals() -> Iterator[None]:
    """A signal ends the process with one line while modules are imported, and is ignored after the block."""
    heard = [number for number in _LINES if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in heard:  # the interpreter takes Python's handlers down before it ends
            signal.signal(number, signal.SIG_IGN)


def _leave(number: int, _: object) -> None:
    with suppress(OSError):
        os.write(2, _LINES[signal.Signals(number)])
    os._exit(128 + number)
