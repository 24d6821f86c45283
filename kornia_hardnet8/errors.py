"""The errors that this project raises on purpose.

Every one derives from :class:`HardNet8Error` and from the builtin that fits, so that callers may catch either.
A message is one line: what is wrong, where, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
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


class InputTypeError(HardNet8Error, TypeError):
    """A picture or patches that are no tensor of the kind that is asked for."""


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
    dashes = name[: len(name) - len(name.lstrip("-"))]  # which all options share, so that they say nothing
    near = {n.removeprefix(dashes): lowered[n] for n in lowered}
    close = difflib.get_close_matches(name.lower().removeprefix(dashes), list(near), n=count)
    return f"; did you mean {', '.join(near[f] for f in close)}?" if close else ""


def choices(name: str, known: Iterable[str]) -> str:
    """As :func:`closest`, and ``"; known: a, b"`` where none is near."""
    return closest(name, known) or f"; known: {', '.join(known)}"


def no_tensor(value: object, expected: str) -> InputTypeError:
    """The error for a picture as a path, an array or an object of Pillow where ``expected`` is asked for."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return InputTypeError(
        f"expected {expected}, got {kind}: kornia_hardnet8.read_image(path) reads a file, and of an array (H, W, 3) "
        "of 8 bits torch.from_numpy(array).permute(2, 0, 1) / 255 makes one"
    )


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
        raise MissingDependencyError(
            f"{package} is not installed: pip install '{_requirement(package)}' "
            f"(in a checkout, with all else that is needed: pip install -e '.[{extra}]')"
        ) from None


def _requirement(package: str) -> str:
    """The package with the versions that the metadata of this one ask for."""
    try:
        required = importlib.metadata.requires("kornia-hardnet8") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        required = []
    named = (text.partition(";")[0].strip() for text in required)
    return next((text for text in named if re.split(r"[^\w.-]", text)[0] == package), package)
