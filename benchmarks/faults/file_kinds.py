"""Faults in the written file, or in the imported graph: the run's record stays right, the network is another one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from benchmarks.faults import table_kinds
from benchmarks.faults.table_kinds import Faulty, Kind, Random, layers, some_layer
from edgeopt.graph.model import constant
from edgeopt.graph.quantization import QuantizedGraph, QuantizedTensor, QuantParams


def wrong_padding(graph: QuantizedGraph, random: Random) -> Faulty:
    """One row and column more before, one less behind."""
    nodes = [
        n
        for n in graph.model.graph
        if n.op_type == "Conv" and "pads" in n.attributes and any(n.attributes["pads"].as_ints())
    ]
    nodes = [
        n for n in nodes if len(n.attributes["pads"].as_ints()) == 4 and min(n.attributes["pads"].as_ints()[2:]) > 0
    ]
    if not nodes:
        return None
    node = nodes[int(random.integers(len(nodes)))]
    top, left, bottom, right = node.attributes["pads"].as_ints()
    node.attributes["pads"] = ir.AttrInt64s("pads", [top + 1, left + 1, bottom - 1, right - 1])
    return graph, node.name


def relu_removed(graph: QuantizedGraph, random: Random) -> Faulty:
    """What a fused activation leaves if it is forgotten: a Clip that clips nothing."""
    nodes = [n for n in graph.model.graph if n.op_type == "Clip" or (n.op_type == "Relu" and n.domain == "")]
    if not nodes:
        return None
    node = nodes[int(random.integers(len(nodes)))]
    wide = np.float32(1e6)
    if node.op_type == "Relu":
        clip = ir.node("Clip", [node.inputs[0], _constant(graph, f"{node.name}_low", -wide)], name=f"{node.name}_open")
        clip.outputs[0].name = f"{node.name}_open_out"
        clip.outputs[0].shape, clip.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        return _replaced(graph, node, clip)
    node.replace_input_with(1, _constant(graph, f"{node.name}_low", -wide))
    if len(node.inputs) > 2:
        node.replace_input_with(2, _constant(graph, f"{node.name}_high", wide))
    return graph, node.name


def _replaced(graph: QuantizedGraph, old: ir.Node, new: ir.Node) -> Faulty:
    name, table = old.name, graph.quantization
    output = old.outputs[0]
    graph.model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0])
    kept = output.name
    graph.model.graph.remove(old, safe=True)
    new.name, new.outputs[0].name = name, kept
    return replace(graph, quantization=table), name


def clip_lowered(graph: QuantizedGraph, random: Random) -> Faulty:
    nodes = [
        n for n in graph.model.graph if n.op_type == "Clip" and len(n.inputs) > 2 and constant(n.inputs[2]) is not None
    ]
    if not nodes:
        return None
    node = nodes[int(random.integers(len(nodes)))]
    node.replace_input_with(2, _constant(graph, f"{node.name}_low", np.float32(constant(node.inputs[2]) / 6)))
    return graph, node.name


def _constant(graph: QuantizedGraph, name: str, array) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, np.float32), name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.model.graph.register_initializer(value)
    return value


def softmax_added(graph: QuantizedGraph, random: Random) -> Faulty:
    """Behind the last layer (twice where there is one already)."""
    output = graph.model.graph.outputs[0]
    maker = output.producer()
    if output.shape is None or len(output.shape) != 2 or maker is None:
        return None
    name = output.name
    inner = maker.outputs[0]
    inner.name = f"{name}_before_softmax"
    node = ir.node("Softmax", [inner], attributes={"axis": -1}, name="softmax_too_many")
    node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].type = output.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.model.graph.append(node)
    graph.model.graph.outputs[0] = node.outputs[0]
    table = graph.quantization
    moved = {(inner.name if k == name else k): v for k, v in table.activations.items()}
    ranges = {(inner.name if k == name else k): v for k, v in table.ranges.items()}
    return replace(graph, quantization=replace(table, activations=moved, ranges=ranges)), node.name


def float_left(graph: QuantizedGraph, random: Random) -> Faulty:
    """One layer in float in an int8 file."""
    node = some_layer(graph, random)
    table = graph.quantization
    schemes = {name: scheme for name, scheme in table.schemes.items() if name != node.name}
    return replace(graph, quantization=replace(table, schemes=schemes)), node.name


def first_layer(change: Callable[[np.ndarray], np.ndarray], *, channels: int | None = None) -> Kind:
    def kind(graph: QuantizedGraph, random: Random) -> Faulty:
        node = layers(graph)[0]
        name = node.inputs[1].name
        weight = graph.quantization.weights[name]
        if weight.integers.ndim != 4 or (channels is not None and weight.integers.shape[1] != channels):
            return None
        made = np.ascontiguousarray(change(weight.integers))
        if made.shape != weight.integers.shape or np.array_equal(made, weight.integers):
            return None
        return table_kinds.with_weight(graph, name, lambda w: QuantizedTensor(made, w.params)), node.name

    return kind


def missing_mean(graph: QuantizedGraph, random: Random) -> Faulty:
    """The first layer's bias as if no mean had been taken off: half of its weights' sum more."""
    node = layers(graph)[0]
    table = graph.quantization
    bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias not in table.biases:
        return None
    entry = table.activations.get(node.inputs[0].name)
    if entry is None:
        return None
    summed = table.weights[node.inputs[1].name].integers.astype(np.int64)
    summed = summed.reshape(len(summed), -1).sum(1) if summed.ndim == 4 else summed.sum(0)
    if len(summed) != len(table.biases[bias]):
        return None
    steps = np.rint(0.5 / float(entry.scale)).astype(np.int64) if float(entry.scale) < 0.5 else 60
    made = {**table.biases, bias: (table.biases[bias] + steps * summed).astype(np.int32)}
    return replace(graph, quantization=replace(table, biases=made)), node.name


def last_layer(
    change: Callable[[QuantizedTensor, np.ndarray | None], tuple[QuantizedTensor, np.ndarray | None]],
) -> Kind:
    def kind(graph: QuantizedGraph, random: Random) -> Faulty:
        node, table = layers(graph)[-1], graph.quantization
        bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2] is not None else None
        weight, shift = change(table.weights[node.inputs[1].name], table.biases.get(bias or ""))
        weights = {**table.weights, node.inputs[1].name: weight}
        shifts = dict(table.biases)
        if bias is not None and shift is not None:
            shifts[bias] = shift.astype(np.int32)
        return replace(graph, quantization=replace(table, weights=weights, biases=shifts)), node.name

    return kind


def _reversed(weight: QuantizedTensor, bias):
    axis = weight.params.axis or 0
    params = QuantParams(
        weight.params.scale[::-1] if weight.params.scale.ndim else weight.params.scale,
        weight.params.zero_point,
        weight.params.axis,
    )
    return QuantizedTensor(
        np.ascontiguousarray(np.flip(weight.integers, axis)), params
    ), None if bias is None else bias[::-1]


def _constant_output(weight: QuantizedTensor, bias):
    return QuantizedTensor(weight.integers * 0, weight.params), bias


def _flattened(weight: QuantizedTensor, bias):
    """Logits of an eighth: answers stay, confidence is gone."""
    return QuantizedTensor(weight.integers // 8, weight.params), None if bias is None else bias // 8


KINDS: dict[str, Kind] = {
    "wrong_padding": wrong_padding,
    "relu_removed": relu_removed,
    "clip_lowered": clip_lowered,
    "softmax_added": softmax_added,
    "float_left": float_left,
    "bgr_swapped": first_layer(lambda w: w[:, ::-1], channels=3),
    "layout_swapped": first_layer(lambda w: w.transpose(0, 1, 3, 2)),
    "missing_mean": missing_mean,
    "outputs_permuted": last_layer(_reversed),
    "output_constant": last_layer(_constant_output),
    "logits_flattened": last_layer(_flattened),
    "file_scale_doubled": table_kinds.KINDS["channel_scale_doubled"],
    "file_zero_point_off": table_kinds.KINDS["zero_point_far_off"],
    "file_bias_dropped": table_kinds.KINDS["bias_dropped"],
    "file_channel_zeroed": table_kinds.KINDS["channel_zeroed"],
}


# --- imported graphs


def _initializers(model: ir.Model, ndim: int) -> list[ir.Value]:
    used = [v for n in model.graph if n.op_type in ("Conv", "Gemm") for v in n.inputs[1:3] if v is not None]
    return [
        v
        for v in used
        if v.const_value is not None and v.const_value.numpy().ndim == ndim and v.const_value.numpy().any()
    ]


def imported(ndim: int, change: Callable[[np.ndarray, Random], np.ndarray]):
    def kind(model: ir.Model, random: Random) -> tuple[ir.Model, str] | None:
        values = _initializers(model, ndim)
        if not values:
            return None
        value = values[int(random.integers(len(values)))]
        old = value.const_value.numpy()
        made = change(old.copy(), random).astype(np.float32)
        if made.shape != old.shape or np.array_equal(made, old):
            return None
        value.const_value = ir.tensor(made, name=value.name)
        return model, next(n.name for n in model.graph if value in n.inputs)

    return kind


def _scale_channel(w: np.ndarray, random: Random) -> np.ndarray:
    w[int(random.integers(len(w)))] *= 2.5
    return w


IMPORT_KINDS = {
    "import_bias_dropped": imported(1, lambda b, random: b * 0),
    "import_weights_transposed": imported(4, lambda w, random: w.transpose(0, 1, 3, 2)),
    "import_channel_scaled": imported(4, _scale_channel),
}
