"""``python -m eval bench``: how long the benchmarks take, against the plain way in the same run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from eval.command_line import format_table
from eval.results import environment, strict
from kornia_hardnet8._files import write_json
from kornia_hardnet8.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--hpatches", action="store_true", help="the patch tasks on a synthetic full-size HPatches")
    size = parser.add_argument_group("size of --hpatches")
    size.add_argument("--sequences", type=int, default=116, help="of the full-size set")
    size.add_argument("--patches", type=int, default=2000, help="of each of its sequences")
    size.add_argument("--compare-sequences", type=int, default=4, help="of the set that is also done by plain loops")
    size.add_argument("--compare-patches", type=int, default=1000, help="of each of its sequences")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and print a table."""
    if not args.hpatches:
        raise UsageError("nothing to measure: give --hpatches")
    sizes = (args.sequences, args.patches, args.compare_sequences, args.compare_patches)
    if args.sequences < 2 or args.compare_sequences < 2 or args.patches < 8 or args.compare_patches < 8:
        raise UsageError("the sets need at least 2 sequences of 8 patches")
    from eval.hpatches.bench import measure

    result = measure(*sizes)
    print(_hpatches_lines(result))
    if args.out is not None:
        write_json(args.out, strict({"hpatches": result, "environment": environment()}))
        print(f"numbers: {args.out}")


def _hpatches_lines(result: dict[str, Any]) -> str:
    full, compare = result["full"], result["compare"]
    rows = [[name, seconds] for name, seconds in full["seconds"].items()]
    rows.append(["scoring in all", full["scoring_s"]])
    title = f"{full['sequences']} sequences x {full['patches']} patches"
    blocks = [format_table([title, "seconds"], rows)]
    blocks.append(f"peak memory {full['peak_memory_gib']:.2f} GiB, {torch.get_num_threads()} threads")
    rows = [
        [name, compare["fast_s"][name], compare["direct_s"][name], compare["ratio"][name]] for name in compare["fast_s"]
    ]
    rows.append(["all", sum(compare["fast_s"].values()), sum(compare["direct_s"].values()), compare["ratio"]["all"]])
    title = f"{compare['sequences']} sequences x {compare['patches']} patches"
    blocks.append(format_table([title, "seconds", "plain loops", "ratio"], rows))
    blocks.append(f"largest difference of any score: {compare['largest_difference']:.1e}")
    return "\n".join(blocks)
