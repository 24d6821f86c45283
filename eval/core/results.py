"""What a benchmark ends with: a results file, ``{"schema": "results/1", "results": [one entry a method]}``; tables."""

from __future__ import annotations

import datetime
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from common.machine import git_revision
from common.metrics import resampled_means
from kornia_hardnet8 import __version__
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import read_json, write_json

SCHEMA = "results/1"
_PACKAGES = ("torch", "kornia", "numpy", "opencv-python-headless", "pydegensac", "pycolmap", "h5py")


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval (None where nothing was measured) and the number of items behind it."""

    value: float | None
    ci95: tuple[float, float] | None
    n: int


@dataclass
class Result:
    """What one benchmark found for one method.

    Attributes:
        benchmark: ``imw``, ``hpatches``, ``dev``, …
        protocol: every setting of the benchmark.
        dataset: ``name`` and ``fingerprint``, and what else tells it apart.
        method: ``descriptor`` (the token as typed), detector, matcher, geometry, ``weights_sha256``.
        scores: by name, as ``stereo/mAA@10``.
        per_scene: scores by scene.
        per_pair: one dictionary a pair.
        timing: seconds by stage.
        environment: see :func:`environment`.
    """

    benchmark: str
    protocol: dict[str, Any]
    dataset: dict[str, Any]
    method: dict[str, Any]
    scores: dict[str, Score]
    per_scene: dict[str, dict[str, Any]] = field(default_factory=dict)
    per_pair: list[dict[str, Any]] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: environment())


def mean_score(values: ArrayLike, seed: int = 0) -> Score:
    """Mean of finite values with its bootstrap interval; nothing measured gives ``Score(None, None, 0)``."""
    return mean_over_scenes([np.asarray(values, np.float64)], seed)


def mean_over_scenes(scenes: Sequence[ArrayLike], seed: int = 0) -> Score:
    """Mean over scenes of the mean over a scene's items: :func:`nested_mean` with one group a scene."""
    return nested_mean([[scene] for scene in scenes], seed)


def nested_mean(scenes: Sequence[Sequence[ArrayLike]], seed: int = 0) -> Score:
    """Mean over scenes of the mean over a scene's groups of the mean over a group's items.

    The interval resamples items inside every group. Groups without items, and scenes without groups, are left out;
    ``n`` counts items.
    """
    kept = [[group for group in (np.asarray(g, np.float64).ravel() for g in s) if group.size] for s in scenes]
    kept = [groups for groups in kept if groups]
    if not kept:
        return Score(None, None, 0)
    value = float(np.mean([np.mean([group.mean() for group in groups]) for groups in kept]))
    rng = np.random.default_rng(seed)
    means = [np.mean([resampled_means(group, rng) for group in groups], axis=0) for groups in kept]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return Score(value, (float(low), float(high)), sum(group.size for groups in kept for group in groups))


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write the results file as strict JSON (a number that is not finite becomes null), whole or not at all."""
    write_json(path, {"schema": SCHEMA, "results": [strict(asdict(result)) for result in results]})


def read_results(path: Path) -> list[dict[str, Any]]:
    """The entries of a results file.

    Raises:
        MissingFileError: no such file.
        DataError: not JSON, or of another schema.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("results"), list):
        raise DataError(f"{path} is not a results file (schema {SCHEMA})")
    entries: list[dict[str, Any]] = content["results"]
    for number, entry in enumerate(entries):
        missing = [name for name in _NEEDED if name not in entry] if isinstance(entry, dict) else []
        if missing:
            raise DataError(f"{path}: an entry lacks {', '.join(missing)}")
        if (wrong := _wrong_part(entry)) is not None:
            raise DataError(f"{path}: {wrong} of result {number} is not what eval writes")
        for score in entry["scores"].values():
            if not score.get("ci95") or None in score["ci95"]:  # of values that are not finite
                score["ci95"] = None
    return entries


_NEEDED = ("benchmark", "protocol", "method", "scores")
_MAPPINGS = ("protocol", "dataset", "method", "scores", "per_scene", "timing", "environment")


def _wrong_part(entry: Any) -> str | None:
    """The first part of a stored result that has another shape than :class:`Result`; None: all is well."""
    if not isinstance(entry, dict):
        return "the whole"
    kinds: dict[str, Any] = {"benchmark": str, "per_pair": list, **dict.fromkeys(_MAPPINGS, dict)}
    for name, kind in kinds.items():
        if name in entry and not isinstance(entry[name], kind):
            return name
    if not isinstance(entry["method"].get("descriptor"), str):
        return "method"
    for name, score in entry.get("scores", {}).items():
        if not isinstance(score, dict) or not isinstance(score.get("ci95"), (list, type(None))):
            return f"score {name}"
        values = (score.get("value", ""), *(score.get("ci95") or ()))
        if not all(value is None or type(value) in (int, float) for value in values) or len(values) not in (1, 3):
            return f"score {name}"
    if not all(isinstance(scores, dict) for scores in entry.get("per_scene", {}).values()):
        return "per_scene"
    return None if all(isinstance(pair, dict) for pair in entry.get("per_pair", [])) else "per_pair"


def lower_is_better(name: str) -> bool:
    """Whether a score of that name (``fixed/FPR95``, ``ATE_corrected``) is an error rate or a distance."""
    measure = name.rpartition("/")[2]
    return measure.startswith(("FPR", "ATE")) or "error" in measure


def environment() -> dict[str, Any]:
    """Versions, machine, source revision, date and the command line: what is needed to run it again."""
    return {
        "version": __version__,
        "git": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def format_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; the first is set left, the others right; None is a dash, fractions get 3 decimals."""
    cells = [[str(c) for c in head], *([_text(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def with_interval(score: Score) -> str:
    """``0.412 [0.380, 0.444]``; a dash for nothing measured."""
    if score.value is None:
        return "–"
    if score.ci95 is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.ci95[0]:.3f}, {score.ci95[1]:.3f}]"


def strict(value: Any) -> Any:
    """Plain JSON values: numpy scalars and paths converted, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, np.ndarray):
        return strict(value.tolist())
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Score):
        return with_interval(cell)
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
