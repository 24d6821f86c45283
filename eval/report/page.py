"""From results entries to a page: sections, tables, pictures."""

from __future__ import annotations

import argparse
import base64
import datetime
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.images import open_picture
from common.shell import output_folder
from eval.brown.data import HEADS, combinations_table
from eval.core.results import lower_is_better, read_results
from eval.pages.render import command_line, render_page, write_page
from eval.report.leaders import Panel, panels
from eval.report.published import PUBLISHED, is_official
from eval.report.words import ABOUT, COLUMNS, TITLES, glossary, is_share, measure_of
from kornia_hardnet8.errors import MissingFileError

_MOST_COLUMNS = 12  # of a benchmark without a list of its own
_MOST_PICTURES = 24
_PICTURE_WIDTH_PX = 1400  # more would only make the page heavy
_JPEG_QUALITY = 85
_PLAIN_LIST = re.compile(r"\[[^][{}]*\]")
_LEVELS = ("easy", "hard", "tough")


@dataclass(frozen=True)
class Cell:
    """One number of a table as text, with what it is sorted by."""

    text: str
    sort: float | None = None
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method of a leaderboard; ``published`` is the number of its source, empty for what was measured."""

    name: str
    cells: list[Cell]
    published: str = ""
    detail: str = ""


@dataclass
class Section:
    """One benchmark on one data set."""

    anchor: str
    title: str
    dataset: str
    columns: list[tuple[str, str]]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    details: list[tuple[str, list[tuple[str, str]], list[Row]]] = field(default_factory=list)
    scenes: list[tuple[str, list[Row]]] = field(default_factory=list)
    about: str = ""
    panels: list[Panel] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    all_scores: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


def render(sections: Sequence[Section], title: str, made: str = "") -> str:
    """The page as HTML text, complete in itself; ``made`` says how it was made."""
    names = [name for section in sections for _, scores in section.all_scores for name, _ in scores]
    return render_page("report/page.html", sections=sections, title=title, made=made, glossary=glossary(names))


def build_sections(runs: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]]) -> list[Section]:
    """Group entries of all runs by benchmark and data set.

    Args:
        runs: (results file, its entries); pictures beside the file are taken along.
    """
    groups: dict[tuple[str, str, str], list[tuple[Path, Mapping[str, Any]]]] = {}
    for path, entries in runs:
        for entry in entries:
            dataset = entry.get("dataset") or {}
            key = (str(entry["benchmark"]), str(dataset.get("name")), str(dataset.get("fingerprint")))
            groups.setdefault(key, []).append((path, entry))
    order = {name: i for i, name in enumerate(TITLES)}
    keys = sorted(groups, key=lambda k: (order.get(k[0], len(order)), k[1]))
    return [_section(f"s{i}", key[0], key[1], groups[key]) for i, key in enumerate(keys, 1)]


def _section(anchor: str, benchmark: str, dataset: str, members: list[tuple[Path, Mapping[str, Any]]]) -> Section:
    entries = [entry for _, entry in members]
    labels = _labels(members)
    names = _columns(benchmark, entries)
    rows = [_measured_row(label, entry, names) for label, entry in zip(labels, entries, strict=True)]
    rows = _mark_best(rows, names)
    published, sources = _published_rows(benchmark, names, entries)
    notes = _notes(entries)
    if sources:
        notes.append(
            "Rows marked “published” are figures of others on the same official data; they were not measured here, and "
            "their settings may differ. Sources: " + " ".join(f"[{k}] {source}." for k, source in enumerate(sources, 1))
        )
    return Section(
        anchor=anchor,
        title=TITLES.get(benchmark, benchmark),
        dataset=dataset,
        columns=[(name, "lower is better" if lower_is_better(name) else "") for name in names],
        rows=[*rows, *published],
        notes=notes,
        details=_detail_tables(benchmark, labels, entries),
        scenes=_scene_tables(labels, entries, names),
        about=ABOUT.get(benchmark, ""),
        panels=panels(benchmark, labels, entries),
        runs=list(dict.fromkeys(_run_line(entry) for entry in entries if entry.get("environment"))),
        settings=[(label, _settings(entry)) for label, entry in zip(labels, entries, strict=True)],
        all_scores=[
            (label, [(name, _score_text(name, score)) for name, score in entry["scores"].items()])
            for label, entry in zip(labels, entries, strict=True)
        ],
        pictures=_pictures(sorted({path for path, _ in members})),
    )


def _notes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of a section must know: what was not measured and why, what is missing, warnings."""
    protocols = [entry["protocol"] for entry in entries]
    reasons = sorted({reason for p in protocols for reason in (p.get("not_measured") or {}).values()})
    notes = [f"Not measured: {reason}." for reason in reasons]
    missing = next((p["missing"] for p in protocols if p.get("missing")), None)
    if missing and not any(p.get("unofficial") for p in protocols):
        notes.append(f"{len(missing)} official sequences are not in this data set: not the official figures.")
    notes += sorted({str(line) for p in protocols for line in p.get("warnings") or ()})
    if len({_protocol_key(entry) for entry in entries}) > 1:
        notes.append("The methods were not all run with the same settings: see the folds below.")
    return notes


def _published_rows(
    benchmark: str, names: Sequence[str], entries: Sequence[Mapping[str, Any]]
) -> tuple[list[Row], list[str]]:
    """Rows of others' figures beside official ones that share a score, and their sources, numbered from 1."""
    official = all(is_official(entry) for entry in entries)
    published = [row for row in PUBLISHED.get(benchmark, []) if official and set(row.scores) & set(names)]
    sources = list(dict.fromkeys(f"{row.source}; {row.note}" for row in published))
    rows = [
        Row(
            row.method,
            [_cell(name, row.scores.get(name)) for name in names],
            published=str(1 + sources.index(f"{row.source}; {row.note}")),
        )
        for row in published
    ]
    return rows, sources


def _labels(members: list[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Descriptor tokens; the run's folder is added where two are alike."""
    names = [str(entry["method"]["descriptor"]) for _, entry in members]
    return [
        name if names.count(name) == 1 else f"{name} ({path.parent.name})"
        for name, (path, _) in zip(names, members, strict=True)
    ]


def _columns(benchmark: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    there = list(dict.fromkeys(name for entry in entries for name in entry["scores"]))
    listed = [name for name in COLUMNS.get(benchmark, ()) if name in there]
    if listed:
        return listed
    return [name for name in there if is_share(name)][:_MOST_COLUMNS]


def _measured_row(label: str, entry: Mapping[str, Any], names: Sequence[str]) -> Row:
    cells = []
    for name in names:
        score = entry["scores"].get(name) or {}
        interval = score.get("ci95")
        detail = f"{_number(name, interval[0])} to {_number(name, interval[1])}" if interval else ""
        cells.append(_cell(name, score.get("value"), detail))
    return Row(label, cells, detail=", ".join(_method_details(entry["method"])))


def _method_details(method: Mapping[str, Any]) -> list[str]:
    keys = ("detector", "matcher", "geometry", "trained_on")
    return [f"{key.replace('_', ' ')} {method[key]}" for key in keys if isinstance(method.get(key), str)]


def _cell(name: str, value: float | None, detail: str = "") -> Cell:
    if value is None:
        return Cell("–")
    return Cell(_number(name, value), float(value), detail)


def _number(name: str, value: float) -> str:
    """Shares as the commands print them, counts whole."""
    if is_share(name):
        return f"{value:.3f}"
    return f"{value:.0f}" if measure_of(name).startswith(("num_", "seconds")) else f"{value:.2f}"


def _score_text(name: str, score: Mapping[str, Any]) -> str:
    if score.get("value") is None:
        return "–"
    interval = score.get("ci95")
    spread = f" [{_number(name, interval[0])}, {_number(name, interval[1])}]" if interval else ""
    return f"{_number(name, score['value'])}{spread}, n = {score.get('n')}"


def _mark_best(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The best measured number of each column, where there is a choice."""
    marked = [list(row.cells) for row in rows]
    for column, name in enumerate(names):
        values = [c[column].sort for c in marked if c[column].sort is not None]
        if len(values) < 2:
            continue
        best = min(values) if lower_is_better(name) else max(values)  # type: ignore[type-var]
        for cells in marked:
            cell = cells[column]
            if cell.sort == best:
                cells[column] = Cell(cell.text, cell.sort, cell.detail, best=True)
    return [Row(row.name, cells, row.published, row.detail) for row, cells in zip(rows, marked, strict=True)]


def _detail_tables(
    benchmark: str, labels: Sequence[str], entries: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[tuple[str, str]], list[Row]]]:
    """The further tables that papers print: (title, columns, rows)."""
    if benchmark == "hpatches":
        return _level_tables(labels, entries)
    if benchmark != "brown":
        return []
    combined = combinations_table([(entry["method"], entry.get("per_scene") or {}) for entry in entries])
    names = [f"FPR95, {head}" for head in HEADS]
    rows = [Row(name, [_cell(n, v) for n, v in zip(names, values, strict=True)]) for name, *values in combined]
    heads = [(head, "") for head in HEADS]
    return [("FPR95, training subset > test subset", heads, _mark_best(rows, names))] if rows else []


def _level_tables(
    labels: Sequence[str], entries: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[tuple[str, str]], list[Row]]]:
    """(title, columns, rows) of each HPatches task, one column a noise level and kind, as papers print them."""
    there = {name for entry in entries for name in entry["scores"]}
    pools = sorted({int(n.rpartition("@")[2]) for n in there if n.startswith("retrieval/easy/mAP@")})
    kinds = {
        "verification": [f"{kind}/{name}" for kind in ("inter", "intra") for name in ("mAP", "AUC")],
        "matching": ["illumination/mAP", "viewpoint/mAP", "mAP", "success"],
        "retrieval": [f"mAP@{pool}" for pool in pools],
    }
    tables = []
    for task, columns in kinds.items():
        names = [n for column in columns for level in _LEVELS if (n := f"{task}/{level}/{column}") in there]
        if names:
            rows = [_measured_row(label, entry, names) for label, entry in zip(labels, entries, strict=True)]
            heads = [(name.partition("/")[2], "") for name in names]
            tables.append((task, heads, _mark_best(rows, names)))
    return tables


def _scene_tables(
    labels: Sequence[str], entries: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[tuple[str, list[Row]]]:
    scenes = list(dict.fromkeys(scene for entry in entries for scene in entry.get("per_scene") or {}))
    tables = []
    for scene in scenes:
        rows = []
        for label, entry in zip(labels, entries, strict=True):
            scores = (entry.get("per_scene") or {}).get(scene)
            if scores:
                values = [scores.get(name) for name in names]
                plain = [v.get("value") if isinstance(v, dict) else v for v in values]
                rows.append(Row(label, [_cell(n, v) for n, v in zip(names, plain, strict=True)]))
        if any(cell.sort is not None for row in rows for cell in row.cells):
            tables.append((scene, _mark_best(rows, names)))
    return tables


def _run_line(entry: Mapping[str, Any]) -> str:
    """When and by which command an entry was made, as far as its run says."""
    environment = entry["environment"]
    command = environment.get("command")
    parts = [str(environment.get("date", "")).replace("T", " ")[:16], command_line(command) if command else ""]
    return ": ".join(filter(None, parts))


def _protocol_key(entry: Mapping[str, Any]) -> str:
    # What a method was found to need is a result, not a setting.
    hidden = ("not_measured", "warnings", "normalisation", "chosen_ratios", "tuned")
    return json.dumps({k: v for k, v in entry["protocol"].items() if k not in hidden}, sort_keys=True)


def _settings(entry: Mapping[str, Any]) -> str:
    shown = {key: entry.get(key) for key in ("method", "protocol", "dataset", "timing", "environment")}
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    return _PLAIN_LIST.sub(
        lambda match: " ".join(match[0].split()), text
    )  # one line each: names of sequences fill pages


def _pictures(results: Sequence[Path]) -> list[tuple[str, str]]:
    """(caption, data URI) of the PNG files beside the results and in the folders below, those beside them first."""
    files = [
        (path.parent, picture)
        for path in results
        for folder in (".", "matches", "bags")
        for picture in sorted((path.parent / folder).glob("*.png"))
    ]
    return [(_caption(run, picture), _embedded(picture)) for run, picture in files[:_MOST_PICTURES]]


def _caption(run: Path, picture: Path) -> str:
    """What a picture shows, in words, with the name of its file."""
    if picture.parent.name == "matches":
        words = "matches of a pair, the inliers above and what the estimator rejected below, coloured by the true error"
    elif picture.parent.name == "bags":
        words = "a bag of photographs: reconstructed cameras against the true ones, from above and from the front"
    elif picture.stem == "mma":
        words = "mean matching accuracy: the share of matches within so many pixels"
    elif picture.stem.endswith("_accuracy"):
        words = "the share of pairs whose pose error is below so many degrees"
    else:
        words = "picture"
    return f"{run.name}, {picture.stem}: {words}"


def _embedded(path: Path) -> str:
    """A picture as a data URI: JPEG where that is smaller, reduced to the width that a page shows.

    Raises:
        DataError: not a picture.
    """
    with open_picture(path) as image:
        picture = image.convert("RGB")
    content, kind = path.read_bytes(), "png"
    picture.thumbnail((_PICTURE_WIDTH_PX, 1 << 16))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    if buffer.tell() < len(content):
        content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("results", nargs="+", type=Path, metavar="RUN", help="run folders, or results.json files")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder of index.html")
    parser.add_argument("--title", default="Local features: results", help="heading of the page")


def run(args: argparse.Namespace) -> None:
    """Read every results file and write ``DIR/index.html``."""
    runs = []
    for path in args.results:
        file = path / "results.json" if path.is_dir() else path
        if not file.is_file():
            raise MissingFileError(f"{file} is not there: a run folder has one when its command has ended")
        runs.append((file.resolve(), read_results(file)))
    made = f"Made on {datetime.date.today().isoformat()} by: {command_line(sys.argv)}"
    target = args.out / "index.html"
    write_page(target, render(build_sections(runs), args.title, made))
    print(f"results: {sum(len(entries) for _, entries in runs)}")
    print(f"page to open: {target}")
