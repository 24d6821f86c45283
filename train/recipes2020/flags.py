"""The command line of the 2020 code: every option, and what became of those that this trainer does not take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NoReturn

from kornia_hardnet8.errors import UsageError


@dataclass(frozen=True)
class Flag2020:
    """One option: its spellings, its type (bool: a bare switch), its default, and our answer.

    ``answer`` is None where ``python -m train`` takes the option with its meaning, under one of its spellings.
    """

    names: tuple[str, ...]
    dest: str
    type: type
    default: str | int | float | bool
    answer: str | None


def _flag(names: str, kind: type, default: Any, answer: str | None = None) -> Flag2020:
    spellings = tuple(f"--{name}" for name in names.split())
    return Flag2020(spellings, spellings[0][2:], kind, default, answer)


_AMOS = "python -m train build amos"
_OLDER = "belonged to older ways of building webcam sets, of which the 2020 default alone is kept: train build amos"
_MAP = "is left out: places are the maxima themselves, never drawn from a blurred map of them"
_OLD_BATCHES = "belonged to the older sampling of webcam sets; the default of 2020 (view by view) is kept"
_NOTHING = "had no effect"
_HIDDEN = (
    "is always on: patches that a store marks as hidden are not drawn; "
    f"{_AMOS} --patch-mask marks those where the detector finds nothing"
)
_GRAY = "is left out: networks here take gray patches"
_FACE = "belonged to a loss that could not be built"

FLAGS: tuple[Flag2020, ...] = (
    _flag("model_dir", str, "Models/", "is replaced by --out, the folder of the run"),
    _flag("name", str, "", "is replaced by --out, the folder of the run"),
    _flag("id", str, "0", "is replaced by --out, the folder of the run"),
    _flag("resume", str, ""),
    _flag("optimizer", str, "sgd"),
    _flag("depths", str, "", _GRAY),
    _flag("ds", str, "v4"),
    _flag("init_good", str, "", _NOTHING),
    _flag("model_arch arch", str, "h8"),
    _flag("patch_gen pgen", str, "new", _OLDER),
    _flag("sigmas_v", str, "e011", f"is replaced: {_AMOS} --base, half the side of the smallest of five sizes"),
    _flag("loss", str, "tripletMargin"),
    _flag("miner", str, "BatchHardMiner", f"{_NOTHING}: its loss could not be built"),
    _flag("batch_reduce", str, "min"),
    _flag("masks_dir masks", str, "Datasets/AMOS-views/AMOS-masks", f"is replaced: {_AMOS} --masks"),
    _flag("weight_function wf", str, "Hessian", _OLDER),
    _flag("combine", str, ""),
    _flag("epochs ep", int, 20),
    _flag("tuples tps n_triplets", int, 5000000),
    _flag("patch_sets psets tracks", int, 30000, _OLDER),
    _flag("batch_size bs", int, 3072),
    _flag("test_batch_size", int, 1024, _NOTHING),
    _flag("cams_in_batch camsb", int, 5),
    _flag("min_sets_per_img minsets", int, -1, _OLDER),
    _flag("max_sets_per_img maxsets", int, 2000, f"is replaced: {_AMOS} --max-sets"),
    _flag("seed", int, 0),
    _flag("shear", int, 25, f"{_NOTHING}; --aug published shears webcam patches by up to 25 degrees"),
    _flag("degrees", int, 25, f"{_NOTHING}; --aug published turns webcam patches by up to 25 degrees"),
    _flag("Npos", int, 2),
    _flag("lr", float, 3.0),
    _flag("marginpos mpos", float, 1.0),
    _flag("marginneg mneg", float, 1.0, _NOTHING),
    _flag("good_pr", float, 0.9, _NOTHING),
    _flag("gauss_s", float, 30.0, _MAP),
    _flag("wd", float, 0.0001),
    _flag("init_thr thr", float, 0.00016, f"is replaced: {_AMOS} --threshold"),
    _flag("no_fliprot", bool, False),
    _flag("addAP", bool, False, _NOTHING),
    _flag("AP_loss", bool, False, _NOTHING),
    _flag("sigmas", bool, False, _NOTHING),
    _flag("no_detach", bool, False, "changes no gradient, since descriptors have unit length: it is never detached"),
    _flag("separ_batches", bool, False, _NOTHING),
    _flag("pairs_imgs", bool, False, _OLD_BATCHES),
    _flag("all_info", bool, False, "is the default: a checkpoint is saved after every epoch, or --save-every steps"),
    _flag("old_batches NB", bool, False, _OLD_BATCHES),
    _flag("use_patchmask patchmask", bool, False, _HIDDEN),
    _flag("use_collisions collisions colls", bool, False, "is always on: collisions in a store are respected"),
    _flag("nonmax", bool, False, _OLDER),
    _flag("scaleit", bool, False, _NOTHING),
    _flag("thrit", bool, False, _OLDER),
    _flag("to_gauss", bool, False, _MAP),
    _flag("AMOS_RGB RGB", bool, False, _GRAY),
    _flag("fixed_MP", bool, False, "is left out: the window of a maximum grows with its size, as by default"),
    _flag("only_D", bool, False, _GRAY),
    _flag("face_margin", float, 0.3, _FACE),
    _flag("face_scale", int, 64, _FACE),
    _flag("gpu", int, 0, "is replaced by --device, e.g. --device cuda:0"),
    _flag("local_rank", int, 0, "is not needed: torchrun tells every process its rank"),
    _flag("duplicates", int, 0, "is left out: repeated tuples are never negatives, so they add nothing"),
    _flag("notest", bool, False, "is replaced by --holdout 0"),
    _flag("closeok", bool, False),
    _flag("antiaug", bool, False, "is left out: it was never part of a published model"),
    _flag("filter_sets", str, "", "is left out: nothing wrote the statistics that it reads"),
    _flag("aug", str, ""),
    _flag("K", str, ""),
    _flag("fewcams", bool, False),
    _flag("fewcams_dups", bool, False, "is left out: it dropped labels of the last camera; use --fewcams"),
)


_POSITIONS = "is left out: it drew places at random by a weight, where the default takes the maxima of the detector"
# value of --patch_gen -> what became of it
PATCH_GENERATORS = {
    "new": f"is the way of {_AMOS}",
    "meanImg": _POSITIONS,
    "medianImg": _POSITIONS,
    "oneRes": _POSITIONS,
    "sumRes": _POSITIONS,
    "medianRes": _POSITIONS,
    "sift": f"is left out: it took SIFT of the mean image; {_AMOS} --detector sift detects in every image",
    "hessbaum": "is left out: it took an affine detector on the mean image",
    "oneImg": "never existed, whatever its help said",
    "sumImg": "never existed, whatever its help said",
}
CORRELATION = (
    "the correlation penalty was off by default; gor spreads the descriptors instead, and train pca takes the "
    "correlation out of the dimensions"
)
REGULARISERS_2017 = {
    "--gor": "is a term of the loss: --loss tripletMargin,gor, with its --alpha as weight: gor*0.5",
    "--decor": f"is left out: {CORRELATION}",
}
_GONE = {name: f"of the 2020 code {flag.answer}" for flag in FLAGS if flag.answer for name in flag.names}
_GONE |= {name: f"of the 2017 code {answer}" for name, answer in REGULARISERS_2017.items()}

_LOSS = "of the 2020 code is left out: its code was never part of the repository"
_REDUCTION = (
    "of the 2020 code is left out: its help offered it, but it ended in a failed assertion (there are: min, average, "
    "random)"
)
_RESAMPLED = "is now the choice of a network that takes {0} pixels, such as --arch h8p{0}"
_AUGMENTATIONS = {
    "resize32": "is the default: patches are resampled to what --arch takes",
    "resize48": _RESAMPLED.format(48),
    "resize64": _RESAMPLED.format(64),
    "resize_crop": "changed the support of the patches: build a store with a smaller mr_size instead",
}
# option -> value -> what became of it
RETIRED_VALUES = {
    "--loss": {
        "face": _LOSS,
        "theirTripletMargin": _LOSS,
        "decor": f"of the 2017 code is left out: {CORRELATION}",
        "CorrelationPenaltyLoss": f"of the 2017 code is left out: {CORRELATION}",
    },
    "--batch_reduce": {"random_global": _REDUCTION, "L2Net": _REDUCTION},
    "--aug": _AUGMENTATIONS,
    "--K": _AUGMENTATIONS,
    "--optimizer": {
        "sgd": "of the 2020 code had no effect, it ran AdamW: leave it out for that; sgd2017 is the optimiser of the "
        "2017 code"
    },
}
# name of a script (its file without the ending) -> what does its work
SCRIPTS = {
    "ftrain": "is python -m train, with the same options",
    "test": "is python -m eval brown --task amos --data STORE (its match; for --SN add --ratio 0.8), STORE being of "
    "python -m train build amos; three_fcs and avg_dist are left out",
    "HPatches_extract_HardNet": "is python -m eval hpatches --write-csv DIR",
    "hp_eval": "is python -m eval hpatches",
    "add_pca": "is python -m train pca CHECKPOINT --ds STORE --out FILE, in evaluation mode",
    "utils_": "is python -m train build colmap (its sets of a COLMAP model); filter_sets is left out",
    "filter_sets": "is left out: nothing wrote the statistics that it reads; --max-patches of train build colmap "
    "takes random points",
    "HPatchesDatasetCreator": "is python -m train build hpatches",
    "HardNetMultipleDatasets": "is python -m train, with the options of ftrain.py",
}


def refuse_retired(argv: Sequence[str]) -> None:
    """Answer options and values of earlier code that the trainer does not take with what became of them.

    Raises:
        UsageError: there is one.
    """
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option in ("--patch_gen", "--pgen") and value in PATCH_GENERATORS:
            raise UsageError(f"{option} {value} of the 2020 code {PATCH_GENERATORS[value]}")
        if option in _GONE:
            raise UsageError(f"{option} {_GONE[option]}")
        for name in value.split(",") if option == "--loss" else [value]:
            stem = name.split("*")[0].strip()
            if stem in RETIRED_VALUES.get(option, {}):
                raise UsageError(f"{option} {stem} {RETIRED_VALUES[option][stem]}")


def answer_script(script: str, argv: Sequence[str]) -> str:
    """What does the work of a script, one of ``SCRIPTS``; for the trainer with options also where its model lay."""
    if script != "ftrain" or not argv:
        return SCRIPTS[script]
    try:
        folder = PurePath(parse_2020(argv)["model_dir"]) / names_2020(argv)[1]
    except UsageError as error:
        return f"{SCRIPTS[script]} (but {error})"
    return f"{SCRIPTS[script]}; the model of these lay in {folder}"


def names_2020(argv: Sequence[str]) -> tuple[str, str]:
    """The strings by which the 2020 code named its webcam patch file and its model for a command line.

    Returns:
        ``data_name``, part of the patch file's name, and ``save_name``, the model's folder and file.
    """
    a = parse_2020(argv)
    data = []
    if a["patch_gen"] not in ("new", "sift", "hessbaum"):
        data.append(f"PS:{a['patch_sets']}")
    data += ["nonmax"] * a["nonmax"]
    if a["patch_gen"] == "new":
        data += [f"maxsets:{a['max_sets_per_img']}", f"sigmas-v:{a['sigmas_v']}", f"thr:{a['init_thr']}"]
    data += [f"gauss:{a['gauss_s']}"] * a["to_gauss"]
    data += [f"WF:{a['weight_function']}", f"PG:{a['patch_gen']}"]
    data += ["scaleit"] * a["scaleit"] + ["thrit"] * a["thrit"] + ["RGB"] * a["AMOS_RGB"]
    data += ["fixed-MP"] * a["fixed_MP"] + ["depths"] * bool(a["depths"])
    data += [f"minsets:{a['min_sets_per_img']}"] * (a["min_sets_per_img"] > 0)
    data.append(f"masks:{PurePath(a['masks_dir']).name if a['masks_dir'] else None}")
    data_name = "_".join(data)
    save = [f"id:{a['id']}"] + [f"name:{a['name']}"] * bool(a["name"])
    save += [f"arch:{a['model_arch']}", f"ds:{a['ds']}", f"loss:{a['loss'].replace('_', '')}"]
    save += [f"mpos:{a['marginpos']}", f"mneg:{a['marginneg']}", f"lr:{a['lr']}"]
    save += ["pmask"] * a["use_patchmask"] + ["colls"] * a["use_collisions"] + [f"K:{a['K']}"] * bool(a["K"])
    save += [data_name, f"tps:{a['tuples']}", f"CamsB:{a['cams_in_batch']}"]
    save += ["sigmas"] * a["sigmas"] + ["pairs"] * a["pairs_imgs"] + ["antiaug"] * a["antiaug"]
    save += ["closeok"] * a["closeok"] + ["resume"] * bool(a["resume"])
    save += ["fliprot", "fewcams"]  # whatever the options say
    save += [f"ep:{a['epochs']}", f"bs:{a['batch_size']}", f"pos:{a['Npos']}"]
    save += [f"comb:{a['combine']}"] * bool(a["combine"]) + [f"dups:{a['duplicates']}"]
    return data_name, "_".join(save)


class _Parser2020(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise the message instead of leaving."""
        raise UsageError(message)


def parse_2020(argv: Sequence[str]) -> dict[str, Any]:
    """Parse a command line as the 2020 code did, its derived switches included.

    Raises:
        UsageError: an option that it did not know, or a value of another type.
    """
    parser = _Parser2020(add_help=False)
    for flag in FLAGS:
        if flag.type is bool:
            parser.add_argument(*flag.names, dest=flag.dest, action="store_true")
        else:
            parser.add_argument(*flag.names, dest=flag.dest, type=flag.type, default=flag.default)
    values, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise UsageError(f"the 2020 code had no option {unknown[0]}")
    a = vars(values)
    a.update(detach=not a["no_detach"], fliprot=not a["no_fliprot"])
    return {**a, "AMOS_GRAY": not a["AMOS_RGB"], "new_batches": not a["old_batches"]}
