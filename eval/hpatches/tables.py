"""The tables that ``python -m eval hpatches`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.hpatches import LEVEL_NAMES
from eval.core.results import Result, Score, format_table
from eval.hpatches.retrieval import POOL_SIZES
from eval.hpatches.splits import Split

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
