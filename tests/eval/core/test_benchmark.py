from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import pytest

from eval.core.benchmark import Benchmark, rows_by_scene, run_folder
from eval.core.results import Score, read_results
from kornia_hardnet8.errors import DataError


class Method(NamedTuple):
    name: str
    weights_sha256: str | None = None


def test_a_record_becomes_the_results_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(out=tmp_path / "run", cache=None)
    with Benchmark.open("toy", args, {"name": "data"}, {"ratio": 0.8, "seed": 0}) as benchmark:
        _use(benchmark, tmp_path, capsys)
        with pytest.raises(DataError, match="written by another process"), Benchmark.open("toy", args, {}):
            pass


def _use(benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.cache.root == tmp_path / "run" / "cache"
    for method in (Method("sift"), Method("net", "abc")):
        for _ in range(2):
            with benchmark.timed(method, "match"):
                pass
        scores = {"mAP": Score(0.5, None, 2)}
        benchmark.result(method, scores, {"a": {"mAP": 0.5}}, about={"matcher": "mnn"}, protocol={"seed": 1})
    benchmark.result(Method("timed elsewhere"), {}, {}, timing={"all": 3.0})
    benchmark.finish("the table", as_json=False)
    assert capsys.readouterr().out == f"the table\nresults: {tmp_path / 'run' / 'results.json'}\n"
    sift, net, other = read_results(tmp_path / "run" / "results.json")
    assert sift["method"] == {"descriptor": "sift", "matcher": "mnn", "weights_sha256": None}
    assert net["method"]["weights_sha256"] == "abc"
    assert sift["protocol"] == {"ratio": 0.8, "seed": 1}
    assert other["protocol"] == {"ratio": 0.8, "seed": 0}
    assert (sift["benchmark"], sift["dataset"], list(sift["timing"])) == ("toy", {"name": "data"}, ["match"])
    assert other["timing"] == {"all": 3.0}
    assert sift["environment"] == net["environment"]
    benchmark.finish("the table", as_json=True)
    assert capsys.readouterr().out == (tmp_path / "run" / "results.json").read_text()


def test_rows_keep_the_order_of_scenes() -> None:
    rows = [{"scene": "b", "k": 0}, {"scene": "a", "k": 1}, {"scene": "b", "k": 2}]
    scenes = rows_by_scene(rows)
    assert list(scenes) == ["b", "a"]
    assert [row["k"] for row in scenes["b"]] == [0, 2]


def test_a_run_goes_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder(tmp_path / "a" / "b", "imw") == tmp_path / "a" / "b"
    default = run_folder(None, "imw")
    assert default.parent == Path("runs")
    assert default.name.endswith("-imw")
    assert run_folder(None, "imw") == default  # goes on where it was stopped
    default.mkdir(parents=True)
    (default / "results.json").write_text("{}")
    second = run_folder(None, "imw")
    assert second.name == f"{default.name}-2"
