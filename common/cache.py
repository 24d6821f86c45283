"""Results of stages on disk, found again by all that influences them.

A result lies in ``<root>/<stage>/<key>.h5``; the key is a short hash of the canonical JSON of its configuration, which
is stored inside and compared when read. Files appear by renaming, so a killed process leaves no half result and
several processes may share one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.h5files import Arrays, read_h5, write_h5
from kornia_hardnet8.errors import DataError

# Raised when the code of a stage changes what it stores.
FORMAT = "cache/1"
_KEY_LENGTH = 16
_CONFIGURATION = "configuration"


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Cache:
    """A folder of stage results.

    Args:
        root: the folder; made when the first result is stored.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def key(self, stage: str, configuration: Mapping[str, Any]) -> str:
        """Short hash of a stage and everything that influences its result."""
        return hashlib.sha256(self._text(stage, configuration).encode()).hexdigest()[:_KEY_LENGTH]

    def path(self, stage: str, configuration: Mapping[str, Any]) -> Path:
        """Where the result of a stage lies."""
        return self.root / stage / f"{self.key(stage, configuration)}.h5"

    def get(self, stage: str, configuration: Mapping[str, Any]) -> Arrays | None:
        """The stored arrays, or None.

        Raises:
            DataError: a damaged file, or one made with another configuration.
        """
        path = self.path(stage, configuration)
        if not path.is_file():
            return None
        try:
            arrays, attributes = read_h5(path)
        except DataError as error:
            raise DataError(f"{error}; remove it and it is computed again") from None
        if attributes.get(_CONFIGURATION) != self._text(stage, configuration):
            raise DataError(f"{path} was made with another configuration: remove it or choose another --cache")
        return arrays

    def put(self, stage: str, configuration: Mapping[str, Any], arrays: Arrays) -> None:
        """Store the arrays of a stage."""
        write_h5(self.path(stage, configuration), arrays, {_CONFIGURATION: self._text(stage, configuration)})

    def compute(self, stage: str, configuration: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The stored arrays; when there are none, those of ``make``, stored."""
        arrays = self.get(stage, configuration)
        if arrays is None:
            arrays = make()
            self.put(stage, configuration, arrays)
        return arrays

    @staticmethod
    def _text(stage: str, configuration: Mapping[str, Any]) -> str:
        return canonical_json({"format": FORMAT, "stage": stage, **configuration})
