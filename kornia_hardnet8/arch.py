"""The HardNet family as data: one line of layers for each architecture token, and one builder.

Notation of a layer: ``C<in>-<out>k<kernel>[s<stride>][p<padding>]`` convolution without bias, ``BN`` and ``BN1d`` batch
norm without affine part, ``IN`` instance norm, ``R`` ReLU, ``LR`` leaky ReLU, ``T`` tanh, ``D<rate>`` dropout,
``AVG`` global average, ``MAX<size>`` max pooling with stride 1, ``F`` flatten.
Source: the 2020 training code (pultarmi/HardNet_MultiDataset), the 2017 one (DagnyT/hardnet) for ``h7``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kornia_hardnet8.errors import UsageError, choices

DEFAULT_ARCH = "h8E512"


@dataclass(frozen=True)
class Arch:
    """One network: its token, its layers, the side of its input patch and the width of its output."""

    name: str
    layers: str
    dim: int
    patch_size: int = 32

    @property
    def num_params(self) -> int:
        """Trainable parameters: those of the convolutions, since no norm has an affine part."""
        return sum(c.in_channels * c.out_channels * c.kernel**2 for c in map(_parse_conv, self._convs()))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions for one patch."""
        side, total = self.patch_size, 0
        for layer in self.layers.split():
            if layer.startswith("C"):
                conv = _parse_conv(layer)
                side = (side + 2 * conv.padding - conv.kernel) // conv.stride + 1
                total += conv.in_channels * conv.out_channels * conv.kernel**2 * side**2
        return total

    def _convs(self) -> list[str]:
        return [layer for layer in self.layers.split() if layer.startswith("C")]


@dataclass(frozen=True)
class _Conv:
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int


def _parse_conv(layer: str) -> _Conv:
    match = re.fullmatch(r"C(\d+)-(\d+)k(\d+)(?:s(\d+))?(?:p(\d+))?", layer)
    if match is None:
        raise UsageError(f"{layer!r} is not a convolution of the form C<in>-<out>k<kernel>[s<stride>][p<padding>]")
    channels_in, channels_out, kernel, stride, padding = match.groups()
    return _Conv(int(channels_in), int(channels_out), int(kernel), int(stride or 1), int(padding or 0))


def _blocks(*convs: str, activation: str = "R", norm: str = "BN") -> str:
    return " ".join(f"{conv} {norm} {activation}" for conv in convs)


_CORE_CONVS = ("C1-32k3p1", "C32-32k3p1", "C32-64k3s2p1", "C64-64k3p1", "C64-128k3s2p1", "C128-128k3p1")
_CORE = _blocks(*_CORE_CONVS)
_CORE8 = f"{_CORE} C128-256k3p1 BN R"
_WIDE = _blocks("C1-64k3p1", "C64-64k3p1", "C64-128k3s2p1", "C128-128k3p1", "C128-256k3s2p1", "C256-256k3p1")
_PRE = "C1-10k1 BN T C10-1k1 T"
_P48 = _blocks("C1-32k3p1", "C32-32k3p1", "C32-64k3s2p1", "C64-64k3p1", "C64-128k3s2p1", "C128-128k3s2p1")
_WIDENING = ("C1-16k3p1", "C16-32k3p1", "C32-64k3s2p1", "C64-128k3p1", "C128-256k3s2p1", "C256-256k3p1")
_NINE = ("C1-32k3p1", "C32-32k3p1", "C32-64k3s2p1", "C64-64k3p1", "C64-128k3p1", "C128-128k3s2p1", "C128-256k3p1")
_HALF = ("C1-16k3p1", "C16-16k3p1", "C16-32k3s2p1", "C32-32k3p1", "C32-64k3s2p1", "C64-64k3p1", "C64-128k3p1")
_NINE_X = ("C1-32k3p1", "C32-32k3p1", "C32-64k3s2p1", "C64-128k3p1", "C128-256k3p1", "C256-512k3s2p1")

ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("h7", f"{_CORE} D0.3 C128-128k8 BN", 128),
        Arch("h7d01", f"{_CORE} D0.1 C128-128k8 BN", 128),
        Arch("h7nodrop", f"{_CORE} C128-128k8 BN", 128),
        Arch("h7x2", f"{_WIDE} D0.3 C256-256k8 BN", 256),
        Arch("h7p48", f"{_P48} D0.3 C128-128k6 BN", 128, 48),
        Arch("h7Le", f"{_blocks(*_CORE_CONVS, activation='LR')} D0.3 C128-128k8 BN", 128),
        Arch("h7E256", f"{_CORE} D0.3 C128-256k8 BN", 256),
        Arch("l2net", f"{_CORE} D0.1 C128-128k8 BN", 128),
        Arch("h8", f"{_CORE8} D0.3 C256-256k8 BN", 256),
        Arch("h8small", f"{_blocks(*_HALF)} C128-128k8 BN", 128),
        Arch("h8Ins", f"{_blocks(*_CORE_CONVS, 'C128-256k3p1', norm='IN')} D0.3 C256-256k8 BN", 256),
        Arch("h8c", f"{_CORE8} D0.3 C256-128k8 BN", 128),
        Arch("h8p48", f"{_CORE} C128-256k3s2p1 BN R D0.3 C256-256k6 BN", 256, 48),
        Arch("h8p48x", f"{_CORE8} D0.3 C256-256k12 BN", 256, 48),
        Arch("h8p64", f"{_CORE} C128-256k3s2p1 BN R D0.3 C256-256k8 BN", 256, 64),
        Arch("h8avg", f"{_CORE8} D0.3 AVG", 256),
        Arch("h8max", f"{_CORE8} D0.3 MAX8", 256),
        Arch("h8x2", f"{_WIDE} C256-512k3p1 BN R D0.3 C512-512k8 BN", 512),
        Arch("h8x2c", f"{_blocks(*_WIDENING, 'C256-512k3p1')} D0.3 C512-512k8 BN", 512),
        Arch("h8Econv3x3s2p1", f"{_CORE8} D0.3 C256-256k3s2p1 BN R C256-256k4 BN", 256),
        Arch("h8Econv3x3s2s2c22", f"{_CORE8} D0.3 C256-256k3s2p1 BN R C256-256k3s2p1 BN R C256-256k2 BN", 256),
        Arch("h8Econv3xnopad", f"{_CORE8} D0.3 {_blocks(*['C256-256k3'] * 3)} C256-256k2 BN", 256),
        Arch("h8blocks", f"{_CORE8} D0.3 C256-64k4s4 BN F BN1d", 256),
        Arch("h8blocksc3x3", f"{_CORE8} D0.3 C256-16k3s2p1 BN F BN1d", 256),
        Arch("h8Eavg11", f"{_CORE8} D0.3 C256-256k1 BN AVG", 256),
        Arch("h8Emax11", f"{_CORE8} D0.3 C256-256k1 BN MAX8", 256),
        Arch("h8Ecto128", f"{_CORE8} C256-128k1 BN R D0.3 C128-128k8 BN", 128),
        Arch("h8E512", f"{_CORE8} D0.3 C256-512k8 BN", 512),
        Arch("h8pre", f"{_PRE} {_CORE8} D0.3 C256-256k8 BN", 256),
        Arch("h8E512pre", f"{_PRE} {_CORE8} D0.3 C256-512k8 BN", 512),
        Arch("h8x2pre", f"{_PRE} {_WIDE} C256-512k3p1 BN R D0.3 C512-256k8 BN", 256),
        Arch("h9", f"{_blocks(*_NINE, 'C256-256k3p1')} D0.3 C256-256k8 BN", 256),
        Arch("h9cl", f"{_CORE8} C256-256k3p1 BN R D0.3 C256-256k8 BN", 256),
        Arch("h9x", f"{_blocks(*_NINE_X, 'C512-512k3p1', 'C512-512k3p1')} D0.3 C512-512k8 BN", 512),
        Arch("h9t", f"{_blocks(*_NINE, 'C256-512k3p1')} D0.3 C512-256k8 BN", 256),
        Arch("h9tt", f"{_blocks(*_NINE_X, 'C512-512k3p1', 'C512-256k3p1')} D0.3 C256-256k8 BN", 256),
    )
}
ALIASES = {"h1": "h7", "h3": "h8"}

# Tokens of the 2020 code that the notation above does not express.
LEFT_OUT = {
    "h8sa": "it needs a self-attention block",
    "h8mb": "it needs max-blur pooling",
    "HReM": "it needs space-to-depth, Mish and two summed scales",
    "HReMIn": "it needs space-to-depth, Mish and two summed scales",
    "h8SBMIn": "it needs space-to-depth and Mish",
    "HR": "its forward never used its last convolution (8192 outputs instead of 128)",
    "HR2": "its forward never used its last convolution (2048 outputs instead of 128)",
    "hPS": "it has biases and affine norms that weights of this family never have",
    "sosnet": "it is another network: kornia.feature.SOSNet",
    "h7sep": "it takes depth beside gray",
    "h8sep": "it takes depth beside gray and declared half its true width",
    "Rc2": "it is made of residual blocks",
    "Rc3": "it is made of residual blocks",
    "Rc3x": "it is made of residual blocks",
    "De32": "it is a DenseNet that downloads ImageNet weights when built",
    "De16": "it is a DenseNet that downloads ImageNet weights when built",
    "De16s": "it is a DenseNet that downloads ImageNet weights when built",
    "De16xs": "it is a DenseNet that downloads ImageNet weights when built",
}


def get_arch(token: str) -> Arch:
    """The architecture of a token.

    Raises:
        UsageError: unknown (close tokens named), or one of the 2020 tokens that are left out (with the reason).
    """
    name = ALIASES.get(token, token)
    if name in ARCHS:
        return ARCHS[name]
    if name in LEFT_OUT:
        raise UsageError(f"architecture {name} of the 2020 code is left out: {LEFT_OUT[name]}")
    stem, _, rest = name.partition("pca")
    if rest.isdigit() and stem in ARCHS:
        raise UsageError(
            f"architecture {name}: the projection is no part of a token; use arch={stem}, output_dim={rest}"
        )
    if re.fullmatch(r".+[-_]\d+", name) and re.split(r"[-_]", name)[0] in ARCHS:
        raise UsageError(f"architecture {name}: only one input channel (gray patches) is supported")
    raise UsageError(f"unknown architecture {token!r}{choices(token, ARCHS)}")


def empty_features(token: str) -> nn.Sequential:
    """The layers of an architecture on the meta device: shapes without values, to be given weights."""
    with torch.device("meta"):
        return build_features(token)


def build_features(token: str) -> nn.Sequential:
    """The layers of an architecture, initialised orthogonally with gain 0.6; maps (B, 1, S, S) to (B, dim, 1, 1)."""
    layers: list[nn.Module] = []
    channels, spec = 1, get_arch(token)
    for layer in spec.layers.split():
        match = re.fullmatch(r"(C|BN1d|MAX|[A-Z]+)(.*)", layer)
        assert match is not None  # the table is tested
        width = spec.dim if match[1] == "BN1d" else channels  # which stands behind what flattens all places
        module = _LAYERS[match[1]](width, layer if match[1] == "C" else match[2])
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
        layers.append(module)
    return nn.Sequential(*layers)


def _convolution(channels: int, layer: str) -> nn.Module:
    conv = _parse_conv(layer)
    module = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, bias=False)
    nn.init.orthogonal_(module.weight.data, gain=0.6)
    return module


# Letters of a layer -> from the channels that come in and what stands behind the letters.
_LAYERS: dict[str, Callable[[int, str], nn.Module]] = {
    "C": _convolution,
    "BN": lambda channels, _: nn.BatchNorm2d(channels, affine=False),
    "BN1d": lambda channels, _: nn.BatchNorm1d(channels, affine=False),
    "IN": lambda channels, _: nn.InstanceNorm2d(channels),
    "R": lambda *_: nn.ReLU(inplace=True),
    "LR": lambda *_: nn.LeakyReLU(inplace=True),
    "T": lambda *_: nn.Tanh(),
    "D": lambda _, rate: nn.Dropout(float(rate)),
    "AVG": lambda *_: nn.AdaptiveAvgPool2d((1, 1)),
    "MAX": lambda _, size: nn.MaxPool2d(int(size), stride=1),
    "F": lambda *_: nn.Flatten(),
}
