"""Every operator of the TFLite target's table, float and on integers, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.targets.tflite import TfliteTarget
from edgeopt.targets.tflite.operators import LOWERINGS
from tests.integration.minmax_table import minmax_table
from tests.integration.small_nets import Net
from tests.integration.tflite_segments import run_both, steps_off

IMAGE = (1, 8, 6, 6)


@dataclass(frozen=True)
class Case:
    """One use of an operator.

    Args:
        build: writes it into the net, from the value ``x``; gives its output's name.
        shape: of ``x``.
        channels: of its output, if a convolution can stand behind it.
        positive: ``x`` is above 0.1.
        tolerance: relative error in float.
    """

    op: str
    build: Callable[[Net, str], str]
    name: str = ""
    shape: tuple[int, ...] = IMAGE
    channels: int | None = None
    positive: bool = False
    tolerance: float = 1e-5


def ints(net: Net, name: str, *values: int) -> str:
    return net.constant(name, np.asarray(values, np.int64))


def floats(net: Net, name: str, *shape: int) -> str:
    return net.constant(name, net.rng.normal(size=shape).astype(np.float32))


def simple(op: str, **attributes: object) -> Callable[[Net, str], str]:
    return lambda net, x: net.add(op, "op", [x], **attributes)


def unary(op: str, *, positive: bool = False, tolerance: float = 1e-5, **attributes: object) -> Case:
    name = "_".join(f"{key}{value}" for key, value in attributes.items())
    return Case(op, simple(op, **attributes), name, channels=8, positive=positive, tolerance=tolerance)


def with_constant(op: str, *shape: int) -> Case:
    return Case(op, lambda net, x: net.add(op, "op", [x, floats(net, "c", *shape)]), f"constant{shape}", channels=8)


def with_input(op: str) -> Case:
    """Of two activations: the value, and a convolution of it."""
    return Case(op, lambda net, x: net.add(op, "op", [x, net.conv("other", x, 8, 8)]), "activations", channels=8)


def gated(gate: str, **attributes: object) -> Case:
    return Case(
        gate, lambda net, x: net.add("Mul", "op", [x, net.add(gate, "gate", [x], **attributes)]), "gate", channels=8
    )


def clip(low: float | None, high: float | None) -> Case:
    def build(net: Net, x: str) -> str:
        bounds = [
            "" if bound is None else net.constant(name, np.float32(bound))
            for name, bound in (("low", low), ("high", high))
        ]
        return net.add("Clip", "op", [x, *bounds])

    return Case("Clip", build, f"{low}_{high}", channels=8)


def compared(op: str) -> Case:
    def build(net: Net, x: str) -> str:
        truth = net.add(op, "truth", [x, net.constant("zero", np.zeros(1, np.float32))])
        return net.add("Cast", "op", [truth], to=TensorProto.FLOAT)

    return Case(op, build)


def logic(op: str) -> Case:
    def build(net: Net, x: str) -> str:
        zero = net.constant("zero", np.zeros(1, np.float32))
        one = net.constant("one", np.ones(1, np.float32))
        truths = [net.add("Greater", "a", [x, zero]), net.add("Less", "b", [x, one])]
        truth = net.add(op, "truth", truths[:1] if op == "Not" else truths)
        return net.add("Where", "op", [truth, x, zero])

    return Case(op, build)


def reduction(op: str, axes: tuple[int, ...], keep: int, *, positive: bool = False) -> Case:
    def build(net: Net, x: str) -> str:
        return net.add(op, "op", [x, ints(net, "axes", *axes)], keepdims=keep)

    return Case(op, build, f"{axes}_{keep}", positive=positive)


def reshaped(op: str, *shape: int, source: tuple[int, ...] = IMAGE) -> Case:
    return Case(
        op, lambda net, x: net.add("Reshape", "op", [x, ints(net, "shape", *shape)]), f"{source}_{shape}", source
    )


def sliced(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Case:
    def build(net: Net, x: str) -> str:
        parts = zip(("starts", "ends", "axes", "steps"), (starts, ends, axes, steps), strict=True)
        return net.add("Slice", "op", [x, *[ints(net, name, *values) for name, values in parts]])

    return Case("Slice", build, f"{starts}_{axes}_{steps}")


def gathered(indices: list[int] | int, axis: int) -> Case:
    def build(net: Net, x: str) -> str:
        return net.add("Gather", "op", [x, net.constant("indices", np.asarray(indices, np.int64))], axis=axis)

    return Case("Gather", build, f"{indices}_{axis}")


def split(axis: int, *sizes: int) -> Case:
    def build(net: Net, x: str) -> str:
        names = [f"part{i}" for i in range(len(sizes))]
        net.nodes.append(helper.make_node("Split", [x, ints(net, "sizes", *sizes)], names, name="op", axis=axis))
        return net.add("Concat", "join", names[::-1], axis=axis)

    return Case("Split", build, f"{axis}_{sizes}", channels=8)


def concat(count: int, axis: int) -> Case:
    def build(net: Net, x: str) -> str:
        parts = [x, *[net.conv(f"part{i}", x, 8, 8, k=1) for i in range(count - 1)]]
        return net.add("Concat", "op", parts, axis=axis)

    return Case("Concat", build, f"{count}_{axis}", channels=8 * count if axis == 1 else 8)


def pool(op: str, kernel: list[int], **attributes: object) -> Case:
    name = f"{kernel}_" + "_".join(f"{key}{value}" for key, value in attributes.items())
    return Case(op, simple(op, kernel_shape=kernel, **attributes), name, channels=8)


def resized(mode: str, sizes: tuple[int, int], coordinates: str, nearest: str = "round_prefer_floor") -> Case:
    def build(net: Net, x: str) -> str:
        wanted = ints(net, "sizes", 1, 8, *sizes)
        inputs = [x, "", "", wanted]
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
        return net.add("Resize", "op", inputs, **attributes)

    return Case("Resize", build, f"{mode}_{sizes}_{coordinates}_{nearest}", channels=8)


def padded(pads: list[int], mode: str = "constant", value: float | None = None) -> Case:
    def build(net: Net, x: str) -> str:
        inputs = [x, ints(net, "pads", *pads)]
        if value is not None:
            inputs.append(net.constant("filler", np.float32(value)))
        return net.add("Pad", "op", inputs, mode=mode)

    return Case("Pad", build, f"{pads}_{mode}_{value}")


def conv(name: str, cin: int, cout: int, kernel: tuple[int, int], **attributes: object) -> Case:
    group = int(attributes.get("group", 1))

    def build(net: Net, x: str) -> str:
        weights = [net.weight("w", cout, cin // group, *kernel), net.weight("b", cout)]
        return net.add("Conv", "op", [x, *weights], kernel_shape=list(kernel), **attributes)

    return Case("Conv", build, name, channels=cout)


def transposed_conv(name: str, cout: int, kernel: int, *, group: int = 1, **attributes: object) -> Case:
    def build(net: Net, x: str) -> str:
        weights = [net.weight("w", 8, cout // group, kernel, kernel), net.weight("b", cout)]
        return net.add("ConvTranspose", "op", [x, *weights], kernel_shape=[kernel] * 2, group=group, **attributes)

    return Case("ConvTranspose", build, name, channels=cout)


def conv_1d(net: Net, x: str) -> str:
    return net.add("Conv", "op", [x, net.weight("w", 6, 8, 3), net.weight("b", 6)], kernel_shape=[3], pads=[1, 1])


def gemm(net: Net, x: str) -> str:
    flat = net.add("Reshape", "flat", [x, ints(net, "shape", 1, 8 * 36)])
    return net.add("Gemm", "op", [flat, net.weight("w", 10, 8 * 36), net.weight("b", 10)], transB=1)


def squeezed(net: Net, x: str) -> str:
    """Squeeze and excite of MobileNetV3."""
    gate = net.add(
        "HardSigmoid", "gate", [net.conv("fc", net.add("GlobalAveragePool", "m", [x]), 8, 8, k=1)], alpha=1 / 6
    )
    return net.add("Mul", "op", [x, gate])


def attention(net: Net, x: str) -> str:
    """Two products of activations, heads apart, as an exporter writes attention."""
    rows = net.add("Reshape", "rows", [net.add("Transpose", "t", [x], perm=[0, 2, 3, 1]), ints(net, "s0", 36, 8)])
    heads = []
    for name in ("q", "k", "v"):
        line = net.add("Gemm", name, [rows, net.weight(f"{name}.w", 8, 8), net.weight(f"{name}.b", 8)], transB=1)
        apart = net.add("Reshape", f"{name}_apart", [line, ints(net, f"{name}.s", 1, 36, 2, 4)])
        heads.append(net.add("Transpose", f"{name}_heads", [apart], perm=[0, 2, 1, 3]))
    keys = net.add("Transpose", "keys", [heads[1]], perm=[0, 1, 3, 2])
    weights = net.add("Softmax", "softmax", [net.add("MatMul", "scores", [heads[0], keys])], axis=-1)
    mixed = net.add("Transpose", "together", [net.add("MatMul", "mixed", [weights, heads[2]])], perm=[0, 2, 1, 3])
    return net.add("Reshape", "op", [mixed, ints(net, "s1", 1, 36, 8)])


def normalized(op: str, shape: tuple[int, ...], **attributes: object) -> Case:
    def build(net: Net, x: str) -> str:
        return net.add(op, "op", [x, floats(net, "scale", *shape), floats(net, "offset", *shape)], **attributes)

    return Case(op, build, tolerance=2e-5)


def group_normalized(groups: int) -> Callable[[Net, str], str]:
    """GroupNorm as exporters write it: flattened groups, a normalisation of each, and back."""

    def build(net: Net, x: str) -> str:
        flat = net.add("Reshape", "flat", [x, ints(net, "s0", 1, groups, 288 // groups)])
        scale = np.repeat(net.rng.normal(size=8 // groups).astype(np.float32), 36)
        inputs = [flat, net.constant("scale", scale), net.constant("bias", np.zeros_like(scale))]
        normal = net.add("LayerNormalization", "norm", inputs, axis=-1)
        return net.add("Reshape", "op", [normal, ints(net, "s1", 1, 8, 6, 6)])

    return build


def batch_normalized(net: Net, x: str) -> str:
    parts = [floats(net, name, 8) for name in ("scale", "offset", "mean")]
    return net.add("BatchNormalization", "op", [x, *parts, net.constant("variance", np.full(8, 0.5, np.float32))])


def shuffle(net: Net, x: str) -> str:
    apart = net.add("Reshape", "apart", [x, ints(net, "s0", 1, 2, 4, 6, 6)])
    swapped = net.add("Transpose", "swap", [apart], perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", "op", [swapped, ints(net, "s1", 1, 8, 6, 6)])


CASES = [
    conv("1x1", 8, 4, (1, 1)),
    conv("same", 8, 5, (3, 3), pads=[1, 1, 1, 1]),
    conv("stride_pads_no_same", 8, 5, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    conv("lopsided", 8, 5, (3, 2), pads=[2, 0, 0, 1], strides=[2, 1]),
    conv("dilated", 8, 5, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    conv("grouped", 8, 4, (3, 3), group=2),
    conv("depthwise", 8, 8, (3, 3), group=8, pads=[1, 1, 1, 1]),
    conv("depthwise_multiplied", 8, 16, (3, 3), group=8, strides=[2, 2]),
    Case("Conv", conv_1d, "1d", (1, 8, 12)),
    transposed_conv("k2s2", 6, 2, strides=[2, 2]),
    transposed_conv("k4s2p1", 6, 4, strides=[2, 2], pads=[1, 1, 1, 1]),
    transposed_conv("k3s2p1_output_padding", 6, 3, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    transposed_conv("k3s2_output_padding_beyond", 6, 3, strides=[2, 2], output_padding=[1, 1]),
    transposed_conv("grouped", 8, 2, group=4, strides=[2, 2]),
    transposed_conv("dilated", 6, 2, dilations=[2, 2]),
    Case("Gemm", gemm),
    Case("MatMul", attention, tolerance=2e-5),
    *[with_input(op) for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum")],
    *[with_constant(op, *shape) for op in ("Add", "Sub", "Mul") for shape in ((), (8, 1, 1), (1, 8, 6, 6), (6,))],
    with_constant("Div", 8, 1, 1),
    Case("Div", lambda net, x: net.add("Div", "op", [net.constant("one", np.float32(1)), x]), "by", positive=True),
    Case("Pow", lambda net, x: net.add("Pow", "op", [x, net.constant("p", np.float32(2))]), "2"),
    Case("Pow", lambda net, x: net.add("Pow", "op", [x, net.constant("p", np.float32(0.5))]), "0.5", positive=True),
    Case("Pow", lambda net, x: net.add("Pow", "op", [x, net.constant("p", np.float32(3))]), "3", positive=True),
    *[compared(op) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")],
    *[logic(op) for op in ("And", "Or", "Not")],
    Case(
        "Where", lambda net, x: net.add("Where", "op", [net.constant("c", np.eye(6) > 0), x, floats(net, "o", 8, 1, 1)])
    ),
    Case("Cast", lambda net, x: net.add("Cast", "op", [net.add("Cast", "i", [x], to=TensorProto.INT32)], to=1)),
    Case("PRelu", lambda net, x: net.add("PRelu", "op", [x, floats(net, "slope", 8, 1, 1)]), channels=8),
    Case("PRelu", lambda net, x: net.add("PRelu", "op", [x, floats(net, "slope", 1)]), "one slope", channels=8),
    unary("Relu"),
    clip(0, 6),
    clip(-1, 1),
    clip(-0.5, 0.7),
    clip(None, 0.5),
    clip(0.0, None),
    clip(-0.4, None),
    unary("LeakyRelu"),
    unary("LeakyRelu", alpha=0.2),
    unary("Elu"),
    unary("Elu", alpha=0.3),
    unary("Selu"),
    unary("Celu", alpha=1.7),
    unary("Erf", tolerance=1e-4),
    unary("LRN", size=5, alpha=0.3, beta=0.6, bias=1.5),
    Case("LpNormalization", simple("LpNormalization", axis=1)),
    Case("LpNormalization", simple("LpNormalization", axis=3, p=1), "l1"),
    reduction("ReduceL1", (2, 3), 1),
    reduction("ReduceLogSum", (1,), 0, positive=True),
    reduction("ReduceLogSumExp", (3,), 1),
    unary("HardSwish"),
    unary("HardSigmoid"),
    unary("HardSigmoid", alpha=1 / 6),
    Case("HardSigmoid", squeezed, "squeeze and excite", channels=8),
    unary("Sigmoid"),
    unary("Tanh"),
    unary("Gelu", tolerance=1e-4),
    unary("Gelu", approximate="tanh", tolerance=1e-4),
    unary("Softplus"),
    unary("Softsign"),
    unary("Mish"),
    gated("Sigmoid"),
    gated("Tanh"),
    gated("HardSigmoid"),
    *[unary(op) for op in ("Exp", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Identity", "Dropout")],
    unary("Log", positive=True),
    unary("Sqrt", positive=True),
    unary("Reciprocal", positive=True),
    reshaped("Reshape", 1, 8, 36),
    reshaped("Reshape", 1, 288),
    reshaped("Reshape", 36, 8),
    reshaped("Reshape", 4, 2, 36),
    reshaped("Reshape", 1, 6, 4, 12),
    reshaped("Reshape", 1, 8, 6, 2, 3),
    reshaped("Reshape", 1, 1, 8, 6, 6),
    Case("Flatten", simple("Flatten", axis=1)),
    Case("Flatten", simple("Flatten", axis=2), "2"),
    Case("Squeeze", lambda net, x: net.add("Squeeze", "op", [x, ints(net, "axes", 0)])),
    Case("Unsqueeze", lambda net, x: net.add("Unsqueeze", "op", [x, ints(net, "axes", 1)])),
    Case("Transpose", shuffle, "shuffle", channels=8),
    Case("Transpose", simple("Transpose", perm=[0, 2, 3, 1])),
    Case("Transpose", simple("Transpose", perm=[0, 1, 3, 2]), "hw", channels=8),
    Case("Expand", lambda net, x: net.add("Expand", "op", [x, ints(net, "shape", 2, 8, 6, 6)])),
    Case("Expand", lambda net, x: net.add("Expand", "op", [x, ints(net, "shape", 1, 1, 1, 1)]), "same", channels=8),
    Case("Tile", lambda net, x: net.add("Tile", "op", [x, ints(net, "repeats", 1, 2, 1, 3)]), channels=16),
    concat(2, 1),
    concat(6, 1),
    concat(3, 2),
    concat(2, 3),
    Case(
        "Concat",
        lambda net, x: net.add("Concat", "op", [x, floats(net, "c", 1, 3, 6, 6)], axis=1),
        "constant",
        channels=11,
    ),
    split(1, 4, 4),
    split(1, 2, 2, 2, 2),
    split(1, 3, 5),
    split(2, 2, 2, 2),
    split(3, 1, 1, 1, 1, 2),
    sliced([2], [6], [1], [1]),
    sliced([1, 0], [5, 4], [2, 3], [1, 1]),
    sliced([0, 0], [6, 6], [2, 3], [2, 2]),
    sliced([1], [6], [2], [2]),
    sliced([1], [8], [1], [2]),
    sliced([0], [8], [1], [3]),
    sliced([-1], [-99], [3], [-1]),
    sliced([1], [6], [3], [3]),
    gathered([0, 4, 1, 5, 2, 6, 3, 7], 1),
    gathered([1, 3, 5, 7], 1),
    gathered([2, 3, 4], 1),
    gathered(3, 1),
    gathered([5, 0, 0, 2], 1),
    gathered(-1, 2),
    gathered([0, 3], 3),
    padded([0, 0, 1, 2, 0, 0, 3, 0]),
    padded([0, 1, 0, 0, 0, 2, 0, 0]),
    *[padded([0, 0, 1, 2, 0, 0, 2, 1], mode) for mode in ("reflect", "edge", "wrap")],
    padded([0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
    padded([0, 0, -1, 0, 0, 0, 2, 0]),
    pool("MaxPool", [2, 2], strides=[2, 2]),
    pool("MaxPool", [3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
    pool("MaxPool", [3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", [5, 5], strides=[2, 2], pads=[2, 2, 2, 2]),
    pool("MaxPool", [3, 3], strides=[2, 2], ceil_mode=1),
    pool("MaxPool", [1, 1], strides=[2, 2]),
    pool("AveragePool", [2, 2], strides=[2, 2]),
    pool("AveragePool", [3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
    pool("AveragePool", [3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", [3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    Case("MaxPool", simple("MaxPool", kernel_shape=[2], strides=[2]), "1d", (1, 8, 12)),
    Case("AveragePool", simple("AveragePool", kernel_shape=[2], strides=[2]), "1d", (1, 8, 12)),
    unary("GlobalAveragePool"),
    unary("GlobalMaxPool"),
    Case("DepthToSpace", simple("DepthToSpace", blocksize=2), "DCR", channels=2),
    Case("DepthToSpace", simple("DepthToSpace", blocksize=2, mode="CRD"), "CRD", channels=2),
    Case("SpaceToDepth", simple("SpaceToDepth", blocksize=2), channels=32),
    resized("nearest", (12, 12), "asymmetric", "floor"),
    resized("nearest", (24, 24), "half_pixel"),
    resized("nearest", (18, 18), "half_pixel"),
    resized("nearest", (9, 15), "asymmetric", "floor"),
    resized("nearest", (9, 5), "half_pixel"),
    resized("nearest", (9, 9), "align_corners"),
    resized("linear", (12, 12), "half_pixel"),
    resized("linear", (12, 9), "align_corners"),
    resized("linear", (12, 12), "asymmetric"),
    *[
        reduction(op, (2, 3), 1)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2")
    ],
    reduction("ReduceMean", (1,), 0),
    reduction("ReduceMax", (3,), 0),
    reduction("ReduceProd", (1,), 1, positive=True),
    *[Case(op, simple(op, axis=axis), f"{axis}") for op in ("Softmax", "LogSoftmax") for axis in (1, 3)],
    *[
        Case(
            op,
            lambda net, x, op=op, keep=keep: net.add(
                "Cast", "op", [net.add(op, "arg", [x], axis=1, keepdims=keep)], to=1
            ),
            f"{keep}",
        )
        for op in ("ArgMax", "ArgMin")
        for keep in (0, 1)
    ],
    normalized("LayerNormalization", (6,), axis=-1),
    normalized("LayerNormalization", (6, 6), axis=2),
    normalized("InstanceNormalization", (8,)),
    Case("LayerNormalization", group_normalized(1), "one group", channels=8),
    Case("LayerNormalization", group_normalized(2), "two groups", channels=8),
    Case("BatchNormalization", batch_normalized, channels=8),
]

EXACT_STEPS = 0.999
"""Share of values within one step of the reference: what parity asks of every segment."""


def built(case: Case, *, between: bool) -> ir.Model:
    """The operator alone, or behind a convolution and, where one can, before another."""
    net = Net(7)
    x = "x"
    if between:
        if len(case.shape) == 4:
            x = net.conv("before", x, case.shape[1], case.shape[1])
        else:
            rank = len(case.shape)
            weight = net.weight("before.w", case.shape[1], case.shape[1], *(1,) * (rank - 2))
            x = net.add("Conv", "before", [x, weight, net.weight("before.b", case.shape[1])])
        if case.positive:
            low = net.constant("floor", np.float32(0.1))
            x = net.add("Add", "above", [net.add("Relu", "positive", [x]), low])
    out = case.build(net, x)
    if between and case.channels is not None:
        weight = net.weight("behind.w", 4, case.channels, 1, 1)
        out = net.add("Conv", "behind", [out, weight, net.weight("behind.b", 4)])
    graph = helper.make_graph(
        net.nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        net.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def feeds(case: Case, count: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    arrays = [random.normal(size=case.shape).astype(np.float32) for _ in range(count)]
    return [{"x": np.abs(array) + np.float32(0.1) if case.positive else array} for array in arrays]


def names(case: Case) -> str:
    return f"{case.op}-{case.name}" if case.name else case.op


def test_every_operator_of_the_table_has_a_case():
    assert set(LOWERINGS) == {case.op for case in CASES}


@pytest.mark.parametrize("between", [False, True], ids=["alone", "between"])
@pytest.mark.parametrize("case", CASES, ids=names)
def test_float_equals_onnxruntime(case, between, tmp_path):
    graph = QuantizedGraph(built(case, between=between))
    artifact = TfliteTarget().lower(graph, tmp_path)
    for delegate in (True, False):
        for exact, found in run_both(graph, tmp_path / artifact.path, feeds(case)[0], delegate=delegate):
            assert found.shape == exact.shape
            assert np.linalg.norm(found - exact) <= case.tolerance * np.linalg.norm(exact) + 1e-12


@pytest.mark.parametrize("case", CASES, ids=names)
def test_integers_are_within_a_step_of_the_reference(case, tmp_path):
    graph = minmax_table(built(case, between=True), feeds(case), constraints=TfliteTarget.constraints)
    artifact = TfliteTarget().lower(graph, tmp_path)
    assert artifact.realised.unasked_float == ()
    off = steps_off(graph, tmp_path / artifact.path, feeds(case))
    assert off
    values = np.concatenate(list(off.values()))
    assert (values <= 1).mean() >= EXACT_STEPS, {name: int(steps.max()) for name, steps in off.items()}
    steps_off(graph, tmp_path / artifact.path, feeds(case, 1), delegate=False)  # it loads and runs without, too


@st.composite
def convolutions(draw) -> Case:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    depthwise = draw(st.booleans())
    attributes = {
        "pads": [draw(st.integers(0, 2)) for _ in range(4)],
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "group": 4 if depthwise else draw(st.sampled_from([1, 2])),
    }
    if draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(2)]
    size = (draw(st.integers(8, 11)), draw(st.integers(8, 11)))
    case = conv("drawn", 4, 4 * draw(st.integers(1, 2)), kernel, **attributes)
    return Case("Conv", case.build, "drawn", (1, 4, *size))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=convolutions())
def test_any_geometry_of_a_convolution(case, tmp_path):
    model = built(case, between=False)
    artifact = TfliteTarget().lower(QuantizedGraph(model), tmp_path)
    for exact, found in run_both(QuantizedGraph(model), tmp_path / artifact.path, feeds(case)[0], delegate=True):
        assert np.linalg.norm(found - exact) <= 1e-5 * np.linalg.norm(exact)
    graph = minmax_table(model, feeds(case))
    TfliteTarget().lower(graph, tmp_path)
    off = np.concatenate(list(steps_off(graph, tmp_path / artifact.path, feeds(case)).values()))
    assert (off <= 1).mean() >= EXACT_STEPS
