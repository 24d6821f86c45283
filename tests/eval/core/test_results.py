from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.metrics import bootstrap_ci
from eval.core.results import (
    SCHEMA,
    Result,
    Score,
    mean_over_scenes,
    mean_score,
    read_results,
    strict,
    write_results,
)
from kornia_hardnet8.errors import DataError


def _result(**changes: object) -> Result:
    fields = {
        "benchmark": "imw",
        "protocol": {"ratio": np.float32(0.5)},
        "dataset": {"name": "a", "fingerprint": "f"},
        "method": {"descriptor": "sift"},
        "scores": {"stereo/mAA@10": Score(0.5, (0.4, 0.6), 7), "none": Score(None, None, 0)},
    }
    return Result(**{**fields, **changes})


def test_the_file_is_strict_json_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [_result(per_pair=[{"error_deg": float("inf"), "n": np.int64(3), "path": Path("x")}])])
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["schema"] == "results/1"
    (entry,) = read_results(path)
    assert entry["scores"]["stereo/mAA@10"] == {"value": 0.5, "ci95": [0.4, 0.6], "n": 7}
    assert entry["scores"]["none"] == {"value": None, "ci95": None, "n": 0}
    assert entry["per_pair"] == [{"error_deg": None, "n": 3, "path": "x"}]
    assert entry["protocol"] == {"ratio": 0.5}
    assert entry["environment"]["packages"]["torch"]
    assert entry["environment"]["command"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for text in ("[]", '{"schema": "results/2", "results": []}', '{"schema": "results/1"}', "{"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"results\.json"):
            read_results(path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("benchmark", 3), ("method", []), ("method", {"descriptor": 5}), ("scores", {"a": 1}), ("per_pair", [1]),
        ("scores", {"a": {"value": 0.5, "ci95": True}}), ("scores", {"a": {"value": 0.5, "ci95": [0.1]}}),
    ],
)  # fmt: skip
def test_parts_of_other_shapes_are_named(part: str, value: object, tmp_path: Path) -> None:
    entry = {"benchmark": "imw", "method": {"descriptor": "sift"}, "protocol": {}, "scores": {}}
    (tmp_path / "r.json").write_text(json.dumps({"schema": SCHEMA, "results": [entry]}))
    assert read_results(tmp_path / "r.json") == [entry]
    (tmp_path / "r.json").write_text(json.dumps({"schema": SCHEMA, "results": [{**entry, part: value}]}))
    with pytest.raises(DataError, match=rf"{part.removesuffix('s')}.* of result 0 is not what eval writes"):
        read_results(tmp_path / "r.json")


def test_intervals_without_numbers_are_none(tmp_path: Path) -> None:
    scores = {"a": {"value": 0.5, "ci95": [None, None]}, "b": {"value": 0.5}, "c": {"value": 0.5, "ci95": [0.4, 0.6]}}
    entry = {"benchmark": "imw", "method": {"descriptor": "sift"}, "protocol": {}, "scores": scores}
    (tmp_path / "r.json").write_text(json.dumps({"schema": SCHEMA, "results": [entry]}))
    assert [s["ci95"] for s in read_results(tmp_path / "r.json")[0]["scores"].values()] == [None, None, [0.4, 0.6]]


def test_means_and_intervals() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 40)
    one = mean_score(values)
    assert one.value == pytest.approx(values.mean())
    assert (one.ci95, one.n) == (bootstrap_ci(values), 40)
    # two scenes: each weighs the same, however many pairs it has
    two = mean_over_scenes([[1.0], [0.0] * 9, []])
    assert (two.value, two.ci95, two.n) == (0.5, (0.5, 0.5), 10)
    mixed = mean_over_scenes([values, 1 - values])
    assert mixed.value == pytest.approx(0.5)
    # independent halves: the interval is the single one's, divided by the square root of 2
    width = mixed.ci95[1] - mixed.ci95[0]
    assert width == pytest.approx((one.ci95[1] - one.ci95[0]) / 2**0.5, rel=0.15)
    assert mean_score([]) == Score(None, None, 0)


def test_strict_values() -> None:
    given = {1: (np.float64("nan"), -np.inf), "a": np.arange(2), "b": np.bool_(True), "c": None}
    assert strict(given) == {"1": [None, None], "a": [0, 1], "b": True, "c": None}
