"""Operators on pixels: pooling by maximum, blocks of pixels into channels and back, resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.formats.tflite import Layout
from edgeopt.graph.quantization import INT8_MIN
from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import Array, clip_bounds, constant, constant_input, ints, shape_of
from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import Emitter, Stored
from edgeopt.targets.tflite.joining import concatenated, lines_around
from edgeopt.targets.tflite.movement import write_every_pixel, write_reshape
from edgeopt.targets.tflite.weighted import VALID, Window, pad_zero, read_spatial, write_spatial

# --- MaxPool


def check_max_pool(node: ir.Node) -> str | None:
    if len(node.outputs) > 1:
        return "the indices of the maxima"
    if len(ints(node, "kernel_shape")) not in (1, 2):
        return "a pool over other than 1 or 2 axes"
    if any(dilation != 1 for dilation in ints(node, "dilations")):
        return "a dilated pool"
    return None


def max_pool(e: Emitter, node: ir.Node) -> None:
    """MAX_POOL_2D. Pads that are no SAME: zero where no value is below it, else copies of the border's own values."""
    value = node.inputs[0]
    assert value is not None
    window = Window(node, ints(node, "kernel_shape"))
    x = read_spatial(e, value)
    index, kind = x.index, window.kind
    if window.kernel == (1, 1) and not window.flat and kind == VALID:
        write_every_pixel(e, node.outputs[0], x, (0, 0, 0, 0), (window.strides[0], window.strides[1]))
        return
    if kind is None:
        kind = VALID
        if _is_never_negative(e, value):
            index = pad_zero(e, index, window.begins, window.ends)
        else:
            index = _with_border(e, index, window.begins, window.ends)
    settings = options(
        "Pool2D", padding=kind, strideH=window.strides[0], strideW=window.strides[1],
        filterHeight=window.kernel[0], filterWidth=window.kernel[1],
    )  # fmt: skip
    write_spatial(e, node.outputs[0], "MAX_POOL_2D", (index,), settings)


def _is_never_negative(e: Emitter, value: ir.Value) -> bool:
    """Whether real zero is the least that the tensor at hand can hold."""
    grid = e.grid(value)
    if e.native and grid is not None:
        return int(grid.zero_point) == INT8_MIN
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax"):
        return True
    if producer.op_type == "Clip":
        return clip_bounds(producer)[0] >= 0
    passes = producer.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Transpose")
    moving = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
    return passes and all(i is not None and constant(i) is None and _is_never_negative(e, i) for i in moving)


def _with_border(e: Emitter, index: int, begins: tuple[int, ...], ends: tuple[int, ...]) -> int:
    """Rows and columns repeated at the border: every window that reads a copy reads its original as well."""
    for axis, begin, end in zip((1, 2), begins, ends, strict=True):
        size = e.shape(index)[axis]
        index = lines_around(e, index, axis, [0] * begin, [size - 1] * end)
    return index


# --- pixels and channels


def check_blocks(node: ir.Node) -> str | None:
    return None if len(shape_of(node.inputs[0])) == 4 else "a rank other than 4"


def depth_to_space(e: Emitter, node: ir.Node) -> None:
    value, out = node.inputs[0], node.outputs[0]
    block = node.attributes.get_int("blocksize", 1)
    x = e.read(value, lay.NHWC)
    layout = lay.plain(shape_of(out), lay.NHWC)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        e.write(out, "DEPTH_TO_SPACE", (x.index,), layout, options("DepthToSpace", blockSize=block))
        return
    n, h, w, c = e.shape(x.index)
    apart = e.reshape(x.index, (n, h, w, c // block**2, block, block))
    index = e.transpose(apart, (0, 1, 4, 2, 5, 3))
    write_reshape(e, out, index, layout, lay.stored_shape(layout))


def space_to_depth(e: Emitter, node: ir.Node) -> None:
    x = e.read(node.inputs[0], lay.NHWC)
    layout = lay.plain(shape_of(node.outputs[0]), lay.NHWC)
    block = node.attributes.get_int("blocksize", 1)
    e.write(node.outputs[0], "SPACE_TO_DEPTH", (x.index,), layout, options("SpaceToDepth", blockSize=block))


def check_resize(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "nearest")
    if len(shape_of(node.inputs[0])) != 4 or shape_of(node.inputs[0])[:2] != shape_of(node.outputs[0])[:2]:
        return "resizing of other than height and width"
    if mode not in ("nearest", "linear"):
        return f"mode {mode}"
    if mode == "linear" and _coordinates(node) not in (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
    ):
        return f"coordinates {_coordinates(node)}"
    if mode == "nearest" and _coordinates(node) == "tf_crop_and_resize":
        return f"coordinates {_coordinates(node)}"
    if node.attributes.get_int("antialias", 0):
        return "antialiasing"
    return None


def _coordinates(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def resize(e: Emitter, node: ir.Node) -> None:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    layout = lay.plain(shape_of(out), lay.NHWC)
    x = e.read(value, lay.NHWC)
    sizes, outs = shape_of(value)[2:], shape_of(out)[2:]
    if sizes == outs:
        e.alias(out, Stored(x.index, layout))
        return
    target = np.asarray(outs, np.int32)
    if node.attributes.get_string("mode", "nearest") == "linear":
        kind = _coordinates(node)
        settings = options(
            "ResizeBilinear", alignCorners=kind == "align_corners", halfPixelCenters="half_pixel" in kind
        )
        e.write(out, "RESIZE_BILINEAR", (x.index, e.constant("size", target)), layout, settings)
        return
    maps = [_nearest(node, axis, size, end) for axis, size, end in zip((2, 3), sizes, outs, strict=True)]
    factor = outs[0] // sizes[0]
    repeats = all(np.array_equal(m, np.arange(end) // factor) for m, end in zip(maps, outs, strict=True))
    primes = _small_primes(factor)
    if repeats and primes:
        _write_enlarged(e, out, x.index, layout, primes)
        return
    for half in (False, True):
        if all(
            np.array_equal(m, _tflite_nearest(size, end, half)) for m, size, end in zip(maps, sizes, outs, strict=True)
        ):
            settings = options("ResizeNearestNeighbor", alignCorners=False, halfPixelCenters=half)
            e.write(out, "RESIZE_NEAREST_NEIGHBOR", (x.index, e.constant("size", target)), layout, settings)
            return
    n, _, w, c = e.shape(x.index)
    rows, columns = (e.constant("indices", m.astype(np.int32)) for m in maps)
    index = e.step("GATHER", (x.index, rows), (n, outs[0], w, c), options("Gather", axis=1), like=x.index)
    e.write(out, "GATHER", (index, columns), layout, options("Gather", axis=2))


def _small_primes(factor: int) -> list[int]:
    """The factor as a product of 2, 3 and 5, or nothing: beyond, the copies cost more than leaving the delegate."""
    primes = []
    for prime in (2, 3, 5):
        while factor % prime == 0:
            factor //= prime
            primes.append(prime)
    return primes if factor == 1 else []


def _write_enlarged(e: Emitter, out: ir.Value, index: int, layout: Layout, factors: Sequence[int]) -> None:
    """Nearest ×k as k² copies and DEPTH_TO_SPACE: exact, and unlike RESIZE_NEAREST_NEIGHBOR delegated."""
    for position, factor in enumerate(factors):
        n, h, w, c = e.shape(index)
        copies = concatenated(e, [index] * factor**2, 3)
        settings = options("DepthToSpace", blockSize=factor)
        if position == len(factors) - 1:
            e.write(out, "DEPTH_TO_SPACE", (copies,), layout, settings)
        else:
            index = e.step("DEPTH_TO_SPACE", (copies,), (n, factor * h, factor * w, c), settings, like=index)


def _nearest(node: ir.Node, axis: int, size: int, out: int) -> Array:
    """Which source line each output line copies (onnx/defs/tensor: Resize)."""
    scales = constant_input(node, 2)
    scale = float(scales[axis]) if scales is not None and scales.size else out / size
    i = np.arange(out, dtype=np.float64)
    kind = _coordinates(node)
    if kind == "asymmetric":
        at = i / scale
    elif kind == "align_corners":
        at = i * (size - 1) / (out - 1) if out > 1 else i * 0
    elif kind == "pytorch_half_pixel" and out == 1:
        at = i * 0 - 0.5
    else:
        at = (i + 0.5) / scale - 0.5
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    lines = {
        "floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }[rounding]  # fmt: skip
    return np.clip(lines, 0, size - 1).astype(np.int64)


def _tflite_nearest(size: int, out: int, half: bool) -> Array:
    """Which line RESIZE_NEAREST_NEIGHBOR copies (tflite/kernels/internal/reference/resize_nearest_neighbor.h)."""
    scale = np.float32(size) / np.float32(out)
    i = np.arange(out, dtype=np.float32)
    lines = np.floor((i + np.float32(0.5 if half else 0)) * scale)
    copied: Array = np.clip(lines, 0, size - 1).astype(np.int64)
    return copied
