"""One family of tests for every architecture, as kornia has it for its modules; values are in the other files."""

from __future__ import annotations

import functools

import pytest
import torch
from kornia.core.exceptions import BaseError
from torch import Tensor, nn

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.arch import ARCHS

# One for each kind of layer; the others take a minute.
QUICK = {"h7", "h7Le", "h8Ins", "h8avg", "h8max", "h8pre", "h8E512"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHS)]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
# Largest difference of an element of a unit vector from that of float32.
DTYPES = {torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def _plain(weight: Tensor, gain: float) -> Tensor:
    """Of the scale of the orthogonal weights, without their decomposition."""
    return nn.init.normal_(weight, std=gain / max(weight.shape[0], weight[0].numel()) ** 0.5)


@functools.lru_cache(2)
def _network(name: str) -> HardNet8:
    original = nn.init.orthogonal_
    nn.init.orthogonal_ = _plain  # type: ignore[assignment]
    try:
        torch.manual_seed(0)
        return HardNet8(arch=name, output_dim=None).eval()
    finally:
        nn.init.orthogonal_ = original


def _patches(name: str, count: int = 3) -> Tensor:
    side = ARCHS[name].patch_size
    return 255.0 * torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("name", NAMES)
class TestNetwork:
    def test_smoke(self, name: str) -> None:
        network = _network(name)
        assert (network.arch, network.output_dim, network.patch_size) == (name, ARCHS[name].dim, ARCHS[name].patch_size)
        assert sum(p.numel() for p in network.parameters()) == ARCHS[name].num_params

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_shape(self, name: str, count: int) -> None:
        with torch.no_grad():
            descs = _network(name)(_patches(name, count))
        assert descs.shape == (count, ARCHS[name].dim)
        torch.testing.assert_close(descs.norm(dim=1), torch.ones(count))

    def test_exception(self, name: str) -> None:
        side = ARCHS[name].patch_size
        for wrong in ((1, 3, side, side), (1, 1, side + 1, side), (1, side, side)):
            with pytest.raises(BaseError):
                _network(name)(torch.zeros(wrong))
        with pytest.raises(TypeError, match="floating point"):
            _network(name)(torch.zeros(1, 1, side, side, dtype=torch.uint8))

    def test_batch(self, name: str) -> None:
        """A patch has one descriptor whatever is described beside it, and other patches have others."""
        patches = _patches(name)
        with torch.no_grad():
            together = _network(name)(patches)
            alone = torch.cat([_network(name)(patch[None]) for patch in patches])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        assert torch.pdist(together).min() > 1e-3

    def test_gradient(self, name: str) -> None:
        """With respect to the first and the last weights, as training takes it."""
        network = _network(name)
        weights = {key: value.double() for key, value in network.state_dict().items()}
        kernels = [key for key, value in weights.items() if value.dim() == 4]
        patches = _patches(name, 2).double()

        def describe(*values: Tensor) -> Tensor:
            changed = {**weights, **dict(zip((kernels[0], kernels[-1]), values, strict=True))}
            return torch.func.functional_call(network, changed, (patches,))

        inputs = [weights[key].clone().requires_grad_() for key in (kernels[0], kernels[-1])]
        assert torch.autograd.gradcheck(describe, inputs, fast_mode=True, atol=1e-4)

    def test_script(self, name: str) -> None:
        patches = _patches(name)
        with torch.no_grad():
            expected = _network(name)(patches)
            scripted = torch.jit.script(_network(name))
            torch.testing.assert_close(scripted(patches), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtype(self, name: str, dtype: torch.dtype, device: str) -> None:
        network, patches = _network(name).to(device), _patches(name).to(device)
        try:
            with torch.no_grad():
                expected, descs = network(patches), network(patches.to(dtype))
        finally:
            network.to("cpu")
        assert (descs.dtype, descs.device.type) == (dtype, device)
        assert (descs.float() - expected).abs().max() <= DTYPES[dtype]
