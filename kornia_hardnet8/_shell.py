"""What the command lines share: one-line errors, exit codes, progress."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeVar

from kornia_hardnet8.errors import HardNet8Error, closest

T = TypeVar("T")
PLAIN_PROGRESS_S = 30.0


def run_command(command: Callable[[], int | None], debug: bool = False) -> int:
    """Run ``command`` and return its exit code: errors become one line on stderr, a traceback only with ``debug``.

    0 when it returns None; 1 for bad data or a failed run, 2 for wrong usage, 130 after Ctrl-C.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HardNet8Error, OSError, MemoryError) as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, HardNet8Error) else 1


def set_up_logging(verbosity: int) -> None:
    """Log to stderr: warnings with -1 (quiet), information with 0, debugging with 1 and more."""
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for name in ("kornia_hardnet8", "train", "eval"):
        logging.getLogger(name).setLevel(level)


def progress(items: Iterable[T], total: int | None = None, what: str = "", unit: str = "it") -> Iterator[T]:
    """Iterate with a tqdm bar on a terminal, else with one plain line on stderr every 30 s."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit=unit, file=sys.stderr)
        return
    log = logging.getLogger("kornia_hardnet8.progress")
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_PROGRESS_S:
            last = now
            rate = done / (now - start)
            left = f", about {(total - done) / rate:.0f} s left" if total else ""
            log.info("%s: %d%s %s, %.3g %s/s%s", what, done, f"/{total}" if total else "", unit, rate, unit, left)


def dispatch(program: str, description: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run the sub-command that ``argv`` names.

    ``commands`` maps a name to (module, one line of help). The module is imported only when its command is asked
    for; it offers ``configure(parser)`` and ``run(args) -> int | None``.
    """
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in commands.items())
    usage = f"usage: python -m {program} COMMAND …\n\n{description}\n\ncommands:\n{lines}\n"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, rest = argv[0], list(argv[1:])
    if name not in commands:
        print(f"error: {program} has no command {name!r}{closest(name, commands)}", file=sys.stderr)
        return 2
    return run_module(f"{program} {name}", *commands[name], rest)


def run_module(title: str, module_name: str, description: str, argv: Sequence[str]) -> int:
    """Parse ``argv`` for one command module and run it, with the flags that every command shares."""

    def command() -> int | None:
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(
            prog=f"python -m {title}", description=description, formatter_class=_HelpFormatter, allow_abbrev=False
        )
        module.configure(parser)
        group = parser.add_argument_group("messages")
        group.add_argument("-v", "--verbose", action="count", default=0, help="say more on stderr")
        group.add_argument("-q", "--quiet", action="store_true", help="say only warnings and errors on stderr")
        group.add_argument("--debug", action="store_true", help="show the traceback of an error")
        args = parser.parse_args(argv)
        set_up_logging(-1 if args.quiet else args.verbose)
        result: int | None = module.run(args)
        return result

    return run_command(command, debug="--debug" in argv)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show a default only where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
            return action.help
        return super()._get_help_string(action)
