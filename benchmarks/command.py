"""``python -m eval bench``: how fast patches are described, and how long the benchmarks take, against the plain way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.machine import choose_device
from eval.core.options import format_table
from eval.core.results import environment, strict
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("descriptors (measured when nothing else is asked for)")
    group.add_argument("--weights", default="h8E512", help="of h8E512 with its projection: a name or a file")
    group.add_argument("--count", type=int, default=8192, help="patches in one call")
    group.add_argument("--keypoints", type=int, nargs="*", default=[2048, 8000], help="of a whole image; none: skip")
    group.add_argument("--rounds", type=int, default=3, help="timed calls of each, in turn")
    group.add_argument("--threads", type=int, help="of the CPU (default: all)")
    group.add_argument("--device", default="cpu", help="where kornia and ours run: cpu, cuda")
    group.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    group = parser.add_argument_group("agreement of reduced precision with fp32 (measured alone when asked for)")
    group.add_argument("--images", nargs=2, type=Path, metavar=("A", "B"), help="photographs of one scene")
    group.add_argument("--patches-of", nargs="+", type=Path, metavar="STORE", help="patch stores, or Brown's folders")
    group.add_argument("--neighbours", type=int, default=2048, help="keypoints of an image, labels of a store")
    parser.add_argument("--hpatches", action="store_true", help="the patch tasks on a synthetic full-size HPatches")
    size = parser.add_argument_group("size of --hpatches")
    size.add_argument("--sequences", type=int, default=116, help="of the full-size set")
    size.add_argument("--patches", type=int, default=2000, help="of each of its sequences")
    size.add_argument("--compare-sequences", type=int, default=4, help="of the set that is also done by plain loops")
    size.add_argument("--compare-patches", type=int, default=1000, help="of each of its sequences")
    parser.add_argument("--imw", action="store_true", help="the stereo task on the built-in scene, at --keypoints")
    parser.add_argument("--pairs", type=int, default=64, help="of --imw")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and print a table."""
    if args.images or args.patches_of:
        _agreement(args)
        return
    if args.imw:
        _imw(args)
    if args.imw and not args.hpatches:
        return
    if not args.hpatches:
        _descriptors(args)
        return
    sizes = (args.sequences, args.patches, args.compare_sequences, args.compare_patches)
    if args.sequences < 2 or args.compare_sequences < 2 or args.patches < 8 or args.compare_patches < 8:
        raise UsageError("the sets need at least 2 sequences of 8 patches")
    from benchmarks.hpatches import measure

    result = measure(*sizes)
    print(_hpatches_lines(result))
    if args.out is not None:
        write_json(args.out, strict({"hpatches": result, "environment": environment()}))
        print(f"numbers: {args.out}")


def _agreement(args: argparse.Namespace) -> None:
    """Compare nearest neighbours on photographs and patch stores, print a table for each."""
    if args.neighbours < 1:
        raise UsageError("--neighbours must be at least 1")
    from benchmarks import agreement
    from kornia_hardnet8 import HardNet8

    module = HardNet8(args.weights)
    sources: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    if args.images:
        first, second = args.images
        name = f"{first.name} {second.name}"
        sources[name] = partial(agreement.patches_of_images, module, first, second, args.neighbours)
    for path in args.patches_of or ():
        sources[str(path)] = partial(agreement.patches_of_store, module, path, args.neighbours)
    results = {}
    for name, patches in sources.items():
        first, second = patches()
        results[name] = agreement.measure(module, first, second)
        rows = [
            [r["name"], *(f"{r[key]:.4f}" for key in ("nearest", "mutual", "max_difference"))] for r in results[name]
        ]
        title = f"{name}: {len(first)} x {len(second)} patches, {results[name][0]['num_mutual']} mutual"
        print(format_table([title, "same nearest", "same mutual", "max diff"], rows))
    if args.out is not None:
        write_json(args.out, strict({"agreement": results, "environment": environment()}))
        print(f"numbers: {args.out}")


def _descriptors(args: argparse.Namespace) -> None:
    """Measure descriptors and whole images, print two tables and write what was measured."""
    if min([args.count, args.rounds, *args.keypoints]) < 1 or (args.threads is not None and args.threads < 1):
        raise UsageError("--count, --rounds, --threads and --keypoints must be at least 1")
    from benchmarks import speed, speed_image

    device = choose_device(args.device)
    threads = args.threads or torch.get_num_threads()
    result = speed.measure(args.weights, args.count, args.rounds, threads, device, not args.no_memory)
    print(_descriptor_lines(result))
    images = [speed_image.measure(args.weights, n, args.rounds, threads) for n in args.keypoints]
    for image in images:
        print(f"\n{_image_lines(image)}")
    if args.out is not None:
        content = {"descriptors": result, "images": images, "environment": environment()}
        write_json(args.out, strict(content))
        print(f"numbers: {args.out}")


def _descriptor_lines(result: dict[str, Any]) -> str:
    names = ("patches_s", "ratio", "gemm_share", "extra_mb", "max_difference", "nn_agreement")
    rows = [
        [row["name"], f"{row['patches_s']:.0f}", f"{row['ratio']:.2f}"]
        + [_cell(row[name], form) for name, form in zip(names[2:], (".2f", ".0f", ".1e", ".4f"), strict=True)]
        for row in result["rows"]
    ]
    blocks = [
        f"{result['patches']} patches a call, {result['threads']} threads, {result['device']}, median of "
        f"{result['rounds']} rounds in turn",
        format_table(["", "patches/s", "x kornia", "of GEMM", "extra MB", "max diff", "same NN"], rows),
        "matrix product: "
        + ", ".join(f"{name} {rate / 1e9:.0f} Gop/s" for name, rate in sorted(result["gemm"].items())),
    ]
    blocks += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(blocks)


def _image_lines(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        stages = [f"{value:.2f}" for value in row["stages"].values()]
        rows.append([row["name"], *stages, f"{row['total_s']:.2f}", row["keypoints"], f"{row['ratio']:.2f}"])
    height, width = result["image"]
    stages = list(result["rows"][0]["stages"])
    title = f"{width} x {height}, {result['num_features']} keypoints; seconds"
    table = format_table([title, *stages, "all", "keypoints", "x kornia"], rows)
    return f"{table}\nlargest difference of our patches to kornia's: {result['patch_difference']:.1e}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _imw(args: argparse.Namespace) -> None:
    """Time the stereo task both ways, print a table and write what was measured."""
    if args.hpatches and args.out is not None:
        raise UsageError("--out holds the numbers of one benchmark: --imw or --hpatches")
    if args.pairs < 1 or not args.keypoints or min(args.keypoints) < 8:
        raise UsageError("--imw needs at least one pair and 8 keypoints")
    from benchmarks.imw import measure

    results = [measure(count, args.pairs) for count in args.keypoints]
    print(_imw_lines(results))
    if args.out is not None:
        write_json(args.out, strict({"imw": results, "environment": environment()}))
        print(f"numbers: {args.out}")


def _imw_lines(results: list[dict[str, Any]]) -> str:
    rows = []
    for found in results:
        ours, plain = found["ours"], found["plain"]
        shares = [f"{100 * share:.0f} %" for share in ours["share"].values()]
        rates = [f"{ours['pairs_s']:.2f}", f"{plain['pairs_s']:.2f}", f"{found['ratio']:.2f}"]
        seconds = [f"{ours['cpu_s_a_pair']:.3f}", f"{plain['cpu_s_a_pair']:.3f}", f"{found['cpu_ratio']:.2f}"]
        rows.append([f"{found['keypoints']:.0f}", *rates, *seconds, *shares])
    head = ("keypoints", "pairs/s", "plain", "ratio", "CPU s/pair", "plain", "ratio", *results[0]["ours"]["share"])
    first = results[0]
    lines = [f"stereo, {first['scene']}, {first['pairs']} pairs, {first['cores']} cores", format_table(head, rows)]
    lines += [
        f"{found['keypoints']:.0f} keypoints: {found['pairs_with_other_matches']} pairs with other matches than "
        f"the plain loop, largest difference of a pose error {found['largest_difference_deg']:.1e} degrees"
        for found in results
    ]
    return "\n".join(lines)


def _hpatches_lines(result: dict[str, Any]) -> str:
    full, compare = result["full"], result["compare"]
    rows = [[name, seconds, full["cpu_s"][name]] for name, seconds in full["seconds"].items()]
    rows.append(["scoring in all", full["scoring_s"], sum(v for k, v in full["cpu_s"].items() if k != "draw")])
    title = f"{full['sequences']} sequences x {full['patches']} patches"
    blocks = [format_table([title, "seconds", "CPU seconds"], rows)]
    blocks.append(f"peak memory {full['peak_memory_gib']:.2f} GiB, {torch.get_num_threads()} threads")
    rows = []
    for name in (*compare["fast_s"], "all"):
        row: list[Any] = [name]
        for kind, ratio in (("_s", "ratio"), ("_cpu_s", "cpu_ratio")):
            for way in ("fast", "direct"):
                spent = compare[way + kind]
                row.append(sum(spent.values()) if name == "all" else spent[name])
            row.append(f"{compare[ratio][name]:.1f}")
        rows.append(row)
    title = f"{compare['sequences']} sequences x {compare['patches']} patches"
    head = [title, "seconds", "plain loops", "ratio", "CPU seconds", "plain loops", "ratio"]
    blocks.append(format_table(head, rows))
    blocks.append(f"largest difference of any score: {compare['largest_difference']:.1e}")
    return "\n".join(blocks)
