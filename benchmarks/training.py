"""How fast training is, and where the time goes, measured against the plain loop in the same process."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common.machine import keep_freed_memory
from common.patchstore import PatchStore
from common.shell import output_file, positive_number
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.arch import get_arch
from train.config import TrainConfig
from train.run import Run
from train.sampling import Sampling, index_labels, plan_batch
from train.stores.writer import create_store

STAGES = ("data", "augmentation", "forward", "mining and loss", "backward", "optimiser")


def bench_training(config: TrainConfig, steps: int, device: torch.device, plain: float | None = None) -> dict[str, Any]:
    """Time training steps stage by stage on random patches, the data not read ahead.

    Seconds are those of the wall, on one thread of a CPU those of the processor (``clock`` says which). The plain loop
    comes first: after it the process keeps the memory of freed tensors, as in training.

    Args:
        config: the settings; ``ds`` is replaced by a generated store.
        steps: timed steps, after one that is not.
        device: where.
        plain: ``plain_patches_s`` where it is known already.

    Returns:
        ``patches_s``, ``shares`` of the stages, ``plain_patches_s`` and ``speedup`` against the plain loop (fp32, NCHW,
        whole distance matrix), ``gemm_flops`` of matrix products in the precision used and ``gemm_share`` of it that
        training reaches, counting forward and backward of the convolutions alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = _random_store(Path(folder) / "store", config.bs)
        patches = torch.from_numpy(np.array(PatchStore.open(store).patches[: config.bs * config.npos]))
        plain = plain or _plain_loop(config, patches, device, max(1, steps // 2))
        if device.type == "cpu":
            keep_freed_memory()
        run = Run(TrainConfig.from_dict({**config.to_dict(), "ds": str(store)}), Path(folder), device)
        seconds = {stage: 0.0 for stage in STAGES}
        for step in range(steps + 1):
            for stage, taken in _staged_step(run).items():
                seconds[stage] += taken if step else 0.0  # the first step warms up
        precision = run.precision
    total = sum(seconds.values())
    rate = steps * config.bs * config.npos / total
    gemm = gemm_rate(precision, device)
    return {
        "arch": config.arch,
        "bs": config.bs,
        "device": str(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "clock": "processor" if _clock(device) is time.process_time else "wall",
        "patches_s": rate,
        "shares": {stage: value / total for stage, value in seconds.items()},
        "plain_patches_s": plain,
        "speedup": rate / plain,
        "gemm_flops": gemm,
        "gemm_share": 6.0 * get_arch(config.arch).macs * rate / gemm,
    }


def bench_sampling(num_patches: int = 450_000, tuples: int = 5_000_000) -> dict[str, float]:
    """Seconds that planning an epoch takes on one core: ours, and label by label in Python as in 2020.

    Args:
        num_patches: patches of a set, three a label, from 3000 cameras.
        tuples: of the epoch, in batches of 3072; a twentieth (a five hundredth in Python) is timed.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_patches // 3), 3)
    index = index_labels(labels, rng.integers(0, 3000, len(labels)))
    out = {}
    for name, sampling in (("uniform", Sampling(3072)), ("fewcams", Sampling(3072, fewcams=True))):
        count = max(1, tuples // 3072 // 20)
        start = time.process_time()
        for _ in range(count):
            plan_batch(index, sampling, rng)
        out[name] = (time.process_time() - start) * tuples / (3072 * count)
    groups = {label: [3 * label, 3 * label + 1, 3 * label + 2] for label in range(num_patches // 3)}
    seen = [np.unique(index.cam_labels[a:b]).tolist() for a, b in itertools.pairwise(index.cam_starts)]
    count = max(1, tuples // 3072 // 500)
    draws = (
        ("uniform", lambda: random.sample(tuple(groups), 3072)),
        ("fewcams", lambda: _labels_of_cameras(seen, 3072)),
    )
    for name, draw in draws:
        start = time.process_time()
        for _ in range(count):
            for label in draw():
                random.sample(groups[label], 2)
        out[f"{name}, label by label"] = (time.process_time() - start) * tuples / (3072 * count)
    return out


def _labels_of_cameras(seen: list[list[int]], count: int) -> set[int]:
    """Labels of random cameras, camera by camera and label by label until there are enough, as in 2020."""
    available, chosen = list(range(len(seen))), set[int]()
    while len(chosen) < count:
        camera = random.choice(available)
        available.remove(camera)
        for label in seen[camera]:
            chosen.add(label)
            if len(chosen) == count:
                break
    return chosen


def gemm_rate(precision: str, device: torch.device, side: int = 2048) -> float:
    """Floating-point operations per second of a large matrix product."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        seconds, _ = _timed(device, lambda: a @ b)
        best = max(best, 2.0 * side**3 / seconds)
    return best


def _staged_step(run: Run) -> dict[str, float]:
    """One training step by its stages, the data not read ahead; seconds."""
    clock, device = _clock(run.device), run.device
    seconds: dict[str, float] = {}
    seconds["data"], batch = _timed(device, lambda: run.source.batch(run.step))
    last = clock()

    def on_stage(stage: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        last, before = clock(), last
        seconds[stage] = last - before

    run.advance(batch, on_stage=on_stage)
    return seconds


def _plain_loop(config: TrainConfig, stored: torch.Tensor, device: torch.device, steps: int) -> float:
    """Patches per second of forward, backward and step in fp32 and NCHW, with the whole matrix of distances."""
    model = HardNet8(arch=config.arch, output_dim=None).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    stored = stored.to(device)

    def step() -> None:
        patches = F.interpolate(stored[:, None].float(), model.patch_size, mode="bilinear", antialias=True)
        descs = model(patches)
        anchors, positives = descs[0::2], descs[1::2]
        distances = torch.sqrt((2.0 - 2.0 * anchors @ positives.T).clamp(min=1e-6))
        masked = distances + 10.0 * torch.eye(len(distances), device=device)
        negative = torch.minimum(masked.min(0).values, masked.min(1).values)
        F.relu(1.0 + distances.diagonal() - negative).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    seconds = sum(_timed(device, step)[0] for _ in range(steps))
    return steps * len(stored) / seconds


def _timed(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, the device's queue emptied before and after, and what it returned."""
    clock = _clock(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    value = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, value


def _clock(device: torch.device) -> Callable[[], float]:
    """The wall's, but the processor's where one thread of a CPU does it all: other processes count less then."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _random_store(folder: Path, num_labels: int) -> Path:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2 * num_labels), 2)
    with create_store(folder, 64) as writer:
        cams = (np.arange(len(labels)) % 16).astype(np.int32)
        patches = rng.integers(0, 256, (len(labels), 64, 64), dtype=np.uint8)
        writer.append(patches, labels=labels, image_ids=cams, cam_ids=cams)
        writer.meta = {"crop": 1.5, "mr_size": 12.0, "built": {"command": "bench"}, "sources": []}
    return folder


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
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from benchmarks.training import bench_sampling, bench_training
    from common.devices import choose_device, resolve_precision
    from common.machine import describe_environment
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
