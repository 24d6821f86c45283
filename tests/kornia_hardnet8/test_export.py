"""Files that describe elsewhere give the descriptors of the module."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.arch import ARCHS
from kornia_hardnet8.checkpoints import Weights, save_weights
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.export import SUFFIXES, Format, export, import_openvino, load_openvino
from kornia_hardnet8.inference import calibrate

from .conftest import fill_module

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
LARGE = {"h9x", "h9t", "h9tt", "h8x2", "h8x2c", "h8x2pre", "h8p48x", "h8p64", "h8E512pre"}


def make(arch: str, output_dim: int | None) -> HardNet8:
    with torch.device("meta"):
        module = HardNet8(arch=arch, output_dim=output_dim)
    module = module.to_empty(device="cpu").eval()
    fill_module(module, 12)
    return module


def patches_for(module: HardNet8, count: int, seed: int = 0) -> Tensor:
    """White noise, smooth noise, and one constant patch, in 0 … 255."""
    side = module.patch_size
    noise = torch.rand(count, 1, side + 6, side + 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 7, 1)
    smooth[::2] = noise[::2, :, 3:-3, 3:-3]
    smooth[-1] = 0.5
    return 255 * smooth


@pytest.fixture(scope="module")
def seven() -> HardNet8:
    module = make("h7", 32)
    module.metadata = {"mr_size": 12.0}
    return module


def run_onnx(path: Path, patches: Tensor, as_written: bool = False) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if as_written:  # each node by itself: convolutions between quantised tensors in floats
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["descriptors"], {"patches": patches.numpy()})[0])


def plain(module: HardNet8, patches: Tensor) -> Tensor:
    with torch.no_grad():
        return module._describe(patches)


@pytest.mark.parametrize("arch", sorted(set(ARCHS) - LARGE))
def test_onnx_of_every_architecture(arch: str, tmp_path: Path) -> None:
    module = make(arch, None if arch in ("h8", "h8blocks") else 16)
    export(module, tmp_path / "m.onnx")
    patches = patches_for(module, 3)
    torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", patches), plain(module, patches), atol=1e-5, rtol=0)


def test_onnx_takes_any_number_of_patches(seven: HardNet8, tmp_path: Path) -> None:
    export(seven, tmp_path / "m.onnx")
    for count in (1, 7):
        patches = patches_for(seven, count)
        torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", patches), plain(seven, patches), atol=1e-5, rtol=0)
    assert run_onnx(tmp_path / "m.onnx", torch.zeros(0, 1, 32, 32)).shape == (0, 32)
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties == {"arch": "h7", "precision": "fp32", "mr_size": "12.0"}


def test_onnx_in_half_precision(seven: HardNet8, tmp_path: Path) -> None:
    patches = patches_for(seven, 8)
    export(seven, tmp_path / "m.onnx", precision="fp32")
    export(seven, tmp_path / "h.onnx", precision="fp16")
    torch.testing.assert_close(run_onnx(tmp_path / "h.onnx", patches), plain(seven, patches), atol=3e-3, rtol=0)
    assert (tmp_path / "h.onnx").stat().st_size < 0.52 * (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("measured", [False, True])
def test_onnx_in_8_bits(measured: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = HardNet8(arch="h7", output_dim=None)
    for layer in module.features:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(patches_for(module, 65)[:64])
    module.eval()
    patches = patches_for(module, 33, seed=1)[:32]
    if measured:
        module.metadata = {"int8_ranges": calibrate(module, patches)}
    export(module, tmp_path / "q.onnx", precision="int8")
    export(module, tmp_path / "m.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 0.28 * (tmp_path / "m.onnx").stat().st_size
    arrays = [onnx.numpy_helper.to_array(entry) for entry in onnx.load(tmp_path / "q.onnx").graph.initializer]
    # CPUs without VNNI add two products in a signed sum of 16 bits
    assert max(2 * 255 * int(np.abs(array.astype(int)).max()) for array in arrays if array.dtype == np.int8) < 2**15
    found = run_onnx(tmp_path / "q.onnx", patches)
    assert (found * plain(module, patches)).sum(dim=1).min() > 0.98
    assert (found * run_onnx(tmp_path / "q.onnx", patches, as_written=True)).sum(dim=1).min() > 0.998


WITHOUT_PACKAGES = """
import sys
for name in ("kornia", "kornia_hardnet8", "numpy", "safetensors"):
    sys.modules[name] = None
import torch
module = torch.jit.load(sys.argv[1])
torch.save(module(torch.load(sys.argv[2])), sys.argv[3])
torch.save(module(torch.zeros(0, 1, 32, 32)), sys.argv[4])
try:
    module(torch.zeros(1, 1, 16, 16))
except Exception as error:
    print("32" in str(error))
"""


def test_torchscript_runs_where_only_torch_is(seven: HardNet8, tmp_path: Path) -> None:
    patches = patches_for(seven, 5)
    export(seven, tmp_path / "m.jitpt", "torchscript")
    torch.save(patches, tmp_path / "in.pt")
    names = ("m.jitpt", "in.pt", "out.pt", "none.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES, *(str(tmp_path / n) for n in names)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "True"
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), plain(seven, patches), atol=1e-6, rtol=0)
    assert torch.load(tmp_path / "none.pt").shape == (0, 32)
    back = HardNet8.from_checkpoint(tmp_path / "m.jitpt")
    assert torch.equal(plain(back, patches), plain(seven, patches))


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 3e-3)])
def test_openvino(precision: Any, atol: float, seven: HardNet8, tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    openvino = import_openvino()
    assert sys.modules["openvino_telemetry"] is None  # nothing is reported to anyone
    export(seven, tmp_path / "m.xml", "openvino", precision)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    compiled = load_openvino(tmp_path / "m.xml", num_threads=1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32  # bf16 where the CPU can
    for count in (1, 6):
        patches = patches_for(seven, count)
        found = torch.from_numpy(np.array(compiled(patches.numpy())[0]))
        torch.testing.assert_close(found, plain(seven, patches), atol=atol, rtol=0)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_patches_that_are_not_finite_give_rows_of_nan(
    format: Any, precision: Any, seven: HardNet8, tmp_path: Path
) -> None:
    if format == "torchscript" and precision != "fp32":
        pytest.skip("TorchScript has fp32 only")
    if format == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    patches = patches_for(seven, 6)
    sound = [0, 2, 3, 5]
    patches[1, 0, 3, 4], patches[4, 0] = float("nan"), float("inf")
    path = tmp_path / f"m{SUFFIXES[format]}"
    export(seven, path, format, precision)
    if format == "onnx":
        descs = run_onnx(path, patches)
        alone = run_onnx(path, patches[sound])
    elif format == "openvino":
        compiled = load_openvino(path, num_threads=1)
        descs, alone = (torch.from_numpy(compiled(p.numpy())[0].copy()) for p in (patches, patches[sound]))
    else:
        descs, alone = (torch.jit.load(path)(p) for p in (patches, patches[sound]))
    assert descs.isnan().all(dim=1).tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(descs[sound], alone, atol=1e-5, rtol=0)


def test_files_that_openvino_does_not_read(tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    with pytest.raises(MissingFileError, match="is not there"):
        load_openvino(tmp_path / "none.xml")
    (tmp_path / "bad.xml").write_text("<net")
    with pytest.raises(DataError, match="OpenVINO does not read it"):
        load_openvino(tmp_path / "bad.xml")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("m.onnx", {"format": "tflite"}, "openvino"),
        ("m.bin", {}, ".onnx"),
        ("m.onnx", {"format": "torchscript"}, ".jitpt"),
        ("m.onnx", {"precision": "int4"}, "int8"),
        ("m.jitpt", {"format": "torchscript", "precision": "fp16"}, "TorchScript"),
    ],
)
def test_refused(name: str, arguments: dict[str, Any], words: str, seven: HardNet8, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        export(seven, tmp_path / name, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_networks_without_an_8_bit_form_and_with_hooks(tmp_path: Path) -> None:
    module = make("h8Ins", 16)
    with pytest.raises(UsageError, match="plain chain"):
        export(module, tmp_path / "m.onnx", precision="int8")
    module.features[2].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="hooks"):
        export(module, tmp_path / "m.onnx")


def test_a_missing_extra_is_named(seven: HardNet8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install .onnx\b"):
        export(seven, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install .openvino\b"):
        export(seven, tmp_path / "m.xml", "openvino")


def test_the_command(seven: HardNet8, tmp_path: Path) -> None:
    features = {k.removeprefix("features."): v for k, v in seven.state_dict().items() if k.startswith("features.")}
    save_weights(tmp_path / "w.safetensors", Weights("h7", features), torch.float32)
    command = [sys.executable, "-m", "train", "export"]
    done = subprocess.run(
        [*command, str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "m.onnx"), "--output-dim", "64"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(N, 64)" in done.stdout
    patches = patches_for(seven, 3)
    expected = plain(HardNet8(tmp_path / "w.safetensors", output_dim=64), patches)
    torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", patches), expected, atol=1e-5, rtol=0)
    done = subprocess.run(
        [*command, str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "m.bin")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert json.dumps(done.stderr).count("\\n") == 1


@pytest.mark.parametrize(("suffix", "format"), [(".onnx", "onnx"), (".jitpt", "torchscript"), (".xml", "openvino")])
def test_the_same_weights_give_the_same_file(suffix: str, format: Format, tmp_path: Path) -> None:
    if format == "openvino":
        pytest.importorskip("openvino")
    module = HardNet8(arch="h7")
    fill_module(module, 3)
    module.metadata = {"mr_size": 12.0, "b": 1, "a": 2}
    export(module, tmp_path / f"one{suffix}", format)
    module.metadata = dict(reversed(module.metadata.items()))
    export(module, tmp_path / f"two{suffix}", format)
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
