"""Parts shared by all that write QuantizeLinear and DequantizeLinear pairs: ``qdq``, the ONNX and TensorRT targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


def named_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new constant under exactly this name, which must be free: files are known by their names."""
    tensor = ir.tensor(np.array(array, order="C"), name=name)  # ascontiguousarray would make a vector of a scalar
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def along_axis(dequantize: ir.Node) -> Array:
    """The constant scale of a pair's node, shaped so that it multiplies what the node reads: scalar, or per channel."""
    stored, scale = dequantize.inputs[0], dequantize.inputs[1]
    assert stored is not None and stored.shape is not None and scale is not None and scale.const_value is not None
    factor = scale.const_value.numpy()
    if factor.ndim == 0:
        return factor
    shape = [1] * len(stored.shape)
    shape[dequantize.attributes.get_int("axis", 1) % len(shape)] = -1
    return factor.reshape(shape)


def real_values(dequantize: ir.Node) -> Array:
    """What a DequantizeLinear of constants with zero point 0 makes, float32: a weight or a bias."""
    stored = dequantize.inputs[0]
    assert stored is not None and stored.const_value is not None
    real: Array = (stored.const_value.numpy().astype(np.float32) * along_axis(dequantize)).astype(np.float32)
    return real


def forget_notes(graph: ir.Graph) -> None:
    """Take out what is not the model: exporters' notes, and shapes and types that inference finds again."""
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for value in (*values, *(value for node in graph for value in node.outputs)):
        value.doc_string = None
        value.metadata_props.clear()
    graph.doc_string = None
    graph.metadata_props.clear()
