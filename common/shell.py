"""What the command lines share: commands by name, progress and flags."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

from kornia_hardnet8 import __version__
from kornia_hardnet8.command import HelpFormatter, Parser, run_command
from kornia_hardnet8.errors import HardNet8Error, closest
from kornia_hardnet8.files import check_output, check_words

T = TypeVar("T")
PLAIN_PROGRESS_S = 30.0


def set_up_logging(verbosity: int) -> None:
    """Log to stderr: warnings with -1 (quiet), information with 0, debugging with 1 and more."""
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for name in ("kornia_hardnet8", "common", "train", "eval", "benchmarks"):
        logging.getLogger(name).setLevel(level)


def progress(
    items: Iterable[T],
    total: int | None = None,
    what: str = "",
    unit: str = "it",
    status: Callable[[], str] = str,
    done: int = 0,
) -> Iterator[T]:
    """Iterate with a tqdm bar on a terminal, else with one plain line on stderr every 30 s; ``status()`` ends it.

    ``done`` of the ``total`` were done before. Where there are more items than said, the total is no longer shown.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(items, total=total, initial=done, desc=what, unit=unit, file=sys.stderr)
        for item in bar:
            yield item
            bar.set_postfix_str(status(), refresh=False)
        return
    log = logging.getLogger("kornia_hardnet8.progress")
    start = last = time.monotonic()
    for count, item in enumerate(items, done + 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_PROGRESS_S:
            last = now
            total = total if total and count <= total else None
            rate = (count - done) / (now - start)
            left = f"about {duration((total - count) / rate)} left" if total else ""
            parts = filter(None, (f"{rate:.3g} {unit}/s", left, status()))
            log.info("%s: %d%s %s, %s", what, count, f"/{total}" if total else "", unit, ", ".join(parts))


def duration(seconds: float) -> str:
    """A time to read: its two largest units, as ``4 d 16 h``; below a minute in seconds."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours // 24} d {hours % 24} h"


def dispatch(
    program: str,
    description: str,
    commands: Mapping[str, tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
    argv: Sequence[str],
) -> int:
    """Run the command that ``argv`` names.

    ``commands`` maps a name of one word or two (``build photos``) to (module, one line of help). The module is imported
    only when its command is asked for; it offers ``configure(parser)`` and ``run(args) -> int | None``, one that is
    named ``module:x`` offers ``configure_x`` and ``run_x``. ``groups`` are their headings in the help.
    """
    if list(argv) == ["--version"]:
        print(__version__)
        return 0
    name, rest = split_command(commands, argv)
    if name in commands:
        return run_module(f"{program} {name}", *commands[name], rest)
    first, _, second = name.partition(" ")
    family = [known for known in commands if known.startswith(f"{first} ")] if first else []
    asked = second if family else first
    if asked not in ("", "-h", "--help"):
        owner = f"{program} {first}" if family else program
        known = [name.partition(" ")[2] for name in family] or {name.partition(" ")[0] for name in commands}
        print(f"error: {owner} has no command {asked!r}{closest(asked, known)}", file=sys.stderr)
        return 2
    shown = {first: family} if family else groups
    width = max(len(name) for names in shown.values() for name in names)
    lines = "\n".join(
        f"\n{heading}:\n" + "\n".join(f"  {name:{width}}  {commands[name][1]}" for name in names)
        for heading, names in shown.items()
    )
    usage = f"usage: python -m {program} COMMAND …\n\n{description}\n{lines}\n\nEach has its own --help; "
    usage += "--version prints the version.\n"
    print(usage, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def split_command(commands: Iterable[str], argv: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command that ``argv`` begins with, of two words where such ones begin so, and what follows."""
    words = 2 if argv and any(name.startswith(f"{argv[0]} ") for name in commands) else 1
    return " ".join(argv[:words]), list(argv[words:])


def run_module(title: str, module_name: str, description: str, argv: Sequence[str]) -> int:
    """Parse ``argv`` for one command and run it, with the flags that every command shares."""

    def command() -> int | None:
        check_words(argv)
        run, parser = command_parser(title, module_name, description)
        args = parser.parse_args(argv)
        set_up_logging(-1 if args.quiet else args.verbose)
        return run(args)

    return run_command(command, debug="--debug" in argv)


def command_parser(
    title: str, module_name: str, description: str
) -> tuple[Callable[[argparse.Namespace], int | None], argparse.ArgumentParser]:
    """What runs a command, and the parser of its flags."""
    module_name, _, name = module_name.partition(":")
    module, end = importlib.import_module(module_name), f"_{name}" if name else ""
    parser = Parser(
        prog=f"python -m {title}", description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )
    getattr(module, f"configure{end}")(parser)
    parser.set_defaults(verbose=0, quiet=False, debug=False)
    add_message_flags(parser)
    return getattr(module, f"run{end}"), parser


def add_message_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command: ``-v``, ``-q`` and ``--debug``.

    They have no defaults, so that a sub-parser that has them too leaves what was given before its name.
    """
    group = parser.add_argument_group("messages")
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}
    group.add_argument("-v", "--verbose", action="count", help="say more on stderr", **unset)
    group.add_argument("-q", "--quiet", action="store_true", help="say only warnings and errors on stderr", **unset)
    group.add_argument("--debug", action="store_true", help="show the traceback of an error", **unset)
    group.add_argument("--version", action="version", version=__version__, help="print the version of the package")


def seed_number(text: str) -> int:
    """The type of a ``--seed``: 0 … 2^31 - 1, what every generator in use takes."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"a seed is a whole number of 0 to 2^31 - 1, got {text!r}")
    return value


def output_file(text: str) -> Path:
    """The type of a flag that names a file to write: a place where none can be written is refused before the work."""
    return _output(text, is_folder=False)


def output_folder(text: str) -> Path:
    """The type of a flag that names a folder to make or to go on with; see :func:`output_file`."""
    return _output(text, is_folder=True)


def _output(text: str, is_folder: bool) -> Path:
    try:
        check_output(text, is_folder)
    except HardNet8Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def positive_number(text: str) -> int:
    """The type of a flag that counts: a whole number of 1 and more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 and more is needed, got {text!r}")
    return value
