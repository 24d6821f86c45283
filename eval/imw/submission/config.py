"""``config.json`` of a submission: read as the benchmark reads it, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from eval.imw.official import DATASETS, TASKS
from eval.imw.submission.findings import Findings, Level
from kornia_hardnet8.errors import DataError

CONFIG_FILE = "config.json"

# method -> the parameters that it must have; any other one is refused
GEOM_PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("cv2-ransac-f", "cv2-usacdef-f", "cv2-usacmagsac-f", "cv2-usacfast-f", "cv2-usacaccurate-f"),
        ("threshold", "confidence", "max_iter"),
    ),
    "cv2-ransac-e": ("threshold", "confidence"),
    **dict.fromkeys(("cv2-lmeds-f", "cv2-lmeds-e"), ("confidence",)),
    **dict.fromkeys(("cv2-7pt", "cv2-8pt"), ()),
    **dict.fromkeys(
        ("cmp-degensac-f", "cmp-degensac-f-laf"),
        ("threshold", "confidence", "max_iter", "error_type", "degeneracy_check"),
    ),
    **dict.fromkeys(
        ("cmp-gc-ransac-f", "cmp-magsac-f", "skimage-ransac-f", "cmp-gc-ransac-e"),
        ("threshold", "confidence", "max_iter"),
    ),
    "intel-dfe-f": ("threshold", "postprocess"),
}
# Metadata until the author fills it in.
PLACEHOLDERS: dict[str, Any] = {
    "publish_anonymously": True,
    "authors": "to be filled in",
    "contact_email": "to.be@filled.in",
    "method_name": "to be filled in",
    "method_description": "to be filled in",
}
# Methods that the official code names but cannot run.
NOT_RUNNING = ("skimage-ransac-f", "cmp-gc-ransac-e", "intel-dfe-f", "cmp-degensac-f-laf")
# Rules of the challenge that no official code enforces.
ITERATION_CAPS = {"cmp-magsac-f": 25_000, "cmp-gc-ransac-f": 25_000, "cv2-ransac-f": 100_000}
DEGENSAC_CAPS = {True: 100_000, False: 250_000}

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|\s+|.', re.DOTALL)
_MISSING = object()


def parse_config(text: str, compat: bool = False) -> Any:
    """Read a configuration text: JSON with ``//`` and ``/* */`` comments and trailing commas.

    Args:
        text: the file.
        compat: delete trailing commas inside strings too, as the original does.

    Raises:
        DataError: not such a text.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        if token.isspace() or (len(token) > 1 and token[:2] in ("//", "/*")):
            continue
        if token in "]}" and tokens and tokens[-1] == ",":
            tokens.pop()
        tokens.append(token)
    joined = "".join(tokens)
    if compat:
        joined = joined.replace(",]", "]").replace(",}", "}")
    try:
        return json.loads(joined, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{CONFIG_FILE} does not parse: {str(error) or type(error).__name__}") from None


def check_method(method: Any, is_challenge: bool, findings: Findings, where: str = CONFIG_FILE) -> None:
    """Check one method of the configuration: first all that the official validator checks, then what it forgets."""
    check = _Checker(findings, where)
    if not isinstance(method, dict):
        check.error("", f"a method is a dictionary, not {type(method).__name__}", "schema")
        return
    known = ["metadata", "config_common", *(f"config_{d}_{t}" for d in DATASETS for t in TASKS)]
    check.keys(method, "", known, ("config_common",))
    if "metadata" in method:
        _check_metadata(check, method["metadata"])
    if "config_common" in method:
        _check_common(check, method["config_common"])
    tasks = {(d, t): method.get(f"config_{d}_{t}") for d in DATASETS for t in TASKS}
    for (dataset, task), entry in tasks.items():
        if f"config_{dataset}_{task}" in method:
            _check_task_schema(check, entry, f"config_{dataset}_{task}", task)
    if check.failed:  # the cross checks need what the schema promises
        return
    if is_challenge and not method.get("metadata"):
        check.error("metadata", "a challenge entry needs metadata", "metadata")
    if not any(tasks.values()):
        check.error("", "no task: at least one of config_<dataset>_stereo and config_<dataset>_multiview", "no_task")
    for (dataset, task), entry in tasks.items():
        if entry is not None:
            _cross_check(check, entry, f"config_{dataset}_{task}", tasks[dataset, "stereo"], task, is_challenge)
    if not check.failed:
        _check_forgotten(check, method, tasks, is_challenge)


class _Checker:
    """Collects findings of one method; remembers whether the official validator would stop."""

    def __init__(self, findings: Findings, where: str) -> None:
        self.findings, self.where, self.failed = findings, where, False

    def error(self, path: str, message: str, kind: str) -> None:
        """What the official validator refuses."""
        self.failed = True
        self.findings.add(self._at(path), message, kind, official=True)

    def extra(self, path: str, message: str, kind: str, level: Level = "error") -> None:
        """What it lets pass."""
        self.findings.add(self._at(path), message, kind, level)

    def keys(self, entry: Mapping[str, Any], path: str, known: list[str], needed: tuple[str, ...] = ()) -> None:
        """Refuse unknown keys, ask for needed ones."""
        for key in entry:
            if key not in known:
                self.error(path, f"unknown key {key!r}, known are {', '.join(known)}", "unknown_key")
        for key in needed:
            if key not in entry:
                self.error(path, f"the key {key!r} is missing", "missing_key")

    def value(self, entry: Mapping[str, Any], path: str, key: str, good: Callable[[Any], bool], expected: str) -> None:
        """Check a value that is there."""
        value = entry.get(key, _MISSING)
        if value is not _MISSING and not good(value):
            self.error(f"{path}.{key}", f"expected {expected}, got {json.dumps(value)[:80]}", "value")

    def dictionary(self, entry: Mapping[str, Any], path: str, key: str) -> dict[str, Any] | None:
        """A value that must be a dictionary where it is there."""
        value = entry.get(key)
        if key in entry and not isinstance(value, dict):
            self.error(f"{path}.{key}", f"expected a dictionary, got {json.dumps(value)[:80]}", "value")
        return value if isinstance(value, dict) else None

    def _at(self, path: str) -> str:
        return f"{self.where} {path}".strip() if path else self.where


def _check_metadata(check: _Checker, entry: Any) -> None:
    needed = ("publish_anonymously", "authors", "contact_email", "method_name", "method_description")
    optional = ("link_to_website", "link_to_pdf", "under_review", "under_review_override")
    if not isinstance(entry, dict):
        check.error("metadata", "expected a dictionary", "value")
        return
    check.keys(entry, "metadata", [*needed, *optional], needed)
    for key in entry:
        boolean = key in ("publish_anonymously", "under_review")
        check.value(entry, "metadata", key, _is_bool if boolean else _is_text, "true or false" if boolean else "a text")
        if not boolean and entry[key] in (*PLACEHOLDERS.values(), ""):
            check.extra("metadata", f"{key} is {entry[key]!r}: fill it in", "placeholder")


def _check_common(check: _Checker, entry: Any) -> None:
    path = "config_common"
    if not isinstance(entry, dict):
        check.error(path, "expected a dictionary", "value")
        return
    needed = ("json_label", "keypoint", "descriptor", "num_keypoints")
    check.keys(entry, path, [*needed, "pairwise_keypoints"], needed)
    check.value(entry, path, "json_label", _pattern(r"[a-z0-9\-_.]*"), "a text of a-z 0-9 - _ . alone")
    for key in ("keypoint", "descriptor"):
        check.value(entry, path, key, _pattern(r"[a-z0-9\-.]*"), "a text of a-z 0-9 - . alone")
    check.value(entry, path, "num_keypoints", lambda v: _is_int(v) and (v > 1 or v == -1), "an integer above 1, or -1")
    check.value(entry, path, "pairwise_keypoints", _is_bool, "true or false")


def _check_task_schema(check: _Checker, entry: Any, path: str, task: str) -> None:
    if not isinstance(entry, dict):
        check.error(path, "expected a dictionary", "value")
        return
    part = "geom" if task == "stereo" else "colmap"
    check.keys(entry, path, ["use_custom_matches", "custom_matches_name", "matcher", "outlier_filter", part])
    check.value(entry, path, "use_custom_matches", _is_bool, "true or false")
    check.value(entry, path, "custom_matches_name", _pattern(r"[a-z0-9\-.]*"), "a text of a-z 0-9 - . alone")
    if part == "colmap":
        check.value(entry, path, "colmap", lambda v: v == {} and isinstance(v, dict), "the empty dictionary")
    outlier = check.dictionary(entry, path, "outlier_filter")
    if outlier is not None:
        at = f"{path}.outlier_filter"
        check.keys(outlier, at, ["method"], ("method",))
        check.value(outlier, at, "method", _one_of("none", "cne-bp-nd"), "none or cne-bp-nd")
    matcher = check.dictionary(entry, path, "matcher")
    if matcher is not None:
        _check_matcher(check, matcher, f"{path}.matcher")
    geom = check.dictionary(entry, path, "geom") if part == "geom" else None
    if geom is not None:
        _check_geom(check, geom, f"{path}.geom")


def _check_matcher(check: _Checker, entry: dict[str, Any], path: str) -> None:
    needed = ("method", "distance", "flann", "num_nn", "filtering", "symmetric")
    check.keys(entry, path, [*needed, "descriptor_distance_filter"], needed)
    check.value(entry, path, "method", lambda v: v == "nn", "nn")
    check.value(entry, path, "distance", _one_of("l1", "l2", "hamming"), "l1, l2 or hamming")
    check.value(entry, path, "flann", _is_bool, "true or false")
    check.value(entry, path, "num_nn", lambda v: _is_int(v) and v >= 1, "an integer of at least 1")
    filtering = check.dictionary(entry, path, "filtering")
    if filtering is not None:
        at = f"{path}.filtering"
        check.keys(filtering, at, ["type", "threshold", "fginn_radius"], ("type",))
        kinds = ("none", "snn_ratio_pairwise", "snn_ratio_vs_last", "fginn_ratio_pairwise")
        check.value(filtering, at, "type", _one_of(*kinds), f"one of {', '.join(kinds)}")
        check.value(filtering, at, "threshold", _between(0, 1, closed=True), "a number in (0, 1]")
        check.value(filtering, at, "fginn_radius", _between(0, 100), "a number in (0, 100)")
    symmetric = check.dictionary(entry, path, "symmetric")
    if symmetric is not None:
        at = f"{path}.symmetric"
        check.keys(symmetric, at, ["enabled", "reduce"], ("enabled",))
        check.value(symmetric, at, "enabled", _is_bool, "true or false")
        check.value(symmetric, at, "reduce", _one_of("both", "any"), "both or any")
    cap = check.dictionary(entry, path, "descriptor_distance_filter")
    if cap is not None:
        at = f"{path}.descriptor_distance_filter"
        check.keys(cap, at, ["threshold"], ("threshold",))
        check.value(cap, at, "threshold", _between(0, float("inf")), "a number above 0")


def _check_geom(check: _Checker, entry: dict[str, Any], path: str) -> None:
    numbers = ("threshold", "confidence", "max_iter")
    check.keys(entry, path, ["method", *numbers, "error_type", "degeneracy_check", "postprocess"], ("method",))
    check.value(entry, path, "method", _one_of(*GEOM_PARAMETERS), f"one of {', '.join(GEOM_PARAMETERS)}")
    for key in numbers:
        check.value(entry, path, key, _between(0, float("inf")), "a number above 0")
    check.value(entry, path, "error_type", _one_of("sampson", "symm_epipolar"), "sampson or symm_epipolar")
    for key in ("degeneracy_check", "postprocess"):
        check.value(entry, path, key, _is_bool, "true or false")


def _cross_check(
    check: _Checker, entry: dict[str, Any], path: str, stereo: dict[str, Any] | None, task: str, is_challenge: bool
) -> None:
    """Cross checks (c) to (h)."""
    if not entry:
        check.error(path, "the task is there but empty", "empty_task")
        return
    if "use_custom_matches" not in entry:
        check.error(path, "use_custom_matches is missing", "missing_key")
        return
    if entry["use_custom_matches"]:
        for key in ("matcher", "outlier_filter"):
            if key in entry:
                check.error(path, f"custom matches take no {key}", "custom")
    symmetric = entry.get("matcher", {}).get("symmetric", {})
    if symmetric.get("enabled") and "reduce" not in symmetric:
        check.error(f"{path}.matcher.symmetric", "reduce is missing: both or any", "missing_key")
    if "matcher" in entry and stereo and not (task == "stereo" and entry["use_custom_matches"]):
        parts = ("matcher", "outlier_filter", "geom")
        custom = stereo.get("use_custom_matches", False)
        wrong = [part for part in parts if (part in stereo) == custom]
        if wrong and task == "stereo":
            check.error(path, f"{', '.join(wrong)} missing: a matcher needs {', '.join(parts)}", "missing_key")
        elif wrong:
            stereo_path = path.replace("multiview", "stereo")
            what = "must not have" if custom else "must have"
            check.error(
                path, f"a multiview matcher is only taken when {stereo_path}, too, {what} {', '.join(wrong)}", "mixture"
            )
    if "geom" in entry:
        _cross_check_geom(check, entry, path, is_challenge)


def _cross_check_geom(check: _Checker, entry: dict[str, Any], path: str, is_challenge: bool) -> None:
    geom = entry["geom"]
    method = str(geom["method"]).lower()
    if is_challenge and entry["use_custom_matches"] and method != "cv2-8pt":
        check.error(f"{path}.geom", f"custom matches of a challenge entry need cv2-8pt, not {method}", "custom")
    for key in GEOM_PARAMETERS[method]:
        if key not in geom:
            check.error(f"{path}.geom", f"{method} needs {key}", "missing_key")
    for key in geom:
        if key != "method" and key not in GEOM_PARAMETERS[method]:
            check.error(f"{path}.geom", f"{method} takes no {key}", "unknown_key")


def _check_forgotten(
    check: _Checker,
    method: dict[str, Any],
    tasks: Mapping[tuple[str, str], dict[str, Any] | None],
    is_challenge: bool,
) -> None:
    """What the official validator lets pass and a later step fails on, or the rules of the challenge forbid."""
    common = method["config_common"]
    for key in ("json_label", "keypoint", "descriptor"):
        if not common[key]:
            check.extra(f"config_common.{key}", "is empty", "empty_name")
    if common["num_keypoints"] > 8000:
        check.extra("config_common.num_keypoints", "the benchmark takes at most 8000", "num_keypoints")
    if common.get("pairwise_keypoints") and any(tasks[d, "multiview"] for d in DATASETS):
        check.extra("config_common.pairwise_keypoints", "keypoints of pairs work for stereo alone", "pairwise")
    for (dataset, task), entry in tasks.items():
        if not entry:
            continue
        path = f"config_{dataset}_{task}"
        if entry["use_custom_matches"]:
            if not entry.get("custom_matches_name"):
                check.extra(path, "custom_matches_name is missing: the official import needs it", "custom")
        elif "matcher" not in entry:
            check.extra(path, "neither a matcher nor custom matches", "no_matcher")
        if task == "stereo" and "geom" not in entry:
            check.extra(path, "geom is missing: no pose can be estimated", "no_geom")
        if task == "multiview" and "matcher" in entry and not tasks[dataset, "stereo"]:
            check.extra(path, "the official validator may ask for a stereo entry beside it", "mixture", "warning")
        if entry.get("outlier_filter", {}).get("method", "none").lower() != "none":
            check.extra(f"{path}.outlier_filter", "this filter is not part of the official code", "outlier_filter")
        _check_forgotten_matcher(check, entry.get("matcher"), f"{path}.matcher")
        _check_forgotten_geom(check, entry.get("geom"), f"{path}.geom", is_challenge)


def _check_forgotten_matcher(check: _Checker, matcher: dict[str, Any] | None, path: str) -> None:
    if matcher is None:
        return
    filtering = matcher["filtering"]
    kind = filtering["type"].lower()
    if kind != "none" and "threshold" not in filtering:
        check.extra(f"{path}.filtering", f"{kind} needs a threshold", "missing_later")
    if kind == "fginn_ratio_pairwise" and "fginn_radius" not in filtering:
        check.extra(f"{path}.filtering", "fginn_ratio_pairwise needs fginn_radius", "missing_later")
    if matcher["flann"] and matcher["distance"].lower() == "hamming":
        check.extra(path, "flann cannot search binary descriptors", "flann")
    elif matcher["flann"]:
        check.extra(path, "flann is approximate and differs from run to run", "flann", "warning")
    threshold = filtering.get("threshold")
    if isinstance(threshold, (int, float)) and threshold < 0.1:
        check.extra(f"{path}.filtering.threshold", "the matcher takes 0.1 and more", "missing_later")
    for key, values in (("filtering", filtering), ("distance", matcher.get("descriptor_distance_filter") or {})):
        _no_text_numbers(check, values, f"{path}.{key}")


def _check_forgotten_geom(check: _Checker, geom: dict[str, Any] | None, path: str, is_challenge: bool) -> None:
    if geom is None:
        return
    method = geom["method"].lower()
    _no_text_numbers(check, geom, path)
    if method in NOT_RUNNING:
        check.extra(path, f"the official code names {method} but cannot run it", "geom_not_running")
    if not is_challenge:
        return
    if method.endswith("-e"):
        check.extra(path, f"{method}: the challenge does not allow essential matrices", "rules", "warning")
    degensac = method.startswith("cmp-degensac-f")
    cap = DEGENSAC_CAPS[bool(geom["degeneracy_check"])] if degensac else ITERATION_CAPS.get(method)
    iterations = geom.get("max_iter")
    if cap is not None and isinstance(iterations, (int, float)) and iterations > cap:
        check.extra(
            path, f"max_iter {iterations}: the rules of the challenge allow {cap} for {method}", "rules", "warning"
        )


def _no_text_numbers(check: _Checker, entry: Mapping[str, Any], path: str) -> None:
    for key in ("threshold", "confidence", "max_iter", "fginn_radius"):
        if isinstance(entry.get(key), str):
            check.extra(f"{path}.{key}", "a number written as a text fails later", "text_number")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern(text: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(text, value) is not None


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.lower() in names


def _between(low: float, high: float, closed: bool = False) -> Callable[[Any], bool]:
    """Numbers, or texts of numbers, above ``low`` and below ``high`` (``closed``: or equal to it)."""

    def good(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return False
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return False
        return low < number < high or (closed and number == high)

    return good


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one dictionary")
    return entry
