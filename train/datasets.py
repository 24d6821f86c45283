"""From a data set string to opened patch stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from common.patchfiles import open_2020
from common.patchstore import PatchStore
from kornia_hardnet8.errors import MissingFileError, UsageError, closest
from train.recipes2020.catalogue import ALIASES, MIXES, TOKENS, expand_mix, origin_2020, places_2020

DEMO = "demo"
DATA_ROOT = "Datasets"  # the default of every --data-root


@dataclass(frozen=True)
class MixItem:
    """One term of a data set string."""

    token: str
    weight: float


def parse_mix(text: str) -> list[MixItem]:
    """Parse ``token[*weight][+token[*weight]…]``, or the name of a mix of 2020.

    Raises:
        UsageError: an empty term, a weight that is no positive number, or a token of 2020 that is left out.
    """
    items = []
    for term in expand_mix(text).split("+"):
        match = re.fullmatch(r"\s*([^*]+?)\s*(?:\*\s*([0-9.]+)\s*)?", term)
        if match is None:
            raise UsageError(f"data set string {text!r}: {term!r} is not of the form token or token*weight")
        try:
            weight = float(match.group(2) or 1.0)
        except ValueError:
            weight = 0.0
        if weight <= 0.0:
            raise UsageError(f"data set string {text!r}: the weight of {match.group(1)} must be a positive number")
        items.append(MixItem(match.group(1), weight))
    return items


def open_mix(text: str, data_root: str | Path, folder: Path = Path()) -> list[tuple[PatchStore, float]]:
    """Open every set of a data set string, with its weight; relative paths count from ``folder``.

    Raises:
        MissingFileError: tokens that are neither a path nor found below ``data_root``, all of them.
        DataError: a damaged store or file.
    """
    places, missing = [], {}
    for item in parse_mix(text):
        try:
            is_demo = item.token == DEMO and not (folder / DEMO).is_dir()
            places.append((None if is_demo else find_store(item.token, Path(data_root), folder), item.weight))
        except MissingFileError as error:
            missing[item.token] = str(error)
    if missing:
        raise MissingFileError("; ".join(missing.values()))
    return [(_open_demo() if place is None else open_place(place), weight) for place, weight in places]


def _open_demo() -> PatchStore:
    from train.demo import demo_store

    return PatchStore.open(demo_store())


def open_place(place: Path) -> PatchStore:
    """Open a patch store, or a data file of 2020.

    Raises:
        UsageError: a file inside a store instead of the store.
        MissingFileError, DataError: see :meth:`PatchStore.open` and :func:`common.patchfiles.open_2020`.
    """
    if not place.is_file():
        return PatchStore.open(place)
    if (place.parent / "meta.json").is_file():
        raise UsageError(f"{place} is a file of the patch store {place.parent}: name the folder")
    return open_2020(place)


def find_store(token: str, data_root: Path, folder: Path = Path()) -> Path:
    """Where a token is: at that path, or below ``data_root`` its file of 2020, a store of that name, or a folder.

    Relative paths count from ``folder``.

    Raises:
        MissingFileError: nowhere; a token of 2020 is answered with its origin.
        UsageError: the folder of a webcam set holds several files, none of them built with the defaults of 2020.
    """
    root = folder / data_root
    of_2020 = places_2020(token, root)
    places = [folder / token, *of_2020, root / token]
    for place in places:
        if place.is_file() or (place / "meta.json").is_file():
            return place
    for place in places:
        if place.is_dir() and not of_2020:  # a folder that is no store says so when it is opened
            return place
    looked = ", ".join(str(place) for place in places[1:])
    flag = "" if data_root == Path(DATA_ROOT) else f" --data-root {data_root}"
    if origin := origin_2020(token, root, flag):
        raise MissingFileError(f"data set {token!r} is not there (looked for {looked}); it comes from {origin}")
    present = [path.name for path in root.iterdir()] if root.is_dir() else []
    names = [*present, *TOKENS, *ALIASES, *MIXES, DEMO]
    raise MissingFileError(f"data set {token!r}: no patch store at {token} or {looked}{closest(token, names)}")
