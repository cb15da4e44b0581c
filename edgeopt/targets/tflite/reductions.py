"""Operators that compute one value from many: means, pools by average, softmax, normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.formats.tflite import Layout
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import Array, axes_of, constant_input, ints, shape_of
from edgeopt.targets.tflite.draft import one_grid, options
from edgeopt.targets.tflite.emit import Emitter, Stored
from edgeopt.targets.tflite.weighted import VALID, Window, pad_zero, read_spatial, write_spatial

MEAN_RATIO = (2.0**-8, 2.0**7)
"""Input scale / output scale that an integer mean is written for."""

Lower = Callable[[Emitter, ir.Node], None]


# --- means and other reductions


def native_mean(e: Emitter, node: ir.Node) -> bool:
    grid, out = e.grid(node.inputs[0]), e.grid(node.outputs[0])
    return grid is not None and out is not None and MEAN_RATIO[0] <= float(grid.scale / out.scale) <= MEAN_RATIO[1]


def global_pool(code: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        x = e.read(node.inputs[0])
        rank = len(x.perm)
        _reduce(e, node.outputs[0], code, x, tuple(range(2, rank)), keep=True)

    return lower


def reduce(code: str, *, before: str | None = None, behind: str | None = None) -> Lower:
    """A reduction; ``before`` and ``behind`` are unary operators on what goes in and comes out."""

    def lower(e: Emitter, node: ir.Node) -> None:
        x = e.read(node.inputs[0])
        axes = axes_of(node, len(x.perm))
        keep = bool(node.attributes.get_int("keepdims", 1))
        if before is not None:
            x = Stored(e.step(before, (x.index,), e.shape(x.index)), x.layout)
        if behind is None:
            _reduce(e, node.outputs[0], code, x, axes, keep=keep)
            return
        layout, shape, indices = _reduced(e, node.outputs[0], x, axes, keep)
        summed = e.step(code, (x.index, indices), shape, options("Reducer", keepDims=keep))
        e.write(node.outputs[0], behind, (summed,), layout)

    return lower


def check_reduce(node: ir.Node) -> str | None:
    if node.attributes.get_int("noop_with_empty_axes", 0) and len(axes_of(node, 99)) == 99:
        return "a reduction over nothing"
    if len(node.inputs) > 1 and node.inputs[1] is not None and constant_input(node, 1) is None:
        return "axes that are computed"
    return None


def _reduced(
    e: Emitter, out: ir.Value, x: Stored, axes: Sequence[int], keep: bool
) -> tuple[Layout, tuple[int, ...], int]:
    """Layout and file shape of the result, and the axes as a constant, in the file's order."""
    left = [axis for axis in range(len(x.perm)) if axis not in axes]
    perm = x.perm if keep else tuple(left.index(axis) for axis in x.perm if axis in left)
    layout = lay.plain(shape_of(out), perm)
    indices = e.constant("axes", np.asarray(sorted(x.perm.index(axis) for axis in axes), np.int32))
    return layout, lay.stored_shape(layout), indices


def _reduce(e: Emitter, out: ir.Value, code: str, x: Stored, axes: Sequence[int], *, keep: bool) -> None:
    layout, shape, indices = _reduced(e, out, x, axes, keep)
    e.write(out, code, (x.index, indices), layout, options("Reducer", keepDims=keep), shape=shape)


# --- AveragePool


def check_average_pool(node: ir.Node) -> str | None:
    if len(ints(node, "kernel_shape")) not in (1, 2):
        return "a pool over other than 1 or 2 axes"
    if any(dilation != 1 for dilation in ints(node, "dilations")):
        return "a dilated pool"
    window = Window(node, ints(node, "kernel_shape"))
    given = ints(node, "pads", (0,) * 4)
    beyond = any(
        used > pad for used, pad in zip(window.ends[-len(given) // 2 :], given[len(given) // 2 :], strict=False)
    )
    if node.attributes.get_int("ceil_mode", 0) and beyond and node.attributes.get_int("count_include_pad", 0):
        return "ceil_mode with windows beyond the padding that counts"
    return None


def _counts_padding(node: ir.Node, window: Window) -> bool:
    padded = any(window.begins) or any(window.ends)
    return not padded or bool(node.attributes.get_int("count_include_pad", 0))


def native_average_pool(e: Emitter, node: ir.Node) -> bool:
    window = Window(node, ints(node, "kernel_shape"))
    return native_mean(e, node) and _counts_padding(node, window)


def average_pool(e: Emitter, node: ir.Node) -> None:
    """AVERAGE_POOL_2D; on integers, which the delegate does not take, a depthwise convolution with ones."""
    value, out = node.inputs[0], node.outputs[0]
    window = Window(node, ints(node, "kernel_shape"))
    x = read_spatial(e, value)
    index, kind = x.index, window.kind
    counted = _counts_padding(node, window)
    if counted and kind != VALID:
        index, kind = pad_zero(e, index, window.begins, window.ends), VALID
    strides = {"strideH": window.strides[0], "strideW": window.strides[1]}
    if e.native:
        grid = e.grid(value)
        assert grid is not None
        channels = e.shape(index)[3]
        share = np.asarray(1 / (window.kernel[0] * window.kernel[1]), np.float32)
        ones = np.ones((1, *window.kernel, channels), np.int8)
        weight = e.tensor("ones", ones.shape, "int8", data=ones, grid=one_grid(share))
        zeros = one_grid(grid.scale * share)
        bias = e.tensor("zeros", (channels,), "int32", data=np.zeros(channels, np.int32), grid=zeros)
        settings = options("DepthwiseConv2D", padding=VALID, depthMultiplier=1, **strides)
        write_spatial(e, out, "DEPTHWISE_CONV_2D", (index, weight, bias), settings)
        return
    share_map = None
    if kind is None:
        # Zeros are padded and counted, and each window's sum is then divided by the number that should count.
        share_map = _corrections(window)
        index, kind = pad_zero(e, index, window.begins, window.ends), VALID
    settings = options("Pool2D", padding=kind, filterHeight=window.kernel[0], filterWidth=window.kernel[1], **strides)
    if share_map is None:
        write_spatial(e, out, "AVERAGE_POOL_2D", (index,), settings)
        return
    n, _, _, c = e.shape(index)
    pooled = e.step("AVERAGE_POOL_2D", (index,), (n, *window.outs, c), settings)
    write_spatial(e, out, "MUL", (pooled, e.constant("shares", share_map)), options("Mul"))


def _corrections(window: Window) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(H, W, 1): values in the window, padding too, over values that are none."""
    counts = []
    for axis in range(2):
        starts = np.arange(window.outs[axis]) * window.strides[axis] - window.begins[axis]
        inside = np.minimum(starts + window.kernel[axis], window.sizes[axis]) - np.maximum(starts, 0)
        counts.append(window.kernel[axis] / inside)
    return np.asarray(counts[0][:, None, None] * counts[1][None, :, None], np.float32)


# --- softmax and indices of the largest


def softmax(e: Emitter, node: ir.Node) -> None:
    """SOFTMAX over the file's last axis; over another in parts, which do not ask for a TRANSPOSE there and back."""
    x = e.read(node.inputs[0])
    axis = x.perm.index(node.attributes.get_int("axis", -1) % len(x.perm))
    layout = lay.plain(x.layout.shape, x.perm)
    if axis == len(x.perm) - 1:
        e.write(node.outputs[0], "SOFTMAX", (x.index,), layout, options("Softmax", beta=1.0))
        return
    _, powers, summed = _softmax_parts(e, x, axis)
    e.write(node.outputs[0], "DIV", (powers, summed), layout, options("Div"))


def log_softmax(e: Emitter, node: ir.Node) -> None:
    """(x − max) − log(sum(exp(x − max))) in operators that the delegate takes; LOG_SOFTMAX it does not."""
    x = e.read(node.inputs[0])
    axis = x.perm.index(node.attributes.get_int("axis", -1) % len(x.perm))
    below, _, summed = _softmax_parts(e, x, axis)
    layout = lay.plain(x.layout.shape, x.perm)
    e.write(node.outputs[0], "SUB", (below, e.step("LOG", (summed,), e.shape(summed))), layout, options("Sub"))


def _softmax_parts(e: Emitter, x: Stored, axis: int) -> tuple[int, int, int]:
    """x − max, exp(x − max) and its sum over ``axis`` (of the file)."""
    shape = e.shape(x.index)
    short = (*shape[:axis], 1, *shape[axis + 1 :])
    where = e.constant("axes", np.asarray([axis], np.int32))
    keep = options("Reducer", keepDims=True)
    below = e.step("SUB", (x.index, e.step("REDUCE_MAX", (x.index, where), short, keep)), shape, options("Sub"))
    powers = e.step("EXP", (below,), shape, options("Exp"))
    return below, powers, e.step("SUM", (powers, where), short, keep)


def arg(code: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        from ai_edge_litert import schema_py_generated as schema

        value, out = node.inputs[0], node.outputs[0]
        x = e.read(value)
        rank = len(x.perm)
        axis = node.attributes.get_int("axis", 0) % rank
        where = e.constant("axis", np.asarray(x.perm.index(axis), np.int32))
        settings = options("ArgMax" if code == "ARG_MAX" else "ArgMin", outputType=schema.TensorType.INT64)
        left = [a for a in range(rank) if a != axis]
        perm = tuple(left.index(a) for a in x.perm if a != axis)
        reduced = lay.plain([shape_of(value)[a] for a in left], perm)
        if not node.attributes.get_int("keepdims", 1):
            e.write(out, code, (x.index, where), reduced, settings)
            return
        layout = lay.plain(shape_of(out), x.perm)
        index = e.result(out, layout)
        flat = e.tensor(f"{node.name}/flat", lay.stored_shape(reduced), "int64")
        e.operator(code, (x.index, where), (flat,), settings)
        e.reshape(flat, lay.stored_shape(layout), out=index)

    return lower


# --- normalisations


def layer_normalization(e: Emitter, node: ir.Node) -> None:
    """(x − mean) · rsqrt(mean((x − mean)²) + ε) · scale + bias, all of which the delegate takes in float.

    A flattened image (a GroupNorm, as exporters write it) is read as it lies: the mean does not ask for an order.
    """
    value = node.inputs[0]
    assert value is not None
    shape = shape_of(value)
    first = node.attributes.get_int("axis", -1) % len(shape)
    x = e.read_as_it_lies(value)
    view = x.layout.view
    lead = next((k for k in range(len(view)) if np.prod(view[:k]) == np.prod(shape[:first])), None)
    if lead is None:
        x, view, lead = e.moved(x, None), shape, first
    scales = []
    for position in (1, 2):
        array = constant_input(node, position)
        scales.append(None if array is None else array.reshape(*(1,) * lead, *view[lead:]))
    stored = Stored(e.reshape(x.index, [view[axis] for axis in x.perm]), x.layout)
    _normalize(e, node, stored, tuple(range(lead, len(view))), scales)


def instance_normalization(e: Emitter, node: ir.Node) -> None:
    """The same over each image's pixels; scale and bias per channel."""
    rank = len(shape_of(node.inputs[0]))
    scales = []
    for position in (1, 2):
        array = constant_input(node, position)
        scales.append(None if array is None else array.reshape(1, -1, *(1,) * (rank - 2)))
    _normalize(e, node, e.read(node.inputs[0]), tuple(range(2, rank)), scales)


def _normalize(e: Emitter, node: ir.Node, x: Stored, axes: tuple[int, ...], scales: Sequence[Array | None]) -> None:
    """``axes`` and the shapes of scale and bias are those of the layout's view."""
    shape, perm = e.shape(x.index), x.perm
    short = tuple(1 if axis in axes else size for axis, size in zip(perm, shape, strict=True))
    where = e.constant("axes", np.asarray(sorted(perm.index(axis) for axis in axes), np.int32))
    keep = options("Reducer", keepDims=True)
    epsilon = e.constant("epsilon", np.asarray([node.attributes.get_float("epsilon", 1e-5)], np.float32))
    mean = e.step("MEAN", (x.index, where), short, keep)
    centred = e.step("SUB", (x.index, mean), shape, options("Sub"))
    squared = e.step("MUL", (centred, centred), shape, options("Mul"))
    variance = e.step("MEAN", (squared, where), short, keep)
    deviation = e.step("RSQRT", (e.step("ADD", (variance, epsilon), short, options("Add")),), short)
    steps: list[tuple[str, int, str]] = [("MUL", deviation, "Mul")]
    for array, code, kind, neutral in zip(scales, ("MUL", "ADD"), ("Mul", "Add"), (1.0, 0.0), strict=True):
        if array is not None and (array != neutral).any():
            steps.append((code, e.constant(f"{node.name}/{code.lower()}", _narrowed(array.transpose(perm))), kind))
    index = centred
    for code, other, kind in steps[:-1]:
        index = e.step(code, (index, other), shape, options(kind))
    code, other, kind = steps[-1]
    e.write(node.outputs[0], code, (index, other), x.layout, options(kind), shape=shape)


def _narrowed(array: Array) -> Array:
    """The least array that broadcasts to the same: axes of equal values shortened, leading ones dropped."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return np.ascontiguousarray(array)


def lp_normalization(e: Emitter, node: ir.Node) -> None:
    """x over its norm along one axis."""
    x = e.read(node.inputs[0])
    shape = e.shape(x.index)
    at = x.perm.index(node.attributes.get_int("axis", -1) % len(shape))
    short = (*shape[:at], 1, *shape[at + 1 :])
    where = e.constant("axes", np.asarray([at], np.int32))
    keep = options("Reducer", keepDims=True)
    squared = node.attributes.get_int("p", 2) == 2
    powers = e.step("SQUARE" if squared else "ABS", (x.index,), shape)
    norm = e.step("SUM", (powers, where), short, keep)
    norm = e.step("SQRT", (norm,), short) if squared else norm
    e.write(node.outputs[0], "DIV", (x.index, norm), lay.plain(x.layout.shape, x.perm), options("Div"))


def check_lp_normalization(node: ir.Node) -> str | None:
    return None if node.attributes.get_int("p", 2) in (1, 2) else "a norm other than L1 and L2"


def local_response_normalization(e: Emitter, node: ir.Node) -> None:
    """Across channels; TFLite's α is ONNX's over the number of channels in the window."""
    value = node.inputs[0]
    size = node.attributes.get_int("size", 1)
    x = e.read(value, lay.channels_last(len(shape_of(value))))
    settings = options(
        "LocalResponseNormalization", radius=size // 2, bias=node.attributes.get_float("bias", 1.0),
        alpha=node.attributes.get_float("alpha", 1e-4) / size, beta=node.attributes.get_float("beta", 0.75),
    )  # fmt: skip
    e.write(node.outputs[0], "LOCAL_RESPONSE_NORMALIZATION", (x.index,), x.layout, settings)


def check_local_response(node: ir.Node) -> str | None:
    return None if node.attributes.get_int("size", 1) % 2 and len(shape_of(node.inputs[0])) == 4 else "an even window"


def check_normalization(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and any(output.uses() for output in node.outputs[1:]):
        return "the mean or deviation as outputs"
    if constant_input(node, 1) is None:
        return "a scale that is computed"
    return None


def batch_normalization(e: Emitter, node: ir.Node) -> None:
    """One product and one sum per channel; a canonical graph has it only where no convolution could take it."""
    x = e.read(node.inputs[0], lay.channels_last(len(shape_of(node.inputs[0]))))
    scale, bias, mean, variance = (constant_input(node, index) for index in (1, 2, 3, 4))
    assert scale is not None and bias is not None and mean is not None and variance is not None
    factor = scale / np.sqrt(variance.astype(np.float64) + node.attributes.get_float("epsilon", 1e-5))
    offset = bias - mean * factor
    product = e.constant(f"{node.name}/factor", factor.astype(np.float32))
    index = e.step("MUL", (x.index, product), e.shape(x.index), options("Mul"))
    added = e.constant(f"{node.name}/offset", offset.astype(np.float32))
    e.write(node.outputs[0], "ADD", (index, added), lay.plain(x.layout.shape, x.perm), options("Add"))
