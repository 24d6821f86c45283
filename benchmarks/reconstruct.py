"""A folder of photographs to a model: ``eval reconstruct`` against COLMAP's own features and matches."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.colmap import load_pycolmap
from common.machine import available_cores
from common.shell import positive_number
from eval.core.results import format_table
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import read_json, write_json

_COMPARED = ("wall_s", "cpu_s", "peak_mib", "registered", "points")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this bench."""
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    parser.add_argument("--desc", default="h8small", metavar="TOKEN", help="of eval reconstruct")
    parser.add_argument("--keypoints", type=positive_number, default=4096, help="of eval reconstruct")
    parser.add_argument("--rounds", type=positive_number, default=1, help="runs of each, in turn; the fastest counts")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reconstruct both ways, each in a process of its own, and print a table."""
    load_pycolmap()  # before the work, not after
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for name, once in (("eval reconstruct", _ours), ("pycolmap", _colmaps)):
            with tempfile.TemporaryDirectory() as scratch:
                row = once(args, Path(scratch))
            if name not in rows or row["cpu_s"] < rows[name]["cpu_s"]:
                rows[name] = row
    print(_lines(args.images, rows))
    return {"reconstruct": {"images": args.images, "desc": args.desc, "keypoints": args.keypoints, "rows": rows}}


def colmap_pipeline(images: Path, out: Path) -> None:
    """COLMAP's own way with its defaults, on the CPU; ``out/summary.json`` is like that of ``eval reconstruct``."""
    from eval.reconstruct.pipeline import describe_model

    pycolmap = load_pycolmap()
    seconds, last = {}, time.perf_counter()
    database = out / "database.db"
    steps = {
        "describe": lambda: pycolmap.extract_features(database, images, device=pycolmap.Device.cpu),
        "match": lambda: pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu),
        "map": lambda: pycolmap.incremental_mapping(database, images, out),
    }
    for name, step in steps.items():
        result = step()
        seconds[name], last = time.perf_counter() - last, time.perf_counter()
    models = sorted((describe_model(m) for m in result.values()), key=lambda m: -m["registered"])
    write_json(out / "summary.json", {"models": models, "seconds": seconds})


def _ours(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    words = ["-m", "eval", "reconstruct", str(args.images), "--out", str(scratch), "--desc", args.desc, "--no-picture"]
    return _timed([*words, "--keypoints", str(args.keypoints)], scratch)


def _colmaps(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    code = "import sys; from pathlib import Path; from benchmarks.reconstruct import colmap_pipeline as run; "
    return _timed(["-c", f"{code}run(Path(sys.argv[1]), Path(sys.argv[2]))", str(args.images), str(scratch)], scratch)


def _timed(words: Sequence[str], out: Path) -> dict[str, Any]:
    """Run Python with these arguments; seconds, CPU seconds and peak memory of it and its workers, and its model."""
    start = time.perf_counter()
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "PYTHONPATH": path}
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise DataError(f"{words[-1]}: a reconstruction ended with {process.returncode}: {last[0]}")
    summary = read_json(out / "summary.json")
    best = summary["models"][0] if summary["models"] else {"registered": 0, "points": 0}
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / (1024.0 if sys.platform == "linux" else 1024.0**2),
        "registered": best["registered"],
        "points": best["points"],
        "seconds": summary["seconds"],
    }


def _lines(images: Path, rows: dict[str, dict[str, Any]]) -> str:
    head = (str(images), "seconds", "CPU seconds", "peak MiB", "images", "points")
    table: list[tuple[Any, ...]] = [
        (name, f"{r['wall_s']:.1f}", f"{r['cpu_s']:.1f}", f"{r['peak_mib']:.0f}", r["registered"], r["points"])
        for name, r in rows.items()
    ]
    ours, other = rows["eval reconstruct"], rows["pycolmap"]
    ratios = [ours[key] / other[key] if other[key] else None for key in _COMPARED]
    table.append(("ratio", *(None if ratio is None else f"{ratio:.2f}" for ratio in ratios)))
    stages = [
        f"{name}, seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in r["seconds"].items())
        for name, r in rows.items()
    ]
    return "\n".join([f"{available_cores()} cores", format_table(head, table), *stages])
