"""Weights and their products: at run time, in float, as uint8; and zero points that say nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import make_like
from edgeopt.graph.overflow import is_safe
from edgeopt.graph.pairs import along_axis
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.targets.onnx.draft import Draft


def drop_zero_points(draft: Draft) -> None:
    for node in draft.of_type("DequantizeLinear"):
        stored, zero_point = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        if stored is None or stored.const_value is None or zero_point is None or zero_point.const_value is None:
            continue
        if zero_point.const_value.numpy().any() or stored.dtype not in (ir.DataType.INT8, ir.DataType.INT32):
            continue
        # ONNX Runtime makes QGemm only of weights that have a zero point (1.31; QLinearConv does without).
        if stored.dtype == ir.DataType.INT32 or all(use.node.op_type != "Gemm" for use in node.outputs[0].uses()):
            node.resize_inputs(2)


def quantize_at_run_time(draft: Draft) -> None:
    """A Gemm of ``int8-dynamic``: DynamicQuantizeLinear → MatMulInteger → scale → bias.

    The form that ONNX Runtime's own ``quantize_dynamic`` writes, and fuses into one kernel. A convolution keeps
    float arithmetic on its integer weights: ConvInteger takes four to six times as long as a float Conv (1.31).
    """
    quantized: dict[ir.Value, ir.Node] = {}
    for node in draft.of_type("Gemm"):
        value = node.inputs[0]
        if draft.table.scheme(node) != "int8-dynamic" or value is None:
            continue
        if value not in quantized:
            quantized[value] = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
            for output, suffix in zip(quantized[value].outputs, ("q", "scale", "zero_point"), strict=True):
                output.name = f"{value.name}__dynamic_{suffix}"
            draft.graph.insert_before(node, [quantized[value]])
        _integer_product(draft, node, *quantized[value].outputs)


def _integer_product(draft: Draft, node: ir.Node, integers: ir.Value, scale: ir.Value, zero_point: ir.Value) -> None:
    result, bias, dequantize = node.outputs[0], node.inputs[2], node.inputs[1]
    producer = dequantize.producer() if dequantize is not None else None
    stored = producer.inputs[0] if producer is not None else None
    assert bias is not None and stored is not None
    name = result.name or ""
    weight = draft.table.weights[(stored.name or "").removesuffix(INTEGERS_SUFFIX)]
    transposed = draft.constant(f"{name}__weight", np.ascontiguousarray(weight.integers.T))
    product = ir.node("MatMulInteger", [integers, transposed, zero_point], name=node.name)
    cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    factor = ir.node("Mul", [scale, draft.constant(f"{name}__weight_scale", weight.params.scale)])
    scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
    shifted = ir.node("Add", [scaled.outputs[0], bias])
    for made, suffix in ((product, "sums"), (cast, "cast"), (factor, "factor"), (scaled, "scaled")):
        made.outputs[0].name = f"{name}__{suffix}"
    ir.convenience.replace_nodes_and_values(
        draft.graph, node, [node], [product, cast, factor, scaled, shifted], [result], [shifted.outputs[0]]
    )
    shifted.outputs[0].name = name


def fold_weights(draft: Draft) -> None:
    """Integer weights of float arithmetic: Cast → Mul, which ONNX Runtime folds into floats when it loads.

    It leaves a DequantizeLinear of constants to every run: twice the time on a MobileNetV2. The numbers are the
    same: ``float(integer) · scale``.
    """
    for dequantize in draft.of_type("DequantizeLinear"):
        stored, scale = dequantize.inputs[:2]
        readers = [use.node for use in dequantize.outputs[0].uses()]
        if stored is None or stored.const_value is None or scale is None or scale.const_value is None:
            continue
        if any(node.op_type not in WEIGHTED or draft.has_int8_kernel(node) for node in readers):
            continue
        if len(dequantize.inputs) > 2 and dequantize.inputs[2] is not None:
            zero_point = dequantize.inputs[2].const_value
            if zero_point is None or zero_point.numpy().any():
                continue
        factor = along_axis(dequantize)
        read = dequantize.outputs[0]
        name = read.name or ""
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        product = ir.node("Mul", [cast.outputs[0], draft.constant(f"{name}__scale", factor)])
        make_like(cast.outputs[0], read, f"{name}__steps")
        draft.graph.insert_before(dequantize, [cast, product])
        ir.convenience.replace_all_uses_with(read, product.outputs[0])
        draft.graph.remove(dequantize, safe=True)
        make_like(product.outputs[0], read, name)


def shift_weights(draft: Draft, *, only_unsafe: bool) -> None:
    """int8 weights of products as uint8: integers and zero points + 128.

    Args:
        draft: the graph.
        only_unsafe: leave those of which no kernel's 16-bit sums can overflow (``graph.overflow``).
    """
    for node in list(draft.graph):
        if node.op_type == "MatMulInteger":
            stored = node.inputs[1]
            assert stored is not None and stored.const_value is not None
            if only_unsafe and is_safe(stored.const_value.numpy().T, "Gemm", 1):
                continue
            shifted = _shifted(draft, stored)
            node.resize_inputs(4)
            node.replace_input_with(1, shifted)
            node.replace_input_with(3, draft.constant(f"{shifted.name}__zero_point", np.asarray(128, np.uint8)))
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        stored, scale = node.inputs[0], node.inputs[1].const_value
        if stored.const_value is None or stored.dtype != ir.DataType.INT8 or scale is None:
            continue
        readers = [use.node for use in node.outputs[0].uses() if use.node.op_type in WEIGHTED and use.idx == 1]
        if not readers or (only_unsafe and all(_is_safe(reader, stored.const_value.numpy()) for reader in readers)):
            continue
        shifted = _shifted(draft, stored)
        zero_point = np.full(tuple(scale.shape.numpy()), 128, np.uint8)
        node.resize_inputs(3)
        node.replace_input_with(0, shifted)
        node.replace_input_with(2, draft.constant(f"{shifted.name}__zero_point", zero_point))


def _is_safe(node: ir.Node, integers: npt.NDArray[np.int8]) -> bool:
    return is_safe(integers, node.op_type, node.attributes.get_int("group", 1))


def _shifted(draft: Draft, stored: ir.Value) -> ir.Value:
    """A constant of int8 integers as uint8, under its name."""
    assert stored.const_value is not None and stored.name is not None
    name, stored.name = stored.name, f"{stored.name}__int8"
    return draft.constant(name, (stored.const_value.numpy().astype(np.int16) + 128).astype(np.uint8))
