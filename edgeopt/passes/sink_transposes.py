"""Channels last becomes channels first: Transposes around operators that mind no layout go where they cancel.

A model that was made channels last (Keras, TensorFlow) is exported with a Transpose in front of and behind every
convolution, and everything between two convolutions works on NHWC. What works there element by element, or along an
axis that can be renamed, does the same work on NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import constant, graph_of, remove_unused, replace, reshape_before, set_constant, shape
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass

Perm = tuple[int, ...]

UNARY = frozenset(
    {
        "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Their first input is worked on element by element; whatever else they read says the same everywhere."""
BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Where"})
ALONG_AN_AXIS = frozenset({"Concat", "Softmax", "LogSoftmax"})
MEANS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})


class SinkTransposes(Pass):
    """Regions between Transposes of one kind are worked on in the layout before them, where that leaves fewer, or as
    many and their work right behind convolutions."""

    use: Literal["sink_transposes"] = "sink_transposes"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        model_graph = graph.model.graph
        perms = {_perm(node) for node in model_graph if node.op_type == "Transpose"}
        for perm in sorted(perms):
            for region in _regions(model_graph, perm):
                saved = _saved(region, perm)
                if saved > 0 or (saved == 0 and _behind_weights(region, perm)):
                    _move(region, perm)
                    remove_unused(model_graph)
        return graph


def _perm(node: ir.Node) -> Perm:
    rank = len(shape(node.inputs[0]))
    return tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))


def _transposes(value: ir.Value | None, perm: Perm) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Transpose" and _perm(producer) == perm


def _is_free(sizes: Sequence[int], perm: Perm) -> bool:
    """Whether a tensor that is as long as this behind the Transpose has only axes of length 1 moved by it."""
    moved = [perm[axis] for axis, size in enumerate(sizes) if size != 1]
    return moved == sorted(moved)


def _cancels(node: ir.Node, perm: Perm) -> bool:
    """Whether a Transpose behind one of ``perm`` leaves nothing to do."""
    return node.op_type == "Transpose" and [perm[axis] for axis in _perm(node)] == list(range(len(perm)))


# --- finding


def _regions(graph: ir.Graph, perm: Perm) -> list[list[ir.Node]]:
    """Connected nodes that can all be worked on before the Transposes of ``perm`` that feed them, in graph order."""
    able: dict[ir.Node, None] = {}
    for node in graph:
        moved = _moved_inputs(node, perm)
        come = [_transposes(value, perm) or value.producer() in able for value in moved]
        if any(come) and all(known or _is_free(shape(value), perm) for known, value in zip(come, moved, strict=True)):
            able[node] = None
    root = {node: node for node in able}

    def find(node: ir.Node) -> ir.Node:
        while root[node] is not node:
            node = root[node]
        return node

    entered: dict[ir.Value, ir.Node] = {}
    for node in able:
        for value in _moved_inputs(node, perm):
            producer = value.producer()
            if producer not in able and not _transposes(value, perm):
                continue
            # Who reads one Transpose belongs together: it goes when all its readers do.
            other = producer if producer in able else entered.setdefault(value, node)
            assert other is not None
            root[find(node)] = find(other)
    regions: dict[ir.Node, list[ir.Node]] = {}
    for node in able:
        regions.setdefault(find(node), []).append(node)
    return list(regions.values())


def _moved_inputs(node: ir.Node, perm: Perm) -> list[ir.Value]:
    """The inputs that a Transpose of ``perm`` behind the node would have to stand in front of; none: not possible."""
    rank = len(perm)
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return []
    first, output = node.inputs[0], node.outputs[0]
    if node.op_type in BROADCASTING:
        moved = [value for value in node.inputs if value is not None and constant(value) is None]
        fixed = [value for value in node.inputs if constant(value) is not None]
        if any(len(shape(value)) > rank for value in fixed):
            return []
    elif node.op_type in UNARY or node.op_type in ALONG_AN_AXIS:
        moved = [value for value in node.inputs if value is not None] if node.op_type == "Concat" else [first]
    elif node.op_type == "Pad":
        moved = [first] if constant(node.inputs[1]) is not None and len(node.inputs) < 4 else []
    elif node.op_type in MEANS:
        moved = [first] if len(node.inputs) > 1 and constant(node.inputs[1]) is not None and _keeps(node, perm) else []
    else:
        return []
    # Only where ranks are equal are axes of inputs and output the same axes.
    if any(len(shape(value)) != rank or constant(value) is not None for value in moved):
        return []
    return moved if len(shape(output)) == rank or node.op_type in MEANS else []


def _keeps(node: ir.Node, perm: Perm) -> bool:
    """Whether a reduction's result has its axes in the same order on both sides: all kept, or what is left is."""
    if node.attributes.get_int("keepdims", 1):
        return True
    axes = _renamed(_axes(node, len(perm)), perm)
    left = [axis for axis in range(len(perm)) if axis not in _axes(node, len(perm))]
    return [perm[axis] for axis in left] == [axis for axis in range(len(perm)) if axis not in axes]


def _axes(node: ir.Node, rank: int) -> list[int]:
    axes = constant(node.inputs[1])
    assert axes is not None
    return [int(axis) % rank for axis in axes.reshape(-1)]


def _renamed(axes: Iterable[int], perm: Perm) -> list[int]:
    """Axes behind a Transpose as they are called in front of it."""
    return sorted(perm[axis] for axis in axes)


# --- counting


def _behind_weights(region: Sequence[ir.Node], perm: Perm) -> bool:
    """Whether all that enters comes from a weighted operator: what is done there can become part of it."""
    entries = [value.producer() for node in region for value in _moved_inputs(node, perm) if _transposes(value, perm)]
    sources = [node.inputs[0].producer() for node in entries if node is not None and node.inputs[0] is not None]
    return all(source is not None and source.op_type in (*WEIGHTED, "MatMul") for source in sources)


def _saved(region: Sequence[ir.Node], perm: Perm) -> int:
    """Transposes that go, less those that come."""
    inside = set(region)
    entries = {value for node in region for value in _moved_inputs(node, perm) if _transposes(value, perm)}
    saved = sum(not value.is_graph_output() and all(use.node in inside for use in value.uses()) for value in entries)
    for node in region:
        output = node.outputs[0]
        if len(shape(output)) != len(perm) or _is_free(shape(output), perm):
            continue
        outside = [use.node for use in output.uses() if use.node not in inside]
        saved += sum(_cancels(user, perm) for user in outside)
        # Another Transpose becomes one with what comes behind the region; anything else reads one that comes.
        saved -= output.is_graph_output() or any(user.op_type != "Transpose" for user in outside)
    return saved


# --- moving


def _move(region: Sequence[ir.Node], perm: Perm) -> None:
    inside = {node.outputs[0] for node in region}
    back = tuple(int(axis) for axis in np.argsort(perm))
    behind: list[tuple[ir.Node, ir.Value]] = []
    for node in region:
        for value in dict.fromkeys(_moved_inputs(node, perm)):
            if value in inside:
                continue
            producer = value.producer()
            if producer is not None and _transposes(value, perm):
                before = producer.inputs[0]
            else:
                before = reshape_before(node, value, [shape(value)[axis] for axis in back])
            for index, given in enumerate(node.inputs):
                if given is value:
                    node.replace_input_with(index, before)
        _rename_axes(node, perm, back)
        output = node.outputs[0]
        if len(shape(output)) == len(perm):
            behind.append((node, output))
    for node, output in behind:
        sizes = shape(output)
        readers = [use for use in output.uses() if use.node.outputs[0] not in inside]
        output.shape = ir.Shape([sizes[axis] for axis in back])
        if output.is_graph_output() or readers:
            _transpose_behind(node, output, perm, sizes, inside)


def _transpose_behind(
    node: ir.Node, output: ir.Value, perm: Perm, sizes: tuple[int, ...], inside: set[ir.Value]
) -> None:
    """Let all that is not of the region read the node's output through a Transpose."""
    made = ir.node(
        "Transpose", [output], {"perm": list(perm)}, name=f"{node.name}_transpose",
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    result = made.outputs[0]
    result.name, result.shape, result.type = f"{made.name}_out", ir.Shape(sizes), output.type
    graph_of(node).insert_after(node, made)
    for use in list(output.uses()):
        if use.node is not made and use.node.outputs[0] not in inside:
            use.node.replace_input_with(use.idx, result)
    if output.is_graph_output():
        replace(output, result)
        made.replace_input_with(0, output)


def _rename_axes(node: ir.Node, perm: Perm, back: Perm) -> None:
    if (rule := _RULES.get(node.op_type)) is not None:
        rule(node, perm, back)


def _constants(node: ir.Node, perm: Perm, back: Perm) -> None:
    """Constants that broadcast: as many axes as the others, in their new order."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is not None and array.size > 1:
            wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
            set_constant(node, index, wide.transpose(back), f"{node.name}_constant")


def _axis(node: ir.Node, perm: Perm, back: Perm) -> None:
    default = 0 if node.op_type == "Concat" else -1
    axis = perm[node.attributes.get_int("axis", default) % len(perm)]
    node.attributes.add(ir.AttrInt64("axis", axis))


def _pads(node: ir.Node, perm: Perm, back: Perm) -> None:
    pads = constant(node.inputs[1])
    assert pads is not None
    sides = pads.reshape(2, -1)[:, list(back)]
    set_constant(node, 1, sides.reshape(-1), f"{node.name}_pads")


def _reduced(node: ir.Node, perm: Perm, back: Perm) -> None:
    axes = _renamed(_axes(node, len(perm)), perm)
    set_constant(node, 1, np.asarray(axes, np.int64), f"{node.name}_axes")


_RULES: dict[str, Callable[[ir.Node, Perm, Perm], None]] = {
    **dict.fromkeys(BROADCASTING, _constants),
    **dict.fromkeys(ALONG_AN_AXIS, _axis),
    **dict.fromkeys(MEANS, _reduced),
    "Pad": _pads,
}
