"""``python -m train build KIND …``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, TypeAlias

from common.machine import available_cores
from common.shell import add_message_flags, seed_number
from kornia_hardnet8.errors import UsageError

# Settings of one detector of build amos, and their defaults: the parser has none, to tell which were given.
_OF_DETECTOR: dict[str, dict[str, Any]] = {
    "sift": {"crop": "1.5", "mr_size": 12.0},
    "hessian": {"base": 30.0, "threshold": 0.00016, "reference": "mean", "patch_mask": False},
}
log = logging.getLogger(__name__)
_Kinds: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one sub-parser for each kind of source."""
    parser.epilog = (
        "A build that is interrupted or killed goes on with the same command; one that fails leaves nothing. What "
        "comes out does not depend on --num-workers. Memory: that of the patches of a few images, and of a COLMAP "
        "model as a whole: 1,600,000 patches of 1600 images took 0.6 GB."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    shared = argparse.ArgumentParser(add_help=False)  # the flags of every command, after the kind too
    add_message_flags(shared)
    form: dict[str, Any] = {"allow_abbrev": False, "formatter_class": parser.formatter_class, "parents": [shared]}
    for add in (_add_colmap, _add_photos, _add_amos, _add_brown, _add_hpatches):
        add(kinds, form)


def _add_colmap(kinds: _Kinds, form: dict[str, Any]) -> None:
    colmap = kinds.add_parser("colmap", help="images and a COLMAP model: one label for each 3-D point", **form)
    colmap.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the model's images")
    colmap.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="COLMAP model: a folder, binary or text; or a database.db with verified matches, to be mapped; without it "
        "the photographs are reconstructed",
    )
    colmap.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="HDF5 with x, y, sigma, orientation for each 2-D point, or the COLMAP database of the model (default: "
        "features.h5 or database.db in or beside the model folder; without one, SIFT is detected again)",
    )
    _common(colmap, fixed="; 'fixed' = the axis-aligned 64-pixel windows of 2020")
    colmap.add_argument(
        "--dense",
        action="store_true",
        help="more labels: SIFT detected again, weak ones too, linked by the geometry of the model, not by tracks",
    )
    colmap.add_argument("--min-track", type=int, default=2, metavar="N", help="images that must see a point")
    colmap.add_argument("--max-patches", type=int, metavar="N", help="keep random points with at most N patches in all")
    colmap.add_argument("--seed", type=seed_number, default=0, help="seed of the points kept by --max-patches")
    mapping = colmap.add_argument_group("reconstruction, without --model or of a database")
    mapping.add_argument(
        "--work", type=Path, metavar="DIR", help="where database and models are kept (default: STORE.colmap)"
    )
    mapping.add_argument(
        "--descriptor",
        metavar="NAME",
        help="sift, or weights of this library: a bundled name such as h8E512, or a file (default: sift)",
    )
    mapping.add_argument("--max-keypoints", type=int, metavar="N", help="SIFT keypoints of an image (default: 4096)")


def _add_photos(kinds: _Kinds, form: dict[str, Any]) -> None:
    photos = kinds.add_parser("photos", help="single photographs under random homographies and light", **form)
    photos.add_argument("folder", type=Path, metavar="DIR", help="folder of photographs")
    _common(photos)
    photos.add_argument("--exclude", nargs="+", default=[], metavar="GLOB", help="file names to leave out")
    photos.add_argument("--views", type=int, default=6, metavar="N", help="views made of each photograph")
    photos.add_argument("--max-labels", type=int, default=700, metavar="N", help="labels kept of each photograph")
    photos.add_argument("--seed", type=seed_number, default=0, help="seed of the views")


def _add_amos(kinds: _Kinds, form: dict[str, Any]) -> None:
    amos = kinds.add_parser("amos", help="fixed cameras: a folder of views, each a folder of photographs", **form)
    amos.epilog = (
        "differences from the 2020 code: patches are turned and cut in one resampling (there: turned to the nearest "
        "pixel), angles repeat with --seed, masks are not changed in place, and no second call is needed to train."
    )
    amos.add_argument(
        "folder", type=Path, metavar="DIR", help="DIR/<camera>[_...]/ with images, and homographies where they moved"
    )
    amos.add_argument("--masks", type=Path, metavar="DIR", help="DIR/<camera>.png, non-zero where usable")
    amos.add_argument(
        "--detector",
        choices=("hessian", "sift"),
        default="hessian",
        help="hessian: the places of 2020, cut alike in all images (96-pixel patches, own crop and support); "
        "sift: keypoints detected again in each image",
    )
    _common(amos, of_detector="with --detector sift: ")
    amos.add_argument("--max-sets", type=int, default=2000, metavar="N", help="places kept of each view")
    amos.add_argument("--seed", type=seed_number, default=0, help="seed of angles and choices")
    hessian = amos.add_argument_group("hessian detector")
    hessian.add_argument("--base", type=float, metavar="PIXELS", help="half side of the smallest places (default: 30)")
    hessian.add_argument("--threshold", type=float, help="least response; doubled above --max-sets (default: 0.00016)")
    hessian.add_argument("--reference", choices=("mean", "median"), help="image it runs on (default: mean)")
    hessian.add_argument(
        "--patch-mask",
        action="store_true",
        default=None,
        help="a place is visible only where the detector finds it again",
    )


def _add_brown(kinds: _Kinds, form: dict[str, Any]) -> None:
    brown = kinds.add_parser("brown", help="Brown's photo tourism patches as published", **form)
    brown.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="patches0000.bmp …, info.txt, interest.txt, m50_100000_100000_0.txt",
    )
    _always(brown)
    brown.add_argument("--pairs", type=Path, metavar="FILE", help="another list of test pairs")


def _add_hpatches(kinds: _Kinds, form: dict[str, Any]) -> None:
    hpatches = kinds.add_parser("hpatches", help="strips of the HPatches release", **form)
    hpatches.epilog = "The store trains as it is (the 2020 scripts wrote tuples that its trainer refused)."
    hpatches.add_argument("folder", type=Path, metavar="DIR", help="DIR/<sequence>/ref.png, e1.png … t5.png")
    _always(hpatches)
    hpatches.add_argument(
        "--levels", nargs="+", default=["e", "h", "t"], metavar="LEVEL", help="noise beside the reference: e, h, t"
    )
    hpatches.add_argument("--sequences", nargs="+", default=["*"], metavar="GLOB", help="sequences to take")
    hpatches.add_argument("--exclude", nargs="+", default=[], metavar="GLOB", help="sequences to leave out")


def run(args: argparse.Namespace) -> None:
    """Build the store that ``args`` asks for."""
    if args.kind == "amos":
        _settle_detector(args)
    mr_size, patch_size = getattr(args, "mr_size", None), getattr(args, "patch_size", None)
    if (mr_size is not None and not mr_size > 0) or (patch_size is not None and patch_size < 8):
        raise UsageError("--mr-size must be positive and --patch-size at least 8")
    print(f"{args.out}: {_KINDS[args.kind](args)}")


def _colmap(args: argparse.Namespace) -> str:
    from train.stores.colmap import build_colmap, check_settings, parse_crop
    from train.stores.writer import refuse_existing

    crop, model, features = parse_crop(args.crop), args.model, args.features
    check_settings(features, crop, args.max_patches, args.dense)
    refuse_existing(args.out)
    detecting = {"descriptor": args.descriptor, "max_keypoints": args.max_keypoints}
    if model is not None:
        _refuse_idle(detecting if model.is_file() else {"work": args.work, **detecting}, f"--model {model}")
    if model is None or model.is_file():
        from common.colmap_database import has_scales
        from train.stores.reconstruct import map_database, reconstruct

        work = args.work or args.out.with_name(f"{args.out.name}.colmap")
        if not args.dense:
            features = features or model or work / "database.db"
        if model is None:
            threads = max(1, args.num_workers)
            model = reconstruct(
                args.images,
                work,
                num_threads=threads,
                **{name: value for name, value in detecting.items() if value is not None},
            )
        else:
            if features == model and not has_scales(model):
                log.info("%s holds no scales: SIFT is detected again", model)
                features = None
            model = map_database(args.images, model, work / "sparse")
    built = build_colmap(
        args.images,
        model,
        args.out,
        features=features,
        crop=crop,
        min_track=args.min_track,
        max_patches=args.max_patches,
        dense=args.dense,
        seed=args.seed,
        **_settings(args),
    )
    return f"{built.patches} patches, {built.labels} labels, {built.images} images"


def _photos(args: argparse.Namespace) -> str:
    from train.stores.photos import build_photos

    built = build_photos(
        args.folder,
        args.out,
        crop=_number_crop(args),
        exclude=args.exclude,
        num_views=args.views,
        max_labels=args.max_labels,
        seed=args.seed,
        **_settings(args),
    )
    return f"{built.patches} patches, {built.labels} labels, {built.photos} photographs"


def _settle_detector(args: argparse.Namespace) -> None:
    """Fill in the defaults of the detector, and refuse settings of the other one."""
    for detector, settings in _OF_DETECTOR.items():
        given = {name: getattr(args, name) for name in settings}
        if detector != args.detector:
            _refuse_idle(given, f"--detector {args.detector}")
            continue
        for name, default in settings.items():
            if given[name] is None:
                setattr(args, name, default)


def _refuse_idle(settings: dict[str, Any], beside: str) -> None:
    """Refuse settings that were given where they change nothing."""
    for name, value in settings.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no effect with {beside}: leave it away")


def _amos(args: argparse.Namespace) -> str:
    settings = {"masks": args.masks, "max_sets": args.max_sets, "seed": args.seed, **_settings(args)}
    if args.detector == "sift":
        from train.stores.redetected import build_redetected

        built = build_redetected(args.folder, args.out, crop=_number_crop(args), **settings)
    else:
        from train.stores.amos import PATCH_SIZE, build_amos

        settings = {**settings, "patch_size": args.patch_size or PATCH_SIZE}
        del settings["mr_size"]
        built = build_amos(
            args.folder,
            args.out,
            base=args.base,
            threshold=args.threshold,
            reference=args.reference,
            patch_mask=args.patch_mask,
            **settings,
        )
    return f"{built.patches} patches, {built.labels} labels, {len(built.places)} views"


def _brown(args: argparse.Namespace) -> str:
    from train.stores.brown import build_brown

    built = build_brown(args.folder, args.out, pairs=args.pairs, num_workers=args.num_workers, how=_how(args))
    return f"{built.patches} patches, {built.labels} labels, {built.images} images, {built.pairs} test pairs"


def _hpatches(args: argparse.Namespace) -> str:
    from train.stores.hpatches import build_hpatches

    built = build_hpatches(
        args.folder,
        args.out,
        levels=args.levels,
        sequences=args.sequences,
        exclude=args.exclude,
        num_workers=args.num_workers,
        how=_how(args),
    )
    return f"{built.patches} patches, {built.labels} labels, {built.sequences} sequences"


_KINDS = {"colmap": _colmap, "photos": _photos, "amos": _amos, "brown": _brown, "hpatches": _hpatches}
_NOT_SETTINGS = ("verbose", "quiet", "debug", "num_workers", "kind")


def _how(args: argparse.Namespace) -> dict[str, Any]:
    how = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | list) and k not in _NOT_SETTINGS}
    return {"command": f"build {args.kind}", **how}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "mr_size": args.mr_size,
        "patch_size": args.patch_size or 64,
        "num_workers": args.num_workers,
        "how": _how(args),
    }


def _number_crop(args: argparse.Namespace) -> float:
    from train.stores.colmap import parse_crop

    crop = parse_crop(args.crop)
    if crop == "fixed":
        raise UsageError(f"build {args.kind} has no --crop fixed: its patches are cut in the keypoints' frames")
    return crop


def _common(parser: argparse.ArgumentParser, of_detector: str = "", fixed: str = "") -> None:
    """Flags of all that cut in frames; ``of_detector`` alone obeys crop and mr_size: their defaults are set later."""
    _always(parser)
    crop, mr_size = _OF_DETECTOR["sift"]["crop"], _OF_DETECTOR["sift"]["mr_size"]
    parser.add_argument(
        "--crop",
        default=None if of_detector else crop,
        help=f"{of_detector}stored side / plain side of a patch{fixed}" + f" (default: {crop})" * bool(of_detector),
    )
    parser.add_argument(
        "--mr-size",
        type=float,
        default=None if of_detector else mr_size,
        help=f"{of_detector}half side of the plain patch / sigma" + f" (default: {mr_size})" * bool(of_detector),
    )
    parser.add_argument(
        "--patch-size", type=int, metavar="PIXELS", help="side of a stored patch (default: 64; 96 for hessian places)"
    )


def _always(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="the store to build")
    parser.add_argument(
        "--num-workers", type=int, default=available_cores(), metavar="N", help="processes; 0 = only this one"
    )
