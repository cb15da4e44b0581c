"""Convolutions, transposed convolutions, fully connected layers and products of two activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.quantization import QuantParams
from edgeopt.targets.refusal import uncanonical_gemm
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import Array, constant_input, ints, shape_of
from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import NONE, RELU6, Emitter, Stored
from edgeopt.targets.tflite.parameters import bias_of, weight_of, weight_scale

SAME, VALID = 0, 1
"""The schema's Padding."""

SATURATED = 6.0
"""Where RELU6 ends: clip(x / 6 + β, 0, 1) = relu6(x + 6β) / 6."""

LARGEST_RATIO = 256.0
"""XNNPACK claims a convolution whose input scale · weight scale / output scale reaches this, and then fails to load."""


def native_weighted(e: Emitter, node: ir.Node) -> bool:
    """Whether the table has all that an integer kernel needs."""
    return (
        e.grid(node.inputs[0]) is not None
        and e.grid(e.native_result(node)) is not None
        and weight_scale(e, node) is not None
    )


def activation_of(e: Emitter, node: ir.Node) -> tuple[int, ir.Value]:
    """The fused activation and what the operator then computes, on a grid that the delegate takes."""
    activation, value = e.fused(node)
    grid, scale, out = e.grid(node.inputs[0]), weight_scale(e, node), e.grid(value)
    if grid is not None and scale is not None and out is not None:
        ratio = float((grid.scale.astype(np.float64) * scale / out.scale).max())
        e.coarsen(value, ratio, LARGEST_RATIO)
    return activation, value


# --- padding


def used_padding(size: int, out: int, extent: int, stride: int, begin: int) -> int:
    """Padding at the end that some window really reads: what ONNX names may be more, and with ceil_mode less."""
    return max(0, (out - 1) * stride + extent - size - begin)


def padding_kind(begins: tuple[int, ...], ends: tuple[int, ...], sizes: tuple[int, ...], outs: tuple[int, ...],
                 strides: tuple[int, ...]) -> int | None:  # fmt: skip
    """SAME or VALID where TFLite's rule gives exactly these pads, else None."""
    if not any(begins) and not any(ends):
        return VALID
    for begin, end, size, out, stride in zip(begins, ends, sizes, outs, strides, strict=True):
        if out != -(-size // stride) or begin != (begin + end) // 2:
            return None
    return SAME


def pad_zero(e: Emitter, index: int, begins: tuple[int, ...], ends: tuple[int, ...]) -> int:
    """PAD of the two spatial axes of an NHWC tensor, with real zero (the zero point on integers)."""
    n, h, w, c = e.shape(index)
    shape = (n, h + begins[0] + ends[0], w + begins[1] + ends[1], c)
    pads = e.constant("pads", np.asarray([(0, 0), *zip(begins, ends, strict=True), (0, 0)], np.int32))
    return e.step("PAD", (index, pads), shape, options("Pad"), like=index)


class Window:
    """Geometry of a sliding window over one or two spatial axes, as two.

    Args:
        node: Conv or pool.
        kernel: its size; one number for 1-D.
    """

    def __init__(self, node: ir.Node, kernel: tuple[int, ...]) -> None:
        rank = len(kernel)
        sizes, outs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
        pads = ints(node, "pads", (0,) * 2 * rank)
        self.flat = rank == 1
        self.kernel = _two(kernel)
        self.strides = _two(ints(node, "strides", (1,) * rank))
        self.dilations = _two(ints(node, "dilations", (1,) * rank))
        self.sizes, self.outs = _two(sizes), _two(outs)
        self.begins = _two(pads[:rank], 0)
        extents = [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        parts = zip(self.sizes, self.outs, extents, self.strides, self.begins, strict=True)
        self.ends = tuple(used_padding(*part) for part in parts)

    @property
    def kind(self) -> int | None:
        return padding_kind(self.begins, self.ends, self.sizes, self.outs, self.strides)


def _two(values: tuple[int, ...], filler: int = 1) -> tuple[int, ...]:
    return values if len(values) == 2 else (filler, *values)


def read_spatial(e: Emitter, value: ir.Value | None) -> Stored:
    """The value channels last, with a height of 1 if it has only one spatial axis."""
    stored = e.read(value, lay.channels_last(len(shape_of(value))))
    if len(stored.layout.shape) == 3:
        n, width, c = e.shape(stored.index)
        return Stored(e.reshape(stored.index, (n, 1, width, c)), stored.layout)
    return stored


def write_spatial(e: Emitter, value: ir.Value, code: str, inputs: tuple[int, ...], settings: object) -> int:
    """The operator, and behind it the removal of a height of 1 if the graph has only one spatial axis."""
    shape = shape_of(value)
    layout = lay.plain(shape, lay.channels_last(len(shape)))
    if len(shape) == 4:
        return e.write(value, code, inputs, layout, settings)
    n, width, c = lay.stored_shape(layout)
    index = e.result(value, layout)
    wide = e.temporary("wide", (n, 1, width, c), like=index)
    e.operator(code, inputs, (wide,), settings)
    e.reshape(wide, (n, width, c), out=index)
    e.written(value, index, layout)
    return index


# --- Conv


def check_conv(node: ir.Node) -> str | None:
    rank = len(shape_of(node.inputs[0])) - 2
    if rank not in (1, 2):
        return f"a convolution over {rank} axes"
    return None if constant_input(node, 1) is not None else "a weight that is computed"


def conv(e: Emitter, node: ir.Node) -> None:
    weight = constant_input(node, 1)
    assert weight is not None
    group = node.attributes.get_int("group", 1)
    x = read_spatial(e, node.inputs[0])
    window = Window(node, tuple(weight.shape[2:]))
    channels = e.shape(x.index)[3]
    depthwise = group == channels and group > 1
    source = x.index
    kind = window.kind
    if kind is None:
        source, kind = pad_zero(e, source, window.begins, window.ends), VALID
    if depthwise:
        stored = weight_of(e, node, weight, 3, lambda w: _as_2d(w).transpose(1, 2, 3, 0))
    else:
        stored = weight_of(e, node, weight, 0, lambda w: _as_2d(w).transpose(0, 2, 3, 1))
    gate = gate_behind(e, node)
    bias = bias_of(e, node, weight.shape[0], x, stored, more=0.0 if gate is None else SATURATED * _beta(gate))
    activation, value = activation_of(e, node) if gate is None else (RELU6, node.outputs[0])
    settings = {
        "padding": kind, "strideH": window.strides[0], "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
        "fusedActivationFunction": activation,
    }  # fmt: skip
    code, kind_of_options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if depthwise else ("CONV_2D", "Conv2D")
    if depthwise:
        settings["depthMultiplier"] = weight.shape[0] // channels
    if gate is None:
        write_spatial(e, value, code, (source, stored, bias), options(kind_of_options, **settings))
        return
    layout = lay.plain(shape_of(value), lay.NHWC)
    raised = e.step(code, (source, stored, bias), lay.stored_shape(layout), options(kind_of_options, **settings))
    sixth = e.constant("scalar", np.asarray([1 / SATURATED], np.float32))
    e.write(gate.outputs[0], "MUL", (raised, sixth), layout, options("Mul"))
    e.done.add(gate)


def gate_behind(e: Emitter, node: ir.Node) -> ir.Node | None:
    """A HardSigmoid of slope 1/6 that alone reads a float convolution: its sum goes into the bias, its clip is free."""
    value = node.outputs[0]
    uses = tuple(value.uses())
    if e.scheme == "int8" or len(uses) != 1 or value.is_graph_output() or len(shape_of(value)) != 4:
        return None
    gate = uses[0].node
    if gate.op_type != "HardSigmoid" or e.table.scheme(gate) == "int8":
        return None
    return gate if abs(SATURATED * gate.attributes.get_float("alpha", 0.2) - 1) < 1e-6 else None


def _beta(gate: ir.Node) -> float:
    return gate.attributes.get_float("beta", 0.5)


def _as_2d(weight: Array) -> Array:
    return weight if weight.ndim == 4 else weight[:, :, None, :]


# --- ConvTranspose


def check_conv_transpose(node: ir.Node) -> str | None:
    if len(shape_of(node.inputs[0])) not in (3, 4):
        return "a transposed convolution over other than 1 or 2 axes"
    return None if constant_input(node, 1) is not None else "a weight that is computed"


def conv_transpose(e: Emitter, node: ir.Node) -> None:
    """TRANSPOSE_CONV. Pads that TFLite cannot say are cut off behind; groups become zeros in a dense weight."""
    weight = constant_input(node, 1)
    assert weight is not None
    group = node.attributes.get_int("group", 1)
    rank = weight.ndim - 2
    x = read_spatial(e, node.inputs[0])
    strides = _two(ints(node, "strides", (1,) * rank))
    dilations = _two(ints(node, "dilations", (1,) * rank))
    begins = _two(ints(node, "pads", (0,) * 2 * rank)[:rank], 0)
    outs = _two(shape_of(node.outputs[0])[2:])
    sizes = e.shape(x.index)[1:3]

    def permute(w: Array) -> Array:
        w = _dense(w if w.ndim == 4 else w[:, :, None, :], group)
        return _dilated(w, dilations).transpose(1, 2, 3, 0)

    stored = weight_of(e, node, weight, 0, permute)
    channels, *kernel = e.shape(stored)[:3]
    bias = bias_of(e, node, channels, x, stored)
    activation, value = activation_of(e, node) if e.native else (NONE, node.outputs[0])
    ends = tuple(
        max(0, (size - 1) * stride + k - out - begin)
        for size, stride, k, out, begin in zip(sizes, strides, kernel, outs, begins, strict=True)
    )
    settings = {"strideH": strides[0], "strideW": strides[1], "fusedActivationFunction": activation}
    kind = padding_kind(begins, ends, outs, tuple(sizes), strides)
    if kind is not None:
        shape = e.constant("shape", np.asarray((e.shape(x.index)[0], *outs, channels), np.int32))
        write_spatial(
            e,
            value,
            "TRANSPOSE_CONV",
            (shape, stored, x.index, bias),
            options("TransposeConv", padding=kind, **settings),
        )
        return
    whole = (
        e.shape(x.index)[0],
        *(max((s - 1) * stride + k, begin + out) for s, stride, k, begin, out in
          zip(sizes, strides, kernel, begins, outs, strict=True)),
        channels,
    )  # fmt: skip
    shape = e.constant("shape", np.asarray(whole, np.int32))
    grid = e.result_grid(value)
    uncut = e.tensor(f"{node.name}/uncut", whole, "float32" if grid is None else "int8", grid=grid)
    e.operator(
        "TRANSPOSE_CONV", (shape, stored, x.index, bias), (uncut,), options("TransposeConv", padding=VALID, **settings)
    )
    begin = e.constant("begin", np.asarray((0, *begins, 0), np.int32))
    size = e.constant("size", np.asarray((whole[0], *outs, channels), np.int32))
    write_spatial(e, value, "SLICE", (uncut, begin, size), options("Slice"))


def _dense(weight: Array, group: int) -> Array:
    """(I, O/g, H, W) of a grouped transposed convolution as (I, O, H, W) with zeros between groups."""
    if group == 1:
        return weight
    inputs, outputs = weight.shape[0] // group, weight.shape[1]
    dense = np.zeros((weight.shape[0], outputs * group, *weight.shape[2:]), weight.dtype)
    for g in range(group):
        dense[g * inputs : (g + 1) * inputs, g * outputs : (g + 1) * outputs] = weight[g * inputs : (g + 1) * inputs]
    return dense


def _dilated(weight: Array, dilations: tuple[int, ...]) -> Array:
    """The kernel with its gaps written out as zeros."""
    if dilations == (1, 1):
        return weight
    kernel = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    dilated = np.zeros((*weight.shape[:2], *kernel), weight.dtype)
    dilated[:, :, :: dilations[0], :: dilations[1]] = weight
    return dilated


# --- Gemm


def check_gemm(node: ir.Node) -> str | None:
    return uncanonical_gemm(node) if constant_input(node, 1) is not None else "a weight that is computed"


def gemm(e: Emitter, node: ir.Node) -> None:
    weight = constant_input(node, 1)
    assert weight is not None
    x, columns = read_columns(e, node.inputs[0])
    stored = weight_of(e, node, weight, 0, lambda w: w if columns is None else w[:, columns])
    bias = bias_of(e, node, weight.shape[0], x, stored)
    activation, value = activation_of(e, node)
    settings = options("FullyConnected", fusedActivationFunction=activation)
    e.write(value, "FULLY_CONNECTED", (x.index, stored, bias), lay.plain(shape_of(value)), settings)


def read_columns(e: Emitter, value: ir.Value | None) -> tuple[Stored, Array | None]:
    """Rank-2 input as it lies, with the order of its columns if they are those of a flattened image, channels last."""
    assert value is not None
    known = e.integers.get(value) if e.native else e.floats.get(value) or e.integers.get(value)
    layout = known.layout if known is not None else None
    if layout is None or lay.is_plain(layout) or layout.perm[0] != 0:
        return e.read(value, lay.identity(2)), None
    x = e.read_as_it_lies(value)
    inner = layout.view[1:]
    order = np.arange(int(np.prod(inner))).reshape(inner).transpose([axis - 1 for axis in layout.perm[1:]])
    return x, order.reshape(-1)


# --- MatMul of two activations


def native_matmul(e: Emitter, node: ir.Node) -> bool:
    """The delegate takes integers only with zero point 0 on the second input."""
    grids = [e.grid(value) for value in (*node.inputs, node.outputs[0])]
    return all(grid is not None for grid in grids) and isinstance(grids[1], QuantParams) and not grids[1].zero_point


def check_matmul(node: ir.Node) -> str | None:
    return None if all(len(shape_of(value)) >= 2 for value in node.inputs) else "a vector as operand"


def matmul(e: Emitter, node: ir.Node) -> None:
    rank = len(shape_of(node.outputs[0]))
    left, swapped_left = _operand(e, node.inputs[0], rank)
    right, swapped_right = _operand(e, node.inputs[1], rank)
    settings = options("BatchMatMul", adjX=swapped_left, adjY=swapped_right)
    e.write(node.outputs[0], "BATCH_MATMUL", (left, right), lay.plain(shape_of(node.outputs[0])), settings)


def _operand(e: Emitter, value: ir.Value | None, rank: int) -> tuple[int, bool]:
    own = len(shape_of(value))
    straight = lay.identity(own)
    swapped = (*straight[:-2], own - 1, own - 2)
    stored = e.read(value)
    is_swapped = stored.perm == swapped and not lay.moves_nothing(stored.layout.shape, swapped, straight)
    if not is_swapped:
        stored = e.moved(stored, straight)
    shape = e.shape(stored.index)
    return e.reshape(stored.index, (*(1,) * (rank - own), *shape)), is_swapped
