"""The bench of reconstructions: its table is right; no speed is asserted."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import reconstruct
from kornia_hardnet8.errors import DataError


def test_the_fastest_of_the_rounds_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(cpu_s: list[float], points: int) -> object:
        return lambda args, scratch: {
            "wall_s": 2.0, "cpu_s": cpu_s.pop(0), "peak_mib": 100.0, "registered": 4, "points": points,
            "seconds": {"match": 1.5},
        }  # fmt: skip

    monkeypatch.setattr(reconstruct, "_ours", once([9.0, 6.0], 300))
    monkeypatch.setattr(reconstruct, "_colmaps", once([4.0, 5.0], 200))
    parser = argparse.ArgumentParser()
    reconstruct.configure(parser)
    measured = reconstruct.run(parser.parse_args(["photos", "--rounds", "2"]))["reconstruct"]
    assert {name: row["cpu_s"] for name, row in measured["rows"].items()} == {"eval reconstruct": 6.0, "pycolmap": 4.0}
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split()[1:] for line in lines if line.startswith("ratio")) == [
        "1.00",
        "1.50",
        "1.00",
        "1.00",
        "1.50",
    ]
    assert "pycolmap, seconds: match 1.5" in lines


def test_a_pipeline_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a reconstruction ended with 1: ValueError: no photographs") as caught:
        reconstruct._timed(["-c", "raise ValueError('no photographs')"], tmp_path)
    assert "\n" not in str(caught.value)
