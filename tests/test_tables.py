"""`make tables` says what it runs, takes up what is there, and puts tables where the pages have room for them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import eval.cli
import train.cli
from common.shell import command_parser, split_command
from eval.core.results import Result, Score, write_results
from kornia_hardnet8.errors import HardNet8Error

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs" / "make_tables.py"


@pytest.fixture(scope="module")
def listed() -> ModuleType:
    """What tables there are."""
    return load("page_tables")


@pytest.fixture(scope="module")
def maker(listed: ModuleType) -> ModuleType:
    """What runs and writes them."""
    return load("make_tables")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and one of the two imports the other
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights(tmp_path: Path, listed: ModuleType) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in listed.FILES.values():
        (folder / name).touch()
    return folder


def entry(name: str, values: dict[str, list[float]]) -> dict[str, Any]:
    """What a results file holds of a descriptor on one scene."""
    means = {metric: sum(pairs) / len(pairs) for metric, pairs in values.items()}
    return {
        "benchmark": "dev",
        "dataset": {"fingerprint": "0"},
        "protocol": {},
        "method": {"descriptor": name},
        "scores": {m: {"value": v, "ci95": [v - 0.1, v + 0.1], "n": len(values[m])} for m, v in means.items()},
        "per_scene": {"poses/yard": {m: {"value": v, "ci95": None, "n": 2} for m, v in means.items()}},
        "per_pair": [
            {"task": "poses", "scene": "yard", "pair": str(k), **{m.split("/")[1]: v[k] for m, v in values.items()}}
            for k in range(2)
        ],
    }


def test_every_table_has_its_place_in_the_pages(listed: ModuleType, maker: ModuleType) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in maker.pages())
    assert sorted(re.findall(r"<!-- table (\S+) -->\n\|.*?\|\n<!-- end -->", text, re.S)) == sorted(listed.TABLES)
    assert {run for table in listed.TABLES.values() for run in table.runs} == set(listed.RUNS)


def test_commands_are_understood(listed: ModuleType, maker: ModuleType, weights: Path) -> None:
    for name in listed.RUNS:
        for command in maker.commands_of(name, weights):
            program, *words = (word.format(data="DATA", out="OUT") for word in command)
            commands = {"eval": eval.cli.COMMANDS, "train": train.cli.COMMANDS}[program]
            chosen, words = split_command(commands, words)
            command_parser(f"{program} {chosen}", *commands[chosen])[1].parse_args(words)


def test_the_best_is_bold_and_what_is_missing_is_empty(listed: ModuleType) -> None:
    better, worse = entry("h8E512", {"poses/AP": [0.5, 0.7]}), entry("rootsift", {"poses/AP": [0.2, 0.4]})
    make = listed.scores_table({"AP": "poses/AP", "MMA": "homography/MMA@3"}, ["poses/AP"])
    assert make({"rootsift": worse}, {"h8E512": better}) == [
        "|  | AP | MMA |",
        "| --- | --- | --- |",
        "| RootSIFT | 0.300 [0.200, 0.400] |  |",
        "| **h8E512, ours** | **0.600** [0.500, 0.700] |  |",
    ]
    assert listed.scenes_table("poses/AP")({"rootsift": worse})[2:] == ["| RootSIFT | 0.300 |"]
    assert listed.with_best(["fixed/FPR95"], [[0.1], [0.2], [None]]) == [["**0.100**"], ["0.200"], [""]]
    assert listed.with_best([listed.FAILED_BAGS], [[3], [10]]) == [["**3**"], ["10"]]


def test_differences_are_those_of_pairs(listed: ModuleType) -> None:
    a, b = entry("h8E512", {"poses/AP": [0.5, 0.7]}), entry("rootsift", {"poses/AP": [0.2, 0.4]})
    make = listed.differences_table({"AP": "poses/AP", "mAP": "webcam/mAP"})
    assert make({"rootsift": b, "h8E512": a})[2:] == ["| RootSIFT | +0.300 [+0.300, +0.300] |  |"]
    assert listed.difference_cells(b, a, ["poses/AP"], unit=0.01) == ["-30.0 [-30.0, -30.0]"]


def test_a_real_difference_is_bold(listed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "DEV_METRICS", {"AP": "poses/AP", "mAA": "poses/mAA@10"})
    runs = [
        {listed.INT8: entry(listed.INT8, {"poses/AP": [0.2, 0.4], "poses/mAA@10": [0.5, 0.5]})},
        {listed.INT8: entry(listed.INT8, {"poses/AP": [0.5, 0.7], "poses/mAA@10": [0.4, 0.8]})},
    ]
    assert listed.matchability_table(*runs)[2:] == [
        "| AP | 0.300 | **0.600** | +0.300 [+0.300, +0.300] |",
        "| mAA | 0.500 | 0.600 | +0.100 [-0.100, +0.300] |",
    ]


def test_a_table_goes_between_its_marks_alone(maker: ModuleType) -> None:
    page = "a\n<!-- table x -->\n| old |\n<!-- end -->\nb\n<!-- table x-y -->\n| kept |\n<!-- end -->\n"
    assert maker.put(page, "x", ["| new |"]) == page.replace("| old |", "| new |")
    assert maker.put(page, "z", ["| new |"]) == page


def test_what_the_same_command_made_is_not_made_again(
    listed: ModuleType, maker: ModuleType, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    args = maker.parse(["--weights", str(weights), "--out", str(out)])
    calls: list[list[str]] = []

    def made(command: list[str], *_: object) -> None:
        calls.append(command)
        words = [word.format(out=out) for word in command]
        score = {"stereo/mAA@10": Score(0.5, (0.4, 0.6), 1)}
        result = Result("imw", {}, {}, {"descriptor": "h8E512"}, score, environment={"command": ["eval", *words[1:]]})
        write_results(out / "runs" / "demo" / "results.json", [result])

    monkeypatch.setattr(maker, "call", made)
    for _ in range(2):
        assert set(maker.entries_of("demo", args)) == {"h8E512"}
    assert len(calls) == 1
    monkeypatch.setitem(listed.RUNS, "demo", listed.Run("eval imw --seed 1", "h8E512 rootsift"))
    maker.entries_of("demo", args)
    assert len(calls) == 2


def test_what_cannot_be_made_is_said(
    listed: ModuleType, maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "poses").mkdir(parents=True)
    assert maker.main(["--data", str(data), "--out", str(out), "--only", "poses"]) == 1
    index = (out / "README.md").read_text(encoding="utf-8")
    assert f"* poses: not made: {data} has no oxford and no webcam" in index
    assert all(what in index for what in listed.NOT_MADE)
    assert capsys.readouterr().out.startswith("# Tables")
    assert maker.main(["--out", str(out), "--only", "poses"]) == 1
    assert "poses: not made: dev needs DATA" in (out / "README.md").read_text(encoding="utf-8")
    assert maker.descriptors(listed.RUNS["built-in"], None) == (
        [],
        [
            "hardtfeat: HardTFeat.pth is not there",
            "aliked-n16: aliked-n16.pth is not there",
            "xfeat: xfeat.pt is not there",
        ],
    )


def test_a_command_that_fails_is_named(maker: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(HardNet8Error, match="python -m eval imw --data OUT/nothing ended with 1"):
        maker.call(["eval", "imw", "--data", "{out}/nothing"], {"out": tmp_path}, None)


@pytest.mark.slow
def test_a_table_from_photographs_to_markdown(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--only", "demo"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "demo.md").read_text(encoding="utf-8")
    assert re.findall(r"\| (\S.*?) \| \**(0\.\d{3})", table)[0][0] == "**h8E512, ours**"
    assert "python -m eval imw --desc h8E512 rootsift --cache OUT/cache --out OUT/runs/demo" in table
