"""What is wrong with a submission, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: the file, and the entry or key in it.
        message: what is wrong, what was expected.
        kind: short name of the check.
        level: an ``error`` makes the submission fail now or later; a ``warning`` may be meant.
        official: the official validator sees it too.
    """

    where: str
    message: str
    kind: str
    level: Level = "error"
    official: bool = False

    def __str__(self) -> str:
        note = "" if self.official or self.level == "warning" else " (the official validator does not see this)"
        return f"{self.level}: {self.where}: {self.message}{note}"


@dataclass
class Findings:
    """A growing list of findings; the same check on many entries of a file becomes one of them."""

    items: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    """The scenes, ``DATASET/SCENE``, whose files were checked."""

    def add(self, where: str, message: str, kind: str, level: Level = "error", official: bool = False) -> None:
        """Add one finding."""
        self.items.append(Finding(where, message, kind, level, official))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    @property
    def errors(self) -> list[Finding]:
        """The findings that make the submission fail."""
        return [finding for finding in self.items if finding.level == "error"]


class Entries:
    """Collects one check's findings over the entries of one file: the first is told, the others are counted."""

    def __init__(self, findings: Findings, file: str, total: int) -> None:
        self.findings, self.file, self.total = findings, file, total
        self._found: dict[str, tuple[str, str, Level, bool, int]] = {}

    def add(self, key: str, message: str, kind: str, level: Level = "error", official: bool = False) -> None:
        """One entry fails a check; it counts as official when any of the entries does."""
        first = self._found.get(kind, (key, message, level, False, 0))
        self._found[kind] = (*first[:3], first[3] or official, first[4] + 1)

    def close(self) -> None:
        """Hand over what was found."""
        for kind, (key, message, level, official, count) in self._found.items():
            more = f" (and {count - 1} more of {self.total} entries)" if count > 1 else ""
            self.findings.add(f"{self.file} [{key}]", message + more, kind, level, official)
