"""Figures that others have published, as reference rows: never measured here, and marked so wherever they are shown.

Only rows whose source was read are listed. Fractions in [0, 1]; None where the source gives none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedRow:
    """One method of a published table.

    Attributes:
        method: its name there.
        scores: our name of a score -> fraction.
        source: where the row was read.
        note: what tells its protocol apart.
    """

    method: str
    scores: dict[str, float] = field(default_factory=dict)
    source: str = ""
    note: str = ""


def _hpatches() -> list[PublishedRow]:
    source = "DagnyT/hardnet, figures of its read-me"
    note = "HPatches, split full; VLFeat's AP"
    # verification, matching, retrieval in percent
    table: dict[str, tuple[float | None, float, float]] = {
        "RootSIFT": (None, 27.22, 42.49),
        "TFeat-M*": (None, 32.64, 52.03),
        "PCW": (None, 33.66, 48.26),
        "HardTFeat": (None, 38.07, 55.12),
        "L2Net": (None, 40.82, 59.64),
        "L2Net+": (None, 45.04, 63.37),
        "HardNet (NIPS)": (None, 48.24, 65.26),
        "HardNet+ (NIPS), Liberty": (87.12, 50.38, 66.82),
        "HardNet, Liberty": (None, 52.18, 69.44),
        "HardNet+, Liberty": (88.43, 52.76, 69.66),
        "HardNet, 6 Brown sets": (89.29, 54.64, 72.66),
        "HardNet, PhotoSync": (91.81, 58.01, 75.16),
    }
    names = ("verification/mAP_vl", "matching/mAP_vl", "retrieval/mAP_vl")
    return [
        PublishedRow(method, {n: v / 100 for n, v in zip(names, values, strict=True) if v is not None}, source, note)
        for method, values in table.items()
    ]


def _sequences() -> list[PublishedRow]:
    source = "rpautrat/SuperPoint, read-me"
    note = "HPatches, all 116 sequences; keypoints and NMS of that source"
    homography = {
        "SuperPoint (re-implementation)": (0.483, 0.836, 0.910),
        "SuperPoint (MagicLeap model)": (0.438, 0.833, 0.914),
        "ORB": (0.162, 0.467, 0.564),
    }
    rows = [
        PublishedRow(method, dict(zip(("HA@1", "HA@3", "HA@5"), values, strict=True)), source, note)
        for method, values in homography.items()
    ]
    rows.append(PublishedRow("SIFT (OpenCV)", {"HA@1": 0.498, "HA@3": 0.786}, source, note))
    by_class = {
        "SuperPoint (re-implementation)": (0.965, 0.712, 0.662, 0.674),
        "SuperPoint (MagicLeap model)": (0.923, 0.742, 0.641, 0.621),
        "SIFT (OpenCV)": (0.807, 0.766, None, None),
        "ORB": (0.523, 0.414, None, None),
        "FAST": (None, None, 0.576, 0.625),
        "Harris": (None, None, 0.630, 0.755),
        "Shi": (None, None, 0.584, 0.629),
    }
    names = ("i/HA@3", "v/HA@3", "i/repeatability", "v/repeatability")
    rows += [
        PublishedRow(m, {n: v for n, v in zip(names, values, strict=True) if v is not None}, source, note)
        for m, values in by_class.items()
    ]
    source, note = "glue-factory, read-me", "HPatches, 108 sequences; learned matchers; AUC with PoseLib"
    areas = {
        "SuperPoint + SuperGlue": ((37.0, 68.2, 78.7), 75.7),
        "SuperPoint + LightGlue": ((37.1, 67.4, 77.8), 77.6),
    }
    rows += [
        PublishedRow(
            method,
            {**{f"AUC@{t}": v / 100 for t, v in zip((1, 3, 5), auc, strict=True)}, "AUC_dlt@5": dlt / 100},
            source,
            note,
        )
        for method, (auc, dlt) in areas.items()
    ]
    return _merged(rows)


def _brown() -> list[PublishedRow]:
    source, note = (
        "ducha-aiki/brown_phototour_revisited, read-me",
        "revisited protocol, mode v0.3.0; mean of all columns",
    )
    # yosemite (lib, nd), notredame (lib, yos), liberty (nd, yos) in percent; one number where nothing is trained
    table: dict[str, tuple[float, ...]] = {
        "Kornia RootSIFT 32px": (58.24, 49.07, 49.65),
        "OpenCV RootSIFT 32px": (53.50, 47.16, 47.37),
        "Kornia RootSIFT-PCA 32px": (60.73, 60.64, 50.80, 50.24, 52.46, 52.02),
        "MKD concat, no whitening": (57.85, 57.85, 49.92, 49.92, 48.77, 48.77),
        "MKD concat lw": (72.27, 71.95, 60.88, 58.78, 60.68, 59.10),
        "MKD concat pcawt": (68.04, 67.60, 57.21, 55.75, 56.26, 55.48),
        "HardNet": (70.64, 70.31, 61.93, 59.56, 63.06, 61.64),
        "SOSNet": (70.03, 70.19, 62.09, 59.68, 63.16, 61.65),
        "TFeat": (65.45, 65.77, 54.99, 54.69, 56.55, 56.24),
        "Dynamic soft margin": (69.29, 69.20, 61.82, 58.61, 62.37, 60.63),
        "HardNetPS": (55.56, 49.70, 49.12),
        "R2D2 mean centre": (62.73, 54.10, 56.17),
    }
    return [
        PublishedRow(method, {"revisited/mAP": sum(values) / len(values) / 100}, source, note)
        for method, values in table.items()
    ]


def _merged(rows: list[PublishedRow]) -> list[PublishedRow]:
    """Rows of one method and source as one."""
    merged: dict[tuple[str, str], PublishedRow] = {}
    for row in rows:
        key = (row.method, row.source)
        scores = {**merged[key].scores, **row.scores} if key in merged else row.scores
        merged[key] = PublishedRow(row.method, scores, row.source, row.note)
    return list(merged.values())


# Patches of the three official sets.
_BROWN_PATCHES = {"liberty": 450_092, "notredame": 468_159, "yosemite": 633_587}


def is_official(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a results file was measured on the data of the published figures."""
    protocol, dataset = entry["protocol"], entry.get("dataset") or {}
    if entry["benchmark"] == "hpatches":
        return bool(protocol.get("official")) and protocol.get("split") == "full"
    if entry["benchmark"] == "sequences":
        return protocol.get("missing") == []
    return entry["benchmark"] == "brown" and dataset.get("subsets") == _BROWN_PATCHES


PUBLISHED: dict[str, list[PublishedRow]] = {"hpatches": _hpatches(), "sequences": _sequences(), "brown": _brown()}
