"""Faults of the second writing: held out in the run of 2026-11-27 02:04 UTC, seen since, and development kinds now.

Of every stage as the others are: table of scales, written file, imported graph, calibration and evaluation data.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from benchmarks.faults import data_kinds, file_kinds, table_kinds
from benchmarks.faults.table_kinds import Faulty, Kind, Random, activation, biases, integers, layers
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams

# --- in the table


def offset_by_128(w, axis, random):
    """Bytes that were unsigned, read as signed ones."""
    return (w.view(np.uint8) + np.uint8(128)).view(np.int8)


def channels_shuffled(w, axis, random):
    return np.take(w, random.permutation(w.shape[axis or 0]), axis or 0)


def bits_flipped(w, axis, random):
    """The second highest bit of three bytes in a hundred."""
    flips = (random.random(w.shape) < 0.03).astype(np.uint8) << 6
    return np.maximum((w.view(np.uint8) ^ flips).view(np.int8), -127)


def kernel_centre_only(w, axis, random):
    """A kernel of 3 × 3 of which the middle remains."""
    if w.ndim != 4 or min(w.shape[2:]) < 3:
        return w
    made = np.zeros_like(w)
    y, x = w.shape[2] // 2, w.shape[3] // 2
    made[:, :, y, x] = w[:, :, y, x]
    return made


def layers_swapped(graph: QuantizedGraph, random: Random) -> Faulty:
    """Integers of two layers of one shape, each with its own scales."""
    table = graph.quantization
    by_shape: dict[tuple, list[str]] = {}
    makers = {}
    for node in layers(graph):
        name = node.inputs[1].name
        makers[name] = node.name
        by_shape.setdefault(table.weights[name].integers.shape, []).append(name)
    pairs = [names for names in by_shape.values() if len(set(names)) > 1]
    if not pairs:
        return None
    names = pairs[int(random.integers(len(pairs)))]
    a, b = (str(name) for name in random.choice(sorted(set(names)), 2, replace=False))
    weights = {**table.weights, a: table.weights[b], b: table.weights[a]}
    order = [node.inputs[1].name for node in layers(graph)]
    return replace(graph, quantization=replace(table, weights=weights)), makers[min((a, b), key=order.index)]


def four_bits(p: QuantParams, random: Random) -> QuantParams:
    """Sixteen levels over a sixteenth more than the same range: what a grid of 4 bits can tell."""
    return QuantParams(
        p.scale * np.float32(17), np.clip(np.rint(p.zero_point / 17), -128, 127).astype(p.zero_point.dtype)
    )


def zero_dropped(p: QuantParams, random: Random) -> QuantParams:
    return QuantParams(p.scale, p.zero_point * 0)


TABLE: dict[str, Kind] = {
    "zero_point_dropped": activation(zero_dropped),
    "weights_offset_by_128": integers(offset_by_128),
    "channels_shuffled": integers(channels_shuffled),
    "layers_swapped": layers_swapped,
    "bias_of_8_bits": biases(lambda b: np.clip(b, -128, 127)),
    "activations_of_4_bits": activation(four_bits),
}


# --- in the file


def dilated(graph: QuantizedGraph, random: Random) -> Faulty:
    """Dilation 2 where there was none, with the padding that keeps the shape."""
    nodes = []
    for node in graph.model.graph:
        if node.op_type != "Conv" or "pads" not in node.attributes:
            continue
        pads, kernel = node.attributes["pads"].as_ints(), node.inputs[1].shape
        if kernel is not None and tuple(kernel[2:]) == (3, 3) and list(pads) == [1, 1, 1, 1]:
            nodes.append(node)
    if not nodes:
        return None
    node = nodes[int(random.integers(len(nodes)))]
    node.attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 2, 2])
    node.attributes["dilations"] = ir.AttrInt64s("dilations", [2, 2])
    return graph, node.name


def output_scaled(graph: QuantizedGraph, random: Random) -> Faulty:
    """The grid of the last layer's result: every answer half as large, none another one."""
    table = graph.quantization
    node = layers(graph)[-1]
    name = node.inputs[1].name
    weight = table.weights[name]
    halved = QuantizedTensor(
        weight.integers,
        QuantParams(weight.params.scale * np.float32(0.5), weight.params.zero_point, weight.params.axis),
    )
    return replace(graph, quantization=replace(table, weights={**table.weights, name: halved})), node.name


def blue_lost(graph: QuantizedGraph, random: Random) -> Faulty:
    """The first layer does not read its last input channel."""
    node = layers(graph)[0]
    name = node.inputs[1].name
    weight = graph.quantization.weights[name]
    if weight.integers.ndim != 4 or weight.integers.shape[1] < 2:
        return None
    made = weight.integers.copy()
    made[:, -1] = 0
    return table_kinds.with_weight(graph, name, lambda w: QuantizedTensor(made, w.params)), node.name


FILE: dict[str, Kind] = {
    "file_bits_flipped": integers(bits_flipped),
    "file_kernel_centre_only": integers(kernel_centre_only),
    "file_dilated": dilated,
    "file_output_scaled": output_scaled,
    "file_blue_lost": blue_lost,
    "file_layers_swapped": layers_swapped,
}


# --- in the imported graph


def _other_norm(w: np.ndarray, random: Random) -> np.ndarray:
    """Statistics of another normalisation folded in: every channel by its own factor."""
    return w * np.exp(random.normal(0, 0.25, len(w))).reshape(-1, *[1] * (w.ndim - 1))


def _initialised(w: np.ndarray, random: Random) -> np.ndarray:
    """A layer that was not in the checkpoint."""
    return random.normal(0, w.std(), w.shape)


def _coarse(w: np.ndarray, random: Random) -> np.ndarray:
    """Two bits of mantissa."""
    mantissa, exponent = np.frexp(w)
    return np.ldexp(np.rint(mantissa * 8) / 8, exponent)


IMPORT = {
    "import_other_norm": file_kinds.imported(4, _other_norm),
    "import_layer_initialised": file_kinds.imported(4, _initialised),
    "import_coarse_weights": file_kinds.imported(4, _coarse),
}


# --- in the data


def flat_colours(images: np.ndarray, random) -> np.ndarray:
    """Every image one colour: the colour of one of its pixels."""
    y, x = (int(random.integers(size)) for size in images.shape[2:])
    return np.broadcast_to(images[:, :, y : y + 1, x : x + 1], images.shape).copy()


CALIBRATION: dict[str, Callable] = {
    "calibrated_on_0_to_255": lambda images, random: images * np.float32(255),
    "calibrated_on_flat_colours": flat_colours,
}


def std_missing(images, labels, random):
    return images * np.float32(data_kinds.STD), labels


def zoomed(images, labels, random):
    """The middle half, enlarged: a crop too many."""
    height, width = images.shape[2:]
    rows, columns = height // 4 + np.arange(height) // 2, width // 4 + np.arange(width) // 2
    return images[:, :, rows][:, :, :, columns], labels


def upside_down(images, labels, random):
    return images[:, :, ::-1].copy(), labels


def labels_renumbered(images, labels, random):
    """Class names sorted otherwise in training: every index means another class."""
    classes = int(labels.max()) + 1
    made = random.permutation(classes)
    while classes > 1 and np.array_equal(made, np.arange(classes)):
        made = random.permutation(classes)
    return images, made[labels]


EVALUATION = {
    "evaluation_std_missing": std_missing,
    "evaluation_zoomed": zoomed,
    "evaluation_upside_down": upside_down,
    "labels_renumbered": labels_renumbered,
}
