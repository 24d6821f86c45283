"""The grammar of descriptor tokens: ``name[@weights][:option=value,…]``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kornia_hardnet8.errors import UsageError, closest

# The options are the last ":key=value,…", so that a path of weights may hold a colon.
_OPTIONS = re.compile(r":(?P<options>[A-Za-z]\w*=[^:]*)$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Token:
    """One parsed descriptor token.

    Attributes:
        text: the token as typed.
        name: the registered name.
        weights: the path after ``@``, or None.
        options: the texts after ``:``.
    """

    text: str
    name: str
    weights: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def typed_options(self, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """The options converted by ``known`` (name -> converter that raises ValueError).

        Raises:
            UsageError: an option that ``known`` lacks, or a value that its converter refuses.
        """
        values = {}
        for key, text in self.options.items():
            if key not in known:
                offer = f"; its options: {', '.join(sorted(known))}" if known else "; it has no options"
                raise UsageError(f"{self.text}: {self.name} has no option {key!r}{closest(key, known) or offer}")
            try:
                values[key] = known[key](text)
            except ValueError as error:
                raise UsageError(f"{self.text}: {key}={text} does not work: {error}") from None
        return values


def parse_token(text: str) -> Token:
    """Split a token into its name, path of weights and options.

    Raises:
        UsageError: the text does not follow the grammar.
    """
    rest, options = text.strip(), {}
    match = _OPTIONS.search(rest)
    if match:
        rest = rest[: match.start()]
        for part in match["options"].split(","):
            key, equals, value = part.partition("=")
            if not equals or not key or not value or key in options:
                raise UsageError(f"descriptor {text!r}: {part!r} is not option=value (each option once)")
            options[key] = value
    name, at, weights = rest.partition("@")
    if not _NAME.fullmatch(name) or (at and not weights):
        raise UsageError(f"descriptor {text!r} is not name[@weights][:option=value,…]")
    return Token(text.strip(), name, Path(weights).expanduser() if at else None, options)


def flag(text: str) -> bool:
    """Convert ``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def positive(text: str) -> int:
    """Convert a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("expected a whole number above 0")
    return int(text)


def non_negative(text: str) -> float:
    """Convert a finite number that is not below 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("expected a finite number that is not below 0")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    """A converter that takes one of ``names``."""

    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text

    return convert
