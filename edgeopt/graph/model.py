"""Small functions on the float graph (``onnx_ir.Model``) that frontends, passes and targets share.

The *canonical float graph* is what ``edgeopt.passes.canonical`` delivers; functions here that speak of static shapes
hold for it, and for every model that a frontend returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.types import Signature, TensorSpec

Array = npt.NDArray[Any]

OPSET = 20
"""The opset (default domain) that every graph is lifted to when it is imported."""

SOURCE_LINE = "edgeopt.source_line"
"""Key of a node's metadata: the line of the user's module that it comes from. Frontends set it, passes hand it on."""

_SMALL_BYTES = 1024
"""Initializers up to this size may decide a shape (a Reshape's target); larger ones are weights."""


def serialise(model: ir.Model) -> bytes:
    """The ONNX file's bytes, weights inside (up to protobuf's 2 GiB)."""
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def exposed(model: ir.Model, names: Iterable[str]) -> bytes:
    """The ONNX file of the model with the named values as outputs too; names that it does not have are left out."""
    model = model.clone()
    values = {value.name: value for node in model.graph for value in node.outputs}
    known = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name in values and name not in known)
    return serialise(model)


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer that is no graph input; None for anything else. Not to be written to."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, whatever its rank."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def shape(value: ir.Value | None) -> tuple[int, ...]:
    """Static shape; ValueError where it is not known, which cannot be in a graph that a frontend returned."""
    if value is None or not has_static_shape(value):
        raise ValueError(f"the shape of {value.name if value else None!r} is not static")
    assert value.shape is not None
    return value.shape.numpy()


def has_static_shape(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def only_user(value: ir.Value | None) -> ir.Node | None:
    """The one node that reads the value once; None if there are more, or if the value leaves the graph."""
    if value is None or value.is_graph_output():
        return None
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 else None


def present(value: ir.Value | None) -> ir.Value:
    """An input that the operator cannot be without."""
    if value is None:
        raise ValueError("an operator lacks an input that it cannot be without")
    return value


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in; never a function, for those are inlined on import."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name!r} stands in no graph")
    return node.graph


def place(node: ir.Node) -> str:
    """Which node, and where the user wrote it, for messages: ``node 'head' (Gemm), net.py:7: return self.head(x)``."""
    line = node.metadata_props.get(SOURCE_LINE)
    return f"node {node.name!r} ({node.op_type})" + (f", {line}" if line else "")


def free_name(graph: ir.Graph, base: str) -> str:
    """``base``, or ``base__2``, ``base__3``… if an initializer already has that name."""
    name, count = base, 1
    while name in graph.initializers:
        count += 1
        name = f"{base}__{count}"
    return name


def add_initializer(graph: ir.Graph, base: str, array: Array) -> ir.Value:
    """A new constant of the graph, named ``base`` or, where that is taken, ``base__2`` and so on."""
    return named_initializer(graph, free_name(graph, base), array)


def named_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new constant of exactly this name."""
    tensor = ir.tensor(np.array(array, order="C"), name=name)  # ascontiguousarray would make a vector of a scalar
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_constant(node: ir.Node, index: int, array: Array, base: str) -> None:
    """Give one input of a node a new constant. Other readers of the old one keep what they had.

    The constant's name stays where this node is its only reader, so that weights are still called as in the source.
    """
    graph = graph_of(node)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    if constant(node.inputs[index]) is not None:
        base = release_constant(node, index)
    node.replace_input_with(index, add_initializer(graph, base, array))


def make_like(value: ir.Value, model: ir.Value, name: str) -> None:
    """Type and shape of ``model``, and a name of its own."""
    value.name, value.type, value.shape = name, model.type, model.shape


def release_constant(node: ir.Node, index: int) -> str:
    """Take a constant from a node, and from the graph if no other node reads it; returns its name, free for another."""
    graph, value = node.graph, node.inputs[index]
    assert isinstance(graph, ir.Graph) and value is not None and value.name is not None
    is_last = only_user(value) is node
    node.replace_input_with(index, None)
    if is_last:
        del graph.initializers[value.name]
    return value.name


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    output_shape: Sequence[int],
    like: ir.Value,
    name: str | None = None,
) -> ir.Value:
    """A new node before ``anchor`` with one output of the given shape and the dtype of ``like``; returns the output.

    The node inherits the anchor's metadata, so that the user's source line stays known. ``name`` names the node and
    its output; by default both are derived from the anchor.
    """
    graph = graph_of(anchor)
    base = name or f"{anchor.name}_{op_type.lower()}"
    node = ir.node(op_type, inputs, attributes or {}, name=base, metadata_props=dict(anchor.metadata_props))
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{base}_out", ir.Shape(output_shape), like.type
    graph.insert_before(anchor, node)
    return output


def reshape_before(anchor: ir.Node, value: ir.Value, sizes: Sequence[int], *, name: str | None = None) -> ir.Value:
    """``value`` in another static shape, by a Reshape before ``anchor``."""
    graph = graph_of(anchor)
    base = name or f"{anchor.name}_reshape"
    target = add_initializer(graph, f"{base}_shape", np.asarray(sizes, np.int64))
    return insert_before(anchor, "Reshape", [value, target], output_shape=sizes, like=value, name=base)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old`` read ``new``. A graph output keeps its name.

    Where the output would have to be a graph input, a constant or another output, a Reshape to its own shape stands
    between: the canonical graph's copy.
    """
    if old.is_graph_output():
        producer = old.producer()
        assert producer is not None and isinstance(producer.graph, ir.Graph)
        if new.producer() is None or new.is_graph_output():
            new = reshape_before(producer, new, shape(new), name=f"{producer.name}_copy")
        name, old.name = old.name, f"{old.name}_replaced"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes whose outputs nobody reads, and then initializers that nobody reads."""
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


@contextmanager
def _without_weights(model: ir.Model) -> Iterator[None]:
    """Inside, large initializers are graph inputs, so that a copy for the C++ checkers is small."""
    graph, inputs = model.graph, list(model.graph.inputs)
    weights = [
        value
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES and not value.is_graph_input()
    ]
    tensors = [value.const_value for value in weights]
    try:
        for value in weights:
            assert value.name is not None
            del graph.initializers[value.name]
            graph.inputs.append(value)
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        for value, tensor in zip(weights, tensors, strict=True):
            value.const_value = tensor
            graph.register_initializer(value)


def on_small_copy(model: ir.Model, function: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """``function`` of the model's proto without its large weights, which are graph inputs in it."""
    with _without_weights(model):
        proto = ir.to_proto(model)
    return function(proto)


def infer_shapes(model: ir.Model) -> None:
    """Set shape and dtype of every value as far as ONNX's own inference finds them, in place.

    Raises:
        ModelError: the shapes contradict each other.
    """
    try:
        proto = on_small_copy(
            model, lambda p: onnx.shape_inference.infer_shapes(p, check_type=True, strict_mode=True, data_prop=True)
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the shapes in this model contradict each other: {_first_lines(error)}",
            hint="Are the input shapes those that the model was made for? A fixed batch or size inside the model "
            "(in a Reshape, say) allows no other.",
        ) from error
    found = {info.name: info for infos in (proto.graph.value_info, proto.graph.output) for info in infos}
    for node in model.graph:
        for value in node.outputs:
            if (info := found.get(value.name or "")) is not None:
                inferred = ir.serde.deserialize_value_info_proto(info, None)
                value.type = inferred.type if inferred.type is not None else value.type
                value.shape = inferred.shape if inferred.shape is not None else value.shape


def open_values(model: ir.Model) -> list[ir.Value]:
    """Values whose shape or dtype is not known; none in a graph that a frontend returned."""
    return [
        value
        for node in model.graph
        for value in node.outputs
        if value.name and (not has_static_shape(value) or value.dtype is None)
    ]


def _first_lines(error: Exception, count: int = 2) -> str:
    return " ".join(str(error).strip().splitlines()[:count])


def signature(model: ir.Model) -> Signature:
    """Names, numpy dtypes and static shapes of the graph's inputs and outputs, in order."""

    def spec(value: ir.Value) -> TensorSpec:
        assert value.name is not None and value.dtype is not None
        return TensorSpec(name=value.name, dtype=value.dtype.numpy().name, shape=shape(value))

    return Signature(
        inputs=tuple(spec(v) for v in model.graph.inputs), outputs=tuple(spec(v) for v in model.graph.outputs)
    )


def name_uniquely(graph: ir.Graph) -> None:
    """Give every node and value a name of its own, in place; names that are unique already stay.

    Graph inputs, outputs and initializers keep theirs. A nameless node is called after its operator and first output.
    """
    fixed = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in fixed} | set(graph.initializers)
    kept = set(fixed)
    nodes: set[str] = set()
    for node in graph:
        for index, value in enumerate(node.outputs):
            if value in kept or (value.name == "" and not value.uses()):
                continue
            value.name = _unique(value.name or f"{node.name or node.op_type}_out{index or ''}", taken)
        node.name = _unique(node.name or f"{node.op_type}_{node.outputs[0].name}", nodes)


def _unique(base: str, taken: set[str | None] | set[str]) -> str:
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}__{count}"
    taken.add(name)
    return name
