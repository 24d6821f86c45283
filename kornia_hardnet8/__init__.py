"""HardNet8 patch descriptors for kornia: a drop-in for ``kornia.feature.HardNet8`` with weights of its own."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kornia_hardnet8.errors import HardNet8Error
    from kornia_hardnet8.feature import HardNet8Feature
    from kornia_hardnet8.hardnet8 import HardNet8
    from kornia_hardnet8.inference import prepare_for_inference
    from kornia_hardnet8.pair import PairMatches, draw_matches, example_pair, match_pair, read_image

__version__ = "1.0.0"
__all__ = [
    "HardNet8",
    "HardNet8Error",
    "HardNet8Feature",
    "PairMatches",
    "__version__",
    "draw_matches",
    "example_pair",
    "match_pair",
    "prepare_for_inference",
    "read_image",
]

# Where each name lives. All are imported when they are asked for: torch and kornia take two seconds, which
# help texts, errors and processes that need neither are spared.
_HOMES = {
    "HardNet8": "hardnet8",
    "HardNet8Error": "errors",
    "HardNet8Feature": "feature",
    "PairMatches": "pair",
    "draw_matches": "pair",
    "example_pair": "pair",
    "match_pair": "pair",
    "prepare_for_inference": "inference",
    "read_image": "pair",
}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this function finds

    def __getattr__(name: str) -> Any:
        """A public name from its module, or a module of the package."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
