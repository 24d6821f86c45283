"""The bench of descriptors: it runs, and its sums are right; no speed is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import agreement, command, descriptors, images
from eval.cli import main
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import Weights, save_weights
from kornia_hardnet8.projection import Projection

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = HardNet8(output_dim=None)
    features = {k.removeprefix("features."): v for k, v in module.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, Weights("h8E512", features, Projection(torch.zeros(512), torch.eye(512), torch.ones(512))))
    return path


def test_the_command(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(descriptors, "ROUNDS", 1)
    monkeypatch.setattr(descriptors, "extra_memory_mb", lambda *_: 1.0)
    out = tmp_path / "bench.json"
    line = ["bench", "descriptors", "--weights", str(weights), "--count", "40", "--threads", "1", "--keypoints", "30"]
    threads = torch.get_num_threads()
    try:
        assert main([*line, "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    rows = {row["name"]: row for row in content["descriptors"]["rows"]}
    assert rows["kornia"]["ratio"] == pytest.approx(1.0)
    assert rows["kornia"]["max_difference"] == 0.0
    assert {"kornia, chunks", "ours fp32", "rootsift", "tfeat"} <= set(rows)
    assert rows["ours fp32"]["max_difference"] < 1e-5
    assert rows["ours fp32"]["nn_agreement"] == pytest.approx(1.0)
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["patches_s"] / rows["kornia"]["patches_s"])
        assert row["name"] in printed
    gemm = content["descriptors"]["gemm"]["fp32"]
    assert rows["ours fp32"]["gemm_share"] == pytest.approx(2 * 65_306_624 * rows["ours fp32"]["patches_s"] / gemm)
    (image,) = content["images"]
    assert image["patch_difference"] < 1e-3
    for row in image["rows"]:
        assert row["total_s"] == pytest.approx(sum(row["stages"].values()))
        assert 0 < row["keypoints"] <= 30


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read as Linux gives it")
@pytest.mark.slow
def test_memory_of_chunks_is_bounded(weights: Path) -> None:
    kornia = descriptors.extra_memory_mb("kornia", weights, 3000, 1)
    ours = descriptors.extra_memory_mb("ours fp32", weights, 3000, 1)
    assert kornia is not None
    assert ours is not None
    assert ours < 150 < kornia


def test_what_cannot_run_is_left_out_with_its_reason(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = descriptors.measure(weights, 8, 1, 1, torch.device("cpu"), memory=False)
    assert {"openvino int8", "onnxruntime fp32", "ours fp16"} <= set(result["left_out"])
    assert "pip install 'openvino>=2025.0'" in result["left_out"]["openvino int8"]


def test_wrong_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in (
        (["descriptors", "--count", "0"], "--count"),
        (["imw", "--keypoints", "4"], "--keypoints must be at least 8"),
        (["hpatches", "--sequences", "1"], "at least 2 sequences"),
        (["agreement"], "--images"),
        (["speed"], "descriptors"),
    ):
        try:
            code = main(["bench", *line])
        except SystemExit as leave:
            code = leave.code
        assert code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "benches"),
    [([], ["descriptors"]), (["--hpatches"], ["hpatches"]), (["--hpatches", "--imw"], ["imw", "hpatches"])],
)
def test_without_a_name_the_defaults_are_measured(
    flags: list[str], benches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    for name, (module, _) in command.BENCHES.items():
        monkeypatch.setattr(module, "run", lambda args, name=name: measured.append((name, vars(args))))
    assert main(["bench", *flags]) == 0
    assert [name for name, _ in measured] == benches
    assert all(values for _, values in measured)


def test_the_image_has_keypoints_of_all_sizes() -> None:
    image = images.textured_image(96, 128)
    assert image.shape == (1, 1, 96, 128)
    assert (image.min(), image.max()) == (0.0, 1.0)
    assert torch.equal(image, images.textured_image(96, 128))


def test_agreement_of_photographs_and_of_a_store(weights: Path, tmp_path: Path) -> None:
    """Two views of one pattern, a pixel apart; a store whose labels are pairs of the same patch."""
    image = (255 * images.textured_image(150, 200)[0, 0]).byte().numpy()
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :-1])
    cv2.imwrite(str(tmp_path / "b.png"), image[:, 1:])
    store = tmp_path / "store"
    store.mkdir()
    patches = np.repeat((255 * descriptors.paired_patches(12)[:, 0].clamp(0, 1)).byte().numpy(), 2, axis=0)
    patches = np.pad(patches, ((0, 0), (16, 16), (16, 16)))
    np.save(store / "patches.npy", patches)
    np.save(store / "labels.npy", np.arange(24, dtype=np.int64) // 2)
    np.save(store / "image_ids.npy", np.zeros(24, dtype=np.int32))
    np.save(store / "cam_ids.npy", np.zeros(24, dtype=np.int32))
    arrays = {name: np.load(store / f"{name}.npy") for name in ("patches", "labels", "image_ids", "cam_ids")}
    meta = {
        "format": "patchstore/1", "kind": "tuples", "count": 24, "num_labels": 12, "patch_size": 64, "crop": 2.0,
        "mr_size": 12.0,
        "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()},
    }  # fmt: skip
    (store / "meta.json").write_text(json.dumps(meta))
    out = tmp_path / "agreement.json"
    done = subprocess.run(
        [sys.executable, "-m", "eval", "bench", "agreement", "--weights", str(weights),
         "--images", str(tmp_path / "a.png"),
         str(tmp_path / "b.png"), "--patches-of", str(store), "--neighbours", "40",
         "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "same nearest" in done.stdout
    content = json.loads(out.read_text())["agreement"]
    for rows in content.values():
        assert rows[0] == {**rows[0], "name": "fp32", "nearest": 1.0, "mutual": 1.0, "max_difference": 0.0}
        assert all(0.7 <= row["nearest"] <= 1.0 and row["max_difference"] < 0.2 for row in rows)
    assert content["a.png b.png"][0]["num_mutual"] > 20
    assert content[str(store)][0]["num_mutual"] == 12


def test_agreement_is_counted() -> None:
    """Of two equal queries the first is the neighbour of their neighbour."""
    first = torch.eye(4)
    second = torch.eye(4)
    forward, mutual = agreement._neighbours(first, second)
    assert forward.tolist() == [0, 1, 2, 3]
    assert mutual.all()
    forward, mutual = agreement._neighbours(first[[0, 0, 2]], second)
    assert forward.tolist() == [0, 0, 2]
    assert mutual.tolist() == [True, False, True]
