"""What is wrong in a table of scales, seen without running it end to end: weights, biases and grids, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.gate.differing_layer import exposed
from edgeopt.gate.evidence import Evidence, Located
from edgeopt.graph.model import constant
from edgeopt.graph.quantization import Quantization, QuantizedTensor
from edgeopt.parity.localize import LOCALIZE_SAMPLES
from edgeopt.runtimes.onnxruntime import Session

WEIGHT_STEPS = 2.0
"""Rounding to nearest leaves 0.29 steps (rms), second-order rounding up to about 1: twice that is another number."""
SATURATED = 0.02
"""Ranges by weighted error cut off well below a hundredth of the values; two hundredths do not fit."""
TOO_WIDE = 8.0
"""A grid may be wider than what a few samples reach; eight times wastes three of its eight bits."""
SPREAD = 4
"""Samples on which grids are looked at, times ``LOCALIZE_SAMPLES``."""


def table_faults(evidence: Evidence) -> list[Located]:
    """All that is found, in graph order, weights before grids."""
    graph = evidence.run.graph
    table = graph.quantization or Quantization()
    return [*_weights(graph.model, table), *_grids(evidence, table)]


def _weights(model: ir.Model, table: Quantization) -> Iterator[Located]:
    for node in model.graph:
        if table.scheme(node) == "fp32":
            continue
        for index, value in enumerate(node.inputs):
            name = value.name or "" if value is not None else ""
            real = constant(value) if value is not None else None
            if real is None:
                continue
            if (stored := table.weights.get(name)) is not None and (text := _wrong_weight(real, stored)):
                yield Located(node.name, f"weights of node {node.name}: {text}")
            bias = table.biases.get(name)
            if index == 2 and bias is not None and real.any() and not bias.any():
                yield Located(node.name, f"the bias of node {node.name} is missing: all zero, and not so in float")


def _wrong_weight(real: npt.NDArray[np.float32], stored: QuantizedTensor) -> str:
    if real.shape != stored.integers.shape:
        return f"shape {list(stored.integers.shape)}, in float {list(real.shape)}"
    axis = stored.params.axis
    channels = 1 if axis is None else real.shape[axis]
    right, made = (
        np.moveaxis(x, axis or 0, 0).reshape(channels, -1).astype(np.float64) for x in (real, stored.dequantize())
    )
    steps = np.broadcast_to(np.asarray(stored.params.scale, np.float64).reshape(-1), (channels,))
    error = np.sqrt(np.square(made - right).mean(1)) / steps
    # Clipped outliers leave a large error in one place of a channel that is otherwise right.
    median = np.median(np.abs(made - right), 1) / steps
    wrong = np.flatnonzero((error > WEIGHT_STEPS) & (median > WEIGHT_STEPS / 4))
    if not len(wrong):
        return ""
    power, both = np.square(right).sum(1), (right * made).sum(1)
    gains = both[wrong] / np.maximum(power[wrong], 1e-30)
    worst = int(wrong[error[wrong].argmax()])
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    gain = float(gains[error[wrong].argmax()])
    return f"channel {worst}{more} is {error[worst]:.1f} steps off (rms), {gain:.2f} times the float weights"


def _grids(evidence: Evidence, table: Quantization) -> Iterator[Located]:
    model = evidence.run.graph.model
    makers = {value.name or "": node.name or "" for node in model.graph for value in node.outputs}
    names = [name for name in table.activations if name in makers]
    if not names:
        return
    outside: dict[str, float] = dict.fromkeys(names, 0.0)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    reach: dict[str, float] = dict.fromkeys(names, 0.0)
    with Session(exposed(model, names)) as session:
        for feed in evidence.few(LOCALIZE_SAMPLES * SPREAD):
            for name, array in session.run(feed, names).items():
                bounds, scale = table.activations[name].range, float(table.activations[name].scale)
                outside[name] += float(((array < bounds.low - scale) | (array > bounds.high + scale)).sum())
                counts[name] += array.size
                reach[name] = max(reach[name], float(np.abs(array).max(initial=0.0)))
    order = [value.name for node in model.graph for value in node.outputs if value.name in outside]
    for name in (name for name in order if name):
        bounds = table.activations[name].range
        widest = max(-bounds.low, bounds.high)
        if counts[name] and outside[name] / counts[name] > SATURATED:
            yield Located(
                makers[name],
                f"node {makers[name]}: {outside[name] / counts[name]:.1%} of the values of '{name}' lie outside its "
                f"grid [{bounds.low:.3g}, {bounds.high:.3g}] (they reach {reach[name]:.3g})",
            )
        elif reach[name] > 0 and widest > TOO_WIDE * reach[name] and table.labels.get(name) != "fixed":
            yield Located(
                makers[name],
                f"node {makers[name]}: the grid of '{name}' reaches {widest:.3g}, its values {reach[name]:.3g}: "
                f"{np.log2(widest / reach[name]):.1f} of 8 bits are wasted",
            )
