"""What is wrong in a table's weights, seen without running it, whatever equalisation did to their channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.gate.evidence import Evidence, Located
from edgeopt.graph.model import constant
from edgeopt.graph.placement import FUSED_ACTIVATIONS, POOLS, WEIGHTED
from edgeopt.graph.quantization import Quantization, QuantizedTensor
from edgeopt.passes.quantize.rounding import Layout

FIT_ROUNDS = 16
PASSED_THROUGH = 6
UNCOMPENSATED = 0.35
"""Of the logarithm: a factor of 1.4. Rounding moves the fitted factor of a channel by a few hundredths."""
FEWEST_CHANNELS = 4
"""Two channels may well be each other's mirror image, as those of a classifier with two classes."""
APART = 16.0
"""In steps: how far the largest weights of channels are apart, so that one scale for both is no coincidence."""
WEIGHT_STEPS = 2.0
"""Rounding to nearest leaves 0.29 steps (rms), second-order rounding up to about 1: twice that is another number."""


def wrong_weights(evidence: Evidence) -> list[Located]:
    """Weights that are not those of the float graph, in graph order. A channel that contributes nothing may
    be among them in a right table too, so they explain a loss and are none. One scale where one per channel was asked
    for is certain."""
    graph = evidence.run.graph
    table = graph.quantization or Quantization()
    asked = any(getattr(step, "weights", None) == "per-tensor" for step in evidence.run.recipe.passes)
    return [*([] if asked else collapsed(graph.model, table)), *_weights(graph.model, table)]


def collapsed(model: ir.Model, table: Quantization) -> Iterator[Located]:
    """Weights with one scale for all channels, whose channels differ in size: no estimator gives them the same."""
    for node in model.graph:
        name = node.inputs[1].name or "" if len(node.inputs) > 1 and node.inputs[1] is not None else ""
        real, stored = constant(node.inputs[1]) if name else None, table.weights.get(name)
        if stored is None or real is None or real.shape != stored.integers.shape:
            continue
        layout = Layout.of(node, real.shape)
        if layout.axis is None:
            continue  # a grouped ConvTranspose, which has one by rights
        rows = np.moveaxis(real, layout.axis, 0).reshape(layout.outputs, -1)
        largest = np.abs(rows).max(1)
        alive = largest > 0
        scales = np.broadcast_to(stored.params.scale, largest.shape)[alive]
        if alive.sum() >= FEWEST_CHANNELS and np.ptp(scales) == 0 and np.ptp(largest[alive]) > APART * scales[0]:
            text = f"weights of node {node.name}: one scale for all of its {layout.outputs} channels, asked per channel"
            yield Located(node.name or "", text, node.name or "", certain=True)


def _weights(model: ir.Model, table: Quantization) -> Iterator[Located]:
    gains: dict[str, Gains] = {}
    for node in model.graph:
        if table.scheme(node) == "fp32" or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        reader = _reader(node)
        behind = (node if reader is None else reader).name or ""
        real, stored = constant(node.inputs[1]), table.weights.get(node.inputs[1].name or "")
        if real is not None and stored is not None:
            text, fitted = _compared(real, stored)
            if text:
                yield Located(node.name or "", f"weights of node {node.name}: {text}", behind)
            elif fitted is not None:
                gains[node.name or ""] = fitted
    yield from _uncompensated(model, gains)


@dataclass(frozen=True)
class Gains:
    """How much larger a weight is in the table than in float, per output channel and per input channel: equalisation
    makes one layer's outputs larger and the next one's inputs smaller. Ones where nothing moved."""

    out: npt.NDArray[np.float64]
    into: npt.NDArray[np.float64]


def _compared(real: npt.NDArray[np.float32], stored: QuantizedTensor) -> tuple[str, Gains | None]:
    """What is wrong with a weight beyond a factor per channel, or the factors."""
    if real.shape != stored.integers.shape:
        return f"shape {list(stored.integers.shape)}, in float {list(real.shape)}", None
    axis = stored.params.axis or 0
    channels = real.shape[axis]
    inner = np.moveaxis(real, axis, 0).shape[1] if real.ndim > 1 else 1
    steps = np.broadcast_to(np.asarray(stored.params.scale, np.float64).reshape(-1, 1, 1), (channels, 1, 1))
    # Both in steps, so that every channel weighs the same whatever its scale.
    right, made = (
        np.moveaxis(x, axis, 0).reshape(channels, inner, -1).astype(np.float64) / steps
        for x in (real, stored.dequantize())
    )
    out, into = np.ones((channels, 1, 1)), np.ones((1, inner, 1))
    for _ in range(FIT_ROUNDS):
        out = _fitted(right * into, made, (1, 2))
        if inner > 1:
            into = _fitted(right * out, made, (0, 2))
    error = np.abs(made - right * out * into).reshape(channels, -1)
    worst_of = np.sqrt(np.square(error).mean(1))
    # Clipped outliers leave a large error in one place of a channel that is otherwise right.
    wrong = np.flatnonzero((worst_of > WEIGHT_STEPS) & (np.median(error, 1) > WEIGHT_STEPS / 4))
    largest = [np.abs(x).reshape(channels, -1).max(1) for x in (made, right)]
    dead = np.flatnonzero((largest[0] == 0) & (largest[1] > 1))
    if len(dead) and len(dead) < channels:
        return f"channel {dead[0]} is all zero, and not so in float", None
    turned = np.flatnonzero(out.ravel() < 0)
    if len(turned):
        return f"channel {turned[0]} has the wrong sign", None
    if len(wrong):
        first = int(wrong[worst_of[wrong].argmax()])
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"channel {first}{more} is {worst_of[first]:.1f} steps off (rms) whatever its scale", None
    return "", Gains(out.ravel(), into.ravel())


def _fitted(
    right: npt.NDArray[np.float64], made: npt.NDArray[np.float64], axes: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Least squares: the factor of ``right`` that is closest to ``made``, over ``axes``; 1 where there is nothing."""
    power = np.square(right).sum(axes, keepdims=True)
    both = (right * made).sum(axes, keepdims=True)
    factor: npt.NDArray[np.float64] = np.where(power > 0, both / np.maximum(power, 1e-30), 1.0)
    return factor


def _uncompensated(model: ir.Model, gains: dict[str, Gains]) -> Iterator[Located]:
    """Channels that one layer makes larger and the next does not make smaller again."""
    for node in model.graph:
        if (made := gains.get(node.name or "")) is None or _depthwise(node):
            continue
        product, path, at = made.out.copy(), [node.name or ""], node
        while (reader := _reader(at)) is not None and (theirs := gains.get(reader.name or "")) is not None:
            path.append(reader.name or "")
            if _depthwise(reader) and len(theirs.out) == len(product):
                product, at = product * theirs.out, reader
                continue
            if len(theirs.into) == len(product):
                relative = product * theirs.into
                alive = relative > 0  # a channel smaller than one step may well round to nothing
                relative = relative / (np.median(relative[alive]) if alive.any() else 1.0)
                apart = np.where(alive, np.abs(np.log(np.where(alive, relative, 1.0))), 0.0)
                if apart.max() > UNCOMPENSATED:
                    channel = int(apart.argmax())
                    yield Located(
                        path[0],
                        f"weights of node {path[0]}: channel {channel} is {relative[channel]:.2f} times what the "
                        f"layers behind it expect ({' → '.join(path)})",
                        path[-1],
                    )
            break


def _reader(node: ir.Node) -> ir.Node | None:
    """The one weighted node that reads what ``node`` makes, through what keeps channels as they are."""
    for _ in range(PASSED_THROUGH):
        uses = list(node.outputs[0].uses())
        if len(uses) != 1:
            return None
        node = uses[0].node
        if node.op_type in WEIGHTED:
            return node
        if node.op_type not in (*FUSED_ACTIVATIONS, *POOLS, "MaxPool", "Flatten", "Reshape", "Squeeze"):
            return None
    return None


def _depthwise(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    return group is not None and group.as_int() > 1
