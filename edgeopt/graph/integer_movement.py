"""Operators that move integers between a QuantizeLinear and a DequantizeLinear, made to move the numbers themselves.

Runtimes pad, reshape and join faster on bytes, so files are written that way; ``read_qdq`` reads plain pairs only.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import named_initializer

PAIR = ("QuantizeLinear", "DequantizeLinear")
INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)


def move_floats(model: ir.Model) -> ir.Model:
    """A copy of ``model`` in which no operator but the pairs themselves reads or writes 8-bit integers.

    What such an operator fills in (a Pad's value) becomes 0, the number that zero points stand for.
    """
    model = model.clone()
    graph = model.graph
    moved: set[ir.Value] = set()
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type == "DequantizeLinear":
            source = node.inputs[0]
            if source in moved and source is not None:
                ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
            continue
        for index, value in enumerate(node.inputs):
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "QuantizeLinear":
                node.replace_input_with(index, producer.inputs[0])
                moved.update(node.outputs)
        if any(value in moved for value in node.inputs):
            moved.update(node.outputs)
        if any(value in moved for value in node.outputs):
            _speak_float(graph, node)
    for node in reversed(list(graph)):
        idle = all(not value.uses() and not value.is_graph_output() for value in node.outputs)
        if node.op_type in PAIR and idle:
            graph.remove(node, safe=True)
    return model


def _speak_float(graph: ir.Graph, node: ir.Node) -> None:
    for output in node.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    for index, value in enumerate(node.inputs):
        tensor = value.const_value if value is not None else None
        if value is not None and tensor is not None and tensor.dtype in INTEGERS:
            name = f"{node.name}_{index}_float"
            zeros = np.zeros(tensor.shape.numpy(), np.float32)
            node.replace_input_with(index, named_initializer(graph, name, zeros))
