"""Biases of a table beside the float graph's: what bias correction does not explain is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.data.samples import Feed
from edgeopt.gate.evidence import Evidence, Located
from edgeopt.gate.table_factors import factors
from edgeopt.graph.model import constant, exposed
from edgeopt.graph.qdq import to_qdq
from edgeopt.graph.quantization import Quantization, QuantizedGraph
from edgeopt.parity.localize import LOCALIZE_SAMPLES
from edgeopt.runtimes.onnxruntime import Session

Array = npt.NDArray[np.float64]
SAMPLES = 4 * LOCALIZE_SAMPLES
MOST_OF_ALL, MOST_OF_ONE = 1.0, 5.0
"""How far biases may lie beside both what they should be, in standard deviations of the layer's own noise: of all
channels (rms), and of any one. Right tables of eight nets come to 0.4 and 3; one whose bias is as far off as the first
has twice its noise."""


@dataclass(frozen=True)
class _Layer:
    """A weighted node with a bias in the table: its own result, and by what its integers are scaled.

    ``unsure``: what its factor may be off, and what storing the result makes: the standard deviation of its grid's
    rounding. Behind an activation that is fused, a whole step: there the bias is moved until the mean of what is stored
    is right, by a step where few values are above zero.
    """

    node: ir.Node
    bias: Array
    stored: Array
    factor: Array
    unsure: Array


def wrong_biases(evidence: Evidence) -> list[Located]:
    """Layers, in graph order, whose biases are neither the float graph's nor what corrects the layer's mean."""
    graph = evidence.run.graph
    if graph.quantization is None or evidence.graph_was_trained:  # trained biases answer to the loss, not to a mean
        return []
    return list(unexplained(graph, evidence.few(SAMPLES)))


def unexplained(graph: QuantizedGraph, samples: Iterable[Feed]) -> Iterator[Located]:
    """Layers whose biases are wrong, whatever the rest of the table holds.

    A bias may be the float one, times what equalisation did to its channel, or be moved so that the channel's mean is
    that of float (bias correction). So of both distances the smaller counts, per channel, in units of the noise that
    the channel has anyway: what its inputs, its weights and the rounding of its result make. Channels of unknown
    factors are left out.
    """
    table = graph.quantization or Quantization()
    layers = list(_layers(graph.model, table))
    if not layers:
        return
    for layer, (error, spread) in zip(layers, _measured(graph, layers, samples), strict=True):
        noise = np.hypot(spread, layer.unsure)
        moved = layer.stored - layer.bias
        off = np.nan_to_num(np.minimum(np.abs(moved), np.abs(error)) / np.maximum(noise, 1e-30))
        of_all = float(np.sqrt(np.square(off).mean()))
        if of_all <= MOST_OF_ALL and off.max() <= MOST_OF_ONE:
            continue
        name = layer.node.name or ""
        if layer.bias.any() and not layer.stored.any():
            text = f"the bias of node {name} is missing: all zero, and not so in float"
        else:
            channel = int(off.argmax())
            text = (
                f"the bias of node {name} is wrong: channel {channel} has {layer.stored[channel]:.3g}, in float "
                f"{layer.bias[channel]:.3g}, {off[channel]:.1f} times its noise beside it"
            )
        yield Located(name, text, name, certain=True)


def _layers(model: ir.Model, table: Quantization) -> Iterator[_Layer]:
    scaled = factors(model, table)
    for node in model.graph:
        if table.scheme(node) != "int8" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        x, w, b = ((value and value.name) or "" for value in node.inputs[:3])
        output = node.outputs[0].name or ""
        real, factor = constant(node.inputs[2]), scaled.of.get(output)
        if real is None or factor is None or b not in table.biases or x not in table.activations:
            continue
        step = float(table.activations[x].scale) * np.asarray(table.weights[w].params.scale, np.float64)
        if len(factor) == len(real) == len(table.biases[b]):
            bias = real.astype(np.float64) * factor
            unsure = np.abs(real) * scaled.errors[output]
            yield _Layer(node, bias, table.biases[b] * step, factor, np.hypot(unsure, _rounding(node, table)))


def _rounding(node: ir.Node, table: Quantization) -> float:
    output = node.outputs[0]
    if (grid := table.activations.get(output.name or "")) is not None:
        return float(grid.scale) / math.sqrt(12)
    uses = list(output.uses())
    behind = uses[0].node.outputs[0].name if len(uses) == 1 else None
    grid = table.activations.get(behind or "")
    return float(grid.scale) if grid is not None else 0.0


def _measured(graph: QuantizedGraph, layers: Sequence[_Layer], samples: Iterable[Feed]) -> list[tuple[Array, Array]]:
    """Per layer, of every channel of its result before the activation: mean and standard deviation of what the integer
    reference has more than float, over samples and places."""
    reference = to_qdq(graph, fold_weights=True)
    made = {value.name or "" for node in reference.graph for value in node.outputs}
    ours = [layer.node.outputs[0].name or "" for layer in layers]
    theirs = [f"{name}__float" if f"{name}__float" in made else name for name in ours]
    sums = [np.zeros((3, len(layer.factor))) for layer in layers]
    with (
        Session(exposed(graph.model, ours)) as exact,
        Session(exposed(reference, theirs), optimize=False) as quantized,
    ):
        for feed in samples:
            right, value = exact.run(feed, ours), quantized.run(feed, theirs)
            for index, (layer, a, b) in enumerate(zip(layers, ours, theirs, strict=True)):
                expected, found = (
                    np.moveaxis(x, min(1, x.ndim - 1), 0).reshape(len(layer.factor), -1).astype(np.float64)
                    for x in (right[a], value[b])
                )
                error = found - expected * layer.factor[:, None]
                sums[index] += np.stack([error.sum(1), np.square(error).sum(1), np.full(len(error), error.shape[1])])
    results = []
    for summed, squared, count in sums:
        mean = summed / np.maximum(count, 1)
        results.append((mean, np.sqrt(np.maximum(squared / np.maximum(count, 1) - np.square(mean), 0.0))))
    return results
