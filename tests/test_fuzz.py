"""Valid files of every format, damaged at random by a seed: every command answers in one line, by exit 0, 1 or 2.

Slow: it runs commands some hundred times. Damage is harmless: bytes are cut off, flipped, swapped, or overwritten.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.cli
import train.cli
from common.h5files import write_h5
from eval.core.results import SCHEMA
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import Weights, save_weights
from tests.common.colmap_files import Tiny

pytestmark = pytest.mark.slow
ROUNDS = 12
RNG = np.random.default_rng(0)


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """One kind of damage."""
    data = np.frombuffer(content, np.uint8).copy()
    kind = rng.integers(0, 5)
    if kind == 0 or len(data) < 8:
        return content[: rng.integers(0, len(content) + 1)]
    places = rng.integers(0, len(data), 4)
    if kind == 1:
        data[places] ^= (1 << rng.integers(0, 8, 4)).astype(np.uint8)
    elif kind == 2:
        data[places[:2]] = data[places[1::-1]]
    elif kind == 3:  # a count, more often than not
        start = rng.integers(0, min(len(data) - 7, 64))
        data[start : start + 8] = rng.choice([0, 255, 127], 8)
    else:
        return content + bytes(rng.integers(0, 256, 9).astype(np.uint8))
    return data.tobytes()


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(path)
    return path


def pictures(root: Path) -> tuple[list[Path], list[str]]:
    files = [picture(root / name) for name in ("a.png", "b.jpg", "c.tif", "d.webp", "e.bmp")]
    return files, ["eval", "match", str(root / "a.png"), str(root / "b.jpg"), "--desc", "sift", "--keypoints", "50"]


def folder_of_pictures(root: Path) -> tuple[list[Path], list[str]]:
    files = [picture(root / "photos" / name) for name in ("a.png", "b.jpg", "c.tif", "d.webp")]
    line = ["train", "build", "photos", str(root / "photos"), "--views", "2", "--num-workers", "0", "--out", "OUT"]
    return files, line


def colmap_scene(root: Path) -> tuple[list[Path], list[str]]:
    tiny = Tiny(names=["a.png", "b.png", "c.png"])
    tiny.pictures(root / "images")
    sparse = tiny.binary(root / "sparse")
    line = ["eval", "imw-scene", "--images", str(root / "images"), "--model", str(sparse), "--out", "OUT"]
    return sorted(sparse.iterdir()), line


def wide() -> Tiny:
    """A model whose patches lie inside its images."""
    seen = [[(100, 110, 7), (200, 120, 9)], [(105, 106, 7)], [(180, 90, 9), (110, 120, 7)]]
    return Tiny(names=["a.png", "b.png", "c.png"], size=(320, 240), seen=seen)  # type: ignore[arg-type]


def colmap_text(root: Path) -> tuple[list[Path], list[str]]:
    tiny = wide()
    tiny.pictures(root / "images")
    sparse = tiny.text(root / "sparse")
    line = ["train", "build", "colmap", "--images", str(root / "images"), "--model", str(sparse), "--out", "OUT"]
    return sorted(sparse.iterdir()), [*line, "--crop", "fixed", "--num-workers", "0"]


def colmap_database(root: Path) -> tuple[list[Path], list[str]]:
    tiny = wide()
    tiny.pictures(root / "images")
    path = tiny.database(root / "database.db")
    sparse = tiny.binary(root / "sparse")
    line = ["train", "build", "colmap", "--images", str(root / "images"), "--model", str(sparse), "--out", "OUT"]
    return [path], [*line, "--features", str(path), "--num-workers", "0"]


def hdf5(root: Path) -> tuple[list[Path], list[str]]:
    tiny = wide()
    tiny.pictures(root / "images")
    sparse = tiny.binary(root / "sparse")
    tables = {
        name: np.array([(x, y, 3.0, 0.1) for x, y, _ in rows], np.float32)
        for name, rows in zip(tiny.names, tiny.seen, strict=True)
    }
    write_h5(root / "features.h5", tables)
    line = ["train", "build", "colmap", "--images", str(root / "images"), "--model", str(sparse), "--out", "OUT"]
    return [root / "features.h5"], [*line, "--features", str(root / "features.h5"), "--num-workers", "0"]


def strips(root: Path) -> tuple[list[Path], list[str]]:
    folder = root / "data" / "i_a"
    folder.mkdir(parents=True)
    pixels = RNG.integers(0, 256, (3 * 65, 65), dtype=np.uint8)
    for name in ("ref", *(f"{level}{k}" for level in "eht" for k in range(1, 6))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    line = ["train", "build", "hpatches", str(root / "data"), "--out", "OUT", "--num-workers", "0"]
    return sorted(folder.iterdir()), line


def brown(root: Path) -> tuple[list[Path], list[str]]:
    folder = root / "data"
    folder.mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 256, (128, 128), dtype=np.uint8)).save(folder / "patches0000.bmp")
    (folder / "info.txt").write_text("0 0\n0 0\n1 0\n1 0\n")
    (folder / "interest.txt").write_text("0 1\n" * 4)
    (folder / "m50_2_2_0.txt").write_text("0 0 0 1 0 0 0\n0 0 0 2 1 0 0\n")
    line = ["train", "build", "brown", str(folder), "--pairs", str(folder / "m50_2_2_0.txt"), "--out", "OUT"]
    return sorted(folder.iterdir()), [*line, "--num-workers", "0"]


def store(root: Path) -> tuple[list[Path], list[str]]:
    _, (_, *line) = brown(root)
    assert train.cli.main([part.replace("OUT", str(root / "store")) for part in line]) == 0
    files = [path for path in (root / "store").iterdir() if path.suffix in (".npy", ".json")]
    return sorted(files), ["train", "info", str(root / "store")]


def weights(root: Path) -> tuple[list[Path], list[str]]:
    root.mkdir()
    network = HardNet8(arch="h7")
    state = dict(network.features.state_dict())
    save_weights(root / "a.safetensors", Weights("h7", state, metadata={"mr_size": 12.0}))
    torch.save({"state_dict": {f"features.{name}": value for name, value in state.items()}}, root / "b.pth")
    line = ["train", "convert", str(root / "b.pth"), "OUT.safetensors"]
    return [root / "b.pth", root / "a.safetensors"], line


def results(root: Path) -> tuple[list[Path], list[str]]:
    root.mkdir()
    score = {"value": 0.5, "ci95": [0.4, 0.6], "n": 3}
    entry = {"benchmark": "webcam", "protocol": {"seed": 0}, "dataset": {"name": "a", "fingerprint": "0"},
             "method": {"descriptor": "sift"}, "scores": {"mAP": score}, "per_scene": {"s": {"mAP": 0.5}},
             "per_pair": [{"scene": "s", "pair": ["1", "2"]}], "timing": {}, "environment": {}}  # fmt: skip
    (root / "results.json").write_text(json.dumps({"schema": SCHEMA, "results": [entry, entry]}))
    return [root / "results.json"], ["eval", "report", str(root), "--out", "OUT.html"]


@pytest.mark.parametrize(
    "write",
    [pictures, folder_of_pictures, colmap_scene, colmap_text, colmap_database, hdf5, strips, brown, store, weights,
     results],
)  # fmt: skip
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_damaged_files_are_answered_in_one_line(
    write: Callable[[Path], tuple[list[Path], list[str]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files, (program, *line) = write(tmp_path / "in")
    main = (eval.cli if program == "eval" else train.cli).main
    codes = []
    for round_number in range(ROUNDS + 1):
        rng = np.random.default_rng(round_number)
        path = files[rng.integers(0, len(files))]
        whole = path.read_bytes()
        if round_number:  # the first one is of sound files
            path.write_bytes(damage(whole, rng))
        out = tmp_path / f"out{round_number}"
        capfd.readouterr()
        codes.append(main([part.replace("OUT", str(out)) if part.startswith("OUT") else part for part in line]))
        message = capfd.readouterr().err
        errors = [text for text in message.splitlines() if text.startswith("error")]
        assert codes[-1] in (0, 1, 2), message
        assert len(errors) == (codes[-1] != 0), message
        assert "Traceback" not in message
        path.write_bytes(whole)
        shutil.rmtree(out, ignore_errors=True)
    assert codes[0] == 0, "the sound files"
