"""Operators that only move values: Reshape, Transpose, Slice, Split, Concat, Pad, Resize say all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import (
    Array,
    add_initializer,
    constant,
    graph_of,
    insert_before,
    remove_unused,
    replace,
    reshape_before,
    set_constant,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass

_LARGEST_TRACED = 1 << 22
"""Elements of a tensor whose way through a chain of movements is followed with an index array (16 MiB of int32)."""


class CanonicaliseMovement(Pass):
    """Flatten, Squeeze and Unsqueeze become Reshape; Gather of contiguous constant indices becomes Slice; Reshape and
    Slice have constant, fully written out operands.

    A channel shuffle that is then taken apart (Reshape → Transpose → … → Gather) becomes what it is: a Slice with a
    step on the channel axis.
    """

    use: Literal["canonicalise_movement"] = "canonicalise_movement"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for node in list(graph.model.graph):
            if node.domain in ("", "ai.onnx") and (rule := _RULES.get(node.op_type)) is not None:
                rule(node)
        remove_unused(graph.model.graph)
        for node in list(graph.model.graph):
            if node.op_type == "Slice":
                _shorten_to_slice(node)
        remove_unused(graph.model.graph)
        return graph


def _to_reshape(node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    replace(output, reshape_before(node, source, shape(output), name=node.name))


def _explicit_reshape(node: ir.Node) -> None:
    """The target shape is written out: no 0 (copy) and no −1 (infer)."""
    target = np.asarray(shape(node.outputs[0]), np.int64)
    node.attributes.pop("allowzero", None)
    if (array := constant(node.inputs[1])) is None or not np.array_equal(array, target):
        set_constant(node, 1, target, f"{node.name}_shape")


def _explicit_slice(node: ir.Node) -> None:
    """Starts, ends, axes and steps constant, axes ≥ 0, starts and ends inside the tensor."""
    bounds = [constant(value) for value in node.inputs[1:]]
    if bounds[0] is None or bounds[1] is None:
        return  # bounds that depend on data: no target lowers it, and says so
    sizes = shape(node.inputs[0])
    axes = bounds[2] if len(bounds) > 2 and bounds[2] is not None else np.arange(len(bounds[0]))
    steps = bounds[3] if len(bounds) > 3 and bounds[3] is not None else np.ones(len(bounds[0]), np.int64)
    axes = np.asarray(axes) % len(sizes)
    starts, ends = [], []
    for start, end, axis, step in zip(bounds[0], bounds[1], axes, steps, strict=True):
        first, last, _ = slice(int(start), int(end), int(step)).indices(sizes[axis])
        starts.append(first)
        ends.append(last if last >= 0 else -sizes[axis] - 1)  # a negative step's end before index 0
    for index, array in enumerate((starts, ends, axes, steps), 1):
        wanted = np.asarray(array, np.int64)
        have = constant(node.inputs[index]) if index < len(node.inputs) else None
        if have is None or have.dtype != np.int64 or not np.array_equal(have, wanted):
            set_constant(node, index, wanted, f"{node.name}_{('starts', 'ends', 'axes', 'steps')[index - 1]}")


def _gather(node: ir.Node) -> None:
    """Evenly spaced ascending constant indices, of whatever rank, are a Slice (and a Reshape)."""
    source, output, indices = node.inputs[0], node.outputs[0], constant(node.inputs[1])
    if source is None or indices is None or indices.size == 0:
        return
    sizes = shape(source)
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    flat = indices.reshape(-1).astype(np.int64) % sizes[axis]
    gaps = np.unique(np.diff(flat)) if flat.size > 1 else np.asarray([1])
    if gaps.size != 1 or gaps[0] < 1:
        return
    sliced = _slice_before(node, source, (axis, int(flat[0]), int(gaps[0]), flat.size))
    if indices.ndim != 1:
        sliced = reshape_before(node, sliced, shape(output), name=f"{node.name}_squeeze")
    replace(output, sliced)


def _slice_before(node: ir.Node, source: ir.Value, cut: tuple[int, int, int, int]) -> ir.Value:
    """A Slice of ``source`` before ``node``; ``cut`` is (axis, start, step, count)."""
    axis, start, step, count = cut
    graph = graph_of(node)
    sizes = list(shape(source))
    end = min(start + (count - 1) * step + 1, sizes[axis])
    sizes[axis] = count
    operands = [
        add_initializer(graph, f"{node.name}_{what}", np.asarray([number], np.int64))
        for what, number in (("starts", start), ("ends", end), ("axes", axis), ("steps", step))
    ]
    return insert_before(node, "Slice", [source, *operands], output_shape=sizes, like=source, name=node.name)


def _explicit_split(node: ir.Node) -> None:
    """Sizes of the parts as a constant, whether they were given, counted or meant to be equal."""
    axis = node.attributes.get_int("axis", 0)
    sizes = np.asarray([shape(value)[axis] for value in node.outputs], np.int64)
    node.attributes.pop("num_outputs", None)
    have = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if have is None or not np.array_equal(have, sizes):
        set_constant(node, 1, sizes, f"{node.name}_sizes")


def _explicit_pad(node: ir.Node) -> None:
    """Pads of all axes, without a list of axes."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return
    pads, axes, rank = constant(node.inputs[1]), constant(node.inputs[3]), len(shape(node.inputs[0]))
    if pads is None or axes is None:
        return
    full = np.zeros(2 * rank, np.int64)
    full[[*(axes % rank), *(axes % rank + rank)]] = pads
    set_constant(node, 1, full, f"{node.name}_pads")
    node.resize_inputs(3)


def _depth_of(node: ir.Node) -> list[ir.Node]:
    """The chain of one-input movements that ends in ``node``, first operator first."""
    chain = [node]
    while (source := chain[0].inputs[0]) is not None and (producer := source.producer()) is not None:
        if producer.op_type not in {"Reshape", "Transpose", "Slice"}:
            break
        chain.insert(0, producer)
    return chain


def _shorten_to_slice(node: ir.Node) -> None:
    """Follow where each element comes from; if the chain is one Slice with a step on one axis, write that."""
    chain = _depth_of(node)
    for first in range(len(chain) - 1):
        if any(link.op_type == "Transpose" for link in chain[first:]):
            origin = chain[first].inputs[0]
            assert origin is not None
            if (found := _as_one_slice(chain[first:], shape(origin))) is not None:
                sliced = _slice_before(node, origin, found)
                replace(
                    node.outputs[0], reshape_before(node, sliced, shape(node.outputs[0]), name=f"{node.name}_shape")
                )
                return


def _as_one_slice(chain: list[ir.Node], sizes: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """(axis, start, step, count) of the Slice whose values, in order, are those of the chain's output."""
    elements = int(np.prod(sizes, dtype=np.int64))
    if not 0 < elements <= _LARGEST_TRACED:
        return None
    index: Array = np.arange(elements, dtype=np.int32).reshape(sizes)
    for node in chain:
        index = _move(node, index)
    for axis, size in enumerate(sizes):
        inner = int(np.prod(sizes[axis + 1 :], dtype=np.int64))
        outer = int(np.prod(sizes[:axis], dtype=np.int64))
        if index.size % (inner * outer) or not 1 < (count := index.size // (inner * outer)) < size:
            continue
        picked = index.reshape(outer, count, inner)[0, :, 0] // inner
        step, start = int(picked[1] - picked[0]), int(picked[0])
        if step < 1 or picked[-1] >= size or not np.array_equal(picked, start + step * np.arange(count)):
            continue
        straight = np.arange(elements, dtype=np.int32).reshape(outer, size, inner)[:, picked]
        if np.array_equal(straight.ravel(), index.ravel()):
            return axis, start, step, count
    return None


def _move(node: ir.Node, index: Array) -> Array:
    if node.op_type == "Reshape":
        return index.reshape(shape(node.outputs[0]))
    if node.op_type == "Transpose":
        return index.transpose(node.attributes.get_ints("perm", tuple(reversed(range(index.ndim)))))
    picks = [slice(None)] * index.ndim
    for start, end, axis, step in zip(*(constant(value) for value in node.inputs[1:5]), strict=True):
        picks[int(axis)] = slice(int(start), int(end) if end >= 0 else None, int(step))
    return index[tuple(picks)]


_RULES: dict[str, Callable[[ir.Node], None]] = {
    "Flatten": _to_reshape,
    "Squeeze": _to_reshape,
    "Unsqueeze": _to_reshape,
    "Reshape": _explicit_reshape,
    "Slice": _explicit_slice,
    "Gather": _gather,
    "Split": _explicit_split,
    "Pad": _explicit_pad,
}
