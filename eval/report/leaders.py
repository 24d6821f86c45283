"""Who is better at a glance: bars of the scores that count, and whether a difference to the best one is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.core.results import Score, lower_is_better, mean_score
from eval.report.compare import compare_entries
from eval.report.words import HEADLINES
from kornia_hardnet8.errors import DataError

Entry = Mapping[str, Any]
_FEWEST_SCENES = 5  # fewer say nothing about others


@dataclass(frozen=True)
class Bar:
    """One method: its number, how long its bar is, and how it compares with the best one."""

    name: str
    value: str
    interval: str
    percent: tuple[float, float, float]
    """Lower end of the interval, value and upper end, of the length of the longest bar."""
    kind: str
    """``best``, ``same`` (no clear difference), ``worse``, ``unknown`` (no pairs to compare by)."""
    verdict: str


@dataclass(frozen=True)
class Panel:
    """The bars of one score, best first."""

    title: str
    metric: str
    lower: bool
    bars: list[Bar]


def panels(benchmark: str, labels: Sequence[str], entries: Sequence[Entry]) -> list[Panel]:
    """The panels of one benchmark on one data set.

    Args:
        benchmark: its name.
        labels: a name for each entry.
        entries: of results files.
    """
    made = []
    for metric, title in HEADLINES.get(benchmark, {}).items():
        measured = [
            (label, entry, entry["scores"][metric])
            for label, entry in zip(labels, entries, strict=True)
            if (entry["scores"].get(metric) or {}).get("value") is not None
        ]
        if measured:
            made.append(_panel(title, metric, measured))
    return made


def _panel(title: str, metric: str, measured: Sequence[tuple[str, Entry, Mapping[str, Any]]]) -> Panel:
    lower = lower_is_better(metric)
    ranked = sorted(measured, key=lambda item: item[2]["value"] if lower else -item[2]["value"])
    longest = max((score["ci95"] or [0, score["value"]])[1] for _, _, score in ranked) or 1.0
    bars = []
    for label, entry, score in ranked:
        low, high = score["ci95"] or (score["value"], score["value"])
        kind, verdict = ("best", "best") if entry is ranked[0][1] else against_best(ranked[0][1], entry, metric)
        bars.append(
            Bar(
                name=label,
                value=f"{score['value']:.3f}",
                interval=f"{low:.3f} to {high:.3f}" if score["ci95"] else "",
                percent=tuple(round(100 * float(v) / longest, 2) for v in (low, score["value"], high)),  # type: ignore[arg-type]
                kind=kind if len(ranked) > 1 else "unknown",
                verdict=verdict if len(ranked) > 1 else "",
            )
        )
    return Panel(title, metric, lower, bars)


def against_best(best: Entry, other: Entry, metric: str) -> tuple[str, str]:
    """Kind and words of the difference ``other - best`` with its 95 % interval: pair by pair, else scene by scene."""
    try:
        (paired,) = compare_entries(dict(best), dict(other), metrics=[metric])
        difference, interval = paired.difference, paired.ci95
    except DataError:
        score = _by_scene(best, other, metric)
        if score.value is None or score.ci95 is None:
            return "unknown", "no values by pair or scene to compare with the best"
        difference, interval = score.value, score.ci95
    low, high = -interval[1], -interval[0]
    numbers = f"{_signed(-difference)} [{_signed(low)}, {_signed(high)}]"
    if low <= 0.0 <= high:
        return "same", f"no clear difference: {numbers}"
    return "worse", f"worse: {numbers}"


def _by_scene(best: Entry, other: Entry, metric: str) -> Score:
    """Mean of ``best - other`` over scenes (or sequences) of the same data that both have a number for."""
    if (best.get("dataset") or {}).get("fingerprint") != (other.get("dataset") or {}).get("fingerprint"):
        return Score(None, None, 0)
    values = [
        {scene: scores[metric] for scene, scores in (entry.get("per_scene") or {}).items() if metric in scores}
        for entry in (best, other)
    ]
    shared = [s for s in values[0] if all(isinstance(v.get(s), (int, float)) for v in values)]
    if len(shared) < _FEWEST_SCENES:
        return Score(None, None, 0)
    return mean_score([values[0][scene] - values[1][scene] for scene in shared])


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
