"""Which test reproduces which cases of ``tests/vectors/imw.json``.

A case belongs to the longest prefix of its name that stands in one of the tables. ``test_imw_vectors.py`` reproduces
what it names itself, and fails when a case belongs nowhere, or to two tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def decode(value: Any) -> Any:
    """The texts "nan", "inf", "-inf" of the file as floats."""
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def load_cases() -> dict[str, dict[str, Any]]:
    """All cases by name."""
    path = ROOT / "tests" / "vectors" / "imw.json"
    return {case["name"]: decode(case) for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}


CASES = load_cases()

# prefix -> the test file that reproduces these cases
ELSEWHERE: dict[str, str] = {
    "submission_": "tests/eval/imw/test_official_vectors.py",
    "parse_json_": "tests/eval/imw/test_official_vectors.py",
    "category_": "tests/eval/imw/test_official_vectors.py",
    "folder_name_": "tests/eval/imw/test_official_vectors.py",
    "feature_": "tests/eval/imw/test_official_vectors.py",
    "patch_": "tests/eval/imw/test_official_vectors.py",
    "dedup_upright_": "tests/eval/imw/test_official_vectors.py",
    "results_": "tests/eval/imw/test_official_results.py",
}

# name -> why we deliberately do something else
NOT_REPRODUCED: dict[str, str] = {
    "dedup_upright_more_points_shared_x": "the original drops points that share one coordinate; ours keeps them",
    "dedup_upright_no_dups": "the original sorts the points by position; ours keeps the order by response",
    "deprecated_remove_keys": "the original drops keys that contain a name anywhere; ours compares whole names",
    "match_single_train_flann": "flann is answered by exact search, which gives no match here instead of an error",
    "maa_stereo_empty_list": "the original fails; ours gives zeros",
    "maa_multiview_empty_bag_file": "the original fails; ours counts the bag as failed",
    "normalize_three_columns": "the original fails; ours drops the further columns",
    "quaternion_m4_precise": "this variant of the original is unused; ours gives the same quaternion",
    "quaternion_precise_needs_4x4": "this variant of the original is unused and fails for 3x3",
    "quaternion_precise_negative_trace": "this variant of the original is unused and fails for a negative trace",
    "repeatability_empty_target": "the original fails; ours gives zeros",
}
