"""A Q/DQ graph read back into float graph and table: what NNCF, ModelOpt or quantization-aware training wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import named_initializer
from edgeopt.graph.quantization import INT8_MAX, INT8_MIN, QuantizedTensor, QuantParams, Range

Array = npt.NDArray[Any]
_ZERO_POINT_OFFSET = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}


@dataclass(frozen=True)
class ReadBack:
    """What stood in the Q/DQ graph.

    Args:
        model: the graph without its pairs; constants that were integers are float again.
        activations: name of the tensor that was rounded → its grid (uint8 grids shifted to int8: the same steps).
        weights: name of the constant in ``model`` → its integers.
    """

    model: ir.Model
    activations: dict[str, QuantParams]
    weights: dict[str, QuantizedTensor]


def read_qdq(model: ir.Model, *, widen: bool = False) -> ReadBack:
    """Take the pairs out of a copy of ``model``.

    Args:
        model: a graph with QuantizeLinear/DequantizeLinear pairs.
        widen: an activation with a grid per channel (NNCF gives them to depthwise convolutions; no kernel runs them)
            gets the one grid that covers all its channels, instead of an error.

    Raises:
        ValueError: a pair that the table cannot hold, by node name: integers other than 8 bits (int32 biases
            apart), scales that are no constants, per-channel activations, weights with a zero point.
    """
    model = model.clone()
    graph = model.graph
    activations: dict[str, QuantParams] = {}
    weights: dict[str, QuantizedTensor] = {}
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        source = _value(node, 0)
        quantize = source.producer()
        if quantize is not None and quantize.op_type != "QuantizeLinear":
            raise ValueError(f"{node.name}: dequantizes what no QuantizeLinear wrote ({quantize.op_type})")
        real = source if quantize is None else _value(quantize, 0)
        if real.const_value is not None:
            replacement = _restore_constant(graph, node, quantize, real, weights)
        else:
            params = _params(node, 0 if real.shape is None else len(real.shape))
            if params.axis is not None and widen:
                params = _widened(params)
            elif params.axis is not None:
                raise ValueError(f"{node.name}: a grid per channel for an activation, which no runtime here can run")
            activations[real.name or ""] = params
            replacement = real
        output = node.outputs[0]
        if output.is_graph_output():
            name, output.name = output.name, f"{output.name}__dequantized"
            identity = ir.node("Identity", [replacement], name=f"{name}__identity")
            identity.outputs[0].name, identity.outputs[0].type = name, output.type
            identity.outputs[0].shape = output.shape
            graph.insert_after(node, [identity])
            for index, value in enumerate(graph.outputs):
                if value is output:
                    graph.outputs[index] = identity.outputs[0]
        output.replace_all_uses_with(replacement)
    for node in reversed(list(graph)):
        idle = all(not value.uses() and not value.is_graph_output() for value in node.outputs)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and idle:
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return ReadBack(model, activations, weights)


def _restore_constant(
    graph: ir.Graph,
    node: ir.Node,
    quantize: ir.Node | None,
    constant: ir.Value,
    weights: dict[str, QuantizedTensor],
) -> ir.Value:
    """The float constant that a DequantizeLinear (or a pair) makes, and its entry in ``weights`` if it is 8 bits."""
    tensor = constant.const_value
    if tensor is None:
        raise ValueError(f"{node.name}: no constant")
    array = tensor.numpy()
    if quantize is None and array.dtype == np.int32:
        scale = _constant(node, 1)
        axis = None if scale.ndim == 0 else 0
        params = QuantParams(scale, np.zeros(scale.shape, np.int32), axis)
        return _register(graph, node, params.dequantize(array))
    params = _params(node, array.ndim)
    if quantize is not None:
        integers = params.quantize(array)
    else:
        if array.dtype not in _ZERO_POINT_OFFSET:
            raise ValueError(f"{node.name}: {array.dtype} weights; the table holds int8")
        integers = (array.astype(np.int16) - _ZERO_POINT_OFFSET[array.dtype]).astype(np.int8)
    real = _register(graph, node, params.dequantize(integers))
    if not params.zero_point.any():
        weights[real.name or ""] = QuantizedTensor(integers, params)
    return real


def _register(graph: ir.Graph, node: ir.Node, array: Array) -> ir.Value:
    name = (node.outputs[0].name or "constant").removesuffix("__dq")
    while name in graph.initializers:
        name += "_"
    return named_initializer(graph, name, array)


def _params(node: ir.Node, rank: int) -> QuantParams:
    scale = _constant(node, 1)
    zero_point = np.zeros(scale.shape, np.int8)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = _constant(node, 2)
    if zero_point.dtype not in _ZERO_POINT_OFFSET:
        raise ValueError(f"{node.name}: {zero_point.dtype} integers; the table holds int8 and uint8")
    if scale.ndim == 1 and scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    axis = None
    if scale.ndim:
        axis = node.attributes.get_int("axis", 1)
        axis = axis + rank if axis < 0 else axis
    return QuantParams(scale, zero_point.astype(np.int32) - _ZERO_POINT_OFFSET[zero_point.dtype], axis)


def _widened(params: QuantParams) -> QuantParams:
    low = float((params.scale * (INT8_MIN - params.zero_point)).min())
    high = float((params.scale * (INT8_MAX - params.zero_point)).max())
    return QuantParams.from_range(Range(min(low, 0.0), max(high, 0.0)))


def _constant(node: ir.Node, index: int) -> Array:
    tensor = _value(node, index).const_value
    if tensor is None:
        raise ValueError(f"{node.name}: scale and zero point must be constants")
    return tensor.numpy()


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name}: input {index} is missing")
    return value
