"""No command writes to what it reads: bytes and times of all inputs are the same before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

import eval.cli
import train.cli
from tests.common.colmap_files import Tiny, state

Write = Callable[[Path], list[str]]


def photographs(folder: Path, count: int = 3) -> Path:
    """Pictures of one textured plane, seen from places beside each other."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    plane = cv2.resize(rng.integers(0, 256, (90, 120), dtype=np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
    for k in range(count):
        shift = np.array([[1, 0, -6.0 * k], [0, 1, 4.0 * k]])
        cv2.imwrite(str(folder / f"{k}.png"), cv2.warpAffine(plane, shift, (320, 240)))
    return folder


def model(folder: Path) -> Path:
    tiny = Tiny(names=["a.png", "b.png", "c.png"])
    tiny.pictures(folder / "images")
    tiny.binary(folder / "sparse")
    tiny.database(folder / "database.db")
    return folder


def imw_scene(folder: Path) -> list[str]:
    root = model(folder)
    return ["eval", "imw-scene", "--images", str(root / "images"), "--model", str(root / "sparse"), "--out", "OUT"]


def build_colmap(folder: Path) -> list[str]:
    root = model(folder)
    return [
        "train",
        "build",
        "colmap",
        "--images",
        str(root / "images"),
        "--model",
        str(root / "sparse"),
        "--out",
        "OUT",
    ]


def build_of_a_database(folder: Path) -> list[str]:
    root = model(folder)
    line = ["train", "build", "colmap", "--images", str(root / "images"), "--model", str(root / "database.db")]
    return [*line, "--out", "OUT"]


def features_of_others(folder: Path) -> list[str]:
    line = build_colmap(folder)
    with h5py.File(folder / "features.h5", "w") as file:
        file.create_group("a.png")["keypoints"] = np.zeros((3, 2))
    return line


def build_photos(folder: Path) -> list[str]:
    photographs(folder / "photos")
    return ["train", "build", "photos", str(folder / "photos"), "--out", "OUT", "--views", "2", "--num-workers", "0"]


def match(folder: Path) -> list[str]:
    root = photographs(folder / "photos")
    return ["eval", "match", str(root / "0.png"), str(root / "1.png"), "--desc", "sift", "--out", "OUT.png"]


def reconstruct(folder: Path) -> list[str]:
    return ["eval", "reconstruct", str(photographs(folder / "photos")), "--desc", "sift", "--out", "OUT", "--jobs", "1"]


def webcam(folder: Path) -> list[str]:
    photographs(folder / "data" / "camera")
    return ["eval", "webcam", "--data", str(folder / "data"), "--desc", "sift", "--out", "OUT"]


def hpatches(folder: Path) -> list[str]:
    sequence = folder / "data" / "i_a"
    sequence.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * 65, 65), dtype=np.uint8)
    for name in ("ref", *(f"{level}{k}" for level in "eht" for k in range(1, 6))):
        Image.fromarray(pixels).save(sequence / f"{name}.png")
    return ["eval", "hpatches", "--data", str(folder / "data"), "--desc", "sift", "--out", "OUT"]


def report(folder: Path) -> list[str]:
    folder.mkdir()
    entry = {"benchmark": "x", "protocol": {}, "dataset": {}, "method": {"descriptor": "a"}, "scores": {},
             "per_scene": {}, "per_pair": [], "timing": {}, "environment": {}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"schema": "other", "results": [entry]}))
    return ["eval", "report", str(folder), "--out", "OUT.html"]


@pytest.mark.parametrize(
    "write",
    [imw_scene, build_colmap, build_of_a_database, features_of_others, build_photos, match, reconstruct, webcam,
     hpatches, report],
)  # fmt: skip
def test_inputs_stay_as_they_are(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *line = write(tmp_path / "in")
    before = state(tmp_path / "in")
    line = [part.replace("OUT", str(tmp_path / "out")) if part.startswith("OUT") else part for part in line]
    code = (eval.cli if program == "eval" else train.cli).main(line)
    assert state(tmp_path / "in") == before
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert (code, len(errors)) in ((0, 0), (1, 1)), errors
