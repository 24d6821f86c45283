"""``python -m eval hpatches``: the patch benchmark on strips or on CSV folders of descriptors."""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cache import Cache, canonical_json
from common.folders import fingerprint
from common.hpatches import (
    LEVEL_NAMES,
    LOW_CONTRAST_STD,
    SPLITS,
    TYPES,
    Split,
    choose,
    count_patches,
    find_strips,
    patch_std,
    read_strip,
)
from common.shell import output_folder, progress
from eval.core.benchmark import Benchmark, safe_name
from eval.core.distances import METRICS, check_metric
from eval.core.options import add_descriptor_flags, add_run_flags, load_descriptors
from eval.core.results import Result, Score, format_table
from eval.features import Descriptor
from eval.hpatches import whitening
from eval.hpatches.benchmark import TASKS, PatchData, judge, retrieval_task, verification_task
from eval.hpatches.descriptors import (
    DescriptorSet,
    csv_sequences,
    describe,
    from_blocks,
    read_csv_set,
    read_descriptor_csv,
    write_csv_set,
)
from eval.hpatches.retrieval import POOL_SIZES
from kornia_hardnet8.errors import DataError, UsageError

log = logging.getLogger(__name__)

NORMALISATIONS = ("none", "pcapl", "pcapl-train-mean")
_NEEDS_STRIPS = "no task files and no strips to draw from: give --data or --tasks"


@dataclass(frozen=True)
class _Method:
    """One column of the benchmark: where its descriptors come from."""

    name: str
    load: Callable[[Sequence[str]], DescriptorSet]
    weights_sha256: str | None = None
    source: str = "strips"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", help="folder of sequences with strips; 'demo': a small rendered set")
    data.add_argument("--split", choices=SPLITS, default="full", help="full: all sequences that are there")
    data.add_argument("--tasks", type=Path, metavar="DIR", help="official task files (default: DIR/tasks if there)")
    add_descriptor_flags(parser, required=True, whole=False)
    other = parser.add_argument_group("descriptors of others")
    other.add_argument("--csv", nargs="+", type=Path, default=[], metavar="DIR", help="DIR/<sequence>/<type>.csv")
    other.add_argument("--packed", action="store_true", help="each CSV value is a byte of 8 binary values")
    other.add_argument("--distance", choices=METRICS, default="L2", help="of all descriptors")
    group = parser.add_argument_group("protocol")
    group.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="what to measure")
    group.add_argument(
        "--normalise",
        nargs="+",
        default=["none"],
        metavar="HOW",
        help=f"{', '.join(NORMALISATIONS)} (splits a, b, c) or zca:SHARE (clipped at an energy share, e.g. zca:0.4)",
    )
    group.add_argument("--pairs", type=int, help="verification pairs to draw (default: the official million, or less)")
    group.add_argument("--write-csv", type=output_folder, metavar="DIR", help="write DIR/<token>/<sequence>/<type>.csv")
    add_run_flags(parser, "hpatches", cached="descriptors and draws")


def run(args: argparse.Namespace) -> None:
    """Judge every descriptor; write results.json and print the headline and the tables by noise level."""
    _check(args)
    folders = _strips(args.data)
    split = choose(args.split, csv_sequences(args.csv[0]) if folders is None else list(folders))
    data = _patch_data(args, split, folders)
    normalised_on = split.train if any(how != "none" for how in args.normalise) else ()
    with Benchmark.open(
        "hpatches", args, _dataset(args, data, folders), _protocol(args, data, normalised_on)
    ) as benchmark:
        methods = _methods(args, folders, benchmark.cache)
        pairs = lists = None
        if "verification" in args.task:
            pairs, benchmark.protocol["verification"] = verification_task(data, benchmark.cache)
        if "retrieval" in args.task:
            lists, benchmark.protocol["retrieval"] = retrieval_task(data)
        for method in methods:
            start = time.perf_counter()
            raw = method.load([*split.test, *normalised_on])
            loaded_s = time.perf_counter() - start
            check_metric(args.distance, raw.dim)
            if args.write_csv is not None:
                write_csv_set(raw, args.write_csv / safe_name(method.name))
            for how in args.normalise:
                start = time.perf_counter()
                descriptors = _normalised(raw, how, split)
                scores = judge(descriptors, data, args.distance, pairs, "matching" in args.task, lists, args.seed)
                if "retrieval" in args.task and lists is None:
                    scores.null("retrieval/mAP", _NEEDS_STRIPS)
                result = benchmark.result(
                    method if how == "none" else replace(method, name=f"{method.name}_{how}"),
                    scores.scores,
                    scores.per_scene,
                    about={"dim": raw.dim, "source": method.source},
                    protocol={"normalisation": how, "not_measured": scores.not_measured, "warnings": scores.warnings},
                    timing={"describe": loaded_s, "score": time.perf_counter() - start},
                )
                for line in scores.warnings:
                    log.warning("%s: %s", result.method["descriptor"], line)
        benchmark.finish(report(benchmark.results, split), args.json)


def _check(args: argparse.Namespace) -> None:
    """Complete ``--desc`` and refuse flags that make no sense together."""
    args.desc = args.desc if args.desc is not None else ([] if args.csv else ["h8E512", "rootsift"])
    if args.data is None and (args.desc or not args.csv):
        raise UsageError("--data DIR is needed to describe patches (--data demo needs no download)")
    if args.pairs is not None and args.pairs < 1:
        raise UsageError(f"--pairs must be at least 1, got {args.pairs}")
    for how in args.normalise:
        _check_normalisation(how, args.split)


def _protocol(args: argparse.Namespace, data: PatchData, normalised_on: Sequence[str]) -> dict[str, Any]:
    split = data.split
    both = all(any(name.startswith(prefix) for name in split.test) for prefix in ("i_", "v_"))
    return {
        "tasks": [task for task in TASKS if task in args.task],
        "split": split.name,
        "sequences": list(split.test),
        "missing": list(split.missing),
        "unofficial": list(split.extra),
        "normalised_on": list(normalised_on),
        "official": data.is_official,
        "distance": args.distance,
        "resize": "65 to the descriptor's side, OpenCV bilinear, no antialiasing",
        "pool_sizes": list(POOL_SIZES),
        "matching/mAP_vl": "illumination and viewpoint weigh the same" if both else "mean over sequences",
        "seed": args.seed,
    }


def _check_normalisation(how: str, split: str) -> None:
    kind, _, share = how.partition(":")
    if kind == "zca":
        try:
            good = 0.0 <= float(share) < 1.0
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"--normalise {how}: expected zca:SHARE with a share in [0, 1), as zca:0.4")
    elif how not in NORMALISATIONS:
        raise UsageError(f"--normalise {how}: expected {', '.join(NORMALISATIONS)} or zca:SHARE")
    if how != "none" and split not in ("a", "b", "c"):
        raise UsageError(f"--normalise {how} is fitted on training sequences: only splits a, b and c have them")


def _normalised(raw: DescriptorSet, how: str, split: Split) -> DescriptorSet:
    if how == "none":
        return raw
    if how.startswith("zca:"):
        return whitening.article_plus(raw, split.train, split.test, float(how.partition(":")[2]))
    return whitening.pcapl(raw, split.train, split.test, train_mean=how == "pcapl-train-mean")


def _strips(data: str | None) -> dict[str, Path] | None:
    if data is None:
        return None
    if data == "demo":
        from eval.hpatches.build import cached_demo

        return find_strips(cached_demo())
    return find_strips(data)


def _patch_data(args: argparse.Namespace, split: Split, folders: Mapping[str, Path] | None) -> PatchData:
    low_contrast = None
    if folders is None:
        root = args.csv[0]
        counts = {name: len(read_descriptor_csv(root / name / "ref.csv", args.packed)) for name in split.test}
    else:
        counts = {name: count_patches(folders[name]) for name in split.test}
        if "retrieval" in args.task:
            low_contrast = {
                name: patch_std(read_strip(folders[name] / "ref.png")) <= LOW_CONTRAST_STD for name in split.test
            }
    tasks_dir = args.tasks
    if tasks_dir is not None and not list(tasks_dir.glob(f"*_split-{split.name}.csv")):
        raise DataError(f"{tasks_dir} holds no task files of split {split.name} (verif_pos_split-{split.name}.csv, …)")
    if tasks_dir is None and args.data not in (None, "demo") and (Path(args.data) / "tasks").is_dir():
        tasks_dir = Path(args.data) / "tasks"
    return PatchData(split, counts, low_contrast, tasks_dir, args.pairs)


def _dataset(args: argparse.Namespace, data: PatchData, folders: Mapping[str, Path] | None) -> dict[str, Any]:
    """Name and fingerprint of the strips; without them, of the sequences and their numbers of patches."""
    if folders is None:
        counts = canonical_json(dict(data.counts)).encode()
        return {"name": args.csv[0].resolve().parent.name, "fingerprint": hashlib.sha256(counts).hexdigest()}
    name = args.data if args.data == "demo" else Path(args.data).resolve().name
    return {"name": name, "fingerprint": fingerprint(folders[n] / f"{t}.png" for n in data.split.test for t in TYPES)}


def _methods(args: argparse.Namespace, folders: Mapping[str, Path] | None, cache: Cache) -> list[_Method]:
    methods = []
    if args.desc:
        assert folders is not None
        for descriptor in load_descriptors(args):
            methods.append(
                _Method(
                    descriptor.name,
                    lambda names, d=descriptor: describe_cached(folders, names, d, cache),  # type: ignore[misc]
                    descriptor.weights_sha256,
                )
            )
    for path in args.csv:
        methods.append(
            _Method(
                path.resolve().name,
                lambda names, p=path: read_csv_set(p, names, args.packed),  # type: ignore[misc]
                source=f"csv:{path}",
            )
        )
    names = [m.name for m in methods]
    if len(set(names)) < len(names):
        raise UsageError(f"two descriptors have one name: {', '.join(names)}")
    return methods


def describe_cached(
    folders: Mapping[str, Path], names: Sequence[str], descriptor: Descriptor, cache: Cache
) -> DescriptorSet:
    """Describe the strips of ``names``, sequence by sequence through the cache."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        for name in progress(names, what=f"describe {descriptor.name}", unit="sequence"):
            folder = folders[name]
            configuration = {
                "strips": fingerprint(folder / f"{t}.png" for t in TYPES),
                "sequence": name,
                "resize": "opencv-bilinear",
                **descriptor.identity(0.0),
            }

            def make(folder: Path = folder) -> dict[str, NDArray[np.float32]]:
                described = describe({"": folder}, descriptor)
                return {"descriptors": described.data.reshape(len(TYPES), -1, described.dim)}

            _, stored = cache.compute("hpatches-descriptors", configuration, make)
            yield stored["descriptors"].reshape(-1, stored["descriptors"].shape[2])

    return from_blocks({name: count_patches(folders[name]) for name in names}, blocks())


Values = Mapping[str, float | None]
_LEVELS = tuple(LEVEL_NAMES.values())


def report(results: Sequence[Result], split: Split) -> str:
    """The headline of all descriptors; then task by task what each gives at each noise level; then what is missing."""
    blocks = [_headline(results)]
    tasks = results[0].protocol["tasks"]
    for result in results:
        values = {name: score.value for name, score in result.scores.items()}
        name = result.method["descriptor"]
        if "verification" in tasks:
            blocks.append(_verification(name, values))
        if "matching" in tasks:
            blocks.append(_matching(name, values))
        if values.get("retrieval/mAP") is not None:
            blocks.append(_retrieval(name, values))
    reasons = sorted(set(results[0].protocol["not_measured"].values()))
    blocks += [f"not measured (–): {reason}" for reason in reasons]
    official = len(split.test) - len(split.extra)
    if official and not split.is_official:
        more = f", with {len(split.extra)} others" if split.extra else ""
        blocks.append(
            f"{official} of {official + len(split.missing)} sequences of split {split.name} are there{more}: "
            "these are not the official figures"
        )
    return "\n\n".join(blocks)


def _headline(results: Sequence[Result]) -> str:
    tasks = results[0].protocol["tasks"]
    empty = Score(None, None, 0)
    names = [f"{task}/{flavour}" for task in tasks for flavour in ("mAP", "mAP_vl")]
    rows = [[r.method["descriptor"], *(r.scores.get(n, empty).value for n in names)] for r in results]
    return format_table(["descriptor", *names], rows)


def _verification(descriptor: str, values: Values) -> str:
    head = [f"{descriptor}: verification", "inter AP", "intra AP", "inter AUC", "intra AUC"]
    columns = [f"{kind}/{metric}" for metric in ("mAP", "AUC") for kind in ("inter", "intra")]
    rows = [[level, *(values[f"verification/{level}/{column}"] for column in columns)] for level in _LEVELS]
    return format_table(head, rows)


def _matching(descriptor: str, values: Values) -> str:
    classes = [name for name in ("illumination", "viewpoint") if f"matching/easy/{name}/mAP" in values]
    columns = [*(f"{name}/mAP" for name in classes), "mAP", "success"]
    rows = [[level, *(values[f"matching/{level}/{column}"] for column in columns)] for level in _LEVELS]
    return format_table([f"{descriptor}: matching", *classes, "all", "success"], rows)


def _retrieval(descriptor: str, values: Values) -> str:
    rows = [[level, *(values[f"retrieval/{level}/mAP@{k}"] for k in POOL_SIZES)] for level in (*_LEVELS, "mean")]
    return format_table([f"{descriptor}: retrieval, pool", *map(str, POOL_SIZES)], rows)
