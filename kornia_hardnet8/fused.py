"""A frozen, fused copy of a network for inference: batch norms folded, channels last, and the precision of choice.

On x86 CPUs the convolutions are oneDNN's, called through the operators that ``torch.compile`` uses, with weights
reordered once; elsewhere they are ``F.conv2d`` on folded weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_hardnet8.memory import keep_freed_blocks

Precision = Literal["fp32", "bf16", "fp16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Patches in one pass on a CPU: the activations of that many stay in the second and third level caches. Those of 8 bits
# are a quarter as large.
CPU_CHUNK, INT8_CHUNK = 128, 512
# Patches in one pass on other devices: enough to fill them, little enough memory (0.13 MB a patch and layer).
DEVICE_CHUNK = 1024

# Where ranges are not known they are measured on generated patches, with so much room for what images hold more.
_HEADROOM = 1.5
_GENERATED = 32
# Of the activations, the share that may lie beyond a measured range.
_CLIPPED = 1e-5
# Eight bits of a patch lose most of what int8 loses. So the first layer of int8 reads it several times, each time
# rounded after another share of a step is added, and its weights are spread over these planes: the bytes of one number.
PLANES = 8
# The largest 8-bit weight: x86 CPUs without VNNI add two products in a signed sum of 16 bits, where 2 * 255 * 64 fits.
LARGEST_WITH_VNNI, LARGEST_ANYWHERE = 127, 64
# Weights that are folded or quantised at once: what is larger is mapped and cleared anew, most of the time.
_FOLDED = 1 << 16


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes that 8 bits shall hold, measured by ``inference.calibrate``.

    Attributes:
        input: of a standardised patch.
        outputs: after the ReLU of each convolution but the last.
    """

    input: float
    outputs: tuple[float, ...]


def ranges_from_json(value: Any) -> Ranges | None:
    """The ranges that a weight file holds, or None where there are none or they are malformed."""
    try:
        return Ranges(float(value["input"]), tuple(float(v) for v in value["outputs"]))
    except (KeyError, TypeError, ValueError):
        return None


def ranges_to_json(ranges: Ranges) -> dict[str, Any]:
    """For a weight file's metadata."""
    return {**dataclasses.asdict(ranges), "outputs": list(ranges.outputs)}


@dataclass(frozen=True)
class FusedConv:
    """A convolution with its batch norm folded in, and whether a ReLU follows."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool


Step = FusedConv | nn.Module
_Conv = tuple[nn.Conv2d, nn.BatchNorm2d | None, bool]
Operator = Callable[[Tensor], Tensor]


def fuse(features: nn.Sequential) -> list[Step] | None:
    """The layers of an eval-mode network with batch norms folded in float64 and dropouts left out.

    None where a layer is of another kind, trains, or has hooks that a fused copy would not call.
    """
    layers = _layers(features)
    if layers is None or any(module.training for module in features.modules()):
        return None
    return [_folded(*layer) if isinstance(layer, tuple) else layer for layer in layers]


def fits_int8(features: nn.Sequential) -> bool:
    """Whether the network is a plain chain: convolutions with ReLU, then one over the whole map."""
    layers = _layers(features)
    if layers is None:
        return False
    return all(isinstance(layer, tuple) and (layer[2] or layer is layers[-1]) for layer in layers)


def _layers(features: nn.Sequential) -> list[_Conv | nn.Module] | None:
    """Each convolution with the batch norm that follows it and whether a ReLU does, and the other layers but dropouts.

    None where a layer is of a kind that is not fused, or has hooks.
    """
    modules = list(features)
    if any(type(m) not in _KNOWN or _has_hooks(m) for m in [features, *modules]):
        return None
    layers: list[_Conv | nn.Module] = []
    index = 0
    while index < len(modules):
        module = modules[index]
        index += 1
        if isinstance(module, nn.Dropout):
            continue
        if not isinstance(module, nn.Conv2d):
            layers.append(module)
            continue
        if (
            module.groups != 1
            or module.dilation != (1, 1)
            or module.padding_mode != "zeros"
            or isinstance(module.padding, str)
        ):
            return None
        norm = modules[index] if index < len(modules) else None
        norm = norm if isinstance(norm, nn.BatchNorm2d) else None
        if norm is not None and (norm.running_mean is None or norm.running_var is None):
            return None
        index += norm is not None
        relu = index < len(modules) and isinstance(modules[index], nn.ReLU)
        index += relu
        layers.append((module, norm, relu))
    return layers


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> FusedConv:
    """A convolution with what follows it."""
    # Folded on the CPU: MPS has no float64.
    device, weight = conv.weight.device, conv.weight.detach().cpu()
    bias = None if conv.bias is None else _double(conv.bias)
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (_double(norm.running_var) + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * _double(norm.weight)
        bias = (0.0 if bias is None else bias) - _double(norm.running_mean)
        bias = bias * scale + (0.0 if norm.bias is None else _double(norm.bias))
        weight = _scaled(weight, scale)
    return FusedConv(
        weight.float().to(device),
        None if bias is None else bias.float().to(device),
        (conv.stride[0], conv.stride[1]),
        (int(conv.padding[0]), int(conv.padding[1])),
        relu,
    )


_KNOWN = {
    nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.InstanceNorm2d, nn.ReLU, nn.LeakyReLU, nn.Tanh,
    nn.Dropout, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.Flatten,
}  # fmt: skip


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Float32 weights times a float64 scale of each output channel."""
    scaled = torch.empty(weight.shape, dtype=torch.float32)
    for rows in _parts(weight):
        scaled[rows] = weight[rows].double() * scale[rows, None, None, None]
    return scaled


def _parts(weight: Tensor) -> list[slice]:
    """Few output channels at a time: the last layer has 8 M weights."""
    channels = max(1, _FOLDED // weight[0].numel())
    return [slice(start, start + channels) for start in range(0, len(weight), channels)]


class Engine:
    """Runs fused steps on standardised patches.

    Args:
        steps: what :func:`fuse` gives.
        patch_size: side of a patch.
        precision: of weights and activations; sums are float32 (int32 for int8).
        ranges: for int8 only.
    """

    def __init__(
        self, steps: Sequence[Step], patch_size: int, precision: Precision = "fp32", ranges: Ranges | None = None
    ) -> None:
        self.precision = precision
        device = next((s.weight.device for s in steps if isinstance(s, FusedConv)), torch.device("cpu"))
        self.chunk = DEVICE_CHUNK
        if device.type == "cpu":
            self.chunk = INT8_CHUNK if precision == "int8" else CPU_CHUNK
            keep_freed_blocks()
        shape = [self.chunk, 1, patch_size, patch_size]
        self._operators: list[Operator] = []
        if precision == "int8":
            self._build_int8(steps, shape, ranges)
            return
        for index, step in enumerate(steps):
            if not isinstance(step, FusedConv):
                # In half precision the statistics of what is not folded are converted at each call, cheaply.
                self._operators.append(step if precision == "fp32" else _in_float(step))
                continue
            # A first layer of one channel is bound by memory, and oneDNN's float32 kernel for it is the fastest.
            dtype = torch.float32 if index == 0 and device.type == "cpu" else DTYPES[precision]
            out = _out_shape(step, shape)
            self._operators.append(_float_operator(step, shape, out, dtype, device))
            shape = out

    def __call__(self, patches: Tensor) -> Tensor:
        """Standardised float32 patches (B, 1, S, S) to raw descriptors (B, dim) float32; at most ``chunk`` a call."""
        x = patches.contiguous(memory_format=torch.channels_last)
        for operator in self._operators:
            x = operator(x)
        return x.flatten(1).float()

    def _build_int8(self, steps: Sequence[Step], shape: list[int], ranges: Ranges | None) -> None:
        convs = [step for step in steps if isinstance(step, FusedConv)]
        if ranges is None or len(ranges.outputs) != len(convs) - 1:
            ranges = generated_ranges(convs, shape[2])
        scale, zero = ranges.input / 127.0, 128
        self._operators.append(_in_planes(scale, zero))
        shape = [shape[0], PLANES, *shape[2:]]
        largest = LARGEST_WITH_VNNI if torch.cpu._is_vnni_supported() else LARGEST_ANYWHERE
        for index, conv in enumerate(convs):
            last = index == len(convs) - 1
            out_scale = 1.0 if last else ranges.outputs[index] / 255.0
            weight, weight_scale = (quantised if index else quantised_planes)(conv.weight, largest)
            self._operators.append(
                _int8_operator(conv, weight, weight_scale, shape, scale, zero, None if last else out_scale)
            )
            shape, scale, zero = _out_shape(conv, shape), out_scale, 0


def standardised(patches: Tensor) -> Tensor:
    """Patches (B, 1, S, S) with mean 0 and unbiased standard deviation 1 as float32, a constant one as zeros.

    As ``HardNet8._normalize_input`` but for rounding, and several times as fast: what 8 bits do not notice.
    """
    # The mean of equal numbers is that number only where their sum is exact.
    x = (patches - patches.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).to(patches.dtype)).float()
    std = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) / math.sqrt(x[0].numel() - 1)
    return x.div_(std + 1e-7)


def measure_ranges(convs: Sequence[FusedConv], batches: Iterable[Tensor]) -> Ranges:
    """Ranges of a chain's activations on standardised patches, averaged over batches."""
    tops: list[Tensor] = []
    total = 0
    for x in batches:
        count = len(x)
        bounds = [_high(x.abs())]
        for conv in convs[:-1]:
            x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding).relu_()
            bounds.append(_high(x))
        tops.append(torch.stack(bounds) * count)
        total += count
    mean = (torch.stack(tops).sum(dim=0) / total).clamp(min=1e-12).tolist()
    return Ranges(mean[0], tuple(mean[1:]))


def _high(x: Tensor) -> Tensor:
    """The value that a share of ``_CLIPPED`` exceeds."""
    flat = x.flatten()
    return flat.kthvalue(max(1, round(flat.numel() * (1 - _CLIPPED)))).values


def generated_ranges(convs: Sequence[FusedConv], patch_size: int) -> Ranges:
    """Ranges for weights of which none are known: of noise of several scales, with room to spare."""
    generator = torch.Generator().manual_seed(0)
    side = patch_size + 16
    noise = torch.randn(_GENERATED, 1, side, side, generator=generator)
    parts = [F.avg_pool2d(noise, k, 1)[:, :, :patch_size, :patch_size] for k in (1, 3, 7, 15)]
    patches = torch.cat(parts)
    std, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    ranges = measure_ranges(convs, [(patches - mean) / std])
    return Ranges(ranges.input * _HEADROOM, tuple(value * _HEADROOM for value in ranges.outputs))


def has_onednn() -> bool:
    """Whether this build of torch has the fused oneDNN operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def has_onednn_int8() -> bool:
    """Whether this build of torch has the quantised oneDNN operators."""
    return has_onednn() and _qconv() is not None


def _qconv() -> Any:
    for name in ("qconv2d_pointwise", "qconv_pointwise"):
        if hasattr(torch.ops.onednn, name):
            return getattr(torch.ops.onednn, name).default
    return None


def _out_shape(conv: FusedConv, shape: list[int]) -> list[int]:
    kernel = conv.weight.shape[2]
    side = (shape[2] + 2 * conv.padding[0] - kernel) // conv.stride[0] + 1
    return [shape[0], conv.weight.shape[0], side, side]


def _covers_the_map(conv: FusedConv, out: list[int]) -> bool:
    return out[2] == 1 and conv.padding == (0, 0)


def _as_matrix(weight: Tensor) -> Tensor:
    """A kernel over the whole map as the matrix that multiplies channels-last activations."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1).contiguous()


def _rows(x: Tensor) -> Tensor:
    """Channels-last activations (B, C, H, W) as rows in memory order."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def _float_operator(
    conv: FusedConv, shape: list[int], out: list[int], dtype: torch.dtype, device: torch.device
) -> Operator:
    weight = conv.weight.to(dtype)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    relu, stride, padding = conv.relu, list(conv.stride), list(conv.padding)
    fast = device.type == "cpu" and has_onednn()
    if _covers_the_map(conv, out):
        matrix = _as_matrix(weight)
        if fast:
            packed = torch.ops.mkldnn._reorder_linear_weight(matrix, shape[0])
            attribute = "relu" if relu else "none"
            return lambda x: torch.ops.mkldnn._linear_pointwise(_rows(x.to(dtype)), packed, bias, attribute, [], "")[
                :, :, None, None
            ]

        def multiply(x: Tensor) -> Tensor:
            y = F.linear(_rows(x.to(dtype)), matrix, bias)[:, :, None, None]
            return y.relu_() if relu else y

        return multiply
    if fast:
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]  # its stub has no input size
            weight.to_mkldnn(), padding, stride, [1, 1], 1, shape
        )
        attribute = "relu" if relu else "none"
        return lambda x: torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype), packed, bias, padding, stride, [1, 1], 1, attribute, [], ""
        )
    weight = weight.contiguous(memory_format=torch.channels_last)

    def convolve(x: Tensor) -> Tensor:
        y = F.conv2d(x.to(dtype), weight, bias, stride, padding)
        return y.relu_() if relu else y

    return convolve


def quantised(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Weights (C, …) as int8, up to ``largest``, and the scale of each output channel (C,)."""
    whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = weight.new_empty(len(weight))
    for rows in _parts(weight):
        scale[rows] = weight[rows].flatten(1).abs().amax(dim=1).clamp(min=1e-12) / largest
        whole[rows] = (weight[rows] / scale[rows, None, None, None]).round_().clamp_(-largest, largest)
    return whole, scale


def plane_offsets() -> Tensor:
    """What is added to a patch, in steps of its quantisation, before it is rounded: (1, PLANES, 1, 1)."""
    return ((torch.arange(PLANES) - (PLANES - 1) / 2) / PLANES).view(1, PLANES, 1, 1)


def _in_planes(step: float, zero: int) -> Operator:
    """Standardised patches (B, 1, S, S) as uint8 (B, PLANES, S, S), channels last.

    Which number a value is, counted in steps / PLANES, decides on all its planes: they are read from a table.
    """
    top = 255 * PLANES
    sums = torch.arange(top + 1)[:, None] + torch.arange(PLANES)
    table = (sums // PLANES).to(torch.uint8).view(torch.int64).flatten()

    def quantise(x: Tensor) -> Tensor:
        numbers = (x * (PLANES / step)).add_(PLANES * zero + 0.5).clamp_(0, top).nan_to_num_(0.0).to(torch.int32)
        codes = table.index_select(0, numbers.flatten()).view(torch.uint8)
        return codes.view(len(x), *x.shape[2:], PLANES).permute(0, 3, 1, 2)

    return quantise


def quantised_planes(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Weights (C, 1, k, k) of the first layer as int8 (C, PLANES, k, k) that sum to them, and scales (C,)."""
    scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / (largest * PLANES)
    total = (weight / scale[:, None, None, None]).round()
    # The floors of (n + k) / PLANES over all k sum to n.
    parts = [((total + plane) / PLANES).floor() for plane in range(PLANES)]
    return torch.cat(parts, dim=1).to(torch.int8), scale


def _int8_operator(
    conv: FusedConv,
    weight: Tensor,
    weight_scale: Tensor,
    shape: list[int],
    scale: float,
    zero: int,
    out_scale: float | None,
) -> Operator:
    """Unsigned activations, signed weights with one scale for each output channel; float32 out for the last layer."""
    weight_zero = torch.zeros(len(weight_scale), dtype=torch.int8)
    bias = conv.bias
    attribute = "relu" if conv.relu else "none"
    dtype = torch.float32 if out_scale is None else torch.uint8
    out = 1.0 if out_scale is None else out_scale
    stride, padding = list(conv.stride), list(conv.padding)
    packed = torch.ops.onednn.qconv_prepack(weight, weight_scale, scale, zero, stride, padding, [1, 1], 1, shape)
    operator = _qconv()
    return lambda x: operator(
        x, scale, zero, packed, weight_scale, weight_zero, bias, stride, padding, [1, 1], 1, out, 0, dtype,
        attribute, [], "",
    )  # fmt: skip


def _in_float(module: nn.Module) -> Operator:
    return lambda x: module(x.float())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


# -- whether a copy is still true --------------------------------------------------------------------------------------


def fingerprint(features: nn.Sequential) -> tuple[Any, ...] | None:
    """What changes when the weights or the layers change; None where that cannot be told (then nothing is cached).

    On the CPU a sum over all bits is part of it (2 ms for 9 M weights), since changes through ``.data`` leave no
    other trace; on other devices, where reading it back would stall the queue, torch's version counters must do.
    """
    parts: list[Any] = []
    for module in features:
        if module.training or _has_hooks(module):
            return None
        parts.append(id(module))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or not tensor.is_floating_point():
                continue
            if tensor.is_inference() and tensor.device.type != "cpu":
                return None
            version = 0 if tensor.is_inference() else tensor._version
            parts.append((id(tensor), version, tensor.data_ptr(), tensor.device, tensor.dtype))
            if tensor.device.type == "cpu":
                parts.append(_sum_of_bits(tensor.detach()))
    return tuple(parts)


def _sum_of_bits(tensor: Tensor) -> int:
    flat = tensor.flatten()
    whole = flat.numel() - flat.numel() % 2 if flat.element_size() == 4 and flat.storage_offset() % 2 == 0 else 0
    total = int(flat[:whole].view(torch.int64).sum()) if whole else 0
    rest = flat[whole:]
    return total + (int(rest.double().sum().view(torch.int64)) if len(rest) else 0)
