"""``eval bench hpatches``: how long the tasks take after description, and how much faster they are than plain loops."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import plain
from common.hpatches import TYPES
from eval.core.results import format_table
from eval.hpatches import matching, retrieval, verification
from eval.hpatches.descriptors import DescriptorSet
from eval.hpatches.tasks import (
    OFFICIAL_DISTRACTORS,
    OFFICIAL_PAIRS,
    OFFICIAL_QUERIES,
    PatchList,
    RetrievalTask,
    VerificationTask,
    draw_retrieval,
    draw_verification,
)
from kornia_hardnet8.errors import UsageError

T = TypeVar("T")
DIM = 128
# Of the full-size set, also done by plain loops.
_PART_PAIRS, _PART_SEQUENCES, _PART_QUERIES = 20_000, 2, 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this bench."""
    parser.add_argument("--sequences", type=int, default=116, help="of the full-size set")
    parser.add_argument("--patches", type=int, default=2000, help="of each of its sequences")
    parser.add_argument("--compare-sequences", type=int, default=4, help="of the set that is also done by plain loops")
    parser.add_argument("--compare-patches", type=int, default=1000, help="of each of its sequences")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the tasks and print the tables; returns what was measured."""
    if min(args.sequences, args.compare_sequences) < 2 or min(args.patches, args.compare_patches) < 8:
        raise UsageError("the sets need at least 2 sequences of 8 patches")
    result = measure(args.sequences, args.patches, args.compare_sequences, args.compare_patches)
    print(table(result))
    return {"hpatches": result}


def table(result: dict[str, Any]) -> str:
    """Seconds of the full-size set by stage; seconds of the smaller set both ways."""
    full, compare = result["full"], result["compare"]
    wall_s, cpu_s = full["seconds"] | {"all": full["scoring_s"]}, full["cpu_s"] | {"all": full["scoring_cpu_s"]}
    direct_s = full["direct_s"] | {"all": sum(full["direct_s"].values())}
    rows: list[list[Any]] = [["draw", wall_s["draw"], cpu_s["draw"], None, None]]
    rows += [[n, wall_s[n], cpu_s[n], f"{slow:.0f}", f"{slow / wall_s[n]:.1f}"] for n, slow in direct_s.items()]
    title = f"{full['sequences']} sequences x {full['patches']} patches"
    blocks = [format_table([title, "seconds", "CPU seconds", "plain loops, by a part", "ratio"], rows)]
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


def synthetic_set(sequences: int, patches: int, seed: int = 0, dim: int = DIM) -> DescriptorSet:
    """Unit vectors; the views of a patch lie around its reference, farther with the level."""
    rng = np.random.default_rng(seed)
    names = tuple(f"{'iv'[k % 2]}_{k:03d}" for k in range(sequences))
    data = np.empty((sequences * len(TYPES) * patches, dim), np.float32)
    at = 0
    for _ in names:
        base = rng.standard_normal((patches, dim), dtype=np.float32)
        for strip in TYPES:
            noise = {"r": 0.0, "e": 0.5, "h": 1.0, "t": 1.5}[strip[0]]
            rows = base + noise * rng.standard_normal((patches, dim), dtype=np.float32)
            data[at : at + patches] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            at += patches
    return DescriptorSet(names, np.full(sequences, patches, np.int64), data)


def tasks_of(
    descriptors: DescriptorSet, pairs: int, queries: int, distractors: int
) -> tuple[VerificationTask, RetrievalTask]:
    """Draw both tasks for a set."""
    counts = dict(zip(descriptors.names, descriptors.counts.tolist(), strict=True))
    low = {name: np.zeros(count, bool) for name, count in counts.items()}
    return (
        draw_verification(descriptors.names, counts, pairs),
        draw_retrieval(descriptors.names, counts, low, queries, distractors),
    )


def measure(sequences: int, patches: int, compare_sequences: int, compare_patches: int) -> dict[str, Any]:
    """Time the full-size tasks, and a smaller set both ways.

    Returns:
        ``full``: seconds by stage, on the clock and of the processor, the sum of scoring, peak memory in GiB, and
        what the plain loops would take, measured with a part of each task.
        ``compare``: both seconds of the fast and the direct way by task, their ratios, and the largest difference of
        any score.
    """
    return {
        "compare": _compare(compare_sequences, compare_patches),
        "full": _full(sequences, patches),
    }


class Spent(NamedTuple):
    """Seconds on the clock, and of the processor over all threads: what other processes take is not in the latter."""

    wall_s: float
    cpu_s: float


def _timed(run: Callable[[], T]) -> tuple[T, Spent]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    return value, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _least(run: Callable[[], T], repeats: int = 3) -> tuple[T, Spent]:
    """The value, and the least of some times: another process can only make a run longer."""
    runs = [_timed(run) for _ in range(repeats)]
    return runs[0][0], Spent(*(min(spent[k] for _, spent in runs) for k in range(2)))


def _full(sequences: int, patches: int) -> dict[str, Any]:
    descriptors = synthetic_set(sequences, patches)
    share = sequences * patches / (116 * 2000)
    pairs = min(OFFICIAL_PAIRS, max(1000, round(OFFICIAL_PAIRS * share)))
    queries, distractors = (max(10, round(n * min(1.0, share))) for n in (OFFICIAL_QUERIES, OFFICIAL_DISTRACTORS))
    (pair_task, list_task), drawn = _timed(lambda: tasks_of(descriptors, pairs, queries, distractors))
    table, verified = _timed(lambda: verification.score_verification(descriptors, pair_task))
    scores, matched = _timed(lambda: matching.score_matching(descriptors, descriptors.names))
    mean_aps, retrieved = _timed(lambda: retrieval.score_retrieval(descriptors, list_task))
    assert mean_aps is not None
    spent = {"draw": drawn, "verification": verified, "matching": matched, "retrieval": retrieved}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "sequences": sequences,
        "patches": patches,
        "dim": DIM,
        "pairs": pairs,
        "queries": len(list_task.queries),
        "distractors": len(list_task.distractors),
        "seconds": {name: seconds.wall_s for name, seconds in spent.items()},
        "cpu_s": {name: seconds.cpu_s for name, seconds in spent.items()},
        "scoring_s": verified.wall_s + matched.wall_s + retrieved.wall_s,
        "scoring_cpu_s": verified.cpu_s + matched.cpu_s + retrieved.cpu_s,
        "direct_s": _direct_seconds(descriptors, pair_task, list_task),
        "peak_memory_gib": peak_kib / 2**20,
        "scores": {
            "verification/mAP": verification.headline(table),
            "matching/mAP": matching.headline(scores),
            "retrieval/mAP": mean_aps.headline(),
        },
    }


def _direct_seconds(
    descriptors: DescriptorSet, pair_task: VerificationTask, list_task: RetrievalTask
) -> dict[str, float]:
    """Seconds that the plain loops take for whole tasks: those of a part, drawn evenly, times what it is a part of."""
    pairs = _evenly(len(pair_task.positives), _PART_PAIRS)
    fewer_pairs = VerificationTask(*(getattr(pair_task, f.name).keep(pairs) for f in fields(pair_task)))
    queries = list_task.queries
    chosen = _evenly(len(queries), _PART_QUERIES)
    fewer_queries = PatchList(queries.names, queries.s[chosen], queries.idx[chosen])
    names = descriptors.names[:_PART_SEQUENCES]
    _, verified = _timed(lambda: plain.verification(descriptors, fewer_pairs))
    _, matched = _timed(lambda: plain.matching(descriptors, names))
    _, retrieved = _timed(lambda: plain.retrieval(descriptors, RetrievalTask(fewer_queries, list_task.distractors)))
    return {
        "verification": verified.wall_s * len(pairs) / pairs.sum(),
        "matching": matched.wall_s * len(descriptors.names) / len(names),
        "retrieval": retrieved.wall_s * len(chosen) / chosen.sum(),
    }


def _evenly(num: int, part: int) -> NDArray[np.bool_]:
    """(num,), about ``part`` of them true, spread over all."""
    return np.arange(num) % max(1, num // part) == 0


def _compare(sequences: int, patches: int) -> dict[str, Any]:
    descriptors = synthetic_set(sequences, patches, seed=1)
    total = sequences * patches
    pair_task, list_task = tasks_of(descriptors, 4 * total, max(10, total // 20), total)
    table, fast_v = _least(lambda: verification.score_verification(descriptors, pair_task))
    scores, fast_m = _least(lambda: matching.score_matching(descriptors, descriptors.names))
    mean_aps, fast_r = _least(lambda: retrieval.score_retrieval(descriptors, list_task))
    verified, slow_v = _least(lambda: plain.verification(descriptors, pair_task))
    plain_matching, slow_m = _least(lambda: plain.matching(descriptors, descriptors.names))
    plain_retrieval, slow_r = _least(lambda: plain.retrieval(descriptors, list_task))
    assert mean_aps is not None
    cells = {f"{level}/{kind}": cell for level, row in table.items() for kind, cell in row.items()}
    differences = [abs(cell["imbalanced_ap"] - verified[name]) for name, cell in cells.items() if cell is not None]
    differences.append(abs(matching.headline(scores) - plain_matching))
    differences.append(float(np.abs(mean_aps.ap - plain_retrieval).max()))
    fast = {"verification": fast_v, "matching": fast_m, "retrieval": fast_r}
    slow = {"verification": slow_v, "matching": slow_m, "retrieval": slow_r}
    return {
        "sequences": sequences,
        "patches": patches,
        "pairs": len(pair_task.positives),
        "queries": len(list_task.queries),
        "distractors": len(list_task.distractors),
        "fast_s": {name: spent.wall_s for name, spent in fast.items()},
        "direct_s": {name: spent.wall_s for name, spent in slow.items()},
        "ratio": _ratios(fast, slow, 0),
        "fast_cpu_s": {name: spent.cpu_s for name, spent in fast.items()},
        "direct_cpu_s": {name: spent.cpu_s for name, spent in slow.items()},
        "cpu_ratio": _ratios(fast, slow, 1),
        "largest_difference": max(differences),
    }


def _ratios(fast: dict[str, Spent], slow: dict[str, Spent], kind: int) -> dict[str, float]:
    """Plain over fast seconds of each task, and of ``all`` together."""
    ratios = {name: slow[name][kind] / fast[name][kind] for name in fast}
    return ratios | {"all": sum(s[kind] for s in slow.values()) / sum(s[kind] for s in fast.values())}
