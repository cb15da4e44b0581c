"""Gather: indices that are a run, a shuffle, every s-th, or none of these."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.targets.tflite import layout as lay
from edgeopt.targets.tflite.attributes import Array, constant_input, shape_of
from edgeopt.targets.tflite.draft import options
from edgeopt.targets.tflite.emit import Emitter
from edgeopt.targets.tflite.joining import every, sliced
from edgeopt.targets.tflite.movement import write_reshape


def check_gather(node: ir.Node) -> str | None:
    if constant_input(node, 1) is None and len(shape_of(node.inputs[1])) > 1:
        return "computed indices of more than one axis"
    return None


def gather(e: Emitter, node: ir.Node) -> None:
    """SLICE for a run of indices, RESHAPE and TRANSPOSE for a shuffle, and GATHER for what is neither."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = shape_of(value)
    graph_axis = node.attributes.get_int("axis", 0) % len(shape)
    indices = constant_input(node, 1)
    if indices is None or indices.ndim > 1:
        _gather(e, node, graph_axis, None if indices is None else indices)
        return
    flat = np.atleast_1d(indices).astype(np.int64) % shape[graph_axis]
    x = e.read(value)
    axis = x.perm.index(graph_axis)
    kept = [*shape]
    kept[graph_axis] = len(flat)
    layout = lay.plain(kept, x.perm)
    run = np.arange(flat[0], flat[0] + len(flat))
    if np.array_equal(flat, run):
        begins = [0] * len(shape)
        begins[axis] = int(flat[0])
        index = sliced(e, x.index, begins, lay.stored_shape(layout))
    elif (factor := _shuffle(flat, shape[graph_axis])) is not None:
        index = _shuffled(e, x.index, axis, factor)
    elif (stride := _regular(flat, shape[graph_axis])) is not None:
        index = every(e, x.index, axis, stride, int(flat[0]))
    else:
        where = e.constant("indices", flat.astype(np.int32))
        index = e.step("GATHER", (x.index, where), lay.stored_shape(layout), options("Gather", axis=axis), like=x.index)
    if indices.ndim == 0:
        perm = tuple(a - (a > graph_axis) for a in x.perm if a != graph_axis)
        layout = lay.plain(shape_of(out), perm)
    write_reshape(e, out, index, layout, lay.stored_shape(layout))


def _gather(e: Emitter, node: ir.Node, axis: int, indices: Array | None) -> None:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    x = e.read(value, lay.identity(len(shape_of(value))))
    if indices is not None:
        where = e.constant("indices", (indices % shape_of(value)[axis]).astype(np.int32))
    else:
        where = e.read(node.inputs[1]).index
    e.write(out, "GATHER", (x.index, where), lay.plain(shape_of(out)), options("Gather", axis=axis))


def _shuffle(indices: Array, size: int) -> int | None:
    """g where the indices are those of a channel shuffle, ``(g, size/g)`` read column by column."""
    if len(indices) != size or size < 4 or indices[0] != 0:
        return None
    step = int(indices[1])
    if step < 2 or size % step:
        return None
    return size // step if np.array_equal(indices, np.arange(size).reshape(size // step, step).T.reshape(-1)) else None


def _shuffled(e: Emitter, index: int, axis: int, groups: int) -> int:
    shape = e.shape(index)
    apart = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    order = [*range(axis), axis + 1, axis, *range(axis + 2, len(apart))]
    return e.reshape(e.transpose(e.reshape(index, apart), order), shape)


def _regular(indices: Array, size: int) -> int | None:
    """s where the indices are every s-th of an axis that s divides."""
    if len(indices) < 2:
        return None
    step = int(indices[1] - indices[0])
    regular = step > 1 and size == step * len(indices) and indices[0] < step
    return step if regular and np.array_equal(indices, np.arange(indices[0], size, step)) else None
