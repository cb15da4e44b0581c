"""Inputs that hold no more than 256 values per channel, as normalised 8-bit images do, quantized without any error.

One grid for all channels of ``(pixel / 255 − mean) / std`` meets none of them. Moved in front of the first convolution
are its padding and one multiplication and addition per channel, which give integers from −128 to 127; the
convolution's weights take the inverse. The function stays the same; the input's rounding error is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import named_initializer
from edgeopt.graph.quantization import INT8_MAX, INT8_MIN, QuantParams
from edgeopt.passes.base import Feed
from edgeopt.passes.quantize.calibration import TensorStatistics, shape_of

Array = npt.NDArray[Any]

MOST_SAMPLES = 24
"""Samples whose values are looked at: a camera image or two already hold most of 256 levels."""
FACTOR, OFFSET, LEVELS = "__factor", "__offset", "__levels"
"""Behind an input's name: what it is multiplied with, what is added, and what comes of it."""
FEWEST_LEVELS = 16
TOLERANCE = 0.02
"""Of a step: how far a value may lie from its level. Normalisation in float32 stays below 1e-4."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Per channel, ``value = step · level + origin`` with levels −128…127; float64 (channels,)."""

    step: Array
    origin: Array


def convolution_reading(value: ir.Value) -> ir.Node | None:
    """The only reader of an image, if it is a convolution whose weights can take in the normalisation."""
    uses = tuple(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Conv" or uses[0].idx != 0 or value.is_graph_output():
        return None
    node = uses[0].node
    image = len(shape_of(value)) == 4 and value.dtype == ir.DataType.FLOAT
    return node if image and node.attributes.get_int("group", 1) == 1 else None


def find_lattice(samples: Iterable[Feed], name: str, params: QuantParams) -> Lattice | None:
    """The lattice on which an input lies; None if there is none, or if its grid already meets it.

    Args:
        samples: a few feeds.
        name: of the input, NCHW.
        params: the grid that it would have otherwise.
    """
    levels: list[Array] | None = None
    for feed in samples:
        channels = np.moveaxis(np.asarray(feed[name], np.float32), 1, 0).reshape(feed[name].shape[1], -1)
        new = [np.unique(channel) for channel in channels]
        levels = new if levels is None else [np.union1d(a, b) for a, b in zip(levels, new, strict=True)]
        if any(len(channel) > 256 for channel in levels):
            return None
    if levels is None or all(len(channel) < FEWEST_LEVELS for channel in levels):
        return None
    fitted = [_fit(channel.astype(np.float64)) for channel in levels]
    if any(one is None for one in fitted):
        return None
    step = np.array([one[0] for one in fitted if one is not None])
    origin = np.array([one[1] for one in fitted if one is not None])
    worst = max(float(np.abs(params.dequantize(params.quantize(c)) - c).max()) for c in levels)
    return Lattice(step, origin) if worst > TOLERANCE * float(step.min()) else None


def _fit(values: Array) -> tuple[float, float] | None:
    """Step and origin of sorted distinct values, or None if they lie on no lattice of 256 levels."""
    gaps = np.diff(values)
    if not len(gaps):
        return None
    step = float(gaps.min())
    for _ in range(3):  # a short gap is known to few digits; the whole span gives the rest
        index = np.rint((values - values[0]) / step)
        if index[-1] > INT8_MAX - INT8_MIN or (np.diff(index) < 1).any():
            return None
        step, start = np.polyfit(index, values, 1)
    if np.abs(start + step * index - values).max() > TOLERANCE * step:
        return None
    # Levels that these samples do not show are given to both ends alike.
    spare = (INT8_MAX - INT8_MIN - int(index[-1])) // 2
    return float(step), float(start - (spare + INT8_MIN) * step)


def fold_lattice(model: ir.Model, name: str, lattice: Lattice) -> str:
    """Rewrite the model in place so that the convolution behind input ``name`` reads levels; gives their name."""
    graph = model.graph
    value = next(value for value in graph.inputs if value.name == name)
    node = convolution_reading(value)
    assert node is not None
    weight, bias = node.inputs[1], node.inputs[2]
    assert weight is not None and bias is not None and weight.const_value is not None and bias.const_value is not None
    w = weight.const_value.numpy().astype(np.float64)
    per_channel = (1, -1, 1, 1)
    shift = (w * lattice.origin.reshape(per_channel)).sum((1, 2, 3))
    weight.const_value = ir.tensor((w * lattice.step.reshape(per_channel)).astype(np.float32), name=weight.name)
    bias.const_value = ir.tensor((bias.const_value.numpy() + shift).astype(np.float32), name=bias.name)
    pads = list(node.attributes.get_ints("pads", [0, 0, 0, 0]))
    steps: list[ir.Node] = []
    source, shape = value, list(shape_of(value))
    if any(pads):
        around = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
        shape = [shape[0], shape[1], shape[2] + pads[0] + pads[2], shape[3] + pads[1] + pads[3]]
        source = _append(
            steps, "Pad", [source, named_initializer(graph, f"{name}__pads", around)], f"{name}__padded", shape
        )
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
    factor = (1 / lattice.step).astype(np.float32).reshape(per_channel)
    offset = (-lattice.origin / lattice.step).astype(np.float32).reshape(per_channel)
    scaled = _append(
        steps, "Mul", [source, named_initializer(graph, f"{name}{FACTOR}", factor)], f"{name}__scaled", shape
    )
    levels = _append(
        steps, "Add", [scaled, named_initializer(graph, f"{name}{OFFSET}", offset)], f"{name}{LEVELS}", shape
    )
    graph.insert_before(node, steps)
    node.replace_input_with(0, levels)
    return levels.name or ""


def on_levels(known: TensorStatistics, lattice: Lattice) -> TensorStatistics:
    """Statistics of the levels, from those of the input."""
    factor, offset = 1 / lattice.step, -lattice.origin / lattice.step
    return TensorStatistics(
        known.axis,
        known.elements,
        known.low * factor + offset,
        known.high * factor + offset,
        known.mean * factor + offset,
        known.square * factor**2 + 2 * known.mean * factor * offset + offset**2,
        known.zeros,
        known.histogram,
    )


def _append(steps: list[ir.Node], op: str, inputs: list[ir.Value], name: str, shape: list[int]) -> ir.Value:
    node = ir.node(op, inputs, name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    steps.append(node)
    return output
