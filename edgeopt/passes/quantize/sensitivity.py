"""How much an error in a tensor matters at the outputs, per channel, from weights and statistics alone.

One pass from the outputs back. Rounding errors are taken as independent, so their energies add: what one unit of
squared error in one element of a channel costs in squared error at the outputs is the sum of the squares of all the
weights that it meets on its way, counted where activations are active. It ranks channels and tensors; it does not
predict decibels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.placement import WEIGHTED, activation_inputs
from edgeopt.passes.quantize.calibration import TensorStatistics, channel_axis, shape_of
from edgeopt.passes.quantize.rounding import Layout

Array = npt.NDArray[Any]

SLOPES_SQUARED: Mapping[str, float] = {"Sigmoid": 1 / 16, "HardSigmoid": 1 / 36, "Tanh": 0.5, "Softmax": 1 / 16}
"""Upper or typical squared derivative of functions that flatten; others count as 1."""
SAME_CHANNELS = frozenset({"Relu", "Clip", "LeakyRelu", "Elu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu",
                           "Softplus", "Mish", "Add", "Sub", "Mul", "Pad", "MaxPool", "AveragePool",
                           "GlobalAveragePool", "Resize", "Softmax", "LayerNormalization"})  # fmt: skip


def sensitivity(
    model: ir.Model, weights: Mapping[str, Array], statistics: Mapping[str, TensorStatistics]
) -> dict[str, Array]:
    """Gain of every float tensor's channels, value name → float64 (channels,) along ``channel_axis``, > 0 or 0.

    Args:
        model: canonical float graph.
        weights: float weights of weighted nodes by initializer name.
        statistics: of the tensors that have some (for shares of active units, and the other factor of a product).
    """
    gains: dict[ir.Value, Array] = {}
    for output in model.graph.outputs:
        if output.dtype == ir.DataType.FLOAT:
            # Several outputs count alike, whatever their sizes: each is compared with itself in the end.
            _add(gains, output, np.full(_channels(output), _importance(output, statistics)))
    for node in reversed(list(model.graph)):
        arriving = {output: gains.get(output) for output in node.outputs}
        if all(gain is None for gain in arriving.values()):
            continue
        for value in activation_inputs(node):
            if value.const_value is None:
                _add(gains, value, _through(node, value, arriving, weights, statistics))
    return {value.name or "": gain for value, gain in gains.items()}


def _importance(output: ir.Value, statistics: Mapping[str, TensorStatistics]) -> float:
    known = statistics.get(output.name or "")
    elements = math.prod(shape_of(output))
    energy = float(known.square.mean()) if known is not None else 1.0
    return 1.0 / max(energy * elements, 1e-30)


def _add(gains: dict[ir.Value, Array], value: ir.Value, gain: Array) -> None:
    gains[value] = gains[value] + gain if value in gains else gain


def _channels(value: ir.Value) -> int:
    axis = channel_axis(value)
    return 1 if axis is None else shape_of(value)[axis]


def _through(
    node: ir.Node,
    value: ir.Value,
    arriving: Mapping[ir.Value, Array | None],
    weights: Mapping[str, Array],
    statistics: Mapping[str, TensorStatistics],
) -> Array:
    channels = _channels(value)
    if node.op_type in WEIGHTED and (gain := arriving[node.outputs[0]]) is not None:
        return _fit(_through_weights(node, gain, weights), channels)
    # Energy per element is kept on average unless something better is known about the operator.
    energies = [
        (float(gain.mean()) * math.prod(shape_of(output))) for output, gain in arriving.items() if gain is not None
    ]
    average = sum(energies) / max(1, math.prod(shape_of(value)))
    out = node.outputs[0]
    gain = arriving[out]
    if node.op_type == "Concat" and gain is not None and node.attributes.get_int("axis", 0) == channel_axis(out):
        return _part_of_concat(node, value, gain, channels)
    if node.op_type not in SAME_CHANNELS or gain is None or len(gain) != channels:
        return np.full(channels, average)
    ratio = math.prod(shape_of(out)) / math.prod(shape_of(value))
    known = statistics.get(out.name or "")
    match node.op_type:
        case "Relu" | "Clip":
            return gain if known is None else gain * np.maximum(1 - _fit(known.zeros, channels), 0.0)
        case "GlobalAveragePool" | "AveragePool":
            kernel = node.attributes.get_ints("kernel_shape", shape_of(value)[2:])
            return gain * ratio / math.prod(kernel)
        case "Add" | "Sub" | "Resize" | "MaxPool":
            return gain * ratio
        case "Mul":
            others = [statistics.get(v.name or "") for v in node.inputs if v is not None and v is not value]
            square = _fit(others[0].square, channels) if others and others[0] is not None else np.ones(channels)
            return gain * ratio * square
        case _:
            return gain * SLOPES_SQUARED.get(node.op_type, 1.0)


def _through_weights(node: ir.Node, gain: Array, weights: Mapping[str, Array]) -> Array:
    initializer = node.inputs[1]
    weight = weights[(initializer and initializer.name) or ""]
    layout = Layout.of(node, weight.shape)
    rows = layout.rows(weight).astype(np.float64)
    per_row = _fit(gain, layout.outputs).reshape(layout.groups, -1)
    columns = np.einsum("grc,gr->gc", rows**2, per_row)
    taps = math.prod(weight.shape[2:])
    energy: Array = columns.reshape(layout.groups, -1, taps).sum(2).reshape(-1)
    if node.op_type == "Conv":
        energy = energy / math.prod(node.attributes.get_ints("strides", [1]))
    return energy


def _part_of_concat(node: ir.Node, value: ir.Value, gain: Array, channels: int) -> Array:
    total, start = np.zeros(channels), 0
    for operand in node.inputs:
        if operand is None:
            continue
        size = _channels(operand)
        if operand is value:
            total = total + gain[start : start + size]
        start += size
    return total


def _fit(array: Array, channels: int) -> Array:
    """Per-channel values on a tensor whose channels are seen otherwise (as one, or flattened): their mean."""
    return array if len(array) == channels else np.full(channels, float(array.mean()))
