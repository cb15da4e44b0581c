"""What is left between a node and its QuantizeLinear, and pairs that nothing needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import make_like, only_user
from edgeopt.graph.placement import FUSED_ACTIVATIONS
from edgeopt.targets.onnx.draft import Draft


def drop_activations(draft: Draft) -> None:
    """Relu and Clip before a QuantizeLinear: gone where the grid implies them, else on the integers."""
    for quantize in draft.of_type("QuantizeLinear"):
        value = quantize.inputs[0]
        activation = value.producer() if value is not None else None
        if value is None or activation is None or activation.op_type not in FUSED_ACTIVATIONS:
            continue
        source = activation.inputs[0]
        before = source.producer() if source is not None else None
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        if source is None or before is None or before.op_type == "DequantizeLinear" or not alone:
            continue
        if len(source.uses()) != 1 or source.is_graph_output():
            continue
        params = draft.grid(quantize)
        low, high = (int(params.quantize(np.asarray(bound, np.float32))) for bound in _bounds(activation))
        quantize.replace_input_with(0, source)
        draft.graph.remove(activation, safe=True)
        source.name = value.name
        if (low, high) != (-128, 127):
            _clip_integers(draft, quantize, low, high)


def _clip_integers(draft: Draft, quantize: ir.Node, low: int, high: int) -> None:
    integers = quantize.outputs[0]
    name = integers.name or ""
    bounds = [
        draft.constant(f"{name}__{end}", np.asarray(bound + draft.offset, draft.dtype))
        for end, bound in (("low", low), ("high", high))
    ]
    clip = ir.node("Clip", [integers, *bounds])
    ir.convenience.replace_all_uses_with(integers, clip.outputs[0])
    clip.replace_input_with(0, integers)
    integers.name = f"{name}__unclipped"
    make_like(clip.outputs[0], integers, name)
    draft.graph.insert_after(quantize, [clip])


def drop_last_pairs(draft: Draft) -> None:
    """An int8 product that only float nodes or the caller read gives its float result."""
    for node in (*draft.of_type("Gemm"), *draft.of_type("MatMul")):
        if draft.table.scheme(node) != "int8":
            continue
        value = node.outputs[0]
        quantize = only_user(value)
        if quantize is None or quantize.op_type != "QuantizeLinear" or value.is_graph_output():
            continue
        dequantize = only_user(quantize.outputs[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        read = dequantize.outputs[0]
        if any(draft.table.scheme(use.node) == "int8" for use in read.uses()):
            continue
        ir.convenience.replace_all_uses_with(read, value, replace_graph_outputs=True)
        if value.is_graph_output():
            value.name, read.name = read.name, None
        draft.graph.remove([dequantize, quantize], safe=True)


def fold_constants(draft: Draft) -> None:
    """A constant that is read as an activation is stored as its integers."""
    for quantize in draft.of_type("QuantizeLinear"):
        value = quantize.inputs[0]
        if value is None or value.const_value is None:
            continue
        integers = quantize.outputs[0]
        stored = draft.grid(quantize).quantize(value.const_value.numpy()).astype(np.int16) + draft.offset
        name = integers.name or ""
        integers.name = None
        constant = draft.constant(name, stored.astype(draft.dtype))
        ir.convenience.replace_all_uses_with(integers, constant)
        draft.graph.remove(quantize, safe=True)


def _bounds(activation: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip lets through; a missing bound is infinite."""
    if activation.op_type == "Relu":
        return 0.0, float("inf")
    low, high = (
        float(value.const_value.numpy()) if value is not None and value.const_value is not None else default
        for value, default in zip([*activation.inputs[1:], None, None], (-np.inf, np.inf), strict=False)
    )
    return low, high
