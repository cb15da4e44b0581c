"""TensorRT's own activation grids, from the ranges that all targets share.

TensorRT knows zero point 0 only, and it wants a tensor rounded where it fuses and nowhere else. So its table is the
shared one with three changes; weight integers, equal-scale groups and schemes stay:

- Every activation has the symmetric grid over its range; one that is symmetric already keeps its grid. Half of the
  grid is unused behind a ReLU, and what that costs is measured in every run (``L1`` of this table).
- Dropped is the grid of a tensor that TensorRT computes through: between a weighted operator and its activation,
  of the branch of a residual Add that a weighted operator computes (the other branch, the skip, is rounded), and of
  whatever no int8 operator reads, the model's outputs among them. Source: TensorRT documentation, *Q/DQ layer
  placement recommendations*.
- Biases keep their values: their integers are counted in the new steps, and the file holds them in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.placement import FUSED_ACTIVATIONS, UNARY, WEIGHTED, activation_inputs
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams

INT32 = np.iinfo(np.int32)


def own_table(graph: QuantizedGraph) -> QuantizedGraph:
    """The graph with TensorRT's table; the graph itself where nothing in it is static int8."""
    table = graph.quantization
    if table is None or not table.activations:
        return graph
    dropped = _computed_through(graph.model, table)
    activations = {name: _symmetric(name, table) for name in table.activations if name not in dropped}
    own = replace(table, activations=activations, biases=_biases(graph.model, table, activations))
    return replace(graph, quantization=own)


def _symmetric(name: str, table: Quantization) -> QuantParams:
    params = table.activations[name]
    if not params.zero_point.any():
        return params
    return QuantParams.from_range(table.ranges.get(name, params.range), symmetric=True)


def _biases(
    model: ir.Model, table: Quantization, activations: Mapping[str, QuantParams]
) -> dict[str, npt.NDArray[np.int32]]:
    """Bias integers in steps of the new input scale: the same real numbers, to half a step of the sum."""
    biases = dict(table.biases)
    for node in model.graph:
        if node.op_type not in WEIGHTED or table.scheme(node) != "int8":
            continue
        x, bias = (value.name or "" if value is not None else "" for value in (node.inputs[0], node.inputs[2]))
        if bias not in table.biases or x not in activations:
            continue
        ratio = np.float64(table.activations[x].scale) / np.float64(activations[x].scale)
        biases[bias] = np.clip(np.rint(table.biases[bias] * ratio), INT32.min, INT32.max).astype(np.int32)
    return biases


def _computed_through(model: ir.Model, table: Quantization) -> set[str]:
    """Names of tensors of the table that TensorRT does not round."""
    dropped: set[str] = set()
    values = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    ]
    for value in values:
        name = value.name or ""
        if name not in table.activations:
            continue
        readers = [use.node for use in value.uses()]
        is_read = any(table.scheme(node) == "int8" and value in activation_inputs(node) for node in readers)
        inside = _is_product(value.producer(), table) and not value.is_graph_output() and _in_activation(value, readers)
        if inside or not is_read:
            dropped.add(name)
    for node in model.graph:
        if node.op_type == "Add" and table.scheme(node) == "int8" and (branch := _fused_branch(node, table)):
            dropped.add(branch)
    return dropped


def _is_product(node: ir.Node | None, table: Quantization) -> bool:
    return node is not None and node.op_type in WEIGHTED | {"MatMul"} and table.scheme(node) == "int8"


def _in_activation(value: ir.Value, readers: list[ir.Node]) -> bool:
    """Every reader is an activation of the value, or the product of the value with one (``x · sigmoid(x)``)."""
    own = {node.outputs[0] for node in readers if node.op_type in UNARY | FUSED_ACTIVATIONS}
    return bool(own) and all(
        node.op_type in UNARY | FUSED_ACTIVATIONS
        or (node.op_type == "Mul" and all(one is value or one in own for one in node.inputs))
        for node in readers
    )


def _fused_branch(node: ir.Node, table: Quantization) -> str | None:
    """The input of a residual Add that a weighted operator computes for it alone; of two, the first."""
    if len({id(value) for value in node.inputs}) < 2:
        return None
    for value in node.inputs:
        if value is None or value.is_graph_output() or len(value.uses()) != 1:
            continue
        producer = value.producer()
        if producer is not None and producer.op_type in WEIGHTED and table.scheme(producer) == "int8":
            return value.name
    return None
