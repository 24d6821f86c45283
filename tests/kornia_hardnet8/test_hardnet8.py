"""The contract of ``HardNet8``: values, kornia interchange, and the ways in which modules are used."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.feature as KF
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.core.exceptions import ShapeError
from kornia.geometry.transform import ScalePyramid
from torch import Tensor, nn

import kornia_hardnet8.checkpoints
from kornia_hardnet8 import HardNet8, HardNet8Error
from kornia_hardnet8.checkpoints import Weights, load_weights, save_weights
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.projection import Projection
from tests.training_vectors import decode

from .conftest import fill, fill_module


def kornia_hardnet8_module() -> nn.Module:
    return KF.HardNet8(pretrained=False).eval()


@pytest.fixture(scope="module")
def model() -> HardNet8:
    module = HardNet8()
    fill_module(module, 201)
    return module


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return fill_module(kornia_hardnet8_module(), 201).eval()


@pytest.fixture(scope="module")
def small() -> HardNet8:
    """A quick network with a projection to fewer dimensions."""
    module = HardNet8(arch="h7", output_dim=64)
    fill_module(module, 5)
    return module


@pytest.fixture(scope="module")
def full_basis(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HardNet8, Projection]:
    """A weight file that holds an ordered basis of all 512 dimensions, and what is in it."""
    torch.manual_seed(0)
    source = HardNet8(output_dim=None)
    basis, _ = torch.linalg.qr(torch.randn(512, 512))
    projection = Projection(torch.randn(512) * 0.01, basis, torch.linspace(1, 0, 512))
    features = {k.removeprefix("features."): v for k, v in source.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, Weights("h8E512", features, projection), dtype=torch.float32)
    return path, source, projection


def random_patches(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- values ------------------------------------------------------------------------------------------------------------


def test_forward_as_kornia(vectors: dict[str, dict[str, Any]], model: HardNet8, patches: Tensor) -> None:
    case = vectors["kornia_hardnet8.forward"]
    with torch.no_grad():
        descs = model(patches)
    torch.testing.assert_close(descs, decode(case["expected"]["descriptors"]), atol=3e-5, rtol=0)


def test_forward_of_the_seven_layer_network(vectors: dict[str, dict[str, Any]], patches: Tensor) -> None:
    case = vectors["kornia_hardnet8.forward_hardnet7"]
    seven = fill_module(HardNet8(arch="h7", output_dim=None), case["inputs"]["seed"])
    with torch.no_grad():
        descs = seven(patches)
    torch.testing.assert_close(descs, decode(case["expected"]["descriptors"]), atol=3e-5, rtol=0)
    found = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in seven.state_dict().items()]
    assert found == vectors["kornia_hardnet8.hardnet7_state_dict"]["expected"]
    KF.HardNet(pretrained=False).load_state_dict(seven.state_dict(), strict=True)


def test_conversion(vectors: dict[str, dict[str, Any]], patches: Tensor, tmp_path: Path) -> None:
    """A network and a PCA brought together in a weight file, in this module and in kornia's."""
    case = vectors["kornia_hardnet8.conversion"]
    features = fill(HardNet8(output_dim=None).state_dict(), case["inputs"]["features_seed"])
    pca = fill({"components": torch.zeros(512, 128), "mean": torch.zeros(512)}, case["inputs"]["pca_seed"])
    weights = Weights(
        "h8E512",
        {key.removeprefix("features."): value for key, value in features.items()},
        Projection(pca["mean"], pca["components"], torch.ones(128)),
    )
    save_weights(tmp_path / "w.safetensors", weights, dtype=torch.float32)
    ours = HardNet8(tmp_path / "w.safetensors")
    other = kornia_hardnet8_module()
    other.load_state_dict(ours.state_dict(), strict=True)
    expected = decode(case["expected"]["descriptors"])
    for module in (ours, other):
        with torch.no_grad():
            torch.testing.assert_close(module(patches), expected, atol=3e-5, rtol=0)


def test_input_normalisation(vectors: dict[str, dict[str, Any]], patches: Tensor) -> None:
    expected = vectors["input_norm.hw"]["expected"]
    found = HardNet8._normalize_input(patches)
    torch.testing.assert_close(found[:, 0, 16, :8], decode(expected["row16_first8"]), atol=1e-5, rtol=0)
    bound = vectors["input_norm.kornia"]["tolerance"]["upper_bound"]
    assert (found - kornia_hardnet8_module()._normalize_input(patches)).abs().max() <= bound
    assert (found - KF.HardNet(pretrained=False)._normalize_input(patches)).abs().max() <= bound


@pytest.mark.parametrize("name", ["shape_check_1x64", "shape_check_3x32"])
def test_wrong_shapes_raise_kornias_error(name: str, vectors: dict[str, dict[str, Any]], model: HardNet8) -> None:
    case = vectors[f"kornia_hardnet8.{name}"]
    assert case["expected"]["raises"] == ShapeError.__name__
    with pytest.raises(ShapeError, match="32"):
        model(torch.zeros(case["inputs"]["shape"]))


@pytest.mark.parametrize("shape", [(32, 32), (1, 32, 32), (2, 1, 32, 31), (0, 1, 16, 16), (1, 1, 1, 32, 32)])
def test_more_wrong_shapes(shape: tuple[int, ...], model: HardNet8) -> None:
    with pytest.raises(ShapeError):
        model(torch.zeros(shape))


def test_the_shape_of_another_architecture_is_expected_of_its_input() -> None:
    big = HardNet8(arch="h8p48", output_dim=32)
    assert big.patch_size == 48
    assert big(torch.rand(2, 1, 48, 48)).shape == (2, 32)
    with pytest.raises(ShapeError, match="48"):
        big(torch.rand(2, 1, 32, 32))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype: torch.dtype, model: HardNet8) -> None:
    with pytest.raises(TypeError, match="float"):
        model(torch.zeros(1, 1, 32, 32, dtype=dtype))


# -- interchange with the installed kornia -----------------------------------------------------------------------------


def test_keys_are_kornias(vectors: dict[str, dict[str, Any]], model: HardNet8) -> None:
    found = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in model.state_dict().items()]
    assert found == vectors["kornia_hardnet8.state_dict"]["expected"]["keys"]
    assert list(model.state_dict()) == list(kornia_hardnet8_module().state_dict())


def test_weights_move_both_ways(model: HardNet8, theirs: nn.Module) -> None:
    patches = random_patches(6)
    there = kornia_hardnet8_module()
    there.load_state_dict(model.state_dict(), strict=True)
    back = HardNet8()
    back.load_state_dict(there.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(there(patches), model(patches), atol=1e-6, rtol=0)
        assert torch.equal(back(patches), model(patches))
    from_kornia = HardNet8()
    from_kornia.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(from_kornia(patches), theirs(patches), atol=1e-6, rtol=0)


def test_attributes_that_kornia_has(model: HardNet8) -> None:
    other = kornia_hardnet8_module()
    for name in ("features", "mean", "components", "_normalize_input", "forward", "training"):
        assert hasattr(other, name), name
        assert hasattr(model, name), name
    assert model.patch_size == 32
    assert isinstance(model.features, nn.Sequential)
    assert inspect.signature(model.forward).parameters.keys() == {"input"}  # exporters name inputs after it


def test_kornias_own_expectations() -> None:
    """What kornia's test-suite asks of its HardNet8."""
    module = HardNet8()
    assert module(torch.ones(1, 1, 32, 32)).shape == (1, 128)
    assert module(torch.ones(16, 1, 32, 32)).shape == (16, 128)
    inputs = random_patches(2)
    assert torch.equal(torch.jit.script(module)(inputs), module(inputs))


def test_gradcheck_with_the_statistics_held_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = HardNet8(arch="h7", output_dim=8).double()
    patches = random_patches(2, dtype=torch.float64)
    std, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    monkeypatch.setattr(module, "_normalize_input", lambda x: (x - mean) / (std + 1e-7))
    assert torch.autograd.gradcheck(module, (patches.requires_grad_(),), fast_mode=True, nondet_tol=1e-9)


def test_gradients_are_kornias(model: HardNet8, theirs: nn.Module) -> None:
    found = []
    for module in (model, theirs):
        patches = random_patches(3).requires_grad_()
        module(patches)[:, :7].sum().backward()
        assert patches.grad is not None
        found.append(patches.grad)
        module.zero_grad()
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


# -- single patches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [False, True])
def test_an_empty_batch(dtype: torch.dtype, grad: bool, model: HardNet8) -> None:
    with torch.set_grad_enabled(grad):
        descs = model(torch.zeros(0, 1, 32, 32, dtype=dtype))
    assert descs.shape == (0, 128)
    assert descs.dtype == dtype


def test_a_flat_patch_is_finite(vectors: dict[str, dict[str, Any]], model: HardNet8) -> None:
    assert vectors["kornia_hardnet8.flat_patch"]["expected"]["all_zero"] is True
    with torch.no_grad():
        assert torch.equal(HardNet8()(torch.zeros(1, 1, 32, 32)), torch.zeros(1, 128))
        for value in (0.0, 0.5, 255.0):
            assert torch.isfinite(model(torch.full((2, 1, 32, 32), value))).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("grad", [False, True])
def test_a_bad_pixel_stays_in_its_row(bad: float, grad: bool, model: HardNet8) -> None:
    patches = random_patches(40)
    with torch.set_grad_enabled(grad):
        clean = model(patches)
        patches[7, 0, 3, 4] = bad
        descs = model(patches)
    assert descs[7].isnan().all()
    rest = torch.arange(40) != 7
    assert torch.equal(descs[rest], clean[rest])


def test_unit_length_and_affine_invariance(model: HardNet8) -> None:
    patches = random_patches(8)
    with torch.no_grad():
        descs = model(patches)
        torch.testing.assert_close(descs.norm(dim=1), torch.ones(8))
        torch.testing.assert_close(model(patches * 200 + 17), descs, atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.01, 1000), offset=st.floats(-1000, 1000), seed=st.integers(0, 100))
def test_gain_and_offset_leave_the_descriptor(gain: float, offset: float, seed: int) -> None:
    module = HardNet8(arch="h7nodrop", output_dim=None).double()
    patches = random_patches(2, seed, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(gain * patches + offset), module(patches), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 2e-2), (torch.bfloat16, 5e-2), (torch.float64, 1e-6)])
def test_inputs_of_another_precision_than_the_weights(dtype: torch.dtype, atol: float, model: HardNet8) -> None:
    patches = random_patches(4) * 255
    with torch.no_grad():
        descs = model(patches.to(dtype))
        assert descs.dtype == dtype
        torch.testing.assert_close(descs.float(), model(patches), atol=atol, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2), (torch.float64, 1e-5)])
def test_converted_modules(dtype: torch.dtype, atol: float, model: HardNet8) -> None:
    patches = random_patches(4) * 255
    converted = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        descs = converted(patches.to(dtype))
        assert descs.dtype == dtype
        torch.testing.assert_close(descs.float(), model(patches), atol=atol, rtol=0)


def test_half_patches_of_255_keep_their_statistics(model: HardNet8) -> None:
    """Sums of 1024 grey levels overflow half precision: they are taken in float32."""
    patches = (random_patches(2) * 255).round()
    with torch.no_grad():
        torch.testing.assert_close(model(patches.half()).float(), model(patches), atol=1e-3, rtol=0)


def test_strided_and_channels_last_inputs(model: HardNet8) -> None:
    patches = random_patches(6)
    strided = torch.zeros(6, 2, 64, 33)[:, :1, ::2, :32].copy_(patches)
    assert not strided.is_contiguous()
    with torch.no_grad():
        expected = model(patches)
        torch.testing.assert_close(model(strided), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(model(patches.to(memory_format=torch.channels_last)), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            model(patches.transpose(2, 3).contiguous().transpose(2, 3)), expected, atol=1e-6, rtol=0
        )


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 129, 257])
def test_chunked_is_unchunked(count: int, small: HardNet8) -> None:
    patches = random_patches(count)
    with torch.enable_grad():
        whole = small(patches).detach()
    with torch.no_grad():
        torch.testing.assert_close(small(patches), whole, atol=1e-6, rtol=0)


def test_descriptors_do_not_depend_on_the_company(small: HardNet8) -> None:
    patches = random_patches(300)
    with torch.no_grad():
        all_of_them = small(patches)
        for index in (0, 150, 299):
            torch.testing.assert_close(small(patches[index : index + 1])[0], all_of_them[index], atol=2e-6, rtol=0)


def test_inference_does_not_touch_its_input(small: HardNet8) -> None:
    patches = random_patches(30)
    before = patches.clone()
    with torch.no_grad():
        small(patches)
    assert torch.equal(patches, before)


# -- the constructor ---------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    module = HardNet8()
    assert (module.arch, module.output_dim, module.patch_size, module.training) == ("h8E512", 128, 32, False)
    assert torch.equal(module.components, torch.eye(512, 128))
    assert torch.equal(module.mean, torch.zeros(512))


def test_untrained_descriptors_differ() -> None:
    with torch.no_grad():
        descs = HardNet8()(random_patches(20))
    assert (descs @ descs.T - torch.eye(20)).abs().max() < 0.999


@pytest.mark.parametrize("output_dim", [16, 100, 256, 512])
def test_truncation_of_the_stored_basis(output_dim: int, full_basis: tuple[Path, HardNet8, Projection]) -> None:
    path, source, projection = full_basis
    patches = random_patches(3)
    with torch.no_grad():
        raw = source(patches)
        expected = F.normalize(((raw - projection.mean) @ projection.components)[:, :output_dim])
        torch.testing.assert_close(HardNet8(path, output_dim=output_dim)(patches), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(HardNet8(path, output_dim=None)(patches), raw, atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match="513"):
        HardNet8(path, output_dim=513)


def test_from_checkpoint_takes_the_width_of_the_file(
    full_basis: tuple[Path, HardNet8, Projection], tmp_path: Path
) -> None:
    path, source, projection = full_basis
    assert HardNet8.from_checkpoint(path).output_dim == 128
    assert HardNet8.from_checkpoint(path, output_dim=300).output_dim == 300
    features = {k.removeprefix("features."): v for k, v in source.state_dict().items()}
    narrow = Projection(projection.mean, projection.components[:, :64], projection.eigenvalues[:64])
    save_weights(tmp_path / "narrow.safetensors", Weights("h8E512", features, narrow))
    assert HardNet8.from_checkpoint(tmp_path / "narrow.safetensors").output_dim == 64
    save_weights(tmp_path / "none.safetensors", Weights("h8E512", features))
    assert HardNet8.from_checkpoint(tmp_path / "none.safetensors").output_dim == 512


def test_weights_without_a_projection_warn_when_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = {k.removeprefix("features."): v for k, v in HardNet8(arch="h7", output_dim=None).state_dict().items()}
    save_weights(tmp_path / "w.safetensors", Weights("h7", features))
    HardNet8(tmp_path / "w.safetensors")
    assert not caplog.records
    HardNet8(tmp_path / "w.safetensors", output_dim=64)
    assert "no projection" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "h8E5"}, ["unknown architecture", "h8E512"]),
        ({"pretrained": "h8E51"}, ["no bundled model", "h8E51"]),
        ({"pretrained": "nowhere/h8.safetensors"}, ["nowhere"]),
        ({"patch_size": 48}, ["patch_size=48", "32"]),
        ({"output_dim": 0}, ["output_dim", "512"]),
        ({"output_dim": 513}, ["output_dim", "512", "513"]),
        ({"arch": "h7", "output_dim": 129}, ["h7", "128"]),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(HardNet8Error) as caught:
        HardNet8(**arguments)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_an_architecture_that_contradicts_the_weights(tmp_path: Path) -> None:
    features = {k.removeprefix("features."): v for k, v in HardNet8(arch="h7", output_dim=None).state_dict().items()}
    path = tmp_path / "seven.safetensors"
    save_weights(path, Weights("h7", features))
    assert HardNet8(path).arch == "h7"
    assert HardNet8(str(path), arch="h1").arch == "h7"  # the old name of it
    with pytest.raises(UsageError, match=r"h8E512.*h7"):
        HardNet8(path, arch="h8E512")
    with pytest.raises(UsageError, match="patch_size"):
        HardNet8(path, patch_size=64)


# -- ways of use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copier: Callable[[HardNet8], HardNet8], small: HardNet8) -> None:
    patches = random_patches(20)
    with torch.no_grad():
        expected = small(patches)
        assert torch.equal(copier(small)(patches), expected)


def test_a_deep_copy_is_independent(small: HardNet8) -> None:
    patches = random_patches(20)
    with torch.no_grad():
        expected = small(patches)
        other = copy.deepcopy(small)
        other.features[0].weight.mul_(-1)
        assert not torch.allclose(other(patches), expected, atol=1e-3)
        assert torch.equal(small(patches), expected)


def test_whole_modules_are_saved_and_loaded(small: HardNet8, tmp_path: Path) -> None:
    patches = random_patches(20)
    with torch.no_grad():
        expected = small(patches)
        torch.save(small, tmp_path / "module.pt")
        assert torch.equal(torch.load(tmp_path / "module.pt", weights_only=False)(patches), expected)


@pytest.mark.parametrize("count", [0, 3, 300])
def test_torch_script(count: int, small: HardNet8, tmp_path: Path) -> None:
    patches = random_patches(count)
    with torch.no_grad():
        expected = small(patches)
        scripted = torch.jit.script(small)
        torch.testing.assert_close(scripted(patches), expected, atol=1e-6, rtol=0)
        scripted.save(str(tmp_path / "small.pt"))
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "small.pt"))(patches), expected, atol=1e-6, rtol=0)


def test_torch_script_without_a_projection() -> None:
    module = HardNet8(arch="h7", output_dim=None)
    patches = random_patches(3)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(module)(patches), module(patches), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_without_a_graph_break(grad: bool, backend: str, small: HardNet8) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(small, fullgraph=True, backend=backend)
    with torch.set_grad_enabled(grad):
        for count in (3, 20):
            patches = random_patches(count, seed=count)
            torch.testing.assert_close(compiled(patches), small(patches), atol=1e-6, rtol=0)


def test_torch_export(small: HardNet8) -> None:
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(small, (random_patches(4),), dynamic_shapes={"input": {0: batch}})
    with torch.no_grad():
        for count in (2, 9):
            torch.testing.assert_close(
                program.module()(random_patches(count)), small(random_patches(count)), atol=1e-6, rtol=0
            )


def test_tracing(small: HardNet8) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(small, random_patches(3))
        torch.testing.assert_close(traced(random_patches(30)), small(random_patches(30)), atol=1e-6, rtol=0)


def test_inference_mode(small: HardNet8) -> None:
    patches = random_patches(300)
    with torch.no_grad():
        expected = small(patches)
    with torch.inference_mode():
        assert torch.equal(small(patches), expected)
        born_inside = HardNet8(arch="h7", output_dim=64)
        born_inside.load_state_dict(small.state_dict())
        torch.testing.assert_close(born_inside(patches), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(born_inside(patches), expected, atol=1e-6, rtol=0)


def test_a_device_without_kernels(small: HardNet8) -> None:
    """Shapes are found without numbers, as deferred initialisation does."""
    module = copy.deepcopy(small).to("meta")
    with torch.no_grad():
        descs = module(torch.empty(300, 1, 32, 32, device="meta"))
    assert (descs.shape, descs.device.type) == ((300, small.output_dim), "meta")


def test_data_parallel(small: HardNet8) -> None:
    patches = random_patches(5)
    with torch.no_grad():
        assert torch.equal(nn.DataParallel(small)(patches), small(patches))


def test_autocast(model: HardNet8) -> None:
    patches = random_patches(4)
    with torch.no_grad():
        expected = model(patches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            descs = model(patches)
    assert descs.dtype == torch.float32
    torch.testing.assert_close(descs, expected, atol=3e-2, rtol=0)


def test_vmap_and_functional_call(small: HardNet8) -> None:
    patches = random_patches(4)
    doubled = {name: 2 * value for name, value in small.named_parameters()}
    found = torch.func.functional_call(small, doubled, patches)
    other = copy.deepcopy(small)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(2)
    torch.testing.assert_close(found, other(patches), atol=1e-6, rtol=0)


def test_training_mode_learns(small: HardNet8) -> None:
    module = copy.deepcopy(small).train()
    patches = random_patches(8)
    before = module.features[1].running_mean.clone()
    module(patches).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert not torch.equal(module.features[1].running_mean, before)


def test_in_kornias_lafdescriptor_and_localfeature(small: HardNet8) -> None:
    image = F.avg_pool2d(torch.rand(1, 1, 120, 160, generator=torch.Generator().manual_seed(0)), 5, 1, 2)
    centres = torch.tensor([[[40.0, 50.0], [80.0, 60.0], [100.0, 70.0]]])
    lafs = KF.laf_from_center_scale_ori(centres, torch.full((1, 3, 1, 1), 15.0), torch.zeros(1, 3, 1))
    descriptor = KF.LAFDescriptor(small, patch_size=32)
    with torch.no_grad():
        descs = descriptor(image, lafs)
        expected = small(KF.extract_patches_from_pyramid(image, lafs, 32)[0])
        torch.testing.assert_close(descs[0], expected, atol=1e-6, rtol=0)
        assert not small.training
        detector = KF.ScaleSpaceDetector(
            num_features=20, resp_module=KF.BlobHessian(), scale_pyr_module=ScalePyramid(3, 1.6, 32, double_image=False)
        )
        lafs, responses, descs = KF.LocalFeature(detector, descriptor)(image)
    assert descs.shape == (1, lafs.shape[1], 64)
    assert responses.shape[1] == lafs.shape[1] > 0


def test_gradients_reach_the_image_through_kornias_patches(small: HardNet8) -> None:
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    lafs = KF.laf_from_center_scale_ori(torch.tensor([[[32.0, 32.0]]]), torch.full((1, 1, 1, 1), 12.0))
    KF.get_laf_descriptors(image, lafs, small)[..., 0].sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    HardNet8()
    with pytest.raises(UsageError):
        HardNet8("no-such-model")


def test_pretrained_is_the_bundled_model(
    monkeypatch: pytest.MonkeyPatch, full_basis: tuple[Path, HardNet8, Projection], tmp_path: Path
) -> None:
    path, source, _ = full_basis
    save_weights(tmp_path / "h8E512.safetensors", load_weights(path))
    monkeypatch.setattr(kornia_hardnet8.checkpoints, "BUNDLED_DIR", tmp_path)
    for name in (True, "h8E512"):
        module = HardNet8(pretrained=name)
        assert not module.training
        torch.testing.assert_close(module.features[22].weight, source.features[22].weight.half().float())


def test_distributed_data_parallel(small: HardNet8, tmp_path: Path) -> None:
    module = copy.deepcopy(small).train()
    alone = copy.deepcopy(module)
    patches = random_patches(6)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        torch.manual_seed(0)
        wrapped(patches)[:, :5].sum().backward()
        torch.manual_seed(0)
        alone(patches)[:, :5].sum().backward()
        for ours, theirs in zip(module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        wrapped.eval()
        with torch.no_grad():
            torch.testing.assert_close(wrapped(patches), alone.eval()(patches))
    finally:
        torch.distributed.destroy_process_group()


def test_random_weights_that_describe_are_said_so_once(caplog: pytest.LogCaptureFixture) -> None:
    patches = torch.rand(3, 1, 32, 32)
    module = HardNet8(arch="h7")
    assert module.untrained
    module(patches)
    module(patches)
    assert [record.message[:44] for record in caplog.records] == ["this HardNet8 describes by random weights: H"]
    assert "HardNet8(True) has the bundled ones" in caplog.text
    caplog.clear()
    trained = HardNet8(arch="h7")
    trained.train()(patches)
    trained.eval()(patches)
    loaded = HardNet8(arch="h7")
    loaded.load_state_dict(module.state_dict())
    loaded(patches)
    HardNet8(True)(patches)
    assert not caplog.records
