"""Operators that change nothing are removed, chains that one operator says are merged, equal work is done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from edgeopt.graph.model import (
    constant,
    insert_before,
    only_user,
    remove_unused,
    replace,
    reshape_before,
    set_constant,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass


class Simplify(Pass):
    """Identities, Dropout, movement that moves nothing, neutral constants, common subexpressions, dead code."""

    use: Literal["simplify"] = "simplify"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        model = graph.model
        while True:
            merged = CommonSubexpressionEliminationPass()(model).modified
            rewritten = [node for node in list(model.graph) if _simplify(node)]
            remove_unused(model.graph)
            if not (merged or rewritten):
                return graph


def _simplify(node: ir.Node) -> bool:
    """Let readers of the node read something simpler; True if so. The node itself is then dead."""
    if node.domain not in ("", "ai.onnx") or not any(v.uses() or v.is_graph_output() for v in node.outputs):
        return False
    if _is_identity(node):
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        if output.is_graph_output() and (source.producer() is None or source.is_graph_output()):
            return _as_copy(node)
        replace(output, source)
        return True
    rule = _RULES.get(node.op_type)
    return rule is not None and rule(node)


def _as_copy(node: ir.Node) -> bool:
    """An input or another output that leaves the graph once more: the canonical copy is a Reshape to its own shape."""
    if node.op_type == "Reshape":
        return False
    source = node.inputs[0]
    assert source is not None
    replace(node.outputs[0], reshape_before(node, source, shape(source), name=f"{node.name}_copy"))
    return True


def _is_identity(node: ir.Node) -> bool:
    source, output = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if source is None or source.dtype != output.dtype or constant(source) is not None:
        return False
    same_shape = shape(source) == shape(output)
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":  # the mask is all ones in inference; a graph that reads it is left alone
            return len(node.outputs) == 1 or not (node.outputs[1].uses() or node.outputs[1].is_graph_output())
        case "Cast" | "CastLike":
            return True  # the dtypes are equal
        case "Reshape" | "Expand" | "Tile" | "Pad" | "Flatten" | "Squeeze" | "Unsqueeze":
            return same_shape and _pads_nothing(node)
        case "Slice":
            steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
            return same_shape and (len(node.inputs) <= 4 or (steps is not None and bool((steps > 0).all())))
        case "Resize":
            return same_shape and node.attributes.get_string("coordinate_transformation_mode") != "tf_crop_and_resize"
        case "Transpose":
            return list(_perm(node)) == list(range(len(shape(source))))
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
        case "Split":
            return len(node.outputs) == 1
        case "Add" | "Sub" | "Mul" | "Div" | "Pow":
            neutral = 0.0 if node.op_type in {"Add", "Sub"} else 1.0
            array = constant(node.inputs[1])
            return same_shape and array is not None and bool((array == neutral).all())
        case "MaxPool" | "AveragePool":
            kernel = node.attributes.get_ints("kernel_shape", ())
            return same_shape and all(k == 1 for k in kernel) and not any(node.attributes.get_ints("pads", ()))
        case _:
            return False


def _pads_nothing(node: ir.Node) -> bool:
    """A Pad that cuts as much as it adds keeps the shape and is no identity."""
    if node.op_type != "Pad":
        return True
    pads = constant(node.inputs[1])
    return pads is not None and not pads.any()


def _perm(node: ir.Node) -> tuple[int, ...]:
    rank = len(shape(node.inputs[0]))
    return tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))


def _broadcasting(node: ir.Node) -> bool:
    """An elementwise operator broadcasts by itself: what Expand would do before it is left to it."""
    for index, value in enumerate(node.inputs):
        expand = value.producer() if value is not None else None
        if expand is None or expand.op_type != "Expand":
            continue
        others = [shape(other) for place, other in enumerate(node.inputs) if place != index]
        if np.broadcast_shapes(shape(expand.inputs[0]), *others) == shape(node.outputs[0]):
            node.replace_input_with(index, expand.inputs[0])
            return True
    return False


def _commutative(node: ir.Node) -> bool:
    """Add and Mul read their constant second."""
    if _broadcasting(node):
        return True
    if constant(node.inputs[0]) is None or constant(node.inputs[1]) is not None:
        return False
    first, second = node.inputs
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)
    return True


def _reshape(node: ir.Node) -> bool:
    """Reshape of a Reshape is one; Reshape, Transpose, Reshape that only juggle axes of length 1 are one Transpose."""
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if inner is None or inner.inputs[0] is None:
        return False
    if inner.op_type == "Reshape":
        node.replace_input_with(0, inner.inputs[0])
        return True
    if inner.op_type == "Transpose" and only_user(source) is node:
        return _transpose_in_reshapes(node, inner)
    if inner.op_type == "Softmax" and only_user(source) is node:
        return _softmax_in_reshapes(node, inner)
    return False


def _transpose_in_reshapes(node: ir.Node, transpose: ir.Node) -> bool:
    before = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if before is None or before.op_type != "Reshape":
        return False
    origin = before.inputs[0]
    start, middle, end = shape(origin), shape(before.outputs[0]), shape(node.outputs[0])
    if len(start) != len(end) or [d for d in start if d != 1] != [d for d in middle if d != 1]:
        return False
    axes = [axis for axis, size in enumerate(start) if size != 1]
    axis_of = dict(zip([axis for axis, size in enumerate(middle) if size != 1], axes, strict=True))
    moved = [axis_of[axis] for axis in _perm(transpose) if axis in axis_of]
    if [start[axis] for axis in moved] != [d for d in end if d != 1]:
        return False
    units, order = iter(axis for axis, size in enumerate(start) if size == 1), iter(moved)
    perm = [next(units) if size == 1 else next(order) for size in end]
    replace(
        node.outputs[0],
        insert_before(node, "Transpose", [origin], {"perm": perm}, output_shape=end, like=node.outputs[0]),
    )
    return True


def _softmax_in_reshapes(node: ir.Node, softmax: ir.Node) -> bool:
    """What opset 12's flattening Softmax becomes when it is lifted: Reshape, Softmax over the last axis, Reshape."""
    before = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if before is None or before.op_type != "Reshape" or only_user(softmax.inputs[0]) is not softmax:
        return False
    origin, rank = before.inputs[0], len(shape(softmax.inputs[0]))
    assert origin is not None
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return False
    if shape(origin) != shape(node.outputs[0]) or shape(origin)[-1] != shape(softmax.inputs[0])[-1]:
        return False
    end = shape(node.outputs[0])
    replace(
        node.outputs[0],
        insert_before(node, "Softmax", [origin], {"axis": -1}, output_shape=end, like=origin, name=softmax.name),
    )
    return True


def _transpose(node: ir.Node) -> bool:
    """Two Transposes are one; one that moves only axes of length 1 is a Reshape."""
    source, perm, output = node.inputs[0], _perm(node), node.outputs[0]
    assert source is not None
    inner = source.producer()
    if inner is not None and inner.op_type == "Transpose":
        outer = _perm(inner)
        node.attributes.add(ir.AttrInt64s("perm", [outer[axis] for axis in perm]))
        node.replace_input_with(0, inner.inputs[0])
        return True
    sizes = shape(source)
    moved = [axis for axis in perm if sizes[axis] != 1]
    if moved != sorted(moved):
        return False
    replace(output, reshape_before(node, source, shape(output), name=node.name))
    return True


def _slice(node: ir.Node) -> bool:
    """A Slice of a Slice is one: ``x[:, :, ::2, ::2]`` comes as a Slice per axis."""
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if inner is None or inner.op_type != "Slice" or inner.inputs[0] is None:
        return False
    sizes = shape(inner.inputs[0])
    taken = [range(size) for size in sizes]
    for cut in (inner, node):
        bounds = [constant(value) for value in cut.inputs[1:]]
        if len(bounds) != 4 or any(array is None for array in bounds):
            return False  # written out by CanonicaliseMovement; else it depends on data
        for start, end, axis, step in zip(*(array.tolist() for array in bounds if array is not None), strict=True):
            taken[axis] = taken[axis][slice(start, end, step)]
    axes = [axis for axis, size in enumerate(sizes) if taken[axis] != range(size)] or [0]
    ends = [taken[axis].stop if taken[axis].stop >= 0 else -sizes[axis] - 1 for axis in axes]
    numbers = ([taken[axis].start for axis in axes], ends, axes, [taken[axis].step for axis in axes])
    node.replace_input_with(0, inner.inputs[0])
    for index, (array, what) in enumerate(zip(numbers, ("starts", "ends", "axes", "steps"), strict=True), 1):
        set_constant(node, index, np.asarray(array, np.int64), f"{node.name}_{what}")
    return True


def _variadic(op_type: str) -> Callable[[ir.Node], bool]:
    """Sum, Max and Min of several inputs as a chain of two-input operators."""

    def rule(node: ir.Node) -> bool:
        if len(node.inputs) < 2 or (len(node.inputs) == 2 and node.op_type == op_type):
            return False
        total = node.inputs[0]
        for count, value in enumerate(node.inputs[1:], 1):
            assert total is not None and value is not None
            sizes = np.broadcast_shapes(shape(total), shape(value))
            name = node.name if count == len(node.inputs) - 1 else f"{node.name}_{count}"
            total = insert_before(node, op_type, [total, value], output_shape=sizes, like=node.outputs[0], name=name)
        assert total is not None
        replace(node.outputs[0], total)
        return True

    return rule


_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "Add": _commutative,
    "Mul": _commutative,
    "Sub": _broadcasting,
    "Div": _broadcasting,
    "Pow": _broadcasting,
    "Where": _broadcasting,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Sum": _variadic("Add"),
    "Max": _variadic("Max"),
    "Min": _variadic("Min"),
}
