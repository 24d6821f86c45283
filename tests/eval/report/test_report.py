from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from eval.cli import main
from eval.core.results import Result, Score, write_results
from eval.report.leaders import against_best, panels
from eval.report.page import build_sections
from eval.report.published import PUBLISHED, is_official
from eval.report.words import COLUMNS, HEADLINES, glossary

VOID = {"meta", "link", "img", "wbr", "br"}


def entry(descriptor: str, value: float | None, benchmark: str = "webcam", **more) -> Result:
    scores = {
        "correct_nn": Score(value, (value - 0.1, value + 0.1) if value else None, 40),
        "mAP": Score(0.4, None, 40),
    }
    return Result(
        benchmark=benchmark,
        protocol={"keypoints": 10, "sizes": [640, 480]},
        dataset={"name": "<cams>", "fingerprint": "x"},
        method={"descriptor": descriptor, "weights_sha256": None},
        scores=more.pop("scores", scores),
        per_scene={"view & one": {"correct_nn": value, "mAP": 0.4}},
        environment={},
        **more,
    )


@pytest.fixture
def page(tmp_path) -> str:
    first = tmp_path / "first"
    write_results(
        first / "results.json", [entry("rootsift", 0.384), entry("hardtfeat@a.pth", 0.46), entry("bad", None)]
    )
    (first / "matches").mkdir()
    cv2.imwrite(str(first / "matches" / "pair.png"), np.zeros((4, 4), np.uint8))
    second = tmp_path / "second"
    curve = {f"MMA@{t}": Score(0.05 * t, None, 5) for t in (1, 3, 5, 10)}
    other = entry("rootsift", 0.3, "sequences", scores={**curve, "HA@3": Score(0.8, None, 5)})
    patches = entry("rootsift", 0.3, "hpatches", scores={"matching/mAP_vl": Score(0.5, None, 2)})
    patches.protocol |= {"not_measured": {"retrieval/mAP": "one sequence only"}, "official": True, "split": "full"}
    other.protocol["missing"] = []
    write_results(second / "results.json", [other, patches])
    assert main(["report", str(first), str(second / "results.json"), "--out", str(tmp_path / "site")]) == 0
    return (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags that close, ids, tables as lists of rows of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.cell: list[str] | None = None

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.tables[-1][-1].append(" ".join("".join(self.cell).split()))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_is_complete_in_itself(page):
    checker = parsed(page)
    for tag, attributes in checker.attributes:
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"https?://|url\(", page)
    assert "default-src 'none'" in page
    assert "@import" not in page


def test_the_page_is_well_formed_and_accessible(page):
    checker = parsed(page)
    tags = [tag for tag, _ in checker.attributes]
    ids = [a["id"] for _, a in checker.attributes if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in checker.attributes if tag == "a"]
    assert set(targets) <= set(ids)
    assert dict(checker.attributes)["html"]["lang"] == "en"
    assert any(a.get("name") == "viewport" for tag, a in checker.attributes if tag == "meta")
    assert all(a.get("alt") for tag, a in checker.attributes if tag == "img")
    # Whatever scrolls can be reached and is named; sorting is done by buttons.
    regions = [a for _, a in checker.attributes if a.get("class") == "scroll"]
    assert regions
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert tags.count("button") > 5
    assert all(a["scope"] in ("col", "row") for tag, a in checker.attributes if tag == "th")


def test_leaderboard_values_order_and_marks(page):
    tables = parsed(page).tables
    board = next(t for t in tables if t[0][1].startswith("correct_nn"))
    assert board[1][:2] == ["rootsift", "0.3840.284 to 0.484"]
    assert [row[0] for row in board[1:]] == ["rootsift", "hardtfeat@a.pth", "bad"]
    assert board[3][1] == "–"
    assert '<td class="best" data-sort="0.46">' in page
    assert "&lt;cams&gt;" in page
    assert "<cams>" not in page
    assert "Not measured: one sequence only." in page
    assert "<summary>Settings, date and command</summary>" in page
    assert "&#34;sizes&#34;: [ 640, 480 ]" in page  # lists of plain values stay on a line
    assert 'src="data:image/png;base64,' in page


def test_published_rows_are_marked_and_never_best(page):
    rows = re.findall(r"<tr( class=\"published\")?>\n<th scope=\"row\">(.*?)</th>(.*?)</tr>", page, re.S)
    published = [(name, cells) for mark, name, cells in rows if mark]
    assert any("HardNet+, Liberty" in name for name, _ in published)
    assert any("SuperPoint" in name for name, _ in published)
    for name, cells in published:
        assert "published [" in name
        assert "best" not in cells
    for name, row in ((r.method, r) for rows in PUBLISHED.values() for r in rows):
        assert row.source, name
        assert all(0.0 < v <= 1.0 for v in row.scores.values()), name
    # FPR95 figures of papers were only recalled, never read: they are not shown.
    assert not any("FPR95" in row.scores for row in PUBLISHED["brown"])


def test_published_figures_are_those_of_the_sources():
    by_name = {row.method: row.scores for row in PUBLISHED["hpatches"]}
    assert by_name["HardNet, PhotoSync"]["matching/mAP_vl"] == pytest.approx(0.5801)
    assert by_name["RootSIFT"] == pytest.approx({"matching/mAP_vl": 0.2722, "retrieval/mAP_vl": 0.4249})
    brown = {row.method: row.scores["revisited/mAP"] for row in PUBLISHED["brown"]}
    assert brown["HardNet"] == pytest.approx(np.mean([70.64, 70.31, 61.93, 59.56, 63.06, 61.64]) / 100)


def test_published_figures_stand_beside_official_data_alone(tmp_path):
    scores = {"verification/mAP_vl": Score(0.5, None, 2), "matching/mAP_vl": Score(0.4, None, 2)}
    result = entry("mkd", 0.3, "hpatches", scores=scores)
    for official, split in ((False, "full"), (True, "view"), (True, "full")):
        result.protocol |= {"official": official, "split": split}
        write_results(tmp_path / "results.json", [result])
        assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
        page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
        assert ("published [1]" in page) == (official and split == "full")
    patches = {"liberty": 450092, "notredame": 468159, "yosemite": 633587}
    for subsets in (patches, {"liberty": 450092}, {**patches, "yosemite": 5}):
        brown = {"benchmark": "brown", "protocol": {}, "dataset": {"subsets": subsets}}
        assert is_official(brown) == (subsets == patches)


def judged(name: str, values: list[float], metric: str = "mAP", benchmark: str = "webcam") -> dict:
    score = {"value": float(np.mean(values)), "ci95": [min(values), max(values)], "n": len(values)}
    rows = [{"scene": "s", "pair": f"p{k}", metric: value} for k, value in enumerate(values)]
    return {
        "benchmark": benchmark,
        "protocol": {},
        "dataset": {"fingerprint": "x"},
        "method": {"descriptor": name},
        "scores": {metric: score},
        "per_pair": rows,
    }


def test_bars_say_who_is_better_and_whether_the_difference_is_real():
    best = judged("a", [0.9, 0.8, 0.7, 0.6])
    close, far = judged("b", [0.8, 0.85, 0.75, 0.55]), judged("c", [0.4, 0.3, 0.1, 0.2])
    unpaired = {**judged("d", [0.1]), "per_pair": []}
    (panel,) = panels("webcam", ["c", "a", "d", "b"], [far, best, unpaired, close])
    assert (panel.metric, panel.lower) == ("mAP", False)
    kinds = [(bar.name, bar.kind) for bar in panel.bars]
    assert kinds == [("a", "best"), ("b", "same"), ("c", "worse"), ("d", "unknown")]
    assert panel.bars[0].percent == pytest.approx((100 * 0.6 / 0.9, 100 * 0.75 / 0.9, 100), abs=0.01)
    assert (panel.bars[2].value, panel.bars[2].interval) == ("0.250", "0.100 to 0.400")
    kind, words = against_best(best, far, "mAP")
    difference, low, high = (float(n.replace("−", "-")) for n in re.findall(r"[+−][\d.]+", words))
    assert kind == "worse"
    assert difference == pytest.approx(-0.5)
    assert low < difference < high < 0
    assert panel.bars[1].verdict.startswith("no clear difference: −0.01")
    assert panels("webcam", ["a"], [best])[0].bars[0].verdict == ""  # nobody to compare with


def test_without_pairs_scenes_are_compared():
    best, other = (judged(name, [0.0], "matching/mAP", "hpatches") | {"per_pair": []} for name in ("a", "b"))
    for entry_, values in ((best, [0.5, 0.6, 0.7, 0.8, 0.9]), (other, [0.4, 0.5, 0.5, 0.7, 0.8])):
        entry_["per_scene"] = {f"s{k}": {"matching/mAP": value} for k, value in enumerate(values)}
    kind, words = against_best(best, other, "matching/mAP")
    assert (kind, words[:14]) == ("worse", "worse: −0.120 ")
    assert against_best(best, best, "matching/mAP") == ("same", "no clear difference: +0.000 [+0.000, +0.000]")
    del other["per_scene"]["s4"]
    assert against_best(best, other, "matching/mAP")[0] == "unknown"  # four of them are too few
    assert against_best(best, {**best, "dataset": {"fingerprint": "other"}}, "matching/mAP")[0] == "unknown"


def test_fewer_false_alarms_are_better():
    few, many = (judged(n, [v] * 4, "FPR95", "brown") for n, v in (("few", 0.01), ("many", 0.02)))
    (panel,) = panels("brown", ["many", "few"], [many, few])
    assert panel.lower
    bars = [(bar.name, bar.kind, bar.percent[1]) for bar in panel.bars]
    assert bars == [("few", "best", 50.0), ("many", "worse", 100.0)]


def test_words_for_the_scores():
    names = [*HEADLINES["imw"], "stereo/num_matches", "matching/mAP_vl", "matching_score_pre@3", "x/unheard"]
    assert [name for name, _ in glossary(names)] == ["mAA", "mAP", "matching_score", "num"]
    shown = {name for columns in COLUMNS.values() for name in columns}
    for headlines in HEADLINES.values():
        assert set(headlines) <= shown
    for name in shown:
        assert glossary([name]), name


def test_date_command_and_captions_are_shown(tmp_path):
    result = entry("mkd", 0.3)
    result.environment |= {"date": "2026-01-02T03:04:05+00:00", "command": ["/x/eval/__main__.py", "webcam", "<a>"]}
    write_results(tmp_path / "run" / "results.json", [result])
    for name in ("mma.png", "matches/best.png", "bags/bag.png"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "run" / name), np.zeros((4, 4), np.uint8))
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "2026-01-02 03:04: python -m eval webcam &#39;&lt;a&gt;&#39;" in page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [caption.split(":")[0] for caption in captions] == ["run, mma", "run, best", "run, bag"]
    assert "inliers above" in captions[1]
    assert "<summary>More pictures (2)</summary>" in page


@pytest.mark.parametrize(
    ("protocol", "is_said"), [({"chosen_ratios": {"even_pairs": 0.8}}, False), ({"mr_size": 6.0}, True)]
)
def test_other_settings_are_said_other_findings_are_not(tmp_path, protocol, is_said):
    first, second = entry("rootsift", 0.4), entry("h8E512", 0.5)
    first.protocol |= {"mr_size": 12.0, "chosen_ratios": {"even_pairs": 0.9}}
    second.protocol |= first.protocol | protocol
    write_results(tmp_path / "results.json", [first, second])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert ("not all run with the same settings" in page) == is_said


def test_noise_levels_stand_in_a_table_of_each_task(tmp_path):
    scores = {
        f"verification/{lv}/inter/mAP": Score(v, None, 9)
        for lv, v in zip(["easy", "hard", "tough"], (0.9, 0.8, 0.7), strict=True)
    }
    scores |= {"matching/easy/mAP": Score(0.5, None, 2), "matching/easy/success": Score(0.6, None, 2)}
    scores |= {f"retrieval/easy/mAP@{k}": Score(0.3, None, 4) for k in (500, 100)}
    write_results(
        tmp_path / "results.json",
        [entry("mkd", 0.3, "hpatches", scores=scores | {"matching/mAP": Score(0.5, None, 2)})],
    )
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text()
    tables = [t for t in parsed(page).tables if t and t[0][0] == "method" and len(t) == 2]
    rows = {tuple(t[0][1:]): t[1] for t in tables}
    assert rows[("easy/inter/mAP", "hard/inter/mAP", "tough/inter/mAP")] == ["mkd", "0.900", "0.800", "0.700"]
    assert rows[("easy/mAP", "easy/success")] == ["mkd", "0.500", "0.600"]
    assert rows[("easy/mAP@100", "easy/mAP@500")] == ["mkd", "0.300", "0.300"]
    assert "<summary>Tables as papers print them</summary>" in page


def test_the_six_fpr95_stand_in_one_table(tmp_path):
    results = []
    for train, values in (("liberty", (0.3, 0.5)), ("notredame", (0.1, 0.6)), ("yosemite", (0.2, 0.4))):
        found = entry(f"tfeat@{train}", 0.3, "brown", scores={"FPR95": Score(0.2, None, 9)})
        found.method |= {"name": "tfeat", "trained_on": train}
        tests = [test for test in ("liberty", "notredame", "yosemite") if test != train]
        found.per_scene = {test: {"FPR95": value} for test, value in zip(tests, values, strict=True)}
        results.append(found)
    write_results(tmp_path / "results.json", results)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
    tables = parsed((tmp_path / "site" / "index.html").read_text()).tables
    assert ["tfeat", *["0.100", "0.200", "0.300", "0.400", "0.500", "0.600", "0.350"]] in [
        row for t in tables for row in t
    ]


def test_large_pictures_are_made_light(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 2000, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "mma.png"), cv2.GaussianBlur(noise, (0, 0), 3))
    write_results(tmp_path / "results.json", [entry("mkd", 0.3)])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text()
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)[1]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (420, 1400, 3)
    (tmp_path / "mma.png").write_bytes(b"no picture")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 1


def test_equal_tokens_of_two_runs_are_told_apart(tmp_path):
    paths = [tmp_path / n / "results.json" for n in ("run_a", "run_b")]
    for path in paths:
        write_results(path, [entry("rootsift", 0.3)])
    from eval.core.results import read_results

    section = build_sections([(p, read_results(p)) for p in paths])[0]
    assert [row.name for row in section.rows] == ["rootsift (run_a)", "rootsift (run_b)"]


def test_contrast_of_text_is_sufficient(page):
    def luminance(colour: str) -> float:
        full = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
        channels = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    schemes = [dict(re.findall(r"--(\w+): #([0-9a-f]{6})", part)) for part in page.split("prefers-color-scheme: dark")]
    assert len(schemes) == 2
    for scheme in schemes:
        for text in ("ink", "soft", "accent", "good", "bad", "plain"):
            for ground in ("ground", "band"):
                dark, light = sorted((luminance(scheme[text]), luminance(scheme[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_faults(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 1
    assert "results.json is not there" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 1
    assert "is not a results file" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"schema": "results/1", "results": [{"benchmark": "x"}]}')
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "site")]) == 1
    assert "an entry lacks protocol, method, scores" in capsys.readouterr().err
    assert not (tmp_path / "site" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint(page, tmp_path, browser, width):
    """A real browser: no sideways scroll of the page, sorting works, and the folded page is not endless."""
    probe = """
      const tall = document.documentElement.scrollHeight;
      document.querySelectorAll("details").forEach(fold => { fold.open = true; });
      const board = [...document.querySelectorAll("section")].at(-2).querySelector("table.sortable");
      const head = board.querySelectorAll("thead button")[1];
      const order = () => [...board.querySelectorAll("tbody th")].map(cell => cell.textContent.trim()).join(",");
      head.focus();
      const focused = document.activeElement === head;
      head.click(); const down = order();
      head.click(); const up = order();
      return [document.documentElement.scrollWidth <= innerWidth, focused, down, up,
              head.closest("th").getAttribute("aria-sort"), tall < 6000];
    """
    path = tmp_path / "index.html"
    path.write_text(page, encoding="utf-8")
    assert browser(path, probe, width) == [
        True,
        True,
        "hardtfeat@a.pth,rootsift,bad",
        "rootsift,hardtfeat@a.pth,bad",  # what was not measured stays last
        "ascending",
        True,
    ]


def test_names_of_tasks_do_not_hide_what_a_score_is(tmp_path):
    imw = {"stereo/mAA@10": 0.5, "stereo/num_matches": 512.3, "multiview/track_length": 3.2, "multiview/ATE": 0.456}
    write_results(tmp_path / "a" / "results.json", [_scored("imw", imw)])
    dev = {"poses/mAA@10": 0.4, "poses/AP": 0.1, "homography/MMA@3": 0.45, "webcam/mAP": 0.3, "dev": 0.4}
    dev |= {f"homography/MMA@{t}": 0.05 * t for t in range(1, 11)}
    write_results(tmp_path / "b" / "results.json", [_scored("dev", dev)])
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert "512, n = 9" in text
    assert "3.20, n = 9" in text
    assert "0.46, n = 9" in text
    boards = [t for t in parsed(page).tables if t[0][1:2] == ["poses/mAA@10"]]
    assert boards[0][0][1:] == ["poses/mAA@10", "poses/AP", "homography/MMA@3", "webcam/mAP"]
    assert boards[0][1][1:] == ["0.400", "0.100", "0.150", "0.300"]


def _scored(benchmark: str, values: dict[str, float]) -> Result:
    return entry("mkd", 0.3, benchmark, scores={name: Score(value, None, 9) for name, value in values.items()})
