"""Products that ONNX Runtime saturates on x86 without VNNI, in a file of whatever tool (``graph.overflow``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.formats.onnx import names_of, precision_of
from edgeopt.graph.model import constant
from edgeopt.graph.overflow import is_safe

SOURCE = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
TEXT = (
    "int8 weights so large that ONNX Runtime can saturate pairs of their products at 16 bits, and then gives wrong"
    " results without a word, unless each session sets session.x64quantprecision to 1"
)
WEIGHT = {
    "QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}  # fmt: skip
"""Integer products: which input is the weight."""
_ZERO_POINT = {"MatMulIntegerToFloat": 4}
"""Which input is the activation's zero point, where it is not the third."""


def overflows(node: ir.Node, weight: npt.NDArray[Any]) -> bool:
    """Whether a product with 8-bit activations has int8 weights of which a pair can overflow 16 bits.

    Args:
        node: Conv, Gemm or MatMul in Q/DQ form, or an integer product.
        weight: as the file holds it, of any type; 2-D ones are (inputs, outputs) unless the node says ``transB``.
    """
    if weight.dtype != np.int8:
        return False
    if node.op_type in ("Conv", "QLinearConv"):
        return not is_safe(weight, "Conv", node.attributes.get_int("group", 1))
    return weight.ndim == 2 and not is_safe(weight if node.attributes.get_int("transB", 0) else weight.T, "Gemm", 1)


def saturated(model: ir.Model) -> tuple[str, ...]:
    """Names of the products that x86 without VNNI can get wrong; types must be known (``load``)."""
    found = []
    for node, name in zip(model.graph, names_of(model.graph), strict=True):
        weight = _weight(node)
        if weight is not None and overflows(node, weight):
            found.append(name)
    return tuple(found)


def _weight(node: ir.Node) -> npt.NDArray[Any] | None:
    """The constant integers that a node multiplies activations with, which are uint8 or become so."""
    if (place := WEIGHT.get(node.op_type)) is not None:
        given = (_input(node, 0), _input(node, _ZERO_POINT.get(node.op_type, 2)))  # a type may be known of one alone
        unsigned = any(value is not None and value.dtype == ir.DataType.UINT8 for value in given)
        return constant(_input(node, place)) if unsigned or node.op_type == "DynamicQuantizeMatMul" else None
    if node.op_type not in ("Conv", "Gemm", "MatMul") or precision_of(node) != "int8":
        return None
    activation, weight = (_integers(_input(node, index)) for index in (0, 1))
    # Of either sign: ONNX Runtime (1.31) makes int8 activations of a Q/DQ file uint8 on x86 when it loads it.
    if activation is None or activation.dtype not in (ir.DataType.UINT8, ir.DataType.INT8) or weight is None:
        return None
    return constant(weight) if (stored := weight.producer()) is None else _quantized(stored)


def _quantized(node: ir.Node) -> npt.NDArray[Any] | None:
    """int8 integers of a float constant that a QuantizeLinear reads, as some tools write weights."""
    read = [constant(value) for value in node.inputs[:3]]
    if node.op_type != "QuantizeLinear" or read[0] is None or read[1] is None:
        return None
    zero_point = read[2] if len(read) > 2 and read[2] is not None else np.uint8(0)
    sizes = [1] * read[0].ndim
    if read[1].size > 1:
        sizes[node.attributes.get_int("axis", 1)] = -1
    scale, zero = np.reshape(read[1], sizes), np.reshape(zero_point, sizes if np.size(zero_point) > 1 else ())
    limits = np.iinfo(zero_point.dtype)
    integers: npt.NDArray[Any] = np.clip(np.rint(read[0] / scale) + zero, limits.min, limits.max)
    return integers.astype(zero_point.dtype)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _integers(value: ir.Value | None) -> ir.Value | None:
    """What is dequantized to a value."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None
