"""From a token to a descriptor: the built-in names, and those of other packages by entry point."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from eval.features.base import Descriptor
from eval.features.tokens import Token, parse_token
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest

# Other packages register `name = "module:factory"`; factory(token, weights) -> Descriptor.
ENTRY_POINT_GROUP = "kornia_hardnet8.features"
WEIGHTS_VARIABLE = "KORNIA_HARDNET8_WEIGHTS"

Factory = Callable[[Token, "Path | None"], Descriptor]


@dataclass(frozen=True)
class Entry:
    """A built-in name: where its factory is, the usual name of its file of weights (None: it needs none)."""

    factory: str
    weights_file: str | None = None
    help: str = ""


BUILT_IN: dict[str, Entry] = {
    "sift": Entry("eval.features.sift:sift", help="OpenCV SIFT"),
    "rootsift": Entry("eval.features.sift:rootsift", help="square root of L1-normalised SIFT"),
    "tfeat": Entry("eval.features.tfeat:tfeat", "tfeat-liberty.params", "TFeat (kornia's layers)"),
    "hardtfeat": Entry("eval.features.tfeat:hardtfeat", "HardTFeat.pth", "TFeat's layers trained with HardNet's loss"),
    "mkd": Entry("eval.features.mkd:mkd", "mkd-concat-64.pth", "multiple-kernel descriptor; whitening=, set="),
    "kornia-hardnet8": Entry("eval.features.hardnet:kornia_hardnet8", help="kornia's HardNet8; untrained without @"),
}
_HARDNET = "eval.features.hardnet"


def known_names() -> list[str]:
    """Every name that :func:`load` takes, sorted."""
    from eval.features.hardnet import names

    return sorted({*BUILT_IN, *names(), *(point.name for point in _plugins())})


def load(text: str) -> Descriptor:
    """Build the descriptor that a token names; nothing is downloaded.

    Weights: the path after ``@``; without it, for names that need weights, the usual file name in the folder that the
    environment variable KORNIA_HARDNET8_WEIGHTS names.

    Raises:
        UsageError: malformed token, unknown name or option (the close ones are named).
        MissingFileError: no weights where they are looked for.
        DataError: a file that does not hold the weights of this network.
    """
    token = parse_token(text)
    if token.name in BUILT_IN:
        entry = BUILT_IN[token.name]
        module, _, attribute = entry.factory.partition(":")
        factory: Factory = getattr(importlib.import_module(module), attribute)
        return factory(token, find_weights(token, entry.weights_file))
    from eval.features import hardnet

    if token.name in hardnet.names():
        return hardnet.hardnet8(token, find_weights(token, None))
    for point in _plugins():
        if point.name == token.name:
            return _load_plugin(point, token)
    raise UsageError(f"unknown descriptor {token.name!r}{closest(token.name, known_names()) or _list()}")


def find_weights(token: Token, usual_name: str | None) -> Path | None:
    """The file of weights of a token, or None for a name that needs none."""
    if token.weights is not None:
        if not token.weights.is_file():
            raise MissingFileError(f"{token.text}: {token.weights} is not there")
        return token.weights
    if usual_name is None:
        return None
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        raise MissingFileError(
            f"{token.text} needs weights: write {token.name}@PATH, or name the folder that holds {usual_name} "
            f"in {WEIGHTS_VARIABLE}"
        )
    path = Path(folder).expanduser() / usual_name
    if not path.is_file():
        raise MissingFileError(f"{token.text}: {path} is not there ({WEIGHTS_VARIABLE}={folder})")
    return path


def _plugins() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def _load_plugin(point: EntryPoint, token: Token) -> Descriptor:
    weights = find_weights(token, None)
    try:
        descriptor = point.load()(token, weights)
    except ImportError as error:
        raise DataError(f"{token.text}: {point.value} does not import: {error}") from error
    if not isinstance(descriptor, Descriptor):
        raise DataError(f"{token.text}: {point.value} gave {type(descriptor).__name__}, not a Descriptor")
    return descriptor


def _list() -> str:
    return f"; known: {', '.join(known_names())}"
