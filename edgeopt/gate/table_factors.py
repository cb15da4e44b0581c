"""By what equalisation scaled every channel of a graph's tensors, read back from the table's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import constant
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import INT8_MAX, Quantization
from edgeopt.passes.quantize.calibration import shape_of
from edgeopt.passes.quantize.equalize import RESHAPES, SAME_CHANNELS, sliced
from edgeopt.passes.quantize.rounding import Layout

Array = npt.NDArray[Any]

LARGE = 0.25
"""Of a row's largest weight: smaller ones are mostly rounding."""
NEAR_STEPS, NEAR = 3.0, 0.05
"""Rounding moves a weight by a step or two, whatever its size."""
SURE = 4.0
"""Standard errors: of all channels of a layer none is further from 1 by chance."""
ALIVE = 1e-12
"""Of the largest channel's power: a channel with less has no weights to speak of."""


@dataclass(frozen=True)
class Factors:
    """By value name, along the channel axis (1).

    Args:
        of: what the table's integers stand for, as a multiple of float: 1 where nothing moved, NaN for a channel
            without weights to tell it by. Values whose channels mix several factors are left out.
        errors: of results of weighted nodes: standard error of the factor, which is told by rounded weights.
    """

    of: Mapping[str, Array]
    errors: Mapping[str, Array]


def factors(model: ir.Model, table: Quantization) -> Factors:
    """Read back what equalisation did.

    A weight of the table is the float one times its outputs' factors over its inputs', so the outputs' are known once
    the inputs' are. They go through the graph as equalisation sent its channels: as arrays of the values' shapes.
    """
    wanted = set(table.activations) | {v.name for node in model.graph if node.op_type in WEIGHTED for v in node.outputs}
    known: dict[ir.Value, Array] = {value: _ones(value) for value in model.graph.inputs}
    last_use = {value: node for node in model.graph for value in node.inputs if value is not None}
    found: dict[str, Array] = {}
    errors: dict[str, Array] = {}
    for node in model.graph:
        if node.op_type in WEIGHTED:
            factor, error = _weighted(node, table, known)
            made = [_spread(factor, node.outputs[0])]
            errors[node.outputs[0].name or ""] = error
        else:
            made = _moved(node, known)
        for value, array in zip(node.outputs, made, strict=True):
            known[value] = array
            if value.name in wanted and (channels := _channels(array)) is not None:
                found[value.name or ""] = channels
        for read in node.inputs:
            if read is not None and last_use[read] is node:
                known.pop(read, None)
    return Factors(found, errors)


def _moved(node: ir.Node, known: Mapping[ir.Value, Array]) -> list[Array]:
    """Of the outputs of a node without weights. What equalisation does not know, it leaves unscaled on both sides."""
    shapes = [shape_of(value) for value in node.outputs]
    read = [known.get(value) for value in node.inputs if value is not None]
    first, axis = read[0] if read else None, node.attributes.get_int("axis", 0)
    if first is None:
        return [_ones(value) for value in node.outputs]
    match node.op_type:
        case op if op in SAME_CHANNELS and first.ndim == len(shapes[0]) > 2:
            place = (slice(0, 1), slice(None), *(slice(0, 1),) * (first.ndim - 2))
            return [np.broadcast_to(first[place], shapes[0])]
        case "Clip" | "Add" | "Sub" | "Relu" | "LeakyRelu" if first.shape == shapes[0]:
            return [first]
        case "Concat" if all(array is not None for array in read):
            return [np.concatenate([array for array in read if array is not None], axis)]
        case op if op in RESHAPES:
            return [first.reshape(shapes[0])]
        case "Transpose":
            return [first.transpose(node.attributes.get_ints("perm"))]
        case "Split":
            return list(np.split(first, np.cumsum([shape[axis] for shape in shapes])[:-1], axis))
        case "Gather" if node.inputs[1] is not None and (index := constant(node.inputs[1])) is not None:
            return [np.take(first, index.astype(np.int64), axis)]
        case "Slice" if (cut := sliced(node, first)) is not None:
            return cut
        case _:
            return [_ones(value) for value in node.outputs]


def _weighted(node: ir.Node, table: Quantization, known: Mapping[ir.Value, Array]) -> tuple[Array, Array]:
    """Factors of the result's channels, and their standard errors."""
    weight, size = node.inputs[1], shape_of(node.outputs[0])[1]
    real = constant(weight) if weight is not None else None
    stored = table.weights.get((weight and weight.name) or "")
    if table.scheme(node) != "int8" or stored is None or real is None:
        return np.ones(size), np.zeros(size)
    read = known.get(node.inputs[0]) if node.inputs[0] is not None else None
    into = _channels(read) if read is not None else None
    unknown = np.full(size, np.nan)
    if into is None or real.shape != stored.integers.shape:
        return unknown, unknown
    layout = Layout.of(node, real.shape)
    right, made = (layout.rows(array).astype(np.float64) for array in (real, stored.dequantize()))
    columns = right.shape[2] * layout.groups
    if columns % len(into):
        return unknown, unknown
    # A column whose factor is unknown tells nothing.
    right = np.nan_to_num(right / np.repeat(into, columns // len(into)).reshape(layout.groups, 1, -1))
    factor, error = (array.reshape(-1) for array in _fitted(right, made, np.abs(made).max(2, keepdims=True) / INT8_MAX))
    alive = np.isfinite(factor)
    if (np.abs(factor - 1)[alive] <= SURE * error[alive]).all():
        return np.where(alive, 1.0, np.nan), np.zeros(size)  # nothing was scaled here
    return factor, error


def _fitted(right: Array, made: Array, step: Array) -> tuple[Array, Array]:
    """Per row the factor of ``right`` that is closest to ``made``, and its standard error: arrays (groups, rows,
    columns) → (groups, rows).

    Least squares over what lies near the median of all ratios: a column that is wrong by itself is left out.
    """
    large = np.abs(right) >= LARGE * np.abs(right).max(2, keepdims=True)
    ratios = np.where(large & (right != 0), made / np.where(right == 0, 1.0, right), np.nan)
    dead = ~np.isfinite(ratios).any(2, keepdims=True)
    middle = np.nanmedian(np.where(dead, 1.0, ratios), axis=2, keepdims=True)
    near = np.abs(made - middle * right) <= NEAR_STEPS * step + NEAR * np.abs(middle * right)
    power, both = (np.square(right) * near).sum(2), (right * made * near).sum(2)
    alive = (both > 0) & (power > ALIVE * power.max(initial=0.0))
    factor = np.where(alive, both / np.where(alive, power, 1.0), np.nan)
    rest = (np.square(made - factor[..., None] * right) * near).sum(2) / np.maximum(near.sum(2), 1)
    # One column or a few may fit by chance: rounding to nearest leaves at least a twelfth of a squared step.
    rest = np.maximum(rest, np.square(step[..., 0]) / 12)
    return factor, np.sqrt(rest / np.where(alive, power, 1.0))


def _spread(channels: Array, value: ir.Value) -> Array:
    """As an array of the value's shape."""
    shape = shape_of(value)
    return np.broadcast_to(channels.reshape(1, -1, *(1,) * (len(shape) - 2)), shape)


def _channels(array: Array) -> Array | None:
    """Along axis 1, if the same everywhere else."""
    if array.ndim < 2:
        return None
    channels = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    first: Array = channels[:, 0]
    return first if np.array_equal(channels, np.broadcast_to(first[:, None], channels.shape), equal_nan=True) else None


def _ones(value: ir.Value) -> Array:
    return np.broadcast_to(np.float64(1.0), shape_of(value))
