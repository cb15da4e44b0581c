"""What a graph computes from constants alone is computed once, by ONNX's reference evaluator.

Shape arithmetic (Shape → Gather → Unsqueeze → Concat → Reshape) is of that kind once the inputs are static, and
decides further shapes: folding and shape inference take turns until nothing changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgeopt.errors import ModelError, UnsupportedOperator
from edgeopt.graph.model import (
    Array,
    add_initializer,
    constant,
    graph_of,
    has_static_shape,
    infer_shapes,
    open_values,
    place,
    remove_unused,
    replace,
    shape,
)

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "StringSplit"})
_LARGEST_ELEMENTS = 1 << 24
"""A constant may grow to this many elements by folding (ConstantOfShape, Expand, Tile): 64 MiB in float32."""


def fold_constants(model: ir.Model) -> None:
    """Fold constant subgraphs and infer all shapes, in place; the graph inputs must be static.

    Afterwards no Constant node, no node of constants alone and no ``If`` of a constant condition is left.

    Raises:
        ModelError: shapes contradict each other, a constant subgraph cannot be computed, or a shape depends on data.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    while True:
        inlined = [_inline_branch(node) for node in list(model.graph) if node.op_type == "If"]
        folded = _fold_once(model.graph)
        if not (folded or any(inlined)):
            break
        if open_values(model):
            infer_shapes(model)
    remove_unused(model.graph)
    _refuse_open_shapes(model)
    _refuse_impossible_reshapes(model)


def _fold_once(graph: ir.Graph) -> bool:
    known: dict[ir.Value, Array] = {}

    def array(value: ir.Value | None) -> Array | None:
        return known[value] if value in known else constant(value)

    folded: list[ir.Node] = []
    for node in graph:
        if _is_copy(node):
            continue
        if node.op_type in {"Shape", "Size"} and node.inputs[0] is not None and has_static_shape(node.inputs[0]):
            results = [_shape_of(node)]
        elif _is_foldable(node) and all(value is None or array(value) is not None for value in node.inputs):
            results = _evaluate(node, [array(value) for value in node.inputs])
        else:
            continue
        known.update(zip(node.outputs, results, strict=False))
        folded.append(node)
    for node in folded:
        for value in node.outputs:
            wanted = value.is_graph_output() or any(user.node not in folded for user in value.uses())
            if value in known and wanted:
                name = f"{value.name}_value" if value.is_graph_output() else value.name or "constant"
                replace(value, add_initializer(graph, name, known[value]))
    for node in reversed(folded):
        if not any(value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    return bool(folded)


def _is_copy(node: ir.Node) -> bool:
    """A constant that leaves the graph does so through a Reshape (``replace`` writes it): it is folded no further."""
    return node.op_type == "Reshape" and node.outputs[0].is_graph_output() and constant(node.inputs[0]) is not None


def _is_foldable(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
        return False
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return False
    sizes = [value.shape.numpy() for value in node.outputs if value.shape is not None and value.shape.is_static()]
    return all(np.prod(size, dtype=np.int64) <= _LARGEST_ELEMENTS for size in sizes)


def _shape_of(node: ir.Node) -> Array:
    sizes = np.asarray(shape(node.inputs[0]), np.int64)
    if node.op_type == "Size":
        return np.asarray(sizes.prod(), np.int64)
    end = node.attributes.get_int("end", len(sizes))
    return sizes[node.attributes.get_int("start", 0) : end]


def _evaluate(node: ir.Node, inputs: list[Array | None]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(ir.serde.serialize_node(node))
    names = [value.name if value is not None else "" for value in node.inputs]
    feed: dict[str, Any] = {
        name: array for name, array in zip(names, inputs, strict=True) if array is not None and name
    }
    try:
        results = evaluator.run(None, feed)
    except Exception as error:  # each operator of the evaluator raises what it likes
        raise ModelError(f"this constant part of the model cannot be computed: {error}", where=place(node)) from error
    return [np.asarray(result) for result in results]


def _inline_branch(node: ir.Node) -> bool:
    """Put the branch that a constant condition chooses in the place of an ``If``."""
    condition = constant(node.inputs[0])
    if condition is None:
        return False
    branch = node.attributes["then_branch" if bool(condition.reshape(())) else "else_branch"].as_graph()
    graph = graph_of(node)
    for name, value in list(branch.initializers.items()):
        assert value.const_value is not None
        moved = add_initializer(graph, name, value.const_value.numpy())
        value.replace_all_uses_with(moved, replace_graph_outputs=True)
    results = list(branch.outputs)
    branch.outputs.clear()
    for inner in list(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)
    for old, new in zip(list(node.outputs), results, strict=True):
        replace(old, new)
    graph.remove(node, safe=True)
    return True


def _refuse_open_shapes(model: ir.Model) -> None:
    if not (still_open := open_values(model)):
        return
    value = still_open[0]
    node = value.producer()
    assert node is not None
    where = place(node)
    if node.op_type in _DATA_DEPENDENT:
        raise UnsupportedOperator(
            f"how much {node.op_type} puts out depends on the data, so the shapes behind it cannot be known",
            where=where,
            hint="End the model before it (return the raw boxes or scores) and do this step in the application.",
        )
    raise ModelError(
        f"the shape of {value.name!r} cannot be found out before the model runs",
        where=where,
        hint="Bind open sizes with --input NAME=1,3,224,224, or end the model before this node.",
    )


def _refuse_impossible_reshapes(model: ir.Model) -> None:
    """ONNX's inference believes a Reshape's target, whatever the input's size is."""
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        before, after = shape(node.inputs[0]), shape(node.outputs[0])
        if np.prod(before, dtype=np.int64) != np.prod(after, dtype=np.int64):
            raise ModelError(
                f"{list(before)} cannot be reshaped to {list(after)}",
                where=place(node),
                hint="A fixed batch or size inside the model allows no other input shape than the one it was made for.",
            )
