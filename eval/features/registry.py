"""From a token to a descriptor or whole local feature: built-in names, and those of other packages by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from eval.features.base import Descriptor, Method, WholeFeature
from eval.features.tokens import Token, parse_token
from eval.features.weights import WEIGHTS_VARIABLE, find_file
from kornia_hardnet8.errors import DataError, UsageError, choices

# Other packages register `name = "module:factory"`; factory(token, weights) -> Descriptor or WholeFeature.
ENTRY_POINT_GROUP = "kornia_hardnet8.features"

Factory = Callable[[Token, "Path | None"], Method]


@dataclass(frozen=True)
class Entry:
    """A built-in name.

    Attributes:
        factory: where its factory is.
        weights_file: usual name of its file of weights; None: it needs none.
        help: what it is.
        cached_file: name of that file in kornia's cache, where kornia has it.
        whole: it finds its own keypoints.
    """

    factory: str
    weights_file: str | None = None
    help: str = ""
    cached_file: str | None = None
    whole: bool = False


BUILT_IN: dict[str, Entry] = {
    "sift": Entry("eval.features.sift:sift", help="OpenCV SIFT"),
    "rootsift": Entry("eval.features.sift:rootsift", help="square root of L1-normalised SIFT"),
    "tfeat": Entry("eval.features.published:tfeat", "tfeat-liberty.params", "TFeat (kornia's layers)"),
    "hardtfeat": Entry(
        "eval.features.published:hardtfeat", "HardTFeat.pth", "TFeat's layers trained with HardNet's loss"
    ),
    "mkd": Entry("eval.features.published:mkd", "mkd-concat-64.pth", "multiple-kernel descriptor; whitening=, set="),
    "kornia-hardnet8": Entry(
        "eval.features.hardnet:kornia_hardnet8", help="kornia's HardNet8: @PATH or untrained=true"
    ),
    "aliked-n16": Entry("eval.features.aliked:aliked", "aliked-n16.pth", "ALIKED", "aliked-n16.pth", True),
    "xfeat": Entry("eval.features.xfeat:xfeat", "xfeat.pt", "XFeat", "xfeat.pt", True),
    "disk": Entry("eval.features.disk:disk", "depth-save.pth", "DISK", "depth-save.pth", True),
    "imported": Entry("eval.features.imported:imported", help="features of imw-import: imported@FILE.h5", whole=True),
    "keynet-h8E512": Entry(
        "eval.features.keynet:keynet",
        "keynet_pytorch.pth",
        "KeyNet keypoints, our descriptors",
        "keynet_pytorch.pth",
        whole=True,
    ),
}


def known_names() -> list[str]:
    """Every name that :func:`load_method` takes, sorted."""
    from eval.features.hardnet import names

    return sorted({*BUILT_IN, *names(), *(point.name for point in _plugins())})


def tokens_help(whole: bool = True) -> str:
    """What ``--desc`` takes, for people, those that work as they stand first; without ``whole`` no whole features."""
    from eval.features.hardnet import names
    from kornia_hardnet8.checkpoints import bundled_names

    built_in = {name: entry for name, entry in BUILT_IN.items() if whole or not entry.whole}
    networks = sorted({*names(), "kornia-hardnet8"} - set(bundled_names()))
    published = sorted(name for name, entry in built_in.items() if entry.weights_file is not None)
    parts = {
        "What --desc takes, name[@weights][:option=value,…], ready as it stands": [
            *bundled_names(),
            "rootsift",
            "sift",
        ],
        f"With a published file of weights behind @, or in the folder that {WEIGHTS_VARIABLE} names": published,
        "With weights of your own behind @": networks,
        "What eval imw-import wrote": ["imported@FILE.h5"] if "imported" in built_in else [],
        "Of installed packages": [point.name for point in _plugins()],
    }
    return "\n\n".join(f"{title}: {', '.join(tokens)}" for title, tokens in parts.items() if tokens)


def load(text: str) -> Descriptor:
    """Build the descriptor of patches that a token names; nothing is downloaded.

    Weights: the path after ``@``; without it, for names that need weights, the usual file name in the folder that the
    environment variable KORNIA_HARDNET8_WEIGHTS names, then kornia's cache where kornia has such weights.

    Raises:
        UsageError: malformed token, unknown name or option (the close ones are named), a whole local feature.
        MissingFileError: no weights where they are looked for.
        DataError: a file that does not hold the weights of this network.
    """
    method = load_method(text)
    if isinstance(method, WholeFeature):
        raise UsageError(f"{text} finds its own keypoints: here the patches or keypoints are given")
    return method


def load_method(text: str) -> Method:
    """Build the descriptor or whole local feature that a token names; see :func:`load`."""
    token = parse_token(text)
    if token.name in BUILT_IN:
        entry = BUILT_IN[token.name]
        module, _, attribute = entry.factory.partition(":")
        factory: Factory = getattr(importlib.import_module(module), attribute)
        return factory(token, find_weights(token, entry.weights_file, entry.cached_file))
    from eval.features import hardnet

    if token.name in hardnet.names():
        return hardnet.hardnet8(token, find_weights(token, None))
    for point in _plugins():
        if point.name == token.name:
            return _load_plugin(point, token)
    raise UsageError(f"unknown descriptor {token.name!r}{choices(token.name, known_names())}")


def find_weights(token: Token, usual_name: str | None, cached_name: str | None = None) -> Path | None:
    """The file of weights of a token, or None for a name that needs none."""
    if token.weights is None and usual_name is None:
        return None
    return find_file(token.text, token.name, token.weights, usual_name or "", cached_name)


def _plugins() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def _load_plugin(point: EntryPoint, token: Token) -> Method:
    weights = find_weights(token, None)
    try:
        method = point.load()(token, weights)
    except ImportError as error:
        raise DataError(f"{token.text}: {point.value} does not import: {error}") from error
    if not isinstance(method, (Descriptor, WholeFeature)):
        raise DataError(f"{token.text}: {point.value} gave {type(method).__name__}, not a Descriptor or WholeFeature")
    return method
