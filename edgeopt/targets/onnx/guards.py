"""What ONNX Runtime must not do to the file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import make_like
from edgeopt.graph.opset import expand_pad_axes
from edgeopt.graph.placement import WEIGHTED
from edgeopt.targets.onnx.draft import NO_INT8_KERNEL, Draft


def avoid_refusals(draft: Draft) -> None:
    """Two forms that ONNX Runtime (1.31) takes for others, and then fails on.

    It moves a Transpose through a Pad as if the Pad named all axes, and makes an AveragePool with dilations a
    QLinearAveragePool, which knows none: a Max of one tensor, which is that tensor, keeps it in float.
    """
    for node in list(draft.graph):
        if node.op_type == "Pad":
            expand_pad_axes(draft.graph, node)
        if node.op_type != "AveragePool" or (dilations := node.attributes.get("dilations")) is None:
            continue
        if set(dilations.as_ints()) == {1}:
            del node.attributes["dilations"]
        elif draft.table.scheme(node) == "int8":
            result = node.outputs[0]
            same = ir.node("Max", [result])
            ir.convenience.replace_all_uses_with(result, same.outputs[0], replace_graph_outputs=True)
            same.replace_input_with(0, result)
            make_like(same.outputs[0], result, result.name or "")
            result.name = f"{result.name}__pooled"
            draft.graph.insert_after(node, [same])


def guard_float_nodes(draft: Draft) -> None:
    """Weighted nodes that are not int8 read integers through a scale per channel (see the module)."""
    for node in list(draft.graph):
        guarded = node.op_type in WEIGHTED and draft.table.scheme(node) != "int8"
        # Its weight stays integers, but it has no int8 kernel: let nothing try.
        guarded = guarded or node.op_type in NO_INT8_KERNEL
        if not guarded:
            continue
        reader, index = node, 0
        while (value := reader.inputs[index]) is not None and (before := value.producer()) is not None:
            if before.op_type == "DequantizeLinear":
                _spread_scale(draft, reader, before)
                break
            if before.op_type not in ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"):
                break  # ONNX Runtime carries a DequantizeLinear through these (QDQPropagation), and no others
            reader = before


def _spread_scale(draft: Draft, reader: ir.Node, dequantize: ir.Node) -> None:
    integers = dequantize.inputs[0]
    sizes = integers.shape if integers is not None and integers.shape is not None else ()
    shape = [size if isinstance(size, int) else 1 for size in sizes]
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    if integers is None or axis is None:
        return  # one value: nothing to gain from int8, and a scale of one value counts as scalar
    params = draft.grid(dequantize)
    name = f"{integers.name}__spread"
    scale = draft.constant(f"{name}_scale", np.full(shape[axis], params.scale, np.float32))
    zero_point = int(params.zero_point) + draft.offset
    zeros = draft.constant(f"{name}_zero_point", np.full(shape[axis], zero_point, draft.dtype))
    spread = ir.node("DequantizeLinear", [integers, scale, zeros], {"axis": axis})
    make_like(spread.outputs[0], dequantize.outputs[0], f"{name}_dq")
    draft.graph.insert_before(reader, [spread])
    reader.replace_input_with(0, spread.outputs[0])
