"""Command lines: flags, an exit code, and one line for an error or a signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from kornia_hardnet8.errors import HardNet8Error, closest


class Parser(argparse.ArgumentParser):
    """Answer wrong usage in one line, an unknown option with the closest one; sub-parsers do too."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"error: {self.prog}: {' '.join(message.split())}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what no parser knows is an error."""
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            if not name.startswith("-"):
                self.error(f"unexpected argument {name!r}: values of one option must follow each other, after its name")
            self.error(f"there is no option {name}{closest(name, self._options(values), count=1)}")
        return values

    def _options(self, values: argparse.Namespace) -> list[str]:
        """The options of this parser and of the sub-parser that was chosen."""
        options: list[str] = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(values, action.dest))
                options += chosen._options(values) if chosen is not None else []
            elif action.help != argparse.SUPPRESS:
                options += action.option_strings
        return options


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show a default only where there is one to show; a blank line begins a paragraph."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(HelpFormatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
            return action.help
        return super()._get_help_string(action)


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
