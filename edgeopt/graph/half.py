"""Numbers as float16 stores them: constants of a graph, scales of a table, and which of these it cannot hold."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgeopt.graph.compression import Blocks, Palette
from edgeopt.graph.model import OPSET, constant, graph_of, named_initializer, present
from edgeopt.graph.quantization import Quantization, QuantizedGraph

SMALLEST_HALF = 2.0**-24
"""What becomes zero in float16 and must not (a scale, an epsilon) becomes the smallest number above it."""
SMALLEST_SCALE_HALF = 2.0**-16
"""Below it float16 has so few bits left that rounding a scale moves the largest weight by a quarter of a step."""

Array = npt.NDArray[Any]


def halved(graph: QuantizedGraph, nodes: Collection[str]) -> QuantizedGraph:
    """A copy in which the named nodes have constants, float attributes and scales of weights that float16 holds.

    In float32 still: run without rounding its results, a file that stores these numbers in fp16 is this function.
    Integers stay what they are. Scales of activations and biases in integers stay too.
    """
    model = graph.model.clone()
    table = graph.quantization or Quantization()
    weights, compressed = dict(table.weights), dict(table.compressed)
    made: dict[str, ir.Value] = {}
    for node in list(model.graph):
        if node.name not in nodes:
            continue
        for index, value in enumerate(node.inputs):
            name = (value and value.name) or ""
            array = constant(value)
            if name in weights:
                params = table.weights[name].params
                weights[name] = replace(table.weights[name], params=replace(params, scale=rounded(params.scale)))
            elif name in compressed:
                compressed[name] = _stored(table.compressed[name])
            elif array is not None and array.dtype == np.float32 and node.op_type != "Resize":  # its scales are sizes
                if name not in made:
                    made[name] = named_initializer(model.graph, f"{name}__stored", rounded(array))
                node.replace_input_with(index, made[name])
        if node.op_type == "HardSwish":
            _spell_out(node)
        for attribute, number in _float_attributes(node).items():
            node.attributes[attribute] = ir.AttrFloat32(attribute, float(rounded(np.asarray(number, np.float32))))
    if graph.quantization is None:
        return replace(graph, model=model)
    return replace(graph, model=model, quantization=replace(table, weights=weights, compressed=compressed))


def rounded(array: Array) -> npt.NDArray[np.float32]:
    """float32, any shape. What float16 would make zero stays just above it; what is beyond its range stays itself."""
    exact = np.asarray(array, np.float32)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16).astype(np.float32)
    half = np.where((half == 0) & (exact != 0), np.copysign(np.float32(SMALLEST_HALF), exact), half)
    found: npt.NDArray[np.float32] = np.where(np.isfinite(half), half, exact)
    return found


def scales_fit(table: Quantization, weight: ir.Value | None) -> bool:
    """Whether float16 holds the scales of a weight's channels well enough; those of zeros alone may be any."""
    stored = table.weights.get((weight.name if weight is not None else None) or "")
    if stored is None:
        return True
    axis = stored.params.axis
    if axis is None:
        return bool(stored.params.scale >= SMALLEST_SCALE_HALF)
    channels = np.moveaxis(stored.integers, axis, 0).reshape(len(stored.params.scale), -1)
    return bool((stored.params.scale[channels.any(1)] >= SMALLEST_SCALE_HALF).all())


def _float_attributes(node: ir.Node) -> dict[str, float]:
    """Also those that stand nowhere, as they are the operator's own (a HardSigmoid's 0.2)."""
    version = graph_of(node).opset_imports.get(node.domain, OPSET)
    known = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
    own = {name: one.default_value for name, one in known.items()}
    found = {name: one.f for name, one in own.items() if one.type == onnx.AttributeProto.FLOAT}
    given = {one.name: one.value for one in node.attributes.values() if one.type == ir.AttributeType.FLOAT}
    return {name: float(number) for name, number in (found | given).items()}


def _spell_out(node: ir.Node) -> None:
    """``HardSwish`` as ``x · HardSigmoid(x)``: so formats write it, and a sixth is not a number of float16."""
    x = present(node.inputs[0])
    sixth = float(rounded(np.asarray(1 / 6)))
    gate = ir.node("HardSigmoid", [x], {"alpha": sixth, "beta": 0.5}, name=f"{node.name}__gate")
    graph_of(node).insert_before(node, gate)
    node.op_type = "Mul"
    node.resize_inputs(2)
    node.replace_input_with(1, gate.outputs[0])


def _stored(weight: Palette | Blocks) -> Palette | Blocks:
    if isinstance(weight, Palette):
        return replace(weight, values=rounded(weight.values))
    return replace(weight, scale=rounded(weight.scale))
