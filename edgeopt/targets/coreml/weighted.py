"""Convolutions, transposed convolutions, fully connected layers and products of two activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import present, shape
from edgeopt.targets.coreml.emit import Array, Emitter
from edgeopt.targets.refusal import uncanonical_gemm

WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = node.attributes.get_ints(name)
    return tuple(default if found is None else found)


def interleaved(pads: tuple[int, ...] | list[int]) -> list[int]:
    """ONNX lists all beginnings, then all ends; MIL lists both of each axis."""
    half = len(pads) // 2
    return [int(pads[index + side * half]) for index in range(half) for side in (0, 1)]


def weight_is_constant(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if weight is None:
        return False
    producer = weight.producer()
    return weight.const_value is not None or (producer is not None and producer.op_type == "DequantizeLinear")


def _bias(e: Emitter, node: ir.Node) -> Any:
    """The bias as numbers: integers of the table times their scale, since Core ML has no integer biases."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    array = e.known(value)
    if array is None:
        producer = value.producer()
        assert producer is not None and producer.op_type == "DequantizeLinear"
        array = dequantized(e, producer)
    return e.floats(array, f"bias {value.name}")


def dequantized(e: Emitter, node: ir.Node) -> Array:
    """What a DequantizeLinear makes of a constant, in float32 as the reference computes it."""
    integers, scale, zero_point = (e.known(value) for value in (*node.inputs, None, None)[:3])
    assert integers is not None and scale is not None
    along = [1] * integers.ndim
    if scale.ndim:
        along[node.attributes.get_int("axis", 1) % integers.ndim] = -1
    steps = integers.astype(np.int64)
    if zero_point is not None:
        steps = steps - zero_point.astype(np.int64).reshape(along if zero_point.ndim else ())
    product: Array = steps.astype(np.float32) * scale.astype(np.float32).reshape(along if scale.ndim else ())
    return product


def check_conv(node: ir.Node) -> str | None:
    if len(shape(node.inputs[0])) not in (3, 4, 5):
        return "other than 1, 2 or 3 spatial axes"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "pads that are not written out"
    return None if weight_is_constant(node) else "a weight that is computed"


def conv(e: Emitter, node: ir.Node) -> None:
    axes = len(shape(node.inputs[0])) - 2
    e.write(
        node,
        e.mb.conv(
            x=e.var(node.inputs[0]),
            weight=e.weight(node),
            bias=_bias(e, node),
            strides=list(ints(node, "strides", (1,) * axes)),
            pad_type="custom",
            pad=interleaved(ints(node, "pads", (0,) * 2 * axes)),
            dilations=list(ints(node, "dilations", (1,) * axes)),
            groups=node.attributes.get_int("group", 1),
            name=e.name(node),
        ),
    )


def conv_transpose(e: Emitter, node: ir.Node) -> None:
    """Output padding makes rows that no input reaches: zeros behind the input, and what is too much cut off."""
    sizes, outs, kernel = shape(node.inputs[0])[2:], shape(node.outputs[0])[2:], shape(node.inputs[1])[2:]
    axes = len(sizes)
    strides, dilations = ints(node, "strides", (1,) * axes), ints(node, "dilations", (1,) * axes)
    begins = ints(node, "pads", (0,) * 2 * axes)[:axes]
    extents = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    parts = list(zip(sizes, strides, extents, begins, outs, strict=True))
    more = [max(0, -(-(begin + out - extent) // stride) + 1 - size) for size, stride, extent, begin, out in parts]
    x = e.var(node.inputs[0])
    if any(more):
        behind = [0, 0, 0, 0, *(pad for count in more for pad in (0, count))]
        x = e.mb.pad(x=x, pad=behind, constant_val=e.number(0.0), name=e.temporary("padded"))
    ends = [
        (size + added - 1) * stride + extent - begin - out
        for (size, stride, extent, begin, out), added in zip(parts, more, strict=True)
    ]
    e.write(
        node,
        e.mb.conv_transpose(
            x=x,
            weight=e.weight(node),
            bias=_bias(e, node),
            strides=list(strides),
            pad_type="custom",
            pad=interleaved([*begins, *ends]),
            dilations=list(dilations),
            groups=node.attributes.get_int("group", 1),
            name=e.name(node),
        ),
    )


def check_gemm(node: ir.Node) -> str | None:
    return uncanonical_gemm(node) if weight_is_constant(node) else "a weight that is computed"


def gemm(e: Emitter, node: ir.Node) -> None:
    x = e.var(node.inputs[0])
    e.write(node, e.mb.linear(x=x, weight=e.weight(node), bias=_bias(e, node), name=e.name(node)))


def check_matmul(node: ir.Node) -> str | None:
    return None if all(len(shape(value)) >= 2 for value in node.inputs) else "a vector as operand"


def matmul(e: Emitter, node: ir.Node) -> None:
    left, right = e.var(present(node.inputs[0])), e.read(present(node.inputs[1]))
    e.write(node, e.mb.matmul(x=left, y=right, name=e.name(node)))
