"""Parts of a float graph in float16, with casts where float32 meets them: for every target that writes ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.graph.model import make_like, named_initializer
from edgeopt.graph.placement import WEIGHTED

Array = npt.NDArray[Any]

FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT32_INPUTS = {"Resize": (1, 2, 3)}
"""Inputs that are no data and stay float32 in an fp16 node: region, scales and sizes."""


def compute_in_fp16(graph: ir.Graph, is_half: Callable[[ir.Node], bool]) -> None:
    """Rewrite the nodes that ``is_half`` names, in place. Inputs and outputs of the graph stay float32.

    Raises:
        TargetError: a weight does not fit into float16.
    """
    half: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if not is_half(node):
            continue
        kept = FLOAT32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or index in kept:
                continue
            if value not in half:
                half[value] = _half(graph, value, node)
            node.replace_input_with(index, half[value])
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                half[value] = value  # read as float32 by others until the casts below
    for value, halved in list(half.items()):
        if value is halved:
            _widen(graph, value, is_half)


def _half(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    name = f"{value.name}__fp16"
    if value.const_value is not None:
        array = value.const_value.numpy()
        if before.op_type in WEIGHTED and np.abs(array).max(initial=0) > FLOAT16_MAX:
            raise TargetError(
                f"a weight of {np.abs(array).max():.3g} does not fit into fp16 (largest: {FLOAT16_MAX:.0f})",
                where=f"node {before.name}, {value.name}",
                hint="leave this node in fp32: schemes: {'" + (before.name or "") + "': fp32}",
            )
        finite = np.isfinite(array)  # masks of -1e38 become the lowest number, true infinities stay
        clipped = np.where(finite, np.clip(array, -FLOAT16_MAX, FLOAT16_MAX), array).astype(np.float16)
        return named_initializer(graph, name, clipped)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
    make_like(cast.outputs[0], value, name)
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [cast])
    else:
        graph.insert_before(graph[0], [cast])
    return cast.outputs[0]


def _widen(graph: ir.Graph, value: ir.Value, is_half: Callable[[ir.Node], bool]) -> None:
    """``value`` is float16 from here on; whoever reads it as float32 reads a cast."""
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    others = [use for use in value.uses() if not is_half(use.node) and use.node.op_type != "Cast"]
    if not others and not value.is_graph_output():
        return
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    make_like(cast.outputs[0], value, f"{value.name}__fp32")
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [cast])
    for use in others:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            cast.outputs[0].name, value.name = value.name, f"{value.name}__fp16"
            graph.outputs[index] = cast.outputs[0]
