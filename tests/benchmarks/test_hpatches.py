from __future__ import annotations

import numpy as np
import pytest

from benchmarks import hpatches as bench
from benchmarks import plain
from eval.hpatches import matching, retrieval, verification


def test_fast_paths_agree_with_plain_loops():
    descriptors = bench.synthetic_set(4, 60, seed=3, dim=16)
    pairs, lists = bench.tasks_of(descriptors, 500, 20, 150)
    table = verification.score_verification(descriptors, pairs)
    expected = plain.verification(descriptors, pairs)
    for name, value in expected.items():
        level, kind = name.split("/")
        assert table[level][kind]["imbalanced_ap"] == pytest.approx(value, abs=1e-6)
    scores = matching.score_matching(descriptors, descriptors.names)
    assert matching.headline(scores) == pytest.approx(plain.matching(descriptors, descriptors.names), abs=1e-9)
    found = retrieval.score_retrieval(descriptors, lists)
    np.testing.assert_allclose(found.ap, plain.retrieval(descriptors, lists), atol=1e-9)
    assert 0.2 < found.headline() < 1.0


def test_measure_reports_every_stage():
    result = bench.measure(3, 40, 3, 30)
    assert set(result["full"]["seconds"]) == {"draw", "verification", "matching", "retrieval"}
    assert result["full"]["direct_s"].keys() == result["compare"]["direct_s"].keys()
    assert min(result["full"]["direct_s"].values()) > 0
    assert result["compare"]["largest_difference"] < 1e-6
    for ratio in ("ratio", "cpu_ratio"):
        assert set(result["compare"][ratio]) == {"verification", "matching", "retrieval", "all"}
    total = sum(result["compare"]["direct_s"].values()) / sum(result["compare"]["fast_s"].values())
    assert result["compare"]["ratio"]["all"] == pytest.approx(total)
