"""LayerNormalization where an exporter wrote means, differences and roots."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import (
    Array,
    add_initializer,
    constant,
    insert_before,
    only_user,
    remove_unused,
    replace,
    reshape_before,
    scalar,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass


class CanonicaliseNormalization(Pass):
    """(x − mean) / √(var + ε) · γ + β over the last axes becomes LayerNormalization (Ba et al., 2016,
    arXiv:1607.06450). InstanceNormalization becomes one over H·W, with its factors per channel behind it."""

    use: Literal["canonicalise_normalization"] = "canonicalise_normalization"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for node in list(graph.model.graph):
            if node.op_type in {"Div", "Mul"}:
                _layer_norm(node)
            elif node.op_type == "InstanceNormalization":
                _instance_norm(node)
        remove_unused(graph.model.graph)
        return graph


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx") else None


def _mean_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a ReduceMean over the last axes that keeps them."""
    rank = len(shape(node.inputs[0]))
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or not node.attributes.get_int("keepdims", 1):
        return None
    found = tuple(sorted(int(axis) % rank for axis in axes))
    return found if found and found == tuple(range(found[0], rank)) else None


def _layer_norm(node: ir.Node) -> None:
    difference, root = node.inputs[0], None
    if node.op_type == "Div":
        root = _producer(node.inputs[1], "Sqrt")
    else:  # d · (1 / √…)
        for index in (0, 1):
            if (inverse := _producer(node.inputs[index], "Reciprocal")) is not None:
                difference, root = node.inputs[1 - index], _producer(inverse.inputs[0], "Sqrt")
    plus = _producer(root.inputs[0], "Add") if root is not None else None
    epsilon = scalar(plus.inputs[1]) if plus is not None else None
    variance = _producer(plus.inputs[0], "ReduceMean") if plus is not None else None
    subtract = _producer(difference, "Sub")
    mean = _producer(subtract.inputs[1], "ReduceMean") if subtract is not None else None
    if variance is None or subtract is None or mean is None or epsilon is None or epsilon <= 0:
        return
    axes, square = _mean_axes(mean), variance.inputs[0].producer() if variance.inputs[0] is not None else None
    if axes is None or _mean_axes(variance) != axes or square is None or mean.inputs[0] is not subtract.inputs[0]:
        return
    is_square = (square.op_type == "Pow" and square.inputs[0] is difference and scalar(square.inputs[1]) == 2) or (
        square.op_type == "Mul" and all(value is difference for value in square.inputs)
    )
    if is_square:
        _write(node, subtract.inputs[0], axes, epsilon)


def _write(node: ir.Node, source: ir.Value | None, axes: tuple[int, ...], epsilon: float) -> None:
    assert source is not None and isinstance(node.graph, ir.Graph)
    normal = tuple(shape(source)[axis] for axis in axes)
    last = node
    factor, last = _affine(last, "Mul", normal, np.ones(normal, np.float32))
    offset, last = _affine(last, "Add", normal, np.zeros(normal, np.float32))
    output = last.outputs[0]
    operands = [
        add_initializer(node.graph, f"{node.name}_{what}", array)
        for what, array in (("scale", factor), ("bias", offset))
    ]
    result = insert_before(
        last,
        "LayerNormalization",
        [source, *operands],
        {"axis": -len(axes), "epsilon": epsilon},
        output_shape=shape(output),
        like=output,
        name=node.name,
    )
    replace(output, result)


def _affine(node: ir.Node, op_type: str, normal: tuple[int, ...], neutral: Array) -> tuple[Array, ir.Node]:
    """The constant that the next operator multiplies with (or adds) over the normalised axes, and that operator."""
    user = only_user(node.outputs[0])
    array = constant(user.inputs[1]) if user is not None and user.op_type == op_type else None
    if user is None or array is None or shape(user.outputs[0]) != shape(node.outputs[0]):
        return neutral, node
    if array.ndim > len(normal) and any(size != 1 for size in array.shape[: array.ndim - len(normal)]):
        return neutral, node
    trimmed = array.reshape(array.shape[max(array.ndim - len(normal), 0) :])
    return np.ascontiguousarray(np.broadcast_to(trimmed, normal)), user


def _instance_norm(node: ir.Node) -> None:
    """Mean and variance per sample and channel over all further axes (Ulyanov et al., 2016, arXiv:1607.08022)."""
    source, output = node.inputs[0], node.outputs[0]
    factor, offset = constant(node.inputs[1]), constant(node.inputs[2])
    if source is None or factor is None or offset is None or not isinstance(node.graph, ir.Graph):
        return
    batch, channels, *spatial = shape(source)
    size = int(np.prod(spatial, dtype=np.int64))
    flat = reshape_before(node, source, (batch, channels, size), name=f"{node.name}_flatten")
    operands = [
        add_initializer(node.graph, f"{node.name}_{what}", array)
        for what, array in (("ones", np.ones(size, np.float32)), ("zeros", np.zeros(size, np.float32)))
    ]
    result = insert_before(
        node,
        "LayerNormalization",
        [flat, *operands],
        {"axis": -1, "epsilon": node.attributes.get_float("epsilon", 1e-5)},
        output_shape=(batch, channels, size),
        like=output,
        name=node.name,
    )
    result = reshape_before(node, result, shape(output), name=f"{node.name}_unflatten")
    for op_type, array, neutral in (("Mul", factor, 1), ("Add", offset, 0)):
        if (array != neutral).any():
            wide = add_initializer(
                node.graph, f"{node.name}_{op_type.lower()}", array.reshape(-1, *(1 for _ in spatial))
            )
            result = insert_before(node, op_type, [result, wide], output_shape=shape(output), like=output)
    replace(output, result)
