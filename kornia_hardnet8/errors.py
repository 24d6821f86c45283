"""The errors that this project raises on purpose.

Every one derives from :class:`HardNet8Error` and from the builtin that fits, so that callers may catch either.
A message is one line: what is wrong, where, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

# Where the distribution is not called as its module.
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "Pillow"}


class HardNet8Error(Exception):
    """Base of all errors of this project."""

    exit_code = 1


class UsageError(HardNet8Error, ValueError):
    """A wrong argument, token or flag: the command line answers with exit code 2."""

    exit_code = 2


class DataError(HardNet8Error, ValueError):
    """A file or an array that is not what it should be."""


class MissingFileError(HardNet8Error, FileNotFoundError):
    """A file or folder that is not there."""


class MissingDependencyError(HardNet8Error, ImportError):
    """An optional package that is not installed; the message holds the line that installs it."""


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean a, b?"`` for the known names nearest to ``name``, or the empty string."""
    names = sorted(set(known))
    lowered = {n.lower(): n for n in names}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.4)
    return f"; did you mean {', '.join(lowered[f] for f in found)}?" if found else ""


def need(module: str, extra: str) -> Any:
    """The module of this dotted name, which the extra ``extra`` installs.

    Raises:
        MissingDependencyError: it is not installed; the message holds the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        top = module.split(".")[0]
        package = _DISTRIBUTIONS.get(top, top)
        raise MissingDependencyError(f"{package} is not installed: pip install 'kornia-hardnet8[{extra}]'") from None
