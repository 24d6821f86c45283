"""From photographs to a submission and a report: every file that one command writes is what the next one takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import eval.cli
import train.cli
from eval.imw.submission.config import PLACEHOLDERS
from kornia_hardnet8 import HardNet8

ABOUT = {
    **PLACEHOLDERS,
    "authors": "A. Author",
    "contact_email": "author@example.org",
    "method_name": "A method",
    "method_description": "What it does.",
}


@pytest.mark.slow
def test_a_rendered_scene_goes_round(corner, corner_scene: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    def run(cli: object, line: str) -> str:
        assert cli.main(line.split()) == 0, capsys.readouterr().err  # type: ignore[attr-defined]
        return capsys.readouterr().out

    store, out, final, weights = (tmp_path / name for name in ("store", "run", "final.ckpt", "mine.safetensors"))
    run(train.cli, f"build colmap --images {corner.images} --model {corner.model} --out {store}")
    run(train.cli, f"--ds {store} --arch h7nodrop --bs 16 --steps 3 --threads 1 --holdout 0.2 --out {out}")
    run(train.cli, f"pca {out / 'last.ckpt'} --ds {store} --patches 400 --out {final}")
    run(train.cli, f"bundle {final} --out {weights}")
    assert HardNet8(weights).arch == "h7nodrop"

    token = f"h7nodrop@{weights}"
    data = tmp_path / "data"
    shutil.copytree(corner_scene, data / "phototourism" / "corner")
    entry = tmp_path / "entry.zip"
    about = tmp_path / "about.json"
    about.write_text(json.dumps(ABOUT))
    run(eval.cli, f"imw-submit --data {data} --desc {token} --track 2k --metadata {about} --out {entry}")
    run(eval.cli, f"imw-validate {entry} --data {data}")

    results = tmp_path / "results"
    run(
        eval.cli,
        f"imw --data {corner_scene} --desc {token} rootsift --task stereo --keypoints 150 --viz 0 --out {results}",
    )
    names = [entry["method"]["descriptor"] for entry in json.loads((results / "results.json").read_text())["results"]]
    assert len(names) == 2 and "rootsift" in names[1]
    run(eval.cli, f"report {results} --out {tmp_path / 'page'}")
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "mine.safetensors" in page and "rootsift" in page
