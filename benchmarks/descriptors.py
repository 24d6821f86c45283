"""How fast patches are described: kornia's module, this package's in each precision, exported files, other descriptors.

All of them in turn, round after round in one process, so that a change of the machine's speed meets each alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import images
from common.devices import choose_device
from common.shell import positive_number
from eval.core.results import format_table
from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.arch import get_arch
from kornia_hardnet8.errors import HardNet8Error, MissingDependencyError
from kornia_hardnet8.export import export, load_openvino
from kornia_hardnet8.fused import has_onednn_int8

Describe = Callable[[Tensor], Tensor]
BASE = "kornia"
PRECISION_OF = {
    "kornia": "fp32", "kornia, chunks": "fp32", "ours fp32": "fp32", "ours bf16": "bf16", "ours int8": "int8",
    "ours fp16": "fp16", "onnxruntime fp32": "fp32", "onnxruntime int8": "int8", "openvino fp32": "fp32",
    "openvino int8": "int8",
}  # fmt: skip
KORNIA_CHUNK = 256
ROUNDS = 3  # timed calls of each, in turn


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this bench."""
    parser.add_argument("--weights", default="h8E512", help="of h8E512 with its projection: a name or a file")
    parser.add_argument("--count", type=positive_number, default=8192, help="patches in one call")
    parser.add_argument(
        "--keypoints", type=positive_number, nargs="*", default=[2048, 8000], help="of a whole image; none: skip"
    )
    parser.add_argument("--threads", type=positive_number, help="of the CPU (default: all)")
    parser.add_argument("--device", default="cpu", help="where kornia and ours run: cpu, cuda")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure descriptors and whole images and print the tables; returns what was measured."""
    device = choose_device(args.device)
    threads = args.threads or torch.get_num_threads()
    result = measure(args.weights, args.count, ROUNDS, threads, device)
    print(table(result))
    whole = [images.measure(args.weights, count, ROUNDS, threads) for count in args.keypoints]
    for image in whole:
        print(f"\n{images.table(image)}")
    return {"descriptors": result, "images": whole}


def table(result: dict[str, Any]) -> str:
    """Rates, memory and agreement of the contenders; what was left out, and why."""
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


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def paired_patches(count: int, seed: int = 0) -> Tensor:
    """Random patches (N, 1, 32, 32) in [0, 1] with the correlation of neighbours that images have.

    The second half shows the first once more: moved by a pixel, brighter, with noise.
    """
    generator = torch.Generator().manual_seed(seed)
    half = (count + 1) // 2
    patches = torch.empty(2 * half, 1, 32, 32)
    for start in range(0, half, 2048):
        rows = min(2048, half - start)
        noise = torch.rand(rows, 1, 39, 39, generator=generator)
        smooth = F.avg_pool2d(F.avg_pool2d(noise, 5, 1), 3, 1)
        patches[start : start + rows] = smooth[:, :, :32, :32]
        again = 1.2 * smooth[:, :, 1:, 1:] + 0.1 * torch.randn(rows, 1, 32, 32, generator=generator)
        patches[half + start : half + start + rows] = again
    return patches[:count]


def make(name: str, weights: str | Path, folder: Path, threads: int, device: torch.device) -> Describe:
    """One of the contenders, with the same weights where it has the same network.

    Raises:
        HardNet8Error: it cannot run here; the message says why.
    """
    if name in ("rootsift", "tfeat"):
        return _other(name)
    module = HardNet8(weights).to(device)
    if name.startswith("kornia"):
        import kornia.feature as KF

        theirs = KF.HardNet8(pretrained=False).eval().to(device)
        theirs.load_state_dict(module.state_dict(), strict=True)
        if name == "kornia":
            return theirs
        return lambda patches: torch.cat([theirs(part) for part in patches.split(KORNIA_CHUNK)])
    tool, _, precision = name.partition(" ")
    if tool == "ours":
        return prepare_for_inference(module, precision)  # type: ignore[arg-type]
    path = folder / f"{precision}.onnx"
    if not path.is_file():
        export(module, path, "onnx", precision)  # type: ignore[arg-type]
    return _onnxruntime(path, threads) if tool == "onnxruntime" else _openvino(path, threads)


def _onnxruntime(path: Path, threads: int) -> Describe:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime is not installed") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def describe(patches: Tensor) -> Tensor:
        parts = [session.run(None, {"patches": p.numpy()})[0] for p in patches.split(KORNIA_CHUNK)]
        return torch.cat([torch.from_numpy(p) for p in parts])

    return describe


def _openvino(path: Path, threads: int) -> Describe:
    compiled = load_openvino(path, threads)

    def describe(patches: Tensor) -> Tensor:
        return torch.cat([torch.from_numpy(compiled(p.numpy())[0].copy()) for p in patches.split(KORNIA_CHUNK)])

    return describe


def _other(name: str) -> Describe:
    if name == "rootsift":
        from eval.features import load

        return load("rootsift").describe
    import kornia.feature as KF

    module = KF.TFeat(pretrained=False).eval()
    return lambda patches: torch.cat([module(part) for part in patches.split(1024)])


def measure(
    weights: str | Path, count: int, rounds: int, threads: int, device: torch.device, memory: bool = True
) -> dict[str, Any]:
    """Rates of all contenders.

    Args:
        weights: of h8E512 with a projection of 128 dimensions, so that kornia's module takes them too.
        count: patches in one call.
        rounds: timed calls of each, in turn; medians are given.
        threads: of the CPU.
        device: where kornia and ours run; the others run on the CPU.
        memory: whether to measure peak memory too, each contender in a process of its own (Linux).

    Returns:
        ``rows``: name, patches_s, spread (interquartile range / median), ratio to kornia's own call, gemm_share
        of the matrix-product rate in the same precision, extra_mb, max_difference and nn_agreement with kornia;
        ``left_out``: name and reason; ``gemm``: operations/s by precision; and the settings.
    """
    torch.set_num_threads(threads)
    patches = paired_patches(count).to(device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        contenders, left_out = _contenders(weights, Path(folder), threads, device, patches)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        gemm: dict[str, list[float]] = {PRECISION_OF[n]: [] for n in contenders if n in PRECISION_OF}
        descs: dict[str, Tensor] = {}
        for _ in range(rounds):
            for precision in gemm:
                gemm[precision].append(gemm_rate(precision, device))
            for name, describe in contenders.items():
                start = time.perf_counter()
                descs[name] = describe(patches)
                _wait(device)
                seconds[name].append(time.perf_counter() - start)
        extra = {n: extra_memory_mb(n, weights, count, threads) for n in contenders} if memory else {}
    rates = {precision: statistics.median(values) for precision, values in gemm.items() if values[0] > 0}
    base = statistics.median(seconds[BASE])
    rows = []
    for name, values in seconds.items():
        patches_s = count / statistics.median(values)
        rate = rates.get(PRECISION_OF.get(name, ""))
        rows.append(
            {
                "name": name,
                "patches_s": patches_s,
                "spread": _spread(values),
                "ratio": base * patches_s / count,
                "gemm_share": None if rate is None else 2.0 * get_arch("h8E512").macs * patches_s / rate,
                "extra_mb": extra.get(name),
                **_against_kornia(name, descs),
            }
        )
    settings = {"patches": count, "rounds": rounds, "threads": threads, "device": str(device), "weights": str(weights)}
    return {"rows": rows, "left_out": left_out, "gemm": rates, **settings}


def _contenders(
    weights: str | Path, folder: Path, threads: int, device: torch.device, patches: Tensor
) -> tuple[dict[str, Describe], dict[str, str]]:
    """Those that run here, warm; and the reasons why the others do not."""
    names = [*PRECISION_OF, "rootsift", "tfeat"]
    if device.type != "cpu":
        names = ["kornia", "kornia, chunks", "ours fp32", "ours bf16", "ours fp16"]
    contenders, left_out = {}, {}
    for name in names:
        try:
            contenders[name] = make(name, weights, folder, threads, device)
            contenders[name](patches[:512])
        except HardNet8Error as error:
            contenders.pop(name, None)
            left_out[name] = str(error)
    return contenders, left_out


def _against_kornia(name: str, descs: dict[str, Tensor]) -> dict[str, float | None]:
    """What differs from kornia's own descriptors; None for another network."""
    if name not in PRECISION_OF or descs[name].shape != descs[BASE].shape:
        return {"max_difference": None, "nn_agreement": None}
    difference = float((descs[name] - descs[BASE]).abs().max())
    return {"max_difference": difference, "nn_agreement": _agreement(descs[name], descs[BASE])}


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def _agreement(descs: Tensor, reference: Tensor) -> float:
    """Share of patches of the first half whose nearest one of the second half is the same by both."""
    half = (len(descs) + 1) // 2
    rows = min(half, 2048)
    if len(descs) < 2:
        return 1.0
    nearest = [(d[:rows] @ d[half:].T).argmax(dim=1) for d in (descs, reference)]
    return float((nearest[0] == nearest[1]).float().mean())


def gemm_rate(precision: str, device: torch.device, side: int = 2048) -> float:
    """Operations a second of one large matrix product; 0 where torch has none of this precision here."""
    if precision == "int8":
        if not has_onednn_int8():
            return 0.0
        left = torch.randint(0, 255, (side, side), dtype=torch.uint8)
        packed = torch.ops.onednn.qlinear_prepack(
            torch.randint(-127, 127, (side, side), dtype=torch.int8), [side, side]
        )
        scale, zero = torch.full((side,), 0.01), torch.zeros(side, dtype=torch.int8)

        def multiply() -> Tensor:
            product: Tensor = torch.ops.onednn.qlinear_pointwise(
                left, 0.01, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
            )
            return product
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        a = torch.rand(side, side, device=device).to(dtype)
        b = torch.rand(side, side, device=device).to(dtype)

        def multiply() -> Tensor:
            return a @ b

    multiply()
    _wait(device)
    start = time.perf_counter()
    multiply()
    _wait(device)
    return 2.0 * side**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_memory_mb(name: str, weights: str | Path, count: int, threads: int) -> float | None:
    """Peak resident memory of the first call in a process over what was there before and the result, MB.

    So it holds the fused copy, its making, and the code that is loaded for it; None where it cannot be known.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_extra_memory_here, (name, str(weights), count, threads))


def _extra_memory_here(name: str, weights: str, count: int, threads: int) -> float:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        describe = make(name, weights, Path(folder), threads, torch.device("cpu"))
        patches = paired_patches(count)
        before = _status_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        result = describe(patches)
        return max(0.0, _status_mb("VmHWM") - before - result.numel() * result.element_size() / 2**20)


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0
