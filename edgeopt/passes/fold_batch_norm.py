"""BatchNormalization and per-channel constants go into the weights before them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.model import (
    Array,
    add_initializer,
    constant,
    graph_of,
    insert_before,
    only_user,
    place,
    remove_unused,
    replace,
    set_constant,
    shape,
)
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass


class FoldBatchNorm(Pass):
    """BatchNormalization, and Mul, Div, Add and Sub by per-channel constants, directly behind Conv, ConvTranspose or
    Gemm are folded into its weight and bias (in float64).

    A BatchNormalization that stands alone becomes a depthwise 1×1 Conv, which every target runs in int8 with a scale
    per channel; on (N, C) it becomes Mul and Add.
    """

    use: Literal["fold_batch_norm"] = "fold_batch_norm"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for node in list(graph.model.graph):
            if node.op_type in WEIGHTED and node.domain in ("", "ai.onnx"):
                while _fold_user(node):
                    pass
        for node in list(graph.model.graph):
            if node.op_type == "BatchNormalization":
                _alone(node)
        remove_unused(graph.model.graph)
        return graph


def _fold_user(node: ir.Node) -> bool:
    output = node.outputs[0]
    user = only_user(output)
    if user is None or constant(node.inputs[1]) is None or constant(node.inputs[2]) is None:
        return False
    change = _affine(user, output)
    if change is None:
        return False
    factor, offset = change
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2])
    assert weight is not None and bias is not None
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        if factor is not None:
            scaled = _scale_outputs(node, weight.astype(np.float64), factor)
            set_constant(node, 1, scaled.astype(np.float32), "weight")
        new_bias = bias.astype(np.float64) * (1.0 if factor is None else factor) + offset
        set_constant(node, 2, new_bias.astype(np.float32), f"{node.name}_bias")
    for value in (constant(node.inputs[1]), constant(node.inputs[2])):
        if value is None or not np.isfinite(value).all():
            raise ModelError(
                f"folding {user.op_type} {user.name!r} into the weights gives NaN or Inf",
                where=place(node),
                hint="A variance below zero, a division by zero or an overflow: look at its parameters in the source.",
            )
    folded = user.outputs[0]
    name = folded.name
    replace(folded, output)
    if not output.is_graph_output():  # the folded value's name is the one that the source's reader knows
        folded.name = f"{name}_folded"
        output.name = name
    graph = graph_of(node)
    graph.remove(user, safe=True)
    return True


def _scale_outputs(node: ir.Node, weight: Array, factor: Array) -> Array:
    if node.op_type != "ConvTranspose":
        return weight * factor.reshape(-1, *(1 for _ in weight.shape[1:]))
    group = node.attributes.get_int("group", 1)  # weight (C_in, C_out / group, …)
    inputs, outputs, *kernel = weight.shape
    grouped = weight.reshape(group, inputs // group, outputs, *kernel)
    scaled: Array = grouped * factor.reshape(group, 1, outputs, *(1 for _ in kernel))
    return scaled.reshape(weight.shape)


def _batch_norm(node: ir.Node) -> tuple[Array, Array] | None:
    """Factor and offset per channel, float64."""
    arrays = [constant(value) for value in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0) or any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(all="ignore"):  # the caller checks the result and names the node
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return factor, beta - mean * factor


def _affine(user: ir.Node, value: ir.Value) -> tuple[Array | None, Array] | None:
    """(factor or None for 1, offset) per channel if the operator is y · factor + offset."""
    channels = shape(value)[1]
    zero = np.zeros(channels)
    if user.op_type == "BatchNormalization":
        return _batch_norm(user)
    if user.op_type not in {"Mul", "Div", "Add", "Sub"} or shape(user.outputs[0]) != shape(value):
        return None
    is_first = user.inputs[0] is value
    array = _per_channel(user.inputs[1] if is_first else user.inputs[0], value)
    if array is None:
        return None
    match user.op_type:
        case "Mul":
            return array, zero
        case "Add":
            return None, array
        case "Sub":
            return (None, -array) if is_first else (-np.ones(channels), array)
        case "Div" if is_first and array.all():
            return 1 / array, zero
    return None


def _per_channel(operand: ir.Value | None, value: ir.Value) -> Array | None:
    array = constant(operand)
    sizes = shape(value)
    if array is None or array.ndim > len(sizes):
        return None
    full = array.reshape((1,) * (len(sizes) - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(full.shape) if axis != 1):
        return None
    return np.broadcast_to(full.reshape(-1), (sizes[1],)).astype(np.float64)


def _alone(node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    change = _batch_norm(node)
    graph = node.graph
    if change is None or source is None:
        return
    assert isinstance(graph, ir.Graph)
    with np.errstate(over="ignore"):  # checked below
        factor, offset = (array.astype(np.float32) for array in change)
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        raise ModelError(
            "this BatchNormalization scales with NaN or Inf",
            where=place(node),
            hint="A variance below zero, or an overflow: look at its parameters in the source.",
        )
    sizes = shape(output)
    spatial = len(sizes) - 2
    if spatial:
        weight = add_initializer(graph, f"{node.name}_weight", factor.reshape(-1, 1, *(1 for _ in range(spatial))))
        bias = add_initializer(graph, f"{node.name}_bias", offset)
        attributes = {
            "group": sizes[1],
            "kernel_shape": [1] * spatial,
            "strides": [1] * spatial,
            "dilations": [1] * spatial,
            "pads": [0] * (2 * spatial),
        }
        result = insert_before(
            node, "Conv", [source, weight, bias], attributes, output_shape=sizes, like=output, name=node.name
        )
    else:
        scale = add_initializer(graph, f"{node.name}_scale", factor)
        shift = add_initializer(graph, f"{node.name}_shift", offset)
        scaled = insert_before(node, "Mul", [source, scale], output_shape=sizes, like=output, name=f"{node.name}_mul")
        result = insert_before(node, "Add", [scaled, shift], output_shape=sizes, like=output, name=node.name)
    replace(output, result)
