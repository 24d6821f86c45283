"""Every example runs, and prints what it promises."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from kornia_hardnet8 import example_pair
from kornia_hardnet8.pair import read_image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# The last number of the line that this finds must reach the bound.
PROMISES = {
    "colmap_uint8": (r"bytes keep (\d+) % of the inliers", 90),
    "folder_to_colmap": (r"(\d+) of 12 photographs", 8),
    "judge_your_descriptor": (r"stereo/mAA@10", None),
    "kornia_pipeline": (r"HardNet8Feature, (\d+) agree", 40),
    "match_two_photographs": (r"(\d+) agree with one geometry", 150),
    "opencv_keypoints": (r"matches, (\d+) inliers", 80),
    "train_on_photographs": (r"by day and by night, (\d+) inliers", 8),
}


def test_examples_are_listed_and_are_notebooks() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (ROOT / "examples/README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.name for path in EXAMPLES]
    for path in EXAMPLES:
        cells = re.findall(r"^# %%.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert cells[0] == "# %% [markdown]" and "# %%" in cells


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MINUTES": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / f"examples/{name}.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    pattern, least = PROMISES[name]
    hit = re.search(pattern, done.stdout)
    assert hit, done.stdout[-2000:]
    if least is not None and hit.groups() and hit.group(1):
        assert int(hit.group(1)) >= least, done.stdout[-2000:]


class _BaseModel(torch.nn.Module):
    """What hloc's base class does with an extractor."""

    default_conf: dict[str, object] = {}  # noqa: RUF012
    required_inputs: list[str] = []  # noqa: RUF012

    def __init__(self, conf: dict[str, object]) -> None:
        super().__init__()
        self._init({**self.default_conf, **conf})  # type: ignore[operator]

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert all(key in data for key in self.required_inputs)
        return self._forward(data)  # type: ignore[operator, no-any-return]


def test_hloc_gets_what_it_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    base = types.ModuleType("hloc.utils.base_model")
    base.BaseModel = _BaseModel  # type: ignore[attr-defined]
    for name in ("hloc", "hloc.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    spec = importlib.util.spec_from_file_location("hloc.extractors.hardnet8", ROOT / "examples/hloc_extractor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # hloc takes the one class of its base that the module itself defines.
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == spec.name]
    assert [issubclass(c, _BaseModel) for c in own] == [True]
    model = own[0]({"max_keypoints": 60, "name": "hardnet8"}).eval()
    gray = read_image(example_pair()[0]).mean(dim=0)[None, None, ::2, ::2]
    with torch.no_grad():
        stored = {key: value[0].cpu().numpy() for key, value in model({"image": gray}).items()}
    assert {key: value.shape for key, value in stored.items()} == {
        "keypoints": (60, 2),
        "scores": (60,),
        "descriptors": (128, 60),
    }
    assert (stored["keypoints"] >= 0).all() and (stored["keypoints"] < (320, 256)).all()
