"""A Q/DQ file of any tool, as the rules look at it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.placement import FUSED_ACTIVATIONS, UNARY

Array = npt.NDArray[Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATIONS = UNARY | FUSED_ACTIVATIONS | {"PRelu", "Softsign", "ThresholdedRelu", "Selu", "Celu", "BatchNormalization"}
MOVES = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Concat", "Identity",
        "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool", "Pad", "Resize", "Cast",
    }
)  # fmt: skip


class QdqFile:
    """One loaded model. ``nodes`` are those of the main graph, in order, without Constant nodes; ``all_nodes`` has
    those of subgraphs (branches, loops) too."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = model.graph.opset_imports.get("", 0)
        self.nodes = [node for node in model.graph if node.op_type != "Constant"]
        everything = ir.traversal.RecursiveGraphIterator(model.graph)
        self.all_nodes = [node for node in everything if node.op_type != "Constant"]

    def of_type(self, *op_types: str) -> list[ir.Node]:
        return [node for node in self.nodes if node.op_type in op_types]


def name_of(node: ir.Node) -> str:
    """Its own name, or what it makes."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def array_of(value: ir.Value | None) -> Array | None:
    """The array of a constant: an initializer, or what a Constant node holds; through Identity."""
    while value is not None:
        if value.const_value is not None:
            return value.const_value.numpy()
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Constant":
            attribute = node.attributes.get("value")
            return attribute.as_tensor().numpy() if attribute is not None else None
        if node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


def producer(value: ir.Value | None) -> ir.Node | None:
    """What computes a value; constants have nothing."""
    node = value.producer() if value is not None else None
    return None if node is None or node.op_type == "Constant" else node


def readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value, or None."""
    node = producer(value)
    return node if node is not None and node.op_type == DEQUANTIZE else None


def rounded_from(dequantize: ir.Node) -> ir.Value | None:
    """The real tensor that a pair rounds: what the QuantizeLinear before a DequantizeLinear reads."""
    quantize = producer(dequantize.inputs[0])
    return quantize.inputs[0] if quantize is not None and quantize.op_type == QUANTIZE else None


def is_weight(node: ir.Node) -> bool:
    """Whether a Q or DQ node is about a constant."""
    value = node.inputs[0]
    if array_of(value) is not None:
        return True
    before = producer(value)
    return before is not None and before.op_type == QUANTIZE and array_of(before.inputs[0]) is not None


def integer_type(node: ir.Node) -> ir.DataType | None:
    """Type of the integers that a Q node makes or a DQ node reads; a missing zero point of Q means uint8."""
    if node.op_type == DEQUANTIZE and node.inputs[0] is not None and node.inputs[0].dtype is not None:
        return node.inputs[0].dtype
    point = node.inputs[2] if len(node.inputs) > 2 else None
    if point is not None:
        array = array_of(point)
        return point.dtype if point.dtype is not None else _type_of(array)
    if node.op_type == QUANTIZE:
        asked = node.attributes.get_int("output_dtype", 0)
        return ir.DataType(asked) if asked else ir.DataType.UINT8
    return _type_of(array_of(node.inputs[0]))


def _type_of(array: Array | None) -> ir.DataType | None:
    return ir.DataType.from_numpy(array.dtype) if array is not None else None


def scale_of(node: ir.Node) -> Array | None:
    return array_of(node.inputs[1]) if len(node.inputs) > 1 else None


def is_quantized(node: ir.Node, index: int) -> bool:
    """Whether input ``index`` comes from a DequantizeLinear, movers in between; of a Concat every input must."""
    return _from_integers(node.inputs[index] if index < len(node.inputs) else None)


def _from_integers(value: ir.Value | None) -> bool:
    before = producer(value)
    if before is None or before.op_type == DEQUANTIZE:
        return before is not None
    if before.op_type == "Concat":
        return all(_from_integers(one) for one in before.inputs)
    return before.op_type in MOVES - {"Resize", "Cast", "Pad"} and _from_integers(before.inputs[0])


def shape_of(value: ir.Value | None) -> list[int | None]:
    """Sizes; an open one is None."""
    if value is None or value.shape is None:
        return []
    return [int(size) if isinstance(size, int) else None for size in value.shape]


def ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return [int(one) for one in attribute.as_ints()] if attribute is not None else default


def equal_scales(nodes: list[ir.Node]) -> bool:
    scales = [scale_of(node) for node in nodes]
    known = [scale for scale in scales if scale is not None]
    return len(known) == len(scales) and all(np.array_equal(scale, known[0]) for scale in known)
