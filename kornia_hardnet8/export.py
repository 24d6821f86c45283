"""One file that describes patches elsewhere: ONNX, TorchScript, OpenVINO; standardisation and projection inside."""

from __future__ import annotations

import copy
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from kornia_hardnet8 import fused
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest, need
from kornia_hardnet8.files import write_bytes
from kornia_hardnet8.fused import FusedConv
from kornia_hardnet8.hardnet8 import HardNet8
from kornia_hardnet8.matchability import MR_SIZES, ONE_LEVEL, PATCH_SIZE, USUAL_CONTRAST, USUAL_SIGMA, Matchability

Format = Literal["onnx", "torchscript", "openvino"]
ExportPrecision = Literal["fp32", "fp16", "int8"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".jitpt", "openvino": ".xml"}
_OPSET = 18


def export(
    module: HardNet8 | Matchability, path: str | Path, format: Format = "onnx", precision: ExportPrecision = "fp32"
) -> None:
    """Write a network to a file, whole or not at all.

    Convention: input ``patches`` (N, 1, S, S) float32 of any intensity range, output ``descriptors`` (N, D) float32 of
    unit length, N free; a patch with a value that is not finite gives a row of NaN, in every format. In reduced
    precision only the convolutions change. :class:`Matchability`, in fp32 alone, has the inputs ``patches``
    (N, 2, 16, 16) in [0, 1] and ``sigma`` (N,), and the output ``shares`` (N,) in [0, 1].

    Args:
        module: the network, weights on any device.
        path: the file: ``.onnx``; ``.jitpt`` or ``.pt``, which ``torch.jit.load`` runs without this package;
            ``.xml`` (with a ``.bin`` beside it).
        format: ``"onnx"``, ``"torchscript"`` or ``"openvino"``.
        precision: ``"fp32"``; ``"fp16"`` (half the size); ``"int8"`` (a quarter; quantise and dequantise nodes with
            one scale for each output channel, ranges as in :func:`prepare_for_inference`). TorchScript has fp32 only.

    Raises:
        UsageError: an unknown format or precision, or one that the network or the format cannot have.
        MissingDependencyError: the extra that writes the format is not installed.
        DataError: the file cannot be written.
    """
    path = Path(path)
    if isinstance(module, Matchability) and (format == "torchscript" or precision != "fp32"):
        raise UsageError("the network of matchability is exported to onnx or openvino, in fp32")
    if format not in get_args(Format):
        raise UsageError(f"unknown format {format!r}: it is one of {', '.join(SUFFIXES)}{closest(format, SUFFIXES)}")
    if precision not in get_args(ExportPrecision):
        raise UsageError(f"unknown precision {precision!r}: it is one of {', '.join(get_args(ExportPrecision))}")
    allowed = (".jitpt", ".pt") if format == "torchscript" else (SUFFIXES[format],)
    if path.suffix not in allowed:
        raise UsageError(f"{path}: a file of format {format} ends in {' or '.join(allowed)}")
    if format == "torchscript":
        if precision != "fp32":
            raise UsageError(f"precision {precision} is not available in TorchScript: take onnx or openvino")
        assert isinstance(module, HardNet8)
        _export_torchscript(module, path)
    elif format == "onnx":
        model = onnx_model(module, precision)
        write_bytes(path, model.SerializeToString(deterministic=True))
    else:
        _export_openvino(module, path, precision)


def import_openvino() -> Any:
    """The module ``openvino``, kept from reporting itself to an analytics host, as it does when it is imported.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes its import fail
    return need("openvino", "openvino")


def load_openvino(path: str | Path, num_threads: int = 0) -> Any:
    """A file of OpenVINO, compiled for the CPU in fp32: call it with patches (N, 1, S, S), row 0 is the descriptors.

    OpenVINO left to itself computes in bf16 where the processor can, and the file cannot forbid it.

    Args:
        path: the ``.xml``.
        num_threads: 0: OpenVINO's choice.

    Raises:
        MissingDependencyError: openvino is not installed.
        MissingFileError: there is no such file.
        DataError: OpenVINO does not read it.
    """
    openvino = import_openvino()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    if not Path(path).is_file():
        raise MissingFileError(f"{path} is not there")
    try:
        return openvino.Core().compile_model(Path(path), "CPU", settings)
    except RuntimeError as error:
        raise DataError(f"{path}: OpenVINO does not read it: {' '.join(str(error).split())[:200]}") from None


def _export_torchscript(module: HardNet8, path: Path) -> None:
    buffer = (
        io.BytesIO()
    )  # torch names the archive after the file that it writes, and a temporary one has a random name
    torch.jit.save(torch.jit.script(_plain_copy(module)), buffer)
    write_bytes(path, buffer.getvalue())


def _export_openvino(module: HardNet8 | Matchability, path: Path, precision: ExportPrecision) -> None:
    openvino = import_openvino()
    model = onnx_model(module, precision)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(model.SerializeToString())
        converted = openvino.convert_model(Path(folder) / "m.onnx")
        for number, operation in enumerate(converted.get_ordered_ops()):
            if operation.get_type_name() not in ("Parameter", "Result"):
                operation.set_friendly_name(f"op{number}")  # its own names count on from one model to the next
        openvino.save_model(converted, Path(folder) / "m.xml", compress_to_fp16=precision == "fp16")
        # The weights first: a network without them is of no use.
        for suffix in (".bin", ".xml"):
            write_bytes(path.with_suffix(suffix), (Path(folder) / f"m{suffix}").read_bytes())


def _plain_copy(module: HardNet8) -> HardNet8:
    """The network on the CPU in float32 and eval mode."""
    return copy.deepcopy(module).cpu().float().eval().requires_grad_(False)


# -- ONNX --------------------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes and constants of an ONNX graph that grows in a chain."""

    def __init__(self) -> None:
        self.onnx = need("onnx", "onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Tensor | np.ndarray[Any, Any] | Sequence[int] | float) -> str:
        """The name of a stored tensor; Python numbers are float32, lists of integers int64."""
        if isinstance(value, Tensor):
            array = value.detach().numpy()
        elif isinstance(value, float):
            array = np.array(value, dtype=np.float32)
        else:
            array = np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The name of the output of a new node."""
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name


def onnx_model(module: HardNet8 | Matchability, precision: ExportPrecision = "fp32") -> Any:
    """The ``onnx.ModelProto`` of a network; see :func:`export`."""
    if isinstance(module, Matchability):
        return _onnx_matchability(module)
    graph = _Graph()
    helper, kinds = graph.onnx.helper, graph.onnx.TensorProto
    plain = _plain_copy(module)
    if precision == "int8" and not fused.fits_int8(plain.features):
        raise UsageError(f"precision int8 is not available: {module.arch} is no plain chain of convolutions with ReLU")
    steps = fused.fuse(plain.features)
    if steps is None:
        raise UsageError("only networks made of this package's layers, without hooks, can be exported to ONNX")
    x = _standardise(graph, "patches", module.patch_size)
    if precision == "int8":
        ranges = fused.ranges_from_json(module.metadata.get("int8_ranges"))
        x = _int8_chain(graph, x, [s for s in steps if isinstance(s, FusedConv)], module.patch_size, ranges)
    else:
        x = _float_chain(graph, x, steps, module, half=precision == "fp16")
    x = _unit_length(graph, x)
    if plain.mean is not None and plain.components is not None:
        x = graph.node("Sub", x, graph.constant(plain.mean))
        x = _unit_length(graph, graph.node("MatMul", x, graph.constant(plain.components)))
    x = graph.node("Add", x, _not_finite(graph, "patches"))
    graph.nodes.append(helper.make_node("Identity", [x], ["descriptors"], name="descriptors"))
    side = module.patch_size
    proto = helper.make_graph(
        graph.nodes,
        "hardnet8",
        [helper.make_tensor_value_info("patches", kinds.FLOAT, ["N", 1, side, side])],
        [helper.make_tensor_value_info("descriptors", kinds.FLOAT, ["N", module.output_dim])],
        graph.constants,
    )
    return _checked_model(graph, proto, {**module.metadata, "arch": module.arch, "precision": precision})


def _onnx_matchability(module: Matchability) -> Any:
    graph = _Graph()
    helper, kinds = graph.onnx.helper, graph.onnx.TensorProto
    plain = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    axes, level = graph.constant(np.array([2, 3])), graph.constant(ONE_LEVEL)
    centred, std = _centred(graph, "patches", axes, PATCH_SIZE)
    contrast = graph.node("Add", std, level)
    x = graph.node("Div", centred, contrast)
    for layer in plain.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None and not isinstance(layer.padding, str)
            inputs = [x, graph.constant(layer.weight), graph.constant(layer.bias)]
            x = graph.node("Conv", *inputs, strides=list(layer.stride), pads=list(layer.padding) * 2)
        else:
            x = graph.node("Relu" if isinstance(layer, nn.ReLU) else "Flatten", x)
    measures = graph.node("Log", graph.node("Div", graph.node("Flatten", contrast), graph.constant(USUAL_CONTRAST)))
    column = graph.node("Unsqueeze", "sigma", graph.constant(np.array([1])))
    column = graph.node("Div", graph.node("Max", column, graph.constant(1e-3)), graph.constant(USUAL_SIGMA))
    x = graph.node("Concat", x, measures, graph.node("Log", column), axis=1)
    for layer in plain.head:
        if isinstance(layer, nn.Linear):
            x = graph.node("Gemm", x, graph.constant(layer.weight), graph.constant(layer.bias), transB=1)
        else:
            x = graph.node("Relu", x)
    x = graph.node("Sigmoid", x)
    bad = graph.node("ReduceMean", _not_finite(graph, "patches"), graph.constant(np.array([1])), keepdims=1)
    x = graph.node("Squeeze", graph.node("Add", x, bad), graph.constant(np.array([1])))
    graph.nodes.append(helper.make_node("Identity", [x], ["shares"], name="shares"))
    proto = helper.make_graph(
        graph.nodes,
        "matchability",
        [
            helper.make_tensor_value_info("patches", kinds.FLOAT, ["N", len(MR_SIZES), PATCH_SIZE, PATCH_SIZE]),
            helper.make_tensor_value_info("sigma", kinds.FLOAT, ["N"]),
        ],
        [helper.make_tensor_value_info("shares", kinds.FLOAT, ["N"])],
        graph.constants,
    )
    return _checked_model(graph, proto, module.metadata)


def _checked_model(graph: _Graph, proto: Any, facts: dict[str, Any]) -> Any:
    helper = graph.onnx.helper
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9, producer_name="kornia_hardnet8"
    )
    helper.set_model_props(model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(facts.items())})
    graph.onnx.checker.check_model(model)
    return model


def _standardise(graph: _Graph, x: str, side: int) -> str:
    """Mean 0, unbiased standard deviation 1, with the network's epsilon."""
    centred, std = _centred(graph, x, graph.constant(np.array([1, 2, 3])), side)
    return graph.node("Div", centred, graph.node("Add", std, graph.constant(1e-7)))


def _centred(graph: _Graph, x: str, axes: str, side: int) -> tuple[str, str]:
    """Patches less their means over ``axes``, and their unbiased standard deviations there."""
    centred = graph.node("Sub", x, graph.node("ReduceMean", x, axes, keepdims=1))
    squares = graph.node("ReduceSumSquare", centred, axes, keepdims=1)
    return centred, graph.node("Sqrt", graph.node("Div", squares, graph.constant(float(side * side - 1))))


def _not_finite(graph: _Graph, patches: str) -> str:
    """(N, 1): NaN for a patch that is not finite, else 0; layers in 8 bits, and OpenVINO's ReLU, make 0 of NaN."""
    mean = graph.node("ReduceMean", patches, graph.constant(np.array([2, 3])), keepdims=0)
    return graph.node("Mul", mean, graph.constant(0.0))


def _unit_length(graph: _Graph, x: str) -> str:
    norm = graph.node("ReduceL2", x, graph.constant(np.array([1])), keepdims=1)
    return graph.node("Div", x, graph.node("Max", norm, graph.constant(1e-12)))


def _float_chain(graph: _Graph, x: str, steps: Sequence[fused.Step], module: HardNet8, half: bool) -> str:
    dtype = torch.float16 if half else torch.float32
    kinds = graph.onnx.TensorProto
    if half:
        x = graph.node("Cast", x, to=kinds.FLOAT16)
    channels, flat = 1, False
    for step in steps:
        if isinstance(step, FusedConv):
            inputs = [x, graph.constant(step.weight.to(dtype))]
            if step.bias is not None:
                inputs.append(graph.constant(step.bias.to(dtype)))
            x = graph.node("Conv", *inputs, strides=list(step.stride), pads=list(step.padding) * 2)
            x = graph.node("Relu", x) if step.relu else x
            channels = step.weight.shape[0]
        elif isinstance(step, nn.ReLU):
            x = graph.node("Relu", x)
        elif isinstance(step, nn.LeakyReLU):
            x = graph.node("LeakyRelu", x, alpha=step.negative_slope)
        elif isinstance(step, nn.Tanh):
            x = graph.node("Tanh", x)
        elif isinstance(step, nn.AdaptiveAvgPool2d):
            x = graph.node("GlobalAveragePool", x)
        elif isinstance(step, nn.MaxPool2d):
            x = graph.node("MaxPool", x, kernel_shape=[int(step.kernel_size)] * 2, strides=[1, 1])  # type: ignore[arg-type]
        elif isinstance(step, nn.InstanceNorm2d):
            ones = graph.constant(torch.ones(channels, dtype=dtype))
            zeros = graph.constant(torch.zeros(channels, dtype=dtype))
            x = graph.node("InstanceNormalization", x, ones, zeros, epsilon=step.eps)
        elif isinstance(step, nn.Flatten):
            x, flat = graph.node("Flatten", x), True
        elif isinstance(step, nn.BatchNorm1d) and step.running_mean is not None and step.running_var is not None:
            scale = (step.running_var.double() + step.eps).rsqrt()
            x = graph.node("Sub", x, graph.constant(step.running_mean.to(dtype)))
            x = graph.node("Mul", x, graph.constant(scale.to(dtype)))
        else:
            raise UsageError(f"{module.arch}: a layer of type {type(step).__name__} has no ONNX form here")
    if half:
        x = graph.node("Cast", x, to=kinds.FLOAT)
    return x if flat else graph.node("Flatten", x)


def _int8_chain(graph: _Graph, x: str, convs: list[FusedConv], side: int, ranges: fused.Ranges | None) -> str:
    """Quantise and dequantise around each layer: unsigned activations, signed weights, a scale for each channel."""
    if ranges is None or len(ranges.outputs) != len(convs) - 1:
        ranges = fused.generated_ranges(convs, side)
    scale, zero = ranges.input / 127.0, 128
    x = graph.node("Add", x, graph.constant(scale * fused.plane_offsets()))
    for index, conv in enumerate(convs):
        x = _through_8_bits(graph, x, scale, zero)
        weight, weight_scale = (fused.quantised if index else fused.quantised_planes)(
            conv.weight, fused.LARGEST_ANYWHERE
        )
        side = (side + 2 * conv.padding[0] - conv.weight.shape[2]) // conv.stride[0] + 1
        whole = side == 1 and conv.padding == (0, 0)
        stored = graph.constant(weight.flatten(1) if whole else weight)
        zeros = graph.constant(torch.zeros(len(weight_scale), dtype=torch.int8))
        inputs = [x, graph.node("DequantizeLinear", stored, graph.constant(weight_scale), zeros, axis=0)]
        if conv.bias is not None:
            bias_scale = weight_scale * scale
            bias = (conv.bias.double() / bias_scale).round().to(torch.int32)
            none = graph.constant(torch.zeros(len(bias), dtype=torch.int32))
            inputs.append(
                graph.node("DequantizeLinear", graph.constant(bias), graph.constant(bias_scale), none, axis=0)
            )
        if whole:
            inputs[0] = graph.node("Flatten", x)
            x = graph.node("Gemm", *inputs, transB=1)
        else:
            x = graph.node("Conv", *inputs, strides=list(conv.stride), pads=list(conv.padding) * 2)
        if conv.relu:
            x = graph.node("Relu", x)
        if index < len(convs) - 1:
            scale, zero = ranges.outputs[index] / 255.0, 0
    return x if whole else graph.node("Flatten", x)


def _through_8_bits(graph: _Graph, x: str, scale: float, zero: int) -> str:
    scale_name, zero_name = graph.constant(scale), graph.constant(np.array(zero, dtype=np.uint8))
    return graph.node("DequantizeLinear", graph.node("QuantizeLinear", x, scale_name, zero_name), scale_name, zero_name)
