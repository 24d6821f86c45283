"""How a command line ends: an exit code, and one line for an error or a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from kornia_hardnet8.errors import HardNet8Error


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems and ``timeout`` send: a command cleans up after it as after Ctrl-C."""


def run_command(command: Callable[[], int | None], debug: bool = False) -> int:
    """Run ``command`` and return its exit code: errors become one line on stderr, a traceback only with ``debug``.

    0 when it returns None; 1 for bad data or a failed run, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with _stopped_by_signals():
        try:
            return command() or 0
        except Terminated:
            print("error: stopped by SIGTERM", file=sys.stderr)
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (HardNet8Error, OSError, MemoryError) as error:
            if debug:
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, MemoryError):
                message = f"there is not enough memory ({message})"
            if not isinstance(error, HardNet8Error) and isinstance(error, OSError) and error.filename is not None:
                message = f"cannot read or write {error.filename}: {error.strerror}"
            print(f"error: {message}", file=sys.stderr)
            return error.exit_code if isinstance(error, HardNet8Error) else 1


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into exceptions, once: what comes while a command cleans up is not heard."""

    def stop(number: int, _: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT) if is_main}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
