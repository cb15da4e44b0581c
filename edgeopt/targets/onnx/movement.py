"""Movers of integers, in the form that ONNX Runtime moves fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import only_user
from edgeopt.targets.onnx.draft import Draft

INTEGER_MOVERS = frozenset({"Pad", "DepthToSpace", "SpaceToDepth", "Slice"})
"""Movers written on integers: ONNX Runtime's kernels move them, but it does not drop the Q/DQ pairs around the first
three, nor around what ``slice_blocks`` makes of the last."""


def move_integers(draft: Draft) -> None:
    """DequantizeLinear → mover → QuantizeLinear on one grid: the mover moves the integers."""
    for node in list(draft.graph):
        if node.op_type not in INTEGER_MOVERS or node.inputs[0] is None:
            continue
        before, after = node.inputs[0].producer(), only_user(node.outputs[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if after is None or after.op_type != "QuantizeLinear" or draft.grid(before) != draft.grid(after):
            continue
        node.replace_input_with(0, before.inputs[0])
        if node.op_type == "Pad":
            zero_point = int(draft.grid(before).zero_point) + draft.offset
            name = f"{node.outputs[0].name}__pad"
            inputs = [*node.inputs, None, None][:4]
            inputs[2] = draft.constant(name, np.asarray(zero_point, draft.dtype))
            while inputs[-1] is None:
                inputs.pop()
            node.resize_inputs(len(inputs))
            for index, value in enumerate(inputs):
                node.replace_input_with(index, value)
        moved, integers = node.outputs[0], after.outputs[0]
        ir.convenience.replace_all_uses_with(integers, moved, replace_graph_outputs=True)
        moved.type, moved.name, integers.name = integers.type, integers.name, None
        draft.graph.remove(after, safe=True)


def slice_blocks(draft: Draft) -> None:
    """Every k-th channel as a slice of whole blocks between two Reshapes.

    ONNX Runtime (1.31) takes a Slice with a step value by value, and one without a step block by block: on a
    ShuffleNet, whose channel shuffle is such slices, a quarter of the time.
    """
    for node in draft.of_type("Slice"):
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None or len(node.inputs) < 5:
            continue
        constants = [value.const_value.numpy() for value in node.inputs[1:5] if value and value.const_value]
        if len(constants) < 4 or any(array.size != 1 for array in constants):
            continue
        start, _, axis, step = (int(array.reshape(())) for array in constants)
        shape, after = [int(size) for size in source.shape.numpy()], [int(size) for size in result.shape.numpy()]
        axis %= len(shape)
        blocks = shape[axis] // max(step, 1)
        if step < 2 or not 0 <= start < step or shape[axis] % step or after[axis] != blocks:
            continue
        before, block = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        if axis != 1 or block == 1:
            # Nothing lies together, or it is a row or column of an image: that Slice is quick where channels come
            # last, as ONNX Runtime has them between int8 convolutions, and Reshapes would make it turn back.
            continue
        name = result.name or ""
        rows = _moved(draft, "Reshape", source, [before, blocks, step * block], f"{name}__rows")
        bounds = np.array([[start * block], [(start + 1) * block], [2]], np.int64)
        columns = _moved(draft, "Slice", rows.outputs[0], list(bounds), f"{name}__columns")
        back = _moved(draft, "Reshape", columns.outputs[0], after, f"{name}__blocks")
        for made, sizes in ((rows, (before, blocks, step * block)), (columns, (before, blocks, block))):
            made.outputs[0].shape = ir.Shape(sizes)
        draft.graph.insert_before(node, [rows, columns, back])
        ir.convenience.replace_all_uses_with(result, back.outputs[0], replace_graph_outputs=True)
        back.outputs[0].shape, back.outputs[0].name, result.name = result.shape, name, None
        draft.graph.remove(node, safe=True)


def _moved(draft: Draft, op: str, source: ir.Value, numbers: list[Any], name: str) -> ir.Node:
    """A Reshape or Slice of ``source``; ``numbers`` are its shape, or its starts, ends and axes."""
    arrays = [np.array(numbers, np.int64)] if op == "Reshape" else numbers
    constants = [draft.constant(f"{name}__{index}", array) for index, array in enumerate(arrays)]
    node = ir.node(op, [source, *constants], name=name)
    node.outputs[0].name, node.outputs[0].type = name, source.type
    return node
