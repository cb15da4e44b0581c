"""A min-max table of scales for any canonical graph: enough to test what is written from a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.constraints import Constraints, FixedOutput
from edgeopt.graph.placement import WEIGHTED, place
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantizedTensor, QuantParams, Range
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import SchemeName


def minmax_table(
    model: ir.Model,
    samples: Iterable[dict[str, np.ndarray]],
    *,
    scheme: SchemeName = "int8",
    rules: Sequence[tuple[str, SchemeName]] = (),
    constraints: Constraints | None = None,
) -> QuantizedGraph:
    """Ranges are what the samples reach; weights are rounded to the nearest step, per channel."""
    placement = place(model, scheme=scheme, rules=rules, constraints=constraints)
    ranges = _ranges(model, (*placement.activations, *placement.range_only), samples)
    for group in placement.groups:
        union = Range(min(ranges[n].low for n in group), max(ranges[n].high for n in group))
        ranges |= dict.fromkeys(group, union)
    activations = {
        name: QuantParams.from_range(ranges[name], symmetric=name in placement.symmetric)
        if name not in placement.fixed
        else _fixed(placement.fixed[name])
        for name in placement.activations
    }
    weights: dict[str, QuantizedTensor] = {}
    biases: dict[str, np.ndarray] = {}
    for node in model.graph:
        asked = placement.schemes.get(node.name or "", "fp32")
        if node.op_type not in WEIGHTED or not asked.startswith("int8"):
            continue
        weight = node.inputs[1].const_value.numpy()
        axis = 1 if node.op_type == "ConvTranspose" else 0
        channels = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(1)
        if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1:
            axis, channels = None, np.abs(weight).max()
        scale = np.maximum(channels, 1e-8) / 127
        if asked == "int8" and axis is not None:
            # A channel of tiny weights keeps its bias within int32, with room for the sums beside it.
            bias = np.abs(node.inputs[2].const_value.numpy())
            scale = np.maximum(scale, bias / float(activations[node.inputs[0].name].scale) / 2**30)
        params = QuantParams(scale, np.zeros(np.shape(channels)), axis)
        weights[node.inputs[1].name] = QuantizedTensor(params.quantize(weight), params)
        if asked == "int8":
            scale = activations[node.inputs[0].name].scale * params.scale
            steps = np.rint(node.inputs[2].const_value.numpy() / scale.astype(np.float64))
            biases[node.inputs[2].name] = np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)
    return QuantizedGraph(model, Quantization(activations, weights, biases, ranges, placement.schemes))


def _ranges(model: ir.Model, names: Sequence[str], samples: Iterable[dict[str, np.ndarray]]) -> dict[str, Range]:
    watched = model.clone()
    values = {v.name: v for v in watched.graph.inputs} | {v.name: v for n in watched.graph for v in n.outputs}
    constants = {name: value.const_value.numpy() for name, value in watched.graph.initializers.items()}
    ranges = {
        name: Range(min(0.0, float(array.min())), max(0.0, float(array.max())))
        for name, array in constants.items()
        if name in names
    }
    outputs = [name for name in names if name not in constants]
    known = {value.name for value in watched.graph.outputs}
    watched.graph.outputs.extend(
        values[name] for name in outputs if name not in known and values[name].producer() is not None
    )
    with Session(ir.to_proto(watched).SerializeToString(), optimize=False) as session:
        for feed in samples:
            found = session.run(feed) | feed
            for name in outputs:
                seen = Range(min(0.0, float(found[name].min())), max(0.0, float(found[name].max())))
                ranges[name] = ranges[name].union(seen) if name in ranges else seen
    return ranges


def _fixed(grid: FixedOutput) -> QuantParams:
    return QuantParams(np.float32(grid.scale), np.int32(grid.zero_point))
