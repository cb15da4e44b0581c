"""Faults in the table of scales: (graph and table, random) → the same with one fault, and where, or None."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeopt.graph.model import constant
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams

Random = np.random.Generator
Faulty = tuple[QuantizedGraph, str] | None
"""The name is the node's, to see whether the gate names it."""
Kind = Callable[[QuantizedGraph, Random], Faulty]


def layers(graph: QuantizedGraph) -> list:
    """Weighted int8 nodes whose weights are in the table."""
    table = graph.quantization
    return [
        n
        for n in graph.model.graph
        if len(n.inputs) > 1 and n.inputs[1] is not None and n.inputs[1].name in table.weights
    ]


def some_layer(graph: QuantizedGraph, random: Random):
    found = layers(graph)
    return found[int(random.integers(len(found)))]


def with_weight(
    graph: QuantizedGraph, name: str, change: Callable[[QuantizedTensor], QuantizedTensor]
) -> QuantizedGraph:
    table = graph.quantization
    weights = {**table.weights, name: change(table.weights[name])}
    return replace(graph, quantization=replace(table, weights=weights))


def scaled_channel(factor: float) -> Kind:
    def kind(graph, random):
        node = some_layer(graph, random)

        def change(weight):
            scale = np.array(weight.params.scale)
            if scale.ndim:
                scale[int(random.integers(len(scale)))] *= factor
            else:
                scale = scale * np.float32(factor)
            return QuantizedTensor(weight.integers, QuantParams(scale, weight.params.zero_point, weight.params.axis))

        return with_weight(graph, node.inputs[1].name, change), node.name

    return kind


def integers(change: Callable[[np.ndarray, int | None, Random], np.ndarray]) -> Kind:
    """`change(integers, channel axis, random)`."""

    def kind(graph, random):
        node = some_layer(graph, random)
        name = node.inputs[1].name
        weight = graph.quantization.weights[name]
        made = change(weight.integers.copy(), weight.params.axis, random)
        if np.array_equal(made, weight.integers):
            return None
        return with_weight(graph, name, lambda w: QuantizedTensor(made.astype(np.int8), w.params)), node.name

    return kind


def transposed(w, axis, random):
    if w.ndim == 4 and w.shape[2] == w.shape[3] > 1:
        return w.transpose(0, 1, 3, 2)
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(w.shape)


def rolled(w, axis, random):
    return np.roll(w, 1, axis or 0)


def channel(change):
    def apply(w, axis, random):
        moved = np.moveaxis(w, axis or 0, 0)
        index = int(random.integers(len(moved)))
        moved[index] = change(moved[index])
        return w

    return apply


def few_bits(w, axis, random):
    return np.clip(np.rint(w / 16) * 16, -112, 112)


def biases(change: Callable[[np.ndarray], np.ndarray]) -> Kind:
    def kind(graph, random):
        table = graph.quantization
        nodes = [
            n
            for n in layers(graph)
            if len(n.inputs) > 2 and n.inputs[2] is not None and n.inputs[2].name in table.biases
        ]
        if not nodes:
            return None
        node = nodes[int(random.integers(len(nodes)))]
        name = node.inputs[2].name
        made = {**table.biases, name: change(table.biases[name]).astype(np.int32)}
        return replace(graph, quantization=replace(table, biases=made)), node.name

    return kind


def activation(change: Callable[[QuantParams, Random], QuantParams]) -> Kind:
    """On a tensor that some node computes; all of one grid change together, as a wrong range would have them."""

    def kind(graph, random):
        table = graph.quantization
        makers = {v.name: n.name for n in graph.model.graph for v in n.outputs}
        names = [n for n in table.activations if n in makers and table.labels.get(n) != "fixed"]
        if not names:
            return None
        name = names[int(random.integers(len(names)))]
        old, made = table.activations[name], change(table.activations[name], random)
        changed = {key: made if p == old else p for key, p in table.activations.items()}
        return replace(graph, quantization=replace(table, activations=changed)), makers[name]

    return kind


def grid(factor: float) -> Callable[[QuantParams, Random], QuantParams]:
    return lambda p, random: QuantParams(p.scale * np.float32(factor), p.zero_point)


def shifted_zero(steps: int) -> Callable[[QuantParams, Random], QuantParams]:
    return lambda p, random: QuantParams(
        p.scale, np.clip(p.zero_point + (steps if p.zero_point < 100 else -steps), -128, 127)
    )


def scales_swapped(graph, random):
    table = graph.quantization
    makers = {v.name: n.name for n in graph.model.graph for v in n.outputs}
    names = [n for n in table.activations if n in makers]
    if len(names) < 2:
        return None
    a, b = random.choice(names, 2, replace=False)
    changed = {**table.activations, a: table.activations[b], b: table.activations[a]}
    return replace(graph, quantization=replace(table, activations=changed)), makers[str(a)]


def per_tensor_collapse(graph, random):
    """One scale per weight, rounded to nearest, in every layer: asked per channel."""
    table, weights = graph.quantization, dict(graph.quantization.weights)
    for node in layers(graph):
        name = node.inputs[1].name
        real, params = constant(node.inputs[1]), weights[name].params
        scale = np.float32(max(np.abs(real).max() / 127, 1e-12))
        shape = params.scale.shape
        made = np.clip(np.rint(real / scale), -127, 127).astype(np.int8)
        weights[name] = QuantizedTensor(made, QuantParams(np.full(shape, scale), params.zero_point, params.axis))
    changed = {}
    for node in layers(graph):
        bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if bias in table.biases:
            old = table.weights[node.inputs[1].name].params.scale
            changed[bias] = np.rint(table.biases[bias] * (old / weights[node.inputs[1].name].params.scale)).astype(
                np.int32
            )
    return replace(graph, quantization=replace(table, weights=weights, biases={**table.biases, **changed})), layers(
        graph
    )[0].name


def class_zeroed(graph, random):
    """The last layer's weights of one class."""
    node = layers(graph)[-1]
    name = node.inputs[1].name
    weight = graph.quantization.weights[name]
    made = weight.integers.copy()
    moved = np.moveaxis(made, weight.params.axis or 0, 0)
    moved[int(random.integers(len(moved)))] = 0
    return with_weight(graph, name, lambda w: QuantizedTensor(made, w.params)), node.name


KINDS: dict[str, Kind] = {
    "channel_scale_doubled": scaled_channel(2),
    "channel_scale_quartered": scaled_channel(0.25),
    "zero_point_off": activation(shifted_zero(1)),
    "zero_point_far_off": activation(shifted_zero(16)),
    "bias_dropped": biases(np.zeros_like),
    "bias_doubled": biases(lambda b: b * 2),
    "weights_transposed": integers(transposed),
    "weights_rolled": integers(rolled),
    "channel_zeroed": integers(channel(lambda c: c * 0)),
    "channel_sign_flipped": integers(channel(lambda c: np.maximum(-c, -127))),
    "weights_of_4_bits": integers(few_bits),
    "weights_clipped": integers(lambda w, axis, random: np.clip(w, -32, 32)),
    "range_saturated": activation(grid(0.2)),
    "range_wide": activation(grid(20)),
    "scales_swapped": scales_swapped,
    "per_tensor_collapse": per_tensor_collapse,
    "class_zeroed": class_zeroed,
}
