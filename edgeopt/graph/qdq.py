"""The table written into the graph as QuantizeLinear/DequantizeLinear pairs.

This is the *integer reference*: run by ONNX Runtime with graph optimisations off, it defines what the table means
(see ``quantization``). The ONNX target starts from the same form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.compression import COMPRESSED
from edgeopt.graph.model import named_initializer
from edgeopt.graph.placement import WEIGHTED, activation_inputs
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams

INTEGERS_SUFFIX = "__q"
"""Name of a tensor's integers in the Q/DQ graph: the tensor's own name and this."""
DEQUANTIZED_SUFFIX = "__dq"
"""Name of what the integers, or a compressed weight, stand for."""

Array = npt.NDArray[Any]


def to_qdq(
    graph: QuantizedGraph,
    *,
    unsigned: bool = False,
    fold_weights: bool = False,
    expose_integers: bool = False,
) -> ir.Model:
    """A copy of the graph with the table materialised; the graph itself is not changed.

    Args:
        graph: float graph and table.
        unsigned: activations as uint8 (integers and zero points + 128: the same grid) instead of int8.
        fold_weights: write weights and biases as the float values of their integers instead of integers and a
            DequantizeLinear: the same numbers, and faster where nothing is optimised.
        expose_integers: every quantized tensor's integers become extra graph outputs, ``NAME__q``.

    Returns:
        A model with the source's inputs and outputs, in float32.
    """
    model = graph.model.clone()
    table = graph.quantization
    if table is None:
        return model
    writer = _Writer(model.graph, table, unsigned)
    for node in list(model.graph):
        if table.scheme(node) in ("int8", "int8-weights", "int8-dynamic") and node.op_type in WEIGHTED:
            writer.write_weight(node, fold_weights)
        elif table.scheme(node) in COMPRESSED and node.op_type in WEIGHTED:
            writer.decompress_weight(node)
        elif table.scheme(node) == "fp16" and node.op_type in WEIGHTED:
            writer.halve_weight(node)
    exposed = writer.write_activations()
    if expose_integers:
        model.graph.outputs.extend(exposed)
    return model


class _Writer:
    """Places the pairs. Holds the graph under work and the table, for the length of one call."""

    def __init__(self, graph: ir.Graph, table: Quantization, unsigned: bool) -> None:
        self._graph = graph
        self._table = table
        self._offset = 128 if unsigned else 0
        self._dtype = np.uint8 if unsigned else np.int8

    def write_weight(self, node: ir.Node, fold: bool) -> None:
        value = node.inputs[1]
        if value is None or value.name is None or (weight := self._table.weights.get(value.name)) is None:
            raise ValueError(f"node {node.name} is {self._table.scheme(node)} and its weight is not in the table")
        if fold:
            node.replace_input_with(1, named_initializer(self._graph, value.name + "__dq", weight.dequantize()))
        else:
            zero_point = weight.params.zero_point.astype(np.int8)
            integers = named_initializer(self._graph, value.name + INTEGERS_SUFFIX, weight.integers)
            node.replace_input_with(1, self._dequantize(node, value, integers, weight.params, zero_point))
        bias = node.inputs[2]
        if bias is None or bias.name is None or (integers_of_bias := self._table.biases.get(bias.name)) is None:
            return
        x = node.inputs[0]
        scale = (self._table.activations[(x and x.name) or ""].scale * weight.params.scale).astype(np.float32)
        params = QuantParams(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None)
        if fold:
            node.replace_input_with(
                2, named_initializer(self._graph, bias.name + "__dq", params.dequantize(integers_of_bias))
            )
        else:
            stored = named_initializer(self._graph, bias.name + INTEGERS_SUFFIX, integers_of_bias.astype(np.int32))
            node.replace_input_with(2, self._dequantize(node, bias, stored, params, params.zero_point))

    def decompress_weight(self, node: ir.Node) -> None:
        """A palette's or a block's values: ONNX has no operator for these, so they are always written as numbers."""
        value = node.inputs[1]
        if value is None or value.name is None or (stored := self._table.compressed.get(value.name)) is None:
            raise ValueError(f"node {node.name} is {self._table.scheme(node)} and its weight is not in the table")
        node.replace_input_with(1, named_initializer(self._graph, value.name + DEQUANTIZED_SUFFIX, stored.dequantize()))

    def halve_weight(self, node: ir.Node) -> None:
        """The weight of an ``fp16`` node rounded to float16: what that scheme stores, in every target."""
        value = node.inputs[1]
        if value is None or value.const_value is None:
            return
        largest = float(np.finfo(np.float16).max)
        exact = value.const_value.numpy()
        fits = np.abs(exact) <= largest  # a target says which weight does not; here it stays what it is
        rounded = np.where(fits, np.clip(exact, -largest, largest).astype(np.float16).astype(np.float32), exact)
        node.replace_input_with(1, named_initializer(self._graph, f"{value.name}__half", rounded))

    def write_activations(self) -> list[ir.Value]:
        """Pairs for every tensor of the table that is somewhere in the graph; the integers' values in graph order."""
        graph, table = self._graph, self._table
        exposed: list[ir.Value] = []
        values: dict[str, ir.Value] = {v.name or "": v for v in graph.inputs}
        values |= dict(graph.initializers)
        values |= {v.name or "": v for node in graph for v in node.outputs}
        for name, params in table.activations.items():
            value = values.get(name)
            if value is None:
                continue
            producer = value.producer()
            is_integers = producer is not None and table.scheme(producer) == "int8"
            uses = [
                use
                for use in value.uses()
                if is_integers or (table.scheme(use.node) == "int8" and value in activation_inputs(use.node))
            ]
            is_output = value.is_graph_output() and is_integers
            if not uses and not is_output:
                continue
            integers, dequantized = self._pair(value, params, uses[0].node if uses else None)
            exposed.append(integers)
            for use in uses:
                use.node.replace_input_with(use.idx, dequantized)
            if is_output:
                value.name = name + "__float"
                dequantized.name = name
                for index, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[index] = dequantized
        return exposed

    def _pair(self, value: ir.Value, params: QuantParams, before: ir.Node | None) -> tuple[ir.Value, ir.Value]:
        name = value.name or ""
        scale = named_initializer(self._graph, f"{name}__scale", params.scale)
        zero_point = named_initializer(
            self._graph, f"{name}__zero_point", (params.zero_point + self._offset).astype(self._dtype)
        )
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}__quantize")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}__dequantize")
        integers, dequantized = quantize.outputs[0], dequantize.outputs[0]
        integers.name, dequantized.name = name + INTEGERS_SUFFIX, name + "__dq"
        integers.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(self._dtype)))
        dequantized.type = ir.TensorType(ir.DataType.FLOAT)
        integers.shape = dequantized.shape = value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, [quantize, dequantize])
        elif before is not None:
            self._graph.insert_before(self._first_of(before, value), [quantize, dequantize])
        return integers, dequantized

    def _first_of(self, node: ir.Node, value: ir.Value) -> ir.Node:
        """The first node of the graph that reads ``value``: a pair for an input or a constant goes before it."""
        consumers = {use.node for use in value.uses()}
        return next((candidate for candidate in self._graph if candidate in consumers), node)

    def _dequantize(
        self, node: ir.Node, value: ir.Value, integers: ir.Value, params: QuantParams, zero_point: Array
    ) -> ir.Value:
        name = value.name or ""
        inputs = [integers, named_initializer(self._graph, f"{name}__scale", params.scale)]
        inputs.append(named_initializer(self._graph, f"{name}__zero_point", zero_point))
        attributes = {} if params.axis is None else {"axis": params.axis}
        dequantize = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}__dequantize")
        dequantize.outputs[0].name = name + "__dq"
        dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        dequantize.outputs[0].shape = value.shape
        self._graph.insert_before(node, [dequantize])
        return dequantize.outputs[0]
