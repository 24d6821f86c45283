"""``python -m train bench``: patches per second, stage by stage."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from common.shell import positive_number


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--arch", default="h8E512", help="architecture")
    parser.add_argument("--bs", type=int, default=512, help="tuples in a batch")
    parser.add_argument("--loss", default="tripletMargin", help="loss string")
    parser.add_argument("--aug", default="mild", help="augmentation")
    parser.add_argument("--precision", default="auto", help="of the forward pass; fp32 is measured beside it")
    parser.add_argument("--steps", type=positive_number, default=3, help="timed steps")
    parser.add_argument("--threads", type=positive_number, help="threads on a CPU (default: all cores)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from benchmarks.training import bench_sampling, bench_training
    from common.machine import choose_device, describe_environment, resolve_precision
    from kornia_hardnet8.files import write_json
    from train.config import TrainConfig

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    config = TrainConfig("bench", arch=args.arch, bs=args.bs, loss=args.loss, aug=args.aug, steps=100, holdout=0.0)
    precisions = dict.fromkeys([resolve_precision(args.precision, device), "fp32"])
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        plain = rows[0]["plain_patches_s"] if rows else None
        rows.append(bench_training(dataclasses.replace(config, precision=precision), args.steps, device, plain))
    result = {"training": rows, "sampling_s": bench_sampling(), "environment": describe_environment()}
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result, indent=1) if args.json else _table(result))


def _table(result: dict[str, Any]) -> str:
    lines = []
    for row in result["training"]:
        lines.append(
            f"{row['arch']}, {row['bs']} tuples, {row['precision']} on {row['device']}, threads: {row['threads']} "
            f"({row['clock']} time): "
            f"{row['patches_s']:.0f} patches/s, {row['speedup']:.2f} times the plain fp32 loop "
            f"({row['plain_patches_s']:.0f}), {100 * row['gemm_share']:.0f} % of the rate of matrix products "
            f"({row['gemm_flops'] / 1e9:.0f} GFLOP/s)"
        )
        lines += [f"  {stage:16} {100 * share:5.1f} %" for stage, share in row["shares"].items()]
    lines.append("planning an epoch of 5,000,000 tuples from 450,000 patches on one core:")
    lines += [f"  {name:26} {seconds:6.1f} s" for name, seconds in result["sampling_s"].items()]
    return "\n".join(lines)
