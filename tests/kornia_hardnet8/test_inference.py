"""The fused copies: equal to the plain network, never older than its weights, and the reduced precisions."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8 import HardNet8, HardNet8Error, fused, inference, prepare_for_inference
from kornia_hardnet8.arch import ARCHS
from kornia_hardnet8.checkpoints import Weights, load_weights, save_weights
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.inference import best_precision, calibrate

from .conftest import fill_module

PLAIN_CHAINS = {"h7", "h8", "h8E512", "h8c", "h7nodrop", "h9"}


def smooth_patches(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Blurred noise: closer to image content than white noise."""
    noise = torch.randn(count, 1, side + 8, side + 8, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.avg_pool2d(noise, 5, 1), 5, 1)


def trained_like(arch: str = "h7", output_dim: int | None = None) -> HardNet8:
    """Random weights whose batch norms hold the statistics of patches, as training leaves them."""
    torch.manual_seed(1)
    module = HardNet8(arch=arch, output_dim=output_dim)
    for layer in module.features:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(smooth_patches(64, module.patch_size, seed=9))
    return module.eval()


@pytest.fixture(scope="module")
def seven() -> HardNet8:
    return trained_like()


def plain(module: HardNet8, patches: Tensor) -> Tensor:
    """The descriptors of the layers themselves."""
    with torch.no_grad():
        return module._describe(patches)


def runs_fused(module: HardNet8, patches: Tensor) -> bool:
    return module._engine(patches) is not None


needs_bf16 = pytest.mark.skipif(
    not (fused.has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="this CPU has no AVX-512"
)
needs_int8 = pytest.mark.skipif(
    not (torch.cpu._is_avx2_supported() and fused.has_onednn_int8()), reason="this CPU has no AVX2 instructions"
)


@pytest.mark.parametrize("arch", sorted(set(ARCHS) - {"h9x", "h9t", "h9tt", "h8x2", "h8x2c", "h8x2pre", "h8p48x"}))
def test_the_fused_copy_equals_the_plain_network(arch: str) -> None:
    with torch.device("meta"):
        module = HardNet8(arch=arch, output_dim=None)
    module = module.to_empty(device="cpu").eval()
    fill_module(module, 3)
    patches = smooth_patches(16, module.patch_size)
    with torch.no_grad():
        assert runs_fused(module, patches)
        torch.testing.assert_close(module(patches), plain(module, patches), atol=2e-6, rtol=0)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch, seven: HardNet8) -> None:
    monkeypatch.setattr(fused, "has_onednn", lambda: False)
    module = copy.deepcopy(seven)
    patches = smooth_patches(20)
    with torch.no_grad():
        assert runs_fused(module, patches)
        torch.testing.assert_close(module(patches), plain(module, patches), atol=2e-6, rtol=0)
    for precision in ("bf16", "int8"):
        with pytest.raises(UsageError, match="oneDNN"):
            prepare_for_inference(module, precision)
    assert best_precision(module) == "fp32"


def test_double_patches_on_float_weights(seven: HardNet8) -> None:
    patches = smooth_patches(20).double()
    with torch.no_grad():
        assert runs_fused(seven, patches)
        assert seven(patches).dtype == torch.float64
        torch.testing.assert_close(seven(patches).float(), plain(seven, patches.float()), atol=2e-6, rtol=0)


# -- when the plain network runs ---------------------------------------------------------------------------------------


def test_where_gradients_may_flow_the_plain_network_runs(seven: HardNet8) -> None:
    patches = smooth_patches(20)
    module = copy.deepcopy(seven)
    assert not runs_fused(module, patches)  # its parameters want gradients
    with torch.no_grad():
        assert runs_fused(module, patches)
        assert not runs_fused(module.train(), patches)
    module.eval().requires_grad_(False)
    assert runs_fused(module, patches)
    assert not runs_fused(module, patches.clone().requires_grad_())


def test_special_modules_run_plainly(seven: HardNet8) -> None:
    patches = smooth_patches(20)
    with torch.no_grad():
        hooked = copy.deepcopy(seven)
        seen: list[Tensor] = []
        hooked(patches)
        handle = hooked.features[17].register_forward_hook(lambda m, i, o: seen.append(o))
        hooked(patches)
        assert len(seen) == 1
        handle.remove()
        assert runs_fused(hooked, patches)
        partly_training = copy.deepcopy(seven)
        partly_training.features[1].train()
        assert not runs_fused(partly_training, patches)
        replaced = copy.deepcopy(seven)
        replaced.features[2] = nn.GELU()
        assert not runs_fused(replaced, patches)
        torch.testing.assert_close(replaced(patches), plain(replaced, patches), atol=1e-6, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert not runs_fused(seven, patches)
        assert not runs_fused(copy.deepcopy(seven).double(), patches)


# -- never stale -------------------------------------------------------------------------------------------------------


def _load(module: HardNet8) -> None:
    module.load_state_dict(fill_module(copy.deepcopy(module), 77).state_dict())


def _assign(module: HardNet8) -> None:
    module.load_state_dict(fill_module(copy.deepcopy(module), 77).state_dict(), assign=True)


def _in_place(module: HardNet8) -> None:
    module.features[3].weight.mul_(-1)


def _one_element_through_data(module: HardNet8) -> None:
    module.features[0].weight.data[0, 0, 0, 0] += 1.0


def _one_statistic_through_data(module: HardNet8) -> None:
    module.features[1].running_mean.data[0] += 1.0


def _through_numpy(module: HardNet8) -> None:
    module.features[0].weight.detach().numpy()[...] *= -1


def _new_parameter(module: HardNet8) -> None:
    module.features[0].weight = nn.Parameter(-module.features[0].weight)


def _new_layer(module: HardNet8) -> None:
    module.features[2] = nn.Tanh()


def _training_step(module: HardNet8) -> None:
    module.train()
    module(smooth_patches(8, seed=5))
    module.eval()


def _projection(module: HardNet8) -> None:
    module.components.neg_()


@pytest.mark.parametrize(
    "change",
    [
        _load, _assign, _in_place, _one_element_through_data, _one_statistic_through_data, _through_numpy,
        _new_parameter, _new_layer, _training_step, _projection,
    ],
)  # fmt: skip
@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_change_of_the_weights_is_seen(change: Callable[[HardNet8], None], inference_mode: bool) -> None:
    module = trained_like(output_dim=32)
    patches = smooth_patches(20)
    with torch.no_grad():
        before = module(patches)
        change(module)
    with torch.inference_mode(inference_mode), torch.no_grad():
        after = module(patches)
        # 32 of the dimensions of a random network hold little, which lengthens the differences of rounding
        torch.testing.assert_close(after, plain(module, patches), atol=1e-5, rtol=0)
    assert not torch.allclose(after, before, atol=1e-4)


def test_moving_to_another_type_and_back() -> None:
    module = trained_like()
    patches = smooth_patches(20)
    with torch.no_grad():
        before = module(patches)
        module.bfloat16()
        assert not torch.equal(module(patches), before)
        module.float()
        torch.testing.assert_close(module(patches), plain(module, patches), atol=2e-6, rtol=0)


@needs_int8
def test_a_prepared_module_follows_its_weights() -> None:
    prepared = prepare_for_inference(trained_like(), "int8")
    patches = smooth_patches(20)
    before = prepared(patches)
    prepared.load_state_dict(fill_module(trained_like(), 77).state_dict())
    after = prepared(patches)
    assert not torch.allclose(after, before, atol=0.05)
    assert (after * plain(prepared, patches)).sum(dim=1).min() > 0.95


def test_other_weights_forget_the_ranges(tmp_path: Path) -> None:
    module = trained_like()
    module.metadata = {"int8_ranges": calibrate(module, smooth_patches(64)), "mr_size": 12.0}
    module.load_state_dict(trained_like().state_dict())
    assert module.metadata == {}


# -- precisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "cosine"),
    [
        pytest.param("bf16", 0.9995, marks=needs_bf16),
        pytest.param("int8", 0.98, marks=needs_int8),
        ("fp32", 0.999999),
    ],
)
def test_reduced_precision_is_close(precision: str, cosine: float, seven: HardNet8) -> None:
    prepared = prepare_for_inference(seven, precision)
    assert prepared.precision == precision
    assert seven.precision == "fp32"
    assert all(p.requires_grad for p in seven.parameters())
    patches = smooth_patches(200)
    descs = prepared(patches)
    assert not descs.requires_grad
    expected = plain(seven, patches)
    assert (descs * expected).sum(dim=1).min() > cosine
    torch.testing.assert_close(descs.norm(dim=1), torch.ones(200))
    one = prepared(patches[150:151])
    torch.testing.assert_close(one[0], descs[150], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "precision", [pytest.param("bf16", marks=needs_bf16), pytest.param("int8", marks=needs_int8), "fp32"]
)
def test_a_bad_pixel_stays_in_its_row(precision: str, seven: HardNet8) -> None:
    prepared = prepare_for_inference(seven, precision)
    patches = smooth_patches(40)
    clean = prepared(patches)
    patches[7, 0, 3, 4] = float("nan")
    patches[9] = 0.25
    descs = prepared(patches)
    assert descs[7].isnan().all()
    assert torch.isfinite(descs[9]).all()
    rest = torch.tensor([i not in (7, 9) for i in range(40)])
    assert torch.equal(descs[rest], clean[rest])
    assert prepared(torch.zeros(0, 1, 32, 32)).shape == (0, 128)


@needs_int8
@pytest.mark.parametrize("arch", sorted(PLAIN_CHAINS))
def test_int8_of_the_plain_chains(arch: str) -> None:
    module = trained_like(arch)
    patches = smooth_patches(16)
    prepared = prepare_for_inference(module, "int8")
    assert (prepared(patches) * plain(module, patches)).sum(
        dim=1
    ).min() > 0.98  # rounding in random networks is far above that in trained ones


@needs_int8
@pytest.mark.parametrize("arch", ["h8Ins", "h7Le", "h8avg", "h8pre"])
def test_int8_is_refused_for_other_layers(arch: str) -> None:
    module = HardNet8(arch=arch, output_dim=None)
    with pytest.raises(UsageError, match="plain chain"):
        prepare_for_inference(module, "int8")
    with pytest.raises(HardNet8Error, match="plain chain"):
        calibrate(module, smooth_patches(4))
    assert best_precision(module) != "int8"


@needs_int8
def test_the_best_precision_of_a_cpu(seven: HardNet8, monkeypatch: pytest.MonkeyPatch) -> None:
    no_chain = HardNet8(arch="h7Le", output_dim=None)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for units, other in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(inference, "_has_bf16_units", lambda units=units: units)
        for vnni in (True, False):
            monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda vnni=vnni: vnni)
            assert best_precision(seven) == prepare_for_inference(seven, "auto").precision == "int8"
        assert best_precision(no_chain) == other
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    assert best_precision(seven) == "fp32"
    with pytest.raises(UsageError, match="neither VNNI nor AVX2"):
        prepare_for_inference(seven, "int8")


def test_the_planes_of_the_first_layer_sum_to_its_weights_and_input() -> None:
    """Together they resolve an eighth of what 8 bits do."""
    weight = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    planes, scale = fused.quantised_planes(weight, 127)
    assert (planes.dtype, planes.shape) == (torch.int8, (5, 8, 3, 3))
    step = weight.flatten(1).abs().amax(dim=1) / 127 / 8
    torch.testing.assert_close(scale, step)
    error = planes.float().sum(dim=1, keepdim=True) * scale[:, None, None, None] - weight
    assert (error.abs() <= 0.501 * step[:, None, None, None]).all()
    patches = torch.linspace(-3, 3, 1001).view(1, 1, 7, 143)
    rounded = (patches + fused.plane_offsets()).round().mean(dim=1)
    assert (rounded - patches[0]).abs().max() <= 0.063


def test_the_planes_are_the_patch_rounded_after_their_offsets() -> None:
    patches = torch.linspace(-4.5, 4.5, 1024).view(1, 1, 32, 32)  # both ends lie beyond 8 bits
    step = 4.0 / 127.0
    planes = fused._in_planes(step, 128)(patches)
    expected = (patches.double() / step + 128 + fused.plane_offsets()).round().clamp(0, 255)
    assert planes.dtype == torch.uint8
    assert planes.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(planes.double(), expected)


def test_fast_standardisation_is_that_of_the_network(seven: HardNet8) -> None:
    patches = 3.0 + 0.1 * smooth_patches(50)
    for given in (patches, patches.double()):
        found = fused.standardised(given)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, seven._normalize_input(given).float(), atol=1e-5, rtol=1e-5)
    flat = torch.full((3, 1, 32, 32), 0.3) * torch.tensor([1.0, 0.7, 255.0]).view(3, 1, 1, 1)
    assert (fused.standardised(flat) == 0).all()


@needs_int8
def test_measured_ranges_are_stored_and_used(tmp_path: Path) -> None:
    module = trained_like()
    ranges = calibrate(module, smooth_patches(200))
    assert json.loads(json.dumps(ranges)) == ranges
    assert len(ranges["outputs"]) == 6
    with torch.no_grad():
        x = module._normalize_input(smooth_patches(200))
        assert 0.5 * float(x.abs().max()) < ranges["input"] <= float(x.abs().max())
        x = module.features[:3](x)
        assert 0.5 * float(x.max()) < ranges["outputs"][0] <= float(x.max())
    features = {k.removeprefix("features."): v for k, v in module.state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights("h7", features, metadata={"int8_ranges": ranges}), torch.float32)
    assert load_weights(path).metadata["int8_ranges"] == ranges
    loaded = prepare_for_inference(HardNet8(path, output_dim=None), "int8")
    patches = smooth_patches(100, seed=3)
    expected = plain(module, patches)
    good = (loaded(patches) * expected).sum(dim=1).mean()
    loaded.metadata = {"int8_ranges": {**ranges, "outputs": [1.0] * 6}}
    loaded._fused = None
    assert (loaded(patches) * expected).sum(dim=1).mean() < good - 0.001  # so the stored ranges matter


def test_calibration_refuses_bad_patches(seven: HardNet8) -> None:
    with pytest.raises(DataError, match="at least one"):
        calibrate(seven, torch.zeros(0, 1, 32, 32))
    with pytest.raises(DataError, match="finite"):
        calibrate(seven, torch.full((1, 1, 32, 32), float("nan")))


@pytest.mark.parametrize(("precision", "words"), [("int4", "int8"), ("", "fp32"), ("fp16", "GPU")])
def test_unknown_and_impossible_precisions(precision: str, words: str, seven: HardNet8) -> None:
    with pytest.raises(UsageError, match=words):
        prepare_for_inference(seven, precision)  # type: ignore[arg-type]


@needs_int8
def test_preparing_leaves_the_module_in_training() -> None:
    module = trained_like().train()
    prepare_for_inference(module, "int8")
    assert all(part.training for part in module.modules())


def test_gradients_through_a_prepared_module(seven: HardNet8) -> None:
    patches = smooth_patches(20).requires_grad_()
    found = prepare_for_inference(seven, "auto")(patches)
    found[:, :3].sum().backward()
    assert patches.grad is not None
    assert patches.grad.abs().max() > 0


def test_prepared_modules_are_copied_and_pickled(seven: HardNet8) -> None:
    prepared = prepare_for_inference(seven, "auto")
    patches = smooth_patches(20)
    expected = prepared(patches)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert other.precision == prepared.precision
        assert torch.equal(other(patches), expected)


def test_exports_of_a_module_that_ran_fused(seven: HardNet8) -> None:
    patches = smooth_patches(20)
    with torch.no_grad():
        expected = seven(patches)
        torch.testing.assert_close(torch.jit.script(seven)(patches), expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(torch.jit.trace(seven, patches)(patches), expected, atol=2e-6, rtol=0)
        compiled = torch.compile(seven, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(patches), expected, atol=2e-6, rtol=0)


MEMORY = """
import resource, sys, torch
from kornia_hardnet8 import HardNet8, prepare_for_inference
torch.set_num_threads(1)
module = HardNet8(arch="h7", output_dim=64)
if sys.argv[1] != "fp32":
    module = prepare_for_inference(module, sys.argv[1])
patches = torch.rand(6000, 1, 32, 32)
with torch.no_grad():
    module(patches[:16])
    out = torch.zeros(6000, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out[:] = module(patches)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux gives it")
def test_memory_does_not_grow_with_the_batch() -> None:
    found = subprocess.run([sys.executable, "-c", MEMORY, "fp32"], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 150
