"""The data set tokens of 2020: which files they stood for, and how to get those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kornia_hardnet8.errors import UsageError
from train.recipes2020.flags import names_2020

_ARCHIVE = "the archive of the 2020 code's authors: python -m train fetch 2020{flag}"


@dataclass(frozen=True)
class Known:
    """A token of 2020.

    Attributes:
        path: its file below the data root, as the 2020 code had it; or the folder of that name with its file in it.
        origin: where it came from, and the commands that make it; ``{root}`` is the data root, ``{flag}`` the flag
            that names it where it is another than the default.
    """

    path: str
    origin: str


def _brown(name: str) -> Known:
    build = f"python -m train build brown {{root}}/6Brown/published/{name} --out {{root}}/6Brown/{name}"
    return Known(f"6Brown/{name}.pt", f"python -m train fetch {name}{{flag}}, then {build}")


def _views(name: str) -> Known:
    got, folder = "your own webcams, DIR/<camera>/*.jpg: ", "DIR"
    if name == "v3":
        got, folder = "python -m train fetch amos-v3{flag}, then ", "{root}/AMOS-views/AMOS-views-v3"
    build = f"python -m train build amos {folder} --out {{root}}/{name}"
    return Known(f"AMOS-views/AMOS-views-{name}.pt", got + build)


def _tourism(name: str) -> Known:
    build = f"python -m train build colmap --images DIR --out {{root}}/Phototourism/{name}"
    return Known(f"Phototourism/{name}.pt", f"{_ARCHIVE}, or your own photographs: {build}")


def _hpatches(name: str, flags: str, unknown: str) -> Known:
    build = f"{{root}}/HPatches/hpatches-release --out {{root}}/HPatches/{name} {flags}"
    fetch = "python -m train fetch hpatches{flag}, then python -m train build hpatches"
    return Known(f"HPatches/{name}.pt", f"{fetch} {build} ({unknown})")


_SCENES = (
    "buckingham_palace", "st_peters_square", "trevi_fountain", "hagia_sophia_interior", "brandenburg_gate",
    "colosseum_exterior", "prague_old_town_square",
)  # fmt: skip
_TREVI = (25_000, 50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 6_400_000)
_SIX = ("liberty", "liberty_harris", "notredame", "notredame_harris", "yosemite", "yosemite_harris")
_LEFT_OUT = (
    "sequences of both kinds at one level, by the name; the script of 2020 left out v_bark, v_boat, v_graffiti, "
    "v_posters and v_wall, whether this file did is not known"
)

TOKENS: dict[str, Known] = {
    **{name: _brown(name) for name in _SIX},
    **{f"yosemite_{part}": Known(f"6Brown/yosemite_{part}.pt", _ARCHIVE) for part in
       ("small", "cl", "cl_times2", "cl_times3", "cl_times4", "cl_times8")},
    **{name: _views(name) for name in ("v3", "v4", "v5")},
    "TILDE": Known("Related_work_AMOS.pt",
        "the TILDE webcams, DIR/<camera>/*.jpg: python -m train build amos DIR --out {root}/Related_work_AMOS",
    ),
    **{name: _tourism(name) for name in _SCENES},
    **{f"{name}_p1600000": _tourism(f"{name}_p1600000") for name in _SCENES},
    **{f"trevi_fountain_p{count}": _tourism(f"trevi_fountain_p{count}") for count in _TREVI},
    **{f"{name}_{part}": _tourism(f"{name}_{part}") for name in _SCENES for part in ("lower", "upper", "RGB")},
    "hagia_sophia_interior_middleedges": _tourism("hagia_sophia_interior_middleedges"),
    **{f"hpatches_illum-view_{level}": _hpatches(f"hpatches_illum-view_{level}", f"--levels {level[0]}", _LEFT_OUT)
       for level in ("easy", "hard", "tough")},
    "HPs_illum_all": _hpatches("HPs_illum_all", "--sequences 'i_*'", "by its name: no script of 2020 made this file"),
    "hpatches_split_view_train": Known(
        "HPatches/hpatches_split_view_train.pt", "python -m train fetch hpatches-view-split{flag}"
    ),
}  # fmt: skip

# short names; v4 is the webcam set of the published mixes
ALIASES = {
    "lib": "liberty", "libh": "liberty_harris", "notre": "notredame", "notreh": "notredame_harris",
    "yos": "yosemite", "yosh": "yosemite_harris", "colo": "colosseum_exterior_p1600000",
    "trevi": "trevi_fountain_p1600000", "sofia": "hagia_sophia_interior_middleedges", "AMOS": "v4",
    **{f"HP_{level}": f"hpatches_illum-view_{level}" for level in ("easy", "hard", "tough")},
}  # fmt: skip

# names of whole mixes
MIXES = {
    "brown": "+".join(_SIX),
    "AB": "+".join(_SIX) + "+v4*6",
    "mix": "+".join(_SIX) + "+hpatches_split_view_train*6+v3*6",
    "mix_good": "hpatches_illum-view_easy+liberty+hagia_sophia_interior_middleedges",
}

_SIZES = "Liberty at another size: patches are resampled to what --arch takes, so use lib"
_PS = (
    "every file of Datasets/PS-Dataset_trans: name them as paths, "
    "Datasets/PS-Dataset_trans/a.pt+Datasets/PS-Dataset_trans/b.pt and so on"
)
# tokens that are answered instead of looked up
_RETIRED = {
    "liberty48": _SIZES,
    "liberty64": _SIZES,
    "v4noshift": "v4 without random changes: use v4 with --aug none",
    "v4crop": "v4 with another crop: use v4",
    "HPs_illum_all-crop": "HPs_illum_all, of whose patches it took the central 32 pixels: use HPs_illum_all",
    "PS": _PS,
    "PS+lib": f"{_PS}, and lib*W+libh*W with half their number for W",
    "lib+colo+notre_RGB": "the colour versions: networks here take gray patches, use lib+colo+notre",
}


def expand_mix(text: str) -> str:
    """A data set string with the names of whole mixes written out.

    Raises:
        UsageError: one of the 2020 strings that are answered instead.
    """
    for token in (text.strip(), *text.split("+")):
        stem = token.split("*")[0].strip()
        if stem in _RETIRED:
            raise UsageError(f"data set {stem} of the 2020 code was {_RETIRED[stem]}")
    return MIXES.get(text.strip(), text)


def places_2020(token: str, data_root: Path) -> list[Path]:
    """Where what a token stood for in 2020 may lie below the data root: its file, or a folder; empty for other tokens.

    Raises:
        UsageError: the folder of a webcam set holds several files, none of them built with the defaults of 2020.
    """
    known = _known(token)
    if known is None:
        return []
    folder = (data_root / known.path).with_suffix("")
    built = [] if (folder / "meta.json").is_file() else sorted(folder.glob(f"{folder.name}_*.pt"))
    if (usual := folder / f"{folder.name}_{names_2020([])[0]}.pt") in built:  # what 2020 took without options
        built = [usual]
    if len(built) > 1:
        raise UsageError(f"data set {token!r}: which of {', '.join(map(str, built))}? Name it as a path")
    return [data_root / known.path, *built, folder]


def origin_2020(token: str, data_root: Path, flag: str) -> str | None:
    """Where a token of 2020 comes from; ``flag`` names the data root in commands. None for other tokens."""
    known = _known(token)
    return None if known is None else known.origin.format(root=data_root, flag=flag)


def _known(token: str) -> Known | None:
    return TOKENS.get(ALIASES.get(token, token))
