"""The record of a benchmark's run: its folder and cache, what all its results say, and the results so far.

A benchmark reads its data, opens the record, goes over data and methods in an order of its own, adds a result a method
and finishes with a table. The record holds no loop and no metric.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.cache import Cache
from common.folders import claimed
from eval.core.results import Result, Score, environment, write_results


class Named(Protocol):
    """What a result is about: a descriptor, a whole local feature, or descriptors read from files."""

    @property
    def name(self) -> str:
        """The token as typed."""

    @property
    def weights_sha256(self) -> str | None:
        """Hash of the file of weights; None without one."""


@dataclass
class Benchmark:
    """One run of a benchmark.

    Attributes:
        name: ``imw``, ``hpatches``, ``dev``, …
        out: the folder of the run.
        cache: of its stages.
        dataset: ``name`` and ``fingerprint``, and what else tells the data apart.
        protocol: settings that all methods share.
        results: one a method so far.
        environment: see :func:`eval.core.results.environment`.
        seconds: by method and stage, see :meth:`timed`.
    """

    name: str
    out: Path
    cache: Cache
    dataset: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=environment)
    seconds: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, name: str, args: argparse.Namespace, dataset: dict[str, Any], protocol: dict[str, Any] | None = None
    ) -> Iterator[Benchmark]:
        """The run that ``--out`` and ``--cache`` ask for; its folder is made when it is not there, and held.

        Raises:
            DataError: another process writes there.
        """
        out = run_folder(args.out, name)
        with claimed(out):
            yield cls(name, out, Cache(args.cache or out / "cache"), dataset, protocol or {})

    @contextlib.contextmanager
    def timed(self, method: Named, stage: str) -> Iterator[None]:
        """Add the seconds of a block to a stage of a method."""
        start = time.perf_counter()
        yield
        self.seconds[method.name][stage] += time.perf_counter() - start

    def result(
        self,
        method: Named,
        scores: dict[str, Score],
        per_scene: dict[str, dict[str, Any]],
        per_pair: Sequence[dict[str, Any]] = (),
        *,
        about: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
        timing: Mapping[str, float] | None = None,
    ) -> Result:
        """Add the result of a method.

        Args:
            method: its name and weights go into the result.
            scores: by name, as ``stereo/mAA@10``.
            per_scene: scores by scene.
            per_pair: one dictionary a pair.
            about: what else the result says of the method: detector, matcher, geometry.
            protocol: settings of this method alone.
            timing: seconds by stage; default: those of :meth:`timed`.
        """
        self.results.append(
            Result(
                benchmark=self.name,
                protocol={**self.protocol, **(protocol or {})},
                dataset=self.dataset,
                method={"descriptor": method.name, **(about or {}), "weights_sha256": method.weights_sha256},
                scores=scores,
                per_scene=per_scene,
                per_pair=list(per_pair),
                timing=dict(self.seconds[method.name] if timing is None else timing),
                environment=self.environment,
            )
        )
        return self.results[-1]

    def finish(self, table: str, as_json: bool) -> None:
        """Write ``results.json`` of the run and print either it or the table."""
        path = self.out / "results.json"
        write_results(path, self.results)
        if as_json:
            print(path.read_text(encoding="utf-8"), end="")
        else:
            print(table)
            print(f"results: {path}")


def run_folder(out: Path | None, what: str) -> Path:
    """The folder of a run: ``out``, or ``runs/<date>-<what>`` without results in it yet.

    So a run that was stopped goes on in its folder, and one that ended keeps its results (``runs/<date>-<what>-2`` …).
    """
    name = f"{datetime.date.today().isoformat()}-{what}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    unused = (Path("runs") / name for name in names if not (Path("runs") / name / "results.json").exists())
    folder = Path(out) if out is not None else next(unused)
    return folder


def rows_by_scene(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of pairs by their ``scene``, in the order in which scenes come first."""
    scenes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        scenes.setdefault(row["scene"], []).append(row)
    return scenes


def safe_name(token: str) -> str:
    """A token as one name of a file or folder."""
    return token.replace("/", "_").replace("\\", "_")
