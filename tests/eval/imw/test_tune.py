from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.cache import Cache
from eval.cli import main
from eval.core.estimators import EstimatorSettings
from eval.core.matchers import AdalamSettings
from eval.features import load_method
from eval.features.detect import DogSettings
from eval.imw import tune as module
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoSettings, run_stereo, stereo_scores
from eval.imw.tune import METRIC, tune
from kornia_hardnet8.errors import UsageError

SMALL = StereoSettings(
    detector=DogSettings(num=150), estimator=EstimatorSettings(threshold_px=0.5, confidence=0.999, max_iters=500)
)


def test_the_best_try_is_taken_threshold_first(
    corner_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THRESHOLDS_PX", (0.05, 0.5, 1.0))
    monkeypatch.setattr(module, "RATIOS", (0.5, 0.9))
    scene, method, cache = open_scene(corner_scene), load_method("rootsift"), Cache(tmp_path)
    found = tune(scene, method, SMALL, cache)
    assert [(t["threshold_px"], t["ratio"]) for t in found.tried[:3]] == [(0.05, 0.9), (0.5, 0.9), (1.0, 0.9)]
    best = max(found.tried[:3], key=lambda entry: entry[METRIC])
    assert [(t["threshold_px"], t["ratio"]) for t in found.tried[3:]] == [
        (best["threshold_px"], 0.5),
        (best["threshold_px"], 0.9),
    ]
    chosen = max(found.tried[3:], key=lambda entry: entry[METRIC])
    assert found.settings.estimator.threshold_px == chosen["threshold_px"] == found.to_dict()["threshold_px"]
    assert found.to_dict()["ratio"] == chosen["ratio"]
    again = stereo_scores([run_stereo(scene, method, found.settings, Cache(tmp_path / "other"))])[METRIC].value
    assert again == pytest.approx(chosen[METRIC])


def test_what_is_not_there_is_not_chosen(corner_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THRESHOLDS_PX", (0.5, 1.0))
    monkeypatch.setattr(module, "RATIOS", (0.8, 0.9))
    scene, method, cache = open_scene(corner_scene), load_method("rootsift"), Cache(tmp_path)
    adalam = StereoSettings(detector=SMALL.detector, estimator=SMALL.estimator, matcher=AdalamSettings())
    assert [entry["ratio"] for entry in tune(scene, method, adalam, cache).tried] == [None, None]
    eight = StereoSettings(detector=SMALL.detector, estimator=EstimatorSettings("8pt"))
    assert [entry["ratio"] for entry in tune(scene, method, eight, cache).tried] == [0.8, 0.9]
    neither = StereoSettings(matcher=AdalamSettings(), estimator=EstimatorSettings("8pt"))
    with pytest.raises(UsageError, match="no threshold, and the matcher no ratio"):
        tune(scene, method, neither, cache)


def test_the_command_reports_the_other_scenes_alone(
    corner_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THRESHOLDS_PX", (0.5, 1.0))
    monkeypatch.setattr(module, "RATIOS", (0.85, 0.9))
    for name in ("one", "two", "three"):
        shutil.copytree(corner_scene, tmp_path / "data" / name)
    line = ["imw", "--data", str(tmp_path / "data"), "--desc", "rootsift", "--keypoints", "150"]
    line += ["--task", "stereo", "--viz", "0", "--jobs", "1", "--out", str(tmp_path / "run")]
    assert main([*line, "--max-iters", "500", "--tune", "two"]) == 0
    assert "chosen on two (4 tries)" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert list(entry["per_scene"]) == ["one", "three"]
    assert {pair["scene"] for pair in entry["per_pair"]} == {"one", "three"}
    tuned = entry["protocol"]["tuned"]
    assert tuned["scene"] == "two"
    assert entry["protocol"]["matcher"]["threshold"] == tuned["ratio"]
    assert entry["protocol"]["estimator"]["threshold_px"] == tuned["threshold_px"]
    for wrong, message in (("tow", "did you mean two"), ("two", "leaves out")):
        flags = ["--task", "multiview"] if wrong == "two" else []
        assert main([*line, *flags, "--tune", wrong]) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data" / "one")
    shutil.rmtree(tmp_path / "data" / "three")
    assert main([*line, "--tune", "two"]) == 1
    assert "no other scene" in capsys.readouterr().err
