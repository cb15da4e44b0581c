"""Gates between integers as int8 kernels: sigmoids on a grid of their own, hard ones as saturating sums."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import make_like, only_user
from edgeopt.graph.qdq import INTEGERS_SUFFIX
from edgeopt.targets.onnx.draft import Draft


def round_sigmoids(draft: Draft) -> None:
    """In ``x · sigmoid(x)`` between integers, the sigmoid on a grid of its own: 1/256 from 0, as everywhere."""
    for node in draft.of_type("Sigmoid"):
        value, result = node.inputs[0], node.outputs[0]
        product = only_user(result)
        if draft.table.scheme(node) != "int8" or value is None or product is None or product.op_type != "Mul":
            continue
        before, after = value.producer(), only_user(product.outputs[0])
        if before is None or before.op_type != "DequantizeLinear" or value not in product.inputs:
            continue
        if after is None or after.op_type != "QuantizeLinear":
            continue
        gate = _round_gate(draft, result, node, 1 / 256)
        for index, operand in enumerate(product.inputs):
            if operand is result:
                product.replace_input_with(index, gate)


def harden(draft: Draft) -> None:
    """HardSigmoid as the saturating sum that it is, and HardSwish as a product with one.

    ``clip(a·x + b, 0, 1)`` is an Add of ``a·x`` (the same integers, their scale times a) and a constant, rounded
    to a grid that ends at 0 and 1.
    """
    for node in list(draft.graph):
        if node.op_type not in ("HardSwish", "HardSigmoid") or draft.table.scheme(node) != "int8":
            continue
        value, result = node.inputs[0], node.outputs[0]
        before, after = value.producer() if value is not None else None, only_user(result)
        if value is None or before is None or before.op_type != "DequantizeLinear":
            continue
        if after is None or after.op_type != "QuantizeLinear":
            continue
        slope, offset = 1 / 6, 0.5
        if node.op_type == "HardSigmoid":
            slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            params = draft.grid(after)
            ends = [int(params.quantize(np.asarray(end, np.float32))) for end in (0, 1)]
            if ends != [-128, 127] or offset <= 0 or slope <= 0:
                continue
        name = result.name or ""
        grid = draft.grid(before)
        scaled = ir.node(
            "DequantizeLinear",
            [
                before.inputs[0],
                draft.constant(f"{name}__slope", (grid.scale * np.float32(slope)).astype(np.float32)),
                before.inputs[2],
            ],
        )
        one = draft.constant(f"{name}__one", np.asarray(1, draft.dtype))
        shift = ir.node(
            "DequantizeLinear",
            [
                one,
                draft.constant(f"{name}__shift", np.asarray(offset, np.float32)),
                draft.constant(f"{name}__no_offset", np.asarray(0, draft.dtype)),
            ],
        )
        total = ir.node("Add", [scaled.outputs[0], shift.outputs[0]], name=node.name)
        make_like(scaled.outputs[0], value, f"{name}__scaled")
        make_like(shift.outputs[0], value, f"{name}__shifted")
        shift.outputs[0].shape = ir.Shape(())
        draft.graph.insert_before(node, [scaled, shift, total])
        if node.op_type == "HardSigmoid":
            ir.convenience.replace_all_uses_with(result, total.outputs[0])
            draft.graph.remove(node, safe=True)
            make_like(total.outputs[0], result, name)
            continue
        make_like(total.outputs[0], value, f"{name}__gate")
        gate = _round_gate(draft, total.outputs[0], total, 1 / 255)
        total.name = f"{node.name}__gate"
        product = ir.node("Mul", [value, gate], name=node.name)
        ir.convenience.replace_all_uses_with(result, product.outputs[0])
        draft.graph.insert_after(node, [product])
        draft.graph.remove(node, safe=True)
        make_like(product.outputs[0], result, name)


def _round_gate(draft: Draft, value: ir.Value, node: ir.Node, step: float) -> ir.Value:
    """What ``node`` makes, rounded to the grid that starts at 0 and has this step; read as a real number."""
    name = value.name or ""
    grid = [
        draft.constant(f"{name}__scale", np.asarray(step, np.float32)),
        draft.constant(f"{name}__zero_point", np.asarray(draft.offset - 128, draft.dtype)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *grid])
    make_like(quantize.outputs[0], value, f"{name}{INTEGERS_SUFFIX}")
    quantize.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(draft.dtype))
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *grid])
    make_like(dequantize.outputs[0], value, f"{name}__dq")
    draft.graph.insert_after(node, [quantize, dequantize])
    return dequantize.outputs[0]
