"""The tables of README, pages and model cards: the runs that they are made of, and how a table looks.

``docs/make_tables.py`` runs and writes them. A table stands in a page between ``<!-- table NAME -->`` and
``<!-- end -->``, where NAME is its key in ``TABLES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.core.estimators import METHODS
from eval.core.results import lower_is_better
from eval.report.compare import compare_entries, values_by_pair

Entry = dict[str, Any]
Entries = Mapping[str, Entry]
"""The entries of a run by descriptor."""

NAMES = {
    "rootsift": "RootSIFT",
    "tfeat": "TFeat (Liberty)",
    "mkd": "MKD-PCA",
    "hardtfeat": "HardTFeat",
    "h8E512": "**h8E512, ours**",
    "aliked-n16": "ALIKED-n16, own keypoints",
    "xfeat": "XFeat, own keypoints",
    "h8E512:precision=int8": "**h8E512 in int8, ours**",
    "h8small:precision=int8": "**h8small in int8, ours**",
    "matchability": "… **its keypoints chosen by matchability**",
    "kornia-hardnet8:untrained=true": "untrained layers",
}
FILES = {
    "tfeat": "tfeat-liberty.params",
    "mkd": "mkd-concat-64.pth",
    "hardtfeat": "HardTFeat.pth",
    "aliked-n16": "aliked-n16.pth",
    "xfeat": "xfeat.pt",
}
WHOLE = ("aliked-n16", "xfeat")
PATCHES = "rootsift tfeat mkd hardtfeat h8E512"
UNTRAINED = "kornia-hardnet8:untrained=true"
INT8, SMALL = "h8E512:precision=int8", "h8small:precision=int8"
BAGS = "5:4,10:3,25:2"
FAILED_BAGS = "failed bags"


@dataclass(frozen=True)
class Run:
    """One run of ``python -m``; {data} and {out} stand for the folders.

    Attributes:
        command: without descriptors, cache and folder of the run.
        desc: its descriptors; those whose weights are not there are left out.
        needs: folders below the data.
        first: what has to be made before, below the output, and the command that makes it.
        has_cache: whether the command keeps stages in a cache.
    """

    command: str
    desc: str
    needs: tuple[str, ...] = ()
    first: tuple[tuple[str, str], ...] = ()
    has_cache: bool = True


DEV = "eval dev --data {data} --ransac-seeds 3"
DEV_PARTS = ("poses", "oxford", "webcam")
STRIPS = (("made/strips", "eval hpatches-build --sequences {data}/oxford --patches 500 --out {out}/made/strips"),)
STORE = (("made/amos", "train build amos {data}/webcam --max-sets 300 --out {out}/made/amos"),)
SCENE = "eval imw-scene --images {data}/poses/NAME/images --model {data}/poses/NAME/sparse --out {out}/made/scenes/NAME"
SCENES = (("made/scenes/NAME", f"{SCENE} --bags {BAGS}"),)
IMW = "eval imw --data {out}/made/scenes"
DIMS = (32, 64, 96, 128, 256, 512)
FLAT_SCENE = "poses/entry_P10"

RUNS: dict[str, Run] = {
    "demo": Run("eval imw", "h8E512 rootsift"),
    "built-in": Run("eval imw", "hardtfeat aliked-n16 xfeat"),
    # int8 takes half the time, and its figures differ by some thousandths
    "dev": Run(DEV, f"rootsift tfeat mkd hardtfeat {SMALL} {INT8} aliked-n16", DEV_PARTS),
    "dev-matchability": Run(f"{DEV} --select matchability", f"{INT8} {SMALL}", DEV_PARTS),
    "calibrated": Run(f"{DEV} --estimator poselib-e", f"rootsift {SMALL} {INT8} aliked-n16", DEV_PARTS),
    "calibrated-matchability": Run(f"{DEV} --estimator poselib-e --select matchability", INT8, DEV_PARTS),
    "dimensions": Run(
        "eval dev --data {data} --keypoints 1024", " ".join(f"h8E512:dim={dim}" for dim in DIMS), DEV_PARTS
    ),
    "sequences": Run("eval sequences --data {data}/oxford", f"{PATCHES} {UNTRAINED} xfeat aliked-n16", ("oxford",)),
    "webcam": Run("eval webcam --data {data}/webcam", f"{PATCHES} {UNTRAINED}", ("webcam",), has_cache=False),
    "strips": Run("eval hpatches --data {data}/hpatches", f"{PATCHES} {UNTRAINED}", ("hpatches",)),
    "built-strips": Run("eval hpatches --data {out}/made/strips", f"{PATCHES} {UNTRAINED}", ("oxford",), STRIPS),
    "amos": Run("eval brown --data {out}/made/amos --task amos", PATCHES, ("webcam",), STORE, has_cache=False),
    "imw": Run(IMW, "rootsift hardtfeat h8E512 aliked-n16 xfeat", ("poses",), SCENES),
    "imw-matchability": Run(f"{IMW} --select matchability", "h8E512", ("poses",), SCENES),
    **{f"estimator-{name}": Run(f"eval dev --data {{data}} --estimator {name}", INT8, DEV_PARTS) for name in METHODS},
}


@dataclass(frozen=True)
class Table:
    """A table of the pages: the runs that it is made of, and how."""

    runs: tuple[str, ...]
    make: Callable[..., list[str]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def value_of(entry: Entry, metric: str, scene: str | None = None) -> float | None:
    """A score of an entry, or of one of its scenes; None where it has none."""
    scores = entry["scores"] if scene is None else entry["per_scene"].get(scene, {})
    if metric == FAILED_BAGS:
        return sum(sum(of_scene["failed_bags"].values()) for of_scene in entry["per_scene"].values())
    score = scores.get(metric)
    return score["value"] if isinstance(score, dict) else score


def number(value: float | None) -> str:
    """Three decimals, counts as they are; nothing for None."""
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def with_best(columns: Sequence[str], rows: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """Numbers, the best of each column bold."""
    shown = [[number(value) for value in row] for row in rows]
    for k, metric in enumerate(columns):
        cells = [row[k] for row in shown if row[k]]
        best = (min if lower_is_better(metric) or metric == FAILED_BAGS else max)(cells, key=float, default="")
        for row in shown:
            if row[k] == best != "" and len(cells) > 1:
                row[k] = f"**{row[k]}**"
    return shown


def scores_table(columns: Mapping[str, str], intervals: Sequence[str] = ()) -> Callable[..., list[str]]:
    """A row a descriptor of all runs, a column a metric; those of ``intervals`` have their 95 % interval."""

    def make(*runs: Entries) -> list[str]:
        entries = {name: entry for run in runs for name, entry in run.items()}
        metrics = list(columns.values())
        shown = with_best(metrics, [[value_of(entry, metric) for metric in metrics] for entry in entries.values()])
        for row, entry in zip(shown, entries.values(), strict=True):
            for metric in intervals:
                if (ci := entry["scores"][metric]["ci95"]) is not None:
                    row[metrics.index(metric)] += f" [{ci[0]:.3f}, {ci[1]:.3f}]"
        rows = [[NAMES.get(name, name), *cells] for name, cells in zip(entries, shown, strict=True)]
        return markdown(["", *columns], rows)

    return make


def scenes_table(metric: str) -> Callable[[Entries], list[str]]:
    """A row a descriptor, a column a scene that has the metric."""

    def make(entries: Entries) -> list[str]:
        scenes = [name for name, scores in next(iter(entries.values()))["per_scene"].items() if metric in scores]
        rows = with_best([metric] * len(scenes), [[value_of(e, metric, s) for s in scenes] for e in entries.values()])
        head = ["", *(scene.rpartition("/")[2].replace("_", " ") for scene in scenes)]
        return markdown(head, [[NAMES.get(n, n), *row] for n, row in zip(entries, rows, strict=True)])

    return make


def difference_cells(a: Entry, b: Entry, metrics: Sequence[str], unit: float = 1.0) -> list[str]:
    """A less b by pairs in units, with the 95 % interval, for each metric; nothing where one has no value by pair."""
    digits = 3 if unit == 1.0 else 1
    common = [m for m in metrics if m in values_by_pair(a) and m in values_by_pair(b)]
    by_name = {d.metric: d for d in compare_entries(a, b, metrics=common)}
    cells = []
    for metric in metrics:
        values = (by_name[metric].difference, *by_name[metric].ci95) if metric in by_name else ()
        shown = [f"{value / unit:+.{digits}f}" for value in values]
        cells.append(f"{shown[0]} [{shown[1]}, {shown[2]}]" if shown else "")
    return cells


def differences_table(columns: Mapping[str, str], of: str = "h8E512") -> Callable[..., list[str]]:
    """A row a descriptor: what ``of`` of the first run has more than it, pair by pair."""

    def make(*runs: Entries) -> list[str]:
        others = {name: entry for run in runs for name, entry in run.items() if name != of}
        rows = [
            [NAMES.get(name, name), *difference_cells(runs[0][of], entry, list(columns.values()))]
            for name, entry in others.items()
        ]
        return markdown(["less", *columns], rows)

    return make


def with_choice(run: Entries, chosen: Entries, of: str = INT8) -> Entries:
    """The descriptors of a run, and after ``of`` what choosing its keypoints gives."""
    rows: dict[str, Entry] = {}
    for name, entry in run.items():
        rows[name] = entry
        if name == of:
            rows["matchability"] = chosen[of]
    return rows


def of_imw(make: Callable[[Entries], list[str]]) -> Table:
    """A table of the benchmark's run on scenes, with what choosing the keypoints of h8E512 gives."""
    return Table(("imw", "imw-matchability"), lambda run, chosen: make(with_choice(run, chosen, "h8E512")))


def readme_table(dev: Entries, chosen: Entries) -> list[str]:
    """The table of the README: the descriptors, and what choosing the keypoints adds."""
    return scores_table(
        {
            "camera poses, mAA@10": "poses/mAA@10",
            "… over all ratios": "poses/mAA@10_mean",
            "homographies, MMA@3": "homography/MMA@3",
            "changing light, mAP": "webcam/mAP",
        }
    )(with_choice(dev, chosen))


def calibrated_table(dev: Entries, chosen: Entries, by_f: Entries) -> list[str]:
    """Poses by E from known calibrations, and those of one flat scene by E and by F."""
    rows = with_choice(dev, chosen)
    flat = {name: value_of(entry, "poses/mAA@10", FLAT_SCENE) for name, entry in by_f.items()}
    metrics = ["poses/mAA@10", "poses/mAA@10_mean"]
    cells = with_best(
        [*metrics, "", ""],
        [
            [*(value_of(e, m) for m in metrics), value_of(e, metrics[0], FLAT_SCENE), flat.get(name)]
            for name, e in rows.items()
        ],
    )
    head = ["", "mAA@10", "all ratios", "entry P10", "entry P10 by F"]
    return markdown(head, [[NAMES.get(name, name), *row] for name, row in zip(rows, cells, strict=True)])


BOTH_TASKS = {"stereo, mAA@10": "stereo/mAA@10", "multiview, mAA@10": "multiview/mAA@10"}
DEV_METRICS = {
    "poses, mAA@10 over all ratios": "poses/mAA@10_mean",
    "poses, mAA@10": "poses/mAA@10",
    "poses, AP of matches": "poses/AP",
    "homographies, correct NN": "homography/correct_nn",
    "homographies, MMA@3": "homography/MMA@3",
    "fixed camera, correct NN": "webcam/correct_nn",
    "fixed camera, mAP": "webcam/mAP",
}


def paired_table(first: str, second: str, entries: tuple[Entry, Entry]) -> list[str]:
    """Two columns and the second less the first; bold where the difference is real."""
    one, other = entries
    rows = []
    for title, metric in DEV_METRICS.items():
        values = [value_of(entry, metric) for entry in entries]
        (difference,) = compare_entries(other, one, metrics=[metric])
        is_real = difference.verdict != "-"
        cells = with_best([metric], [[value] for value in values]) if is_real else [[number(v)] for v in values]
        rows.append([title, *(cell for (cell,) in cells), *difference_cells(other, one, [metric])])
    return markdown(["", first, second, "difference"], rows)


def matchability_table(dev: Entries, chosen: Entries) -> list[str]:
    """The strongest responses against the keypoints that matchability chooses."""
    return paired_table("response", "matchability", (dev[INT8], chosen[INT8]))


def small_table(dev: Entries) -> list[str]:
    """The small network against its teacher."""
    return paired_table("h8E512", "h8small", (dev[INT8], dev[SMALL]))


def small_scenes(dev: Entries) -> list[str]:
    """The same on every scene with poses, over all ratios."""
    return scenes_table("poses/mAA@10_mean")({"its teacher, h8E512": dev[INT8], "h8small": dev[SMALL]})


def matchability_scenes(dev: Entries, chosen: Entries) -> list[str]:
    """The same on every scene with poses, over all ratios."""
    return scenes_table("poses/mAA@10_mean")({"response": dev[INT8], "matchability": chosen[INT8]})


def estimators_table(*runs: Entries) -> list[str]:
    """A row an estimator, the best first, with its difference to degensac."""
    entries = {name: run[INT8] for name, run in zip(METHODS, runs, strict=True)}
    order = sorted(entries, key=lambda name: -(value_of(entries[name], "poses/mAA@10") or 0.0))
    rows = []
    for name in order:
        less = "" if name == "degensac" else difference_cells(entries[name], entries["degensac"], ["poses/mAA@10"])[0]
        rows.append([f"`{name}`", f"{value_of(entries[name], 'poses/mAA@10'):.3f}", less])
    return markdown(["estimator", "mAA@10", "less `degensac`"], rows)


def dimensions_table(entries: Entries) -> list[str]:
    """A row a width, in percent as all of its page, with its difference to 128."""
    titles = {
        "poses: AP, %": "poses/AP",
        "mAA@10 over all ratios, %": "poses/mAA@10_mean",
        "fixed camera: mAP, %": "webcam/mAP",
    }
    base, metrics = entries["h8E512:dim=128"], list(titles.values())
    rows = []
    for dim in DIMS:
        entry = entries[f"h8E512:dim={dim}"]
        less = [""] * 3 if dim == 128 else [f" ({cell})" for cell in difference_cells(entry, base, metrics, unit=0.01)]
        values = [f"{100 * (value_of(entry, metric) or 0.0):.1f}" for metric in metrics]
        rows.append([f"{dim}, the default" if dim == 128 else str(dim), *map("".join, zip(values, less, strict=True))])
    return markdown(["dimensions", *titles], rows)


TABLES: dict[str, Table] = {
    "readme": Table(("dev", "dev-matchability"), readme_table),
    "demo": Table(("demo",), scores_table(BOTH_TASKS)),
    "built-in": Table(("demo", "built-in"), scores_table(BOTH_TASKS)),
    "poses": Table(
        ("dev",),
        scores_table({"mAA@10": "poses/mAA@10", "all ratios": "poses/mAA@10_mean", "AP": "poses/AP"}, ["poses/mAA@10"]),
    ),
    "pose-scenes": Table(("dev",), scenes_table("poses/mAA@10")),
    "places": Table(
        ("dev",),
        scores_table(
            {
                "MMA@3, homographies": "homography/MMA@3",
                "correct NN, homographies": "homography/correct_nn",
                "correct NN, fixed camera": "webcam/correct_nn",
                "mAP, fixed camera": "webcam/mAP",
            }
        ),
    ),
    "differences": Table(
        ("dev",),
        differences_table(
            {
                "mAA@10": "poses/mAA@10",
                "AP": "poses/AP",
                "correct NN, homographies": "homography/correct_nn",
                "MMA@3": "homography/MMA@3",
                "mAP, fixed camera": "webcam/mAP",
            },
            INT8,
        ),
    ),
    "matchability": Table(("dev", "dev-matchability"), matchability_table),
    "matchability-scenes": Table(("dev", "dev-matchability"), matchability_scenes),
    "small": Table(("dev",), small_table),
    "small-scenes": Table(("dev",), small_scenes),
    "calibrated": Table(("calibrated", "calibrated-matchability", "dev"), calibrated_table),
    "dimensions": Table(("dimensions",), dimensions_table),
    "estimators": Table(tuple(f"estimator-{name}" for name in METHODS), estimators_table),
    "imw": of_imw(
        scores_table(
            {
                **BOTH_TASKS,
                "registered": "multiview/registered_ratio",
                FAILED_BAGS: FAILED_BAGS,
                "track": "multiview/track_length",
            },
            list(BOTH_TASKS.values()),
        )
    ),
    "imw-differences": of_imw(differences_table(BOTH_TASKS)),
    "imw-stereo": of_imw(scenes_table("stereo/mAA@10")),
    "imw-multiview": of_imw(scenes_table("multiview/mAA@10")),
    "built-strips": Table(
        ("built-strips",),
        scores_table(
            {name: f"{name}/mAP" for name in ("verification", "matching", "retrieval")}
            | {f"matching, {level}": f"matching/{level}/mAP" for level in ("easy", "hard", "tough")}
        ),
    ),
    "strips": Table(
        ("strips",),
        scores_table(
            {"matching": "matching/mAP"}
            | {f"… {level}": f"matching/{level}/mAP" for level in ("easy", "hard", "tough")}
            | {f"verification, {level}": f"verification/{level}/intra/mAP" for level in ("easy", "hard", "tough")}
        ),
    ),
    "sequences": Table(
        ("sequences",),
        scores_table(
            {f"MMA@{t}": f"MMA@{t}" for t in (1, 3, 5, 10)}
            | {"correct NN": "correct_nn"}
            | {f"HA@{t}": f"HA@{t}" for t in (1, 3, 5)}
            | {f"AUC@{t}": f"AUC@{t}" for t in (1, 3, 5)}
        ),
    ),
    "webcam": Table(("webcam",), scores_table({"correct NN": "correct_nn", "mAP": "mAP"}, ["correct_nn", "mAP"])),
    "amos": Table(("amos",), scores_table({"correct NN": "amos/correct_nn", "mAP": "amos/mAP"})),
}

NOT_MADE = {
    "docs/what-matters.md": "trainings take days of a core and the training photographs; each command is there",
    "docs/benchmarks.md, Brown's protocols": "Brown's patches are no part of the data",
    "matchability.md, what was tried": "the networks of the trials were not kept",
    "speed and memory": "those of one machine: python -m eval bench WHAT and python -m train bench measure yours",
    "the picture of README": "python -m kornia_hardnet8 match draws it; tests/test_readme.py checks its numbers",
}
