"""``python -m eval compare RUN_A RUN_B``: differences between methods, pair by pair, and which of them are real."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.metrics import maa_per_pair
from common.shell import output_file, seed_number
from eval.core.results import Score, format_table, lower_is_better, mean_over_scenes, nested_mean, read_results, strict
from kornia_hardnet8.errors import DataError, UsageError, closest
from kornia_hardnet8.files import write_json

Entry = dict[str, Any]
# Benchmarks whose numbers are means over scenes of the mean over pairs (of the mean over bags of one size); the others
# are means over all pairs.
_MEAN_OVER_SCENES = {"imw", "webcam"}


class MetricDifference(NamedTuple):
    """One metric of two methods on the pairs that both were judged on."""

    metric: str
    a: float
    b: float
    difference: float
    """a minus b."""
    ci95: tuple[float, float]
    n: int

    @property
    def verdict(self) -> str:
        """``A``, ``B``: the one that is better; ``-``: the interval holds zero."""
        low, high = self.ci95
        if low <= 0.0 <= high:
            return "-"
        return "A" if (low > 0.0) != lower_is_better(self.metric) else "B"


def compare_entries(
    a: Entry, b: Entry, seed: int = 0, metrics: Collection[str] | None = None
) -> list[MetricDifference]:
    """Differences of two entries of results files, by metric, with bootstrap intervals over pairs.

    Metrics are those of ``scores`` that every pair has a value of its own for. The summary of ``dev`` (the mean of the
    means of its tasks) is compared as such. ``metrics`` names those to compare; None: all.

    Raises:
        DataError: different benchmarks, data sets or choices of pairs, or nothing to compare pair by pair.
    """
    if a["benchmark"] != b["benchmark"]:
        raise DataError(f"the runs cannot be compared: benchmark {a['benchmark']} against {b['benchmark']}")
    if a["dataset"].get("fingerprint") != b["dataset"].get("fingerprint"):
        names = [str(entry["dataset"].get("name")) for entry in (a, b)]
        differ = "files have changed" if names[0] == names[1] else f"the other one's is {names[1]}"
        raise DataError(f"the runs cannot be compared: the data set of one is {names[0]}, {differ}")
    values_a, values_b = values_by_pair(a), values_by_pair(b)
    differences = []
    for metric in values_a.keys() & values_b.keys() & (values_a.keys() if metrics is None else set(metrics)):
        if values_a[metric].keys() != values_b[metric].keys():
            raise DataError(
                f"the runs cannot be compared: {metric} has {len(values_a[metric])} pairs in one, "
                f"{len(values_b[metric])} in the other, or others"
            )
        for values, other in ((values_a[metric], values_b[metric]), (values_b[metric], values_a[metric])):
            for key in [key for key, value in values.items() if np.isnan(value)]:
                del values[key], other[key]
        if values_a[metric]:
            differences.append(_difference(metric, values_a[metric], values_b[metric], a["benchmark"], seed))
    if not differences:
        raise DataError(f"the results of {a['benchmark']} hold no values by pair to compare")
    order = list(a["scores"])
    differences.sort(key=lambda d: order.index(d.metric))
    if a["benchmark"] == "dev" and metrics is None and _headlines(values_a) == _headlines(values_b):
        differences.insert(0, _summary(values_a, values_b, seed))
    return differences


def values_by_pair(entry: Entry) -> dict[str, dict[tuple[str, str], float]]:
    """Value of each score by (scene, pair): a number that the pair holds, NaN for null, or its share of an mAA.

    Pairs of the IMW benchmark below co-visibility 0.1 are left out, as in its headline numbers.
    """
    least = _covisibility(entry["protocol"], 0.0)
    by_metric: dict[str, dict[tuple[str, str], float]] = {}
    for name in entry["scores"]:
        task, _, metric = name.rpartition("/")
        values = {}
        for row in entry["per_pair"]:
            kinds = ("", row.get("class")) if "task" not in row else (row["task"],)
            if task not in kinds or _covisibility(row, 1.0) < least:
                continue
            value = _value(row, metric)
            if value is not None:
                if not isinstance(row.get("pair"), (str, list)):
                    raise DataError(f"a value of {name} names no pair: eval does not write such files")
                pair = row["pair"] if isinstance(row["pair"], str) else "-".join(map(str, row["pair"]))
                scene = str(row.get("scene", ""))  # bags of one size are a group of their scene
                values[f"{scene}/{row['group']}" if "group" in row else scene, pair] = value
        if values:
            by_metric[name] = values
    return by_metric


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a run, or its results.json")
    parser.add_argument("run_b", type=Path, nargs="?", metavar="RUN_B", help="(default: the methods of RUN_A)")
    parser.add_argument("--desc-a", nargs="+", metavar="TOKEN", help="methods of RUN_A (default: all)")
    parser.add_argument("--desc-b", nargs="+", metavar="TOKEN", help="methods of RUN_B (default: all)")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="only these, e.g. poses/mAA@10")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the intervals")
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the differences to a file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")


def run(args: argparse.Namespace) -> None:
    """Compare the methods of two runs."""
    entries_a, entries_b = _entries(args.run_a, args.desc_a), _entries(args.run_b or args.run_a, args.desc_b)
    explicit = bool(args.desc_a or args.desc_b)
    if args.run_b is None:
        chosen = choose_within(entries_a, entries_b, explicit)
    else:
        chosen = choose_methods(entries_a, entries_b, explicit)
    reports, tables = [], []
    for a, b in chosen:
        differences = compare_entries(a, b, args.seed)
        if args.metric:
            known = [d.metric for d in differences]
            for name in args.metric:
                if name not in known:
                    raise UsageError(f"no metric {name!r}{closest(name, known)}")
            differences = [d for d in differences if d.metric in args.metric]
        names = [entry["method"]["descriptor"] for entry in (a, b)]
        reports.append(
            {"a": names[0], "b": names[1], "differences": [{**d._asdict(), "better": d.verdict} for d in differences]}
        )
        tables.append(_table(names, differences))
    if args.out is not None:
        write_json(args.out, strict({"schema": "compare/1", "comparisons": reports}))
    print(json.dumps(strict(reports), indent=1) if args.json else "\n\n".join(tables))


def choose_methods(a: Sequence[Entry], b: Sequence[Entry], explicit: bool = False) -> list[tuple[Entry, Entry]]:
    """Which methods to compare: each of A with each of B; where both runs hold several, those of one name.

    Raises:
        DataError: both runs hold several methods and no name is common.
    """
    pairs = [(x, y) for x in a for y in b]
    if len(a) > 1 and len(b) > 1 and not explicit:
        pairs = [(x, y) for x, y in pairs if x["method"]["descriptor"] == y["method"]["descriptor"]]
        if not pairs:
            raise DataError("the runs have no method in common: choose with --desc-a and --desc-b")
    return pairs


def choose_within(a: Sequence[Entry], b: Sequence[Entry], explicit: bool = False) -> list[tuple[Entry, Entry]]:
    """Which methods of one run to compare: every two, or each of A with each of B.

    Raises:
        DataError: there are no two.
    """
    pairs = [(x, y) for row, x in enumerate(a) for y in (b if explicit else b[row + 1 :])]
    pairs = [(x, y) for x, y in pairs if x["method"]["descriptor"] != y["method"]["descriptor"]]
    if not pairs:
        raise DataError(f"the run holds no two methods to compare ({a[0]['method']['descriptor']}): name a second run")
    return pairs


def _entries(run: Path, tokens: Sequence[str] | None) -> list[Entry]:
    path = run if run.suffix == ".json" else run / "results.json"
    entries = read_results(path)
    if tokens is None:
        return entries
    by_name = {entry["method"]["descriptor"]: entry for entry in entries}
    for token in tokens:
        if token not in by_name:
            raise UsageError(f"{path} has no method {token!r}{closest(token, by_name)}: it has {', '.join(by_name)}")
    return [by_name[token] for token in tokens]


def _covisibility(values: Mapping[str, Any], default: float) -> float:
    value = values.get("covisibility", default)
    if not isinstance(value, (int, float)):
        raise DataError(f"a covisibility is {str(value)[:40]}: eval does not write such files")
    return float(value)


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    """The number of a pair for a metric; NaN when it says that it has none, None when it says nothing."""
    for key in (metric, {"mAP": "ap"}.get(metric, metric)):
        if key in row and row[key] is None:
            return math.nan
        if isinstance(row.get(key), (int, float)):
            return float(row[key])
    if metric.startswith("mAA@") and "error_deg" in row:
        error = row.get("error_deg")  # null: no pose
        return float(maa_per_pair([np.inf if error is None else error], int(metric[4:]))[0])
    return None


def _difference(
    metric: str, a: Mapping[tuple[str, str], float], b: Mapping[tuple[str, str], float], benchmark: str, seed: int
) -> MetricDifference:
    keys = sorted(a)
    scenes: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for key in keys:
        scene, _, group = key[0].partition("/") if benchmark in _MEAN_OVER_SCENES else ("", "", "")
        scenes.setdefault(scene, {}).setdefault(group, []).append(key)
    nested = [list(groups.values()) for groups in scenes.values()]
    score = nested_mean([[[a[key] - b[key] for key in group] for group in groups] for groups in nested], seed)
    mean_a, mean_b = (
        float(np.mean([np.mean([np.mean([x[key] for key in group]) for group in groups]) for groups in nested]))
        for x in (a, b)
    )
    return _metric_difference(metric, mean_a, mean_b, score)


def _headlines(values: Mapping[str, Any]) -> list[str]:
    """The scores that the summary of ``dev`` is the mean of, those with values: a whole feature has none on webcams."""
    from eval.dev.command import HEADLINES

    return [name for task, metric in HEADLINES.items() if (name := f"{task}/{metric}") in values]


def _summary(
    a: Mapping[str, Mapping[tuple[str, str], float]], b: Mapping[str, Mapping[tuple[str, str], float]], seed: int
) -> MetricDifference:
    """The summary of ``dev``: mean over tasks, each resampled by itself."""
    from eval.dev.command import SUMMARY

    metrics = _headlines(a)
    differences = [[a[m][key] - b[m][key] for key in sorted(a[m])] for m in metrics]
    score = mean_over_scenes(differences, seed)
    mean_a, mean_b = (float(np.mean([np.mean(list(x[m].values())) for m in metrics])) for x in (a, b))
    return _metric_difference(SUMMARY, mean_a, mean_b, score)


def _metric_difference(metric: str, a: float, b: float, difference: Score) -> MetricDifference:
    assert difference.value is not None
    assert difference.ci95 is not None
    return MetricDifference(metric, a, b, difference.value, difference.ci95, difference.n)


def _table(names: Sequence[str], differences: Sequence[MetricDifference]) -> str:
    rows = [
        (d.metric, d.a, d.b, f"{d.difference:+.3f}", f"[{d.ci95[0]:+.3f}, {d.ci95[1]:+.3f}]", d.n, d.verdict)
        for d in differences
    ]
    head = ("metric", "A", "B", "A - B", "95 %", "pairs", "better")
    return f"A = {names[0]}\nB = {names[1]}\n" + format_table(head, rows)
