import json
from pathlib import Path
from typing import Any

import pytest

from eval.cli import main
from eval.report.compare import choose_methods, compare_entries, values_by_pair
from kornia_hardnet8.errors import DataError


def entry(name: str, values: list[float], benchmark: str = "dev", **changes: Any) -> dict[str, Any]:
    rows = [{"task": "poses", "scene": f"s{k % 2}", "pair": f"p{k}", "mAA@10": value} for k, value in enumerate(values)]
    found = {
        "benchmark": benchmark,
        "protocol": {},
        "dataset": {"name": "d", "fingerprint": "f"},
        "method": {"descriptor": name},
        "scores": {"poses/mAA@10": {"value": 0, "ci95": None, "n": len(values)}},
        "per_pair": rows,
    }
    return {**found, **changes}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "results.json").write_text(json.dumps({"schema": "results/1", "results": entries}))
    return path


def test_clear_difference_is_real_and_noise_is_not() -> None:
    a = entry("a", [0.9, 0.8, 0.7, 0.9, 0.8, 0.6])
    b = entry("b", [0.5, 0.5, 0.3, 0.4, 0.5, 0.1])
    c = entry("c", [0.6, 0.4, 0.2, 0.5, 0.4, 0.2])
    summary, found = compare_entries(a, b)
    assert (summary.metric, found.metric, found.n) == ("dev", "poses/mAA@10", 6)
    assert found.difference == pytest.approx(0.4)
    assert found.ci95[0] > 0.3
    assert found.verdict == summary.verdict == "A"
    assert compare_entries(b, a)[1].verdict == "B"
    assert compare_entries(b, c)[1].verdict == "-"


def test_two_that_do_not_have_the_same_tasks_have_no_summary_in_common() -> None:
    """A whole feature has no values on fixed cameras."""
    a, b = entry("a", [0.9, 0.8, 0.7]), entry("b", [0.5, 0.5, 0.3])
    a["scores"]["webcam/mAP"] = {}
    a["per_pair"].append({"task": "webcam", "scene": "w", "pair": "p", "mAP": 0.5})
    for one, two in ((a, b), (b, a)):
        (found,) = compare_entries(one, two)
        assert (found.metric, found.n) == ("poses/mAA@10", 3)


def test_order_of_rows_has_no_part_in_it() -> None:
    a, b = entry("a", [0.1, 0.2, 0.9]), entry("b", [0.3, 0.1, 0.4])
    shuffled = {**b, "per_pair": b["per_pair"][::-1]}
    assert compare_entries(a, b) == compare_entries(a, shuffled)


def test_imw_weighs_scenes_alike_and_keeps_its_covisibility() -> None:
    def imw(errors: dict[tuple[str, str, float], float | None]) -> dict[str, Any]:
        rows = [
            {"task": "stereo", "scene": s, "pair": p, "covisibility": c, "error_deg": e}
            for (s, p, c), e in errors.items()
        ]
        scores = {"stereo/mAA@10": {}, "stereo/num_keypoints": {}}
        return entry("x", [], "imw", per_pair=rows, scores=scores, protocol={"covisibility": 0.1})

    keys = [("s", "a", 0.5), ("s", "b", 0.1), ("s", "low", 0.0), ("t", "a", 0.9)]
    a = imw(dict(zip(keys, [0.5, 0.5, 0.5, 0.5], strict=True)))
    b = imw(dict(zip(keys, [None, 0.5, None, 0.5], strict=True)))
    (found,) = compare_entries(a, b)
    assert found.n == 3
    assert (found.a, found.b) == (1.0, pytest.approx((0.5 + 1.0) / 2))
    assert found.difference == pytest.approx(0.25)


def test_bags_of_one_size_weigh_alike_and_what_a_failed_bag_lacks_is_not_compared() -> None:
    def imw(values: dict[tuple[str, str, str], tuple[float, float | None]]) -> dict[str, Any]:
        rows = [
            {"task": "multiview", "scene": s, "group": g, "pair": p, "mAA@10": v, "ATE": ate, "errors_deg": []}
            for (s, g, p), (v, ate) in values.items()
        ]
        return entry("x", [], "imw", per_pair=rows, scores={"multiview/mAA@10": {}, "multiview/ATE": {}})

    keys = [
        ("s", "5bag", "5bag_000"),
        ("s", "5bag", "5bag_001"),
        ("s", "10bag", "10bag_000"),
        ("t", "5bag", "5bag_000"),
    ]
    a = imw(dict(zip(keys, [(0.2, 0.1), (0.6, 0.2), (1.0, 0.3), (0.3, 0.4)], strict=True)))
    b = imw(dict(zip(keys, [(0.2, 0.3), (0.4, None), (1.0, 0.5), (0.3, 0.6)], strict=True)))
    maa, ate = compare_entries(a, b)
    assert (maa.metric, maa.n) == ("multiview/mAA@10", 4)
    assert maa.a == pytest.approx(((0.4 + 1.0) / 2 + 0.3) / 2)
    assert maa.difference == pytest.approx(0.1 / 4)
    assert (ate.n, ate.verdict) == (3, "A")
    assert ate.difference == pytest.approx(-0.2)


def test_lower_is_better_for_error_rates() -> None:
    def brown(values: list[float]) -> dict[str, Any]:
        rows = [{"scene": "l", "pair": str(k), "FPR95": v} for k, v in enumerate(values)]
        return entry("x", [], "brown", per_pair=rows, scores={"FPR95": {}})

    assert compare_entries(brown([0.1, 0.12, 0.11]), brown([0.5, 0.52, 0.55]))[0].verdict == "A"


def test_scores_by_class_use_the_rows_of_their_class() -> None:
    rows = [
        {"scene": "i_a", "class": "i", "pair": [1, 2], "MMA@3": 0.5},
        {"scene": "v_b", "class": "v", "pair": [1, 2], "MMA@3": 0.7},
    ]
    found = values_by_pair(entry("x", [], "sequences", per_pair=rows, scores={"MMA@3": {}, "v/MMA@3": {}}))
    assert {name: list(values.values()) for name, values in found.items()} == {"MMA@3": [0.5, 0.7], "v/MMA@3": [0.7]}


def test_runs_that_do_not_belong_together_are_refused() -> None:
    a = entry("a", [0.1, 0.2])
    with pytest.raises(DataError, match="benchmark"):
        compare_entries(a, entry("b", [0.1, 0.2], "imw"))
    with pytest.raises(DataError, match=r"data set of one is town, the other one's is hill$"):
        compare_entries({**a, "dataset": {"fingerprint": "f", "name": "town"}},
                        entry("b", [0.1, 0.2], dataset={"fingerprint": "g", "name": "hill"}))  # fmt: skip
    with pytest.raises(DataError, match=r"data set of one is d, files have changed$"):
        compare_entries(a, entry("b", [0.1, 0.2], dataset={"fingerprint": "g", "name": "d"}))
    with pytest.raises(DataError, match="2 pairs in one, 3 in the other"):
        compare_entries(a, entry("b", [0.1, 0.2, 0.3]))
    with pytest.raises(DataError, match="no values by pair"):
        compare_entries(entry("a", []), entry("b", []))
    with pytest.raises(DataError, match="a covisibility is x: eval does not write such files"):
        compare_entries({**a, "protocol": {**a["protocol"], "covisibility": "x"}}, a)


def test_methods_are_paired_by_name_unless_one_run_has_one() -> None:
    a, b, c = (entry(name, [0.1]) for name in "abc")
    names = [(x["method"]["descriptor"], y["method"]["descriptor"]) for x, y in choose_methods([a], [b, c])]
    assert names == [("a", "b"), ("a", "c")]
    names = [(x["method"]["descriptor"], y["method"]["descriptor"]) for x, y in choose_methods([a, b], [b, c])]
    assert names == [("b", "b")]
    with pytest.raises(DataError, match="no method in common"):
        choose_methods([a, b], [c, entry("d", [0.1])])


def test_methods_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a", *(entry(name, values) for name, values in (
        ("new", [0.9, 0.8]), ("old", [0.1, 0.2]), ("other", [0.8, 0.9]))))  # fmt: skip
    for flags, expected in (
        ([], ["new old", "new other", "old other"]),
        (["--desc-b", "old"], ["new old", "other old"]),
        (["--desc-a", "old", "--desc-b", "new"], ["old new"]),
    ):
        assert main(["compare", str(run), *flags, "--json"]) == 0
        assert [f"{c['a']} {c['b']}" for c in json.loads(capsys.readouterr().out)] == expected
    assert main(["compare", str(write(tmp_path / "b", entry("new", [0.9, 0.8])))]) == 1
    assert capsys.readouterr().err == "error: the run holds no two methods to compare (new): name a second run\n"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", entry("new", [0.9, 0.8, 0.9, 0.7]))
    b = write(tmp_path / "b", entry("old", [0.1, 0.2, 0.1, 0.0]), entry("other", [0.8, 0.9, 0.7, 0.9]))
    out = tmp_path / "difference.json"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("A = new") == 2
    assert "+0.725" in text
    verdicts = [c["differences"][0]["better"] for c in json.loads(out.read_text())["comparisons"]]
    assert verdicts == ["A", "-"]
    assert main(["compare", str(a), str(b), "--desc-b", "olt"]) == 2
    assert "did you mean old" in capsys.readouterr().err
    assert main(["compare", str(a), str(b), "--metric", "poses/mAA@5"]) == 2
    assert "did you mean poses/mAA@10" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path / "none")]) == 1
    assert "is not there" in capsys.readouterr().err
