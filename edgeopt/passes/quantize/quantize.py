"""The quantize pass: from a float graph and real samples to a table of scales and integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import DataError
from edgeopt.graph.placement import WEIGHTED, Placement, place
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantizedTensor, QuantParams, Range
from edgeopt.passes.base import Context, Pass
from edgeopt.passes.quantize.calibration import Calibration, calibrate, channel_axis, describe_constant, values_by_name
from edgeopt.passes.quantize.ranges import Estimator, Use, choose
from edgeopt.passes.quantize.rounding import Layout, nearest, quantized_weight, weight_scales
from edgeopt.passes.quantize.sensitivity import sensitivity
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]


class Quantize(Pass):
    use: Literal["quantize"] = "quantize"
    scheme: SchemeName = "int8"
    ranges: Estimator = "auto"
    keep_float: tuple[str, ...] = ()
    rules: dict[str, SchemeName] = {}

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        model = graph.model
        rules = [(p, "fp32") for p in self.keep_float] + list(self.rules.items())
        placement = place(model, scheme=self.scheme, rules=rules, constraints=context.constraints)
        weights = {n.inputs[1].name: n.inputs[1].const_value.numpy() for n in model.graph if n.op_type in WEIGHTED}
        values = values_by_name(model)
        activations, ranges, labels = {}, {}, {}
        if "int8" in placement.schemes.values():
            if context.calibration is None:
                raise DataError("int8 needs calibration data", hint="name images under data.calibration")
            names = [n for n in (*placement.activations, *placement.range_only)]
            moving = [n for n in names if values[n].const_value is None]
            calibration = calibrate(
                model, moving, [], context.calibration, fitted=[], threads=context.threads, seed=context.seed
            )
            statistics = dict(calibration.tensors)
            for n in names:
                if n not in statistics:
                    statistics[n] = describe_constant(values[n].const_value.numpy(), channel_axis(values[n]))
            gains = sensitivity(model, weights, statistics)
            groups = [*placement.groups]
            grouped = {n for g in groups for n in g}
            groups += [frozenset({n}) for n in names if n not in grouped]
            outputs = {v.name for v in model.graph.outputs}
            for group in groups:
                members = [n for n in names if n in group]
                if not members:
                    continue
                uses = [Use(statistics[n], gains.get(n, np.ones(len(statistics[n].low)))) for n in members]
                chosen = choose(
                    uses,
                    "minmax" if outputs & set(members) else self.ranges,
                    symmetric=members[0] in placement.symmetric,
                )
                for n in members:
                    bounds, label = chosen.range, chosen.estimator
                    if n in placement.fixed:
                        f = placement.fixed[n]
                        params = QuantParams(np.float32(f.scale), np.int32(f.zero_point))
                        bounds, label = params.range, "fixed"
                    else:
                        params = QuantParams.from_range(bounds, symmetric=n in placement.symmetric)
                    ranges[n], labels[n] = bounds, label
                    if n in placement.activations:
                        activations[n] = params
        table_w, table_b = {}, {}
        for node in model.graph:
            scheme = placement.schemes.get(node.name, "fp32")
            if node.op_type not in WEIGHTED or scheme not in ("int8", "int8-weights", "int8-dynamic"):
                continue
            x, w, b = node.inputs[:3]
            layout = Layout.of(node, weights[w.name].shape)
            rows = layout.rows(weights[w.name])
            bias = b.const_value.numpy().astype(np.float64).reshape(layout.groups, -1)
            sx = float(activations[x.name].scale) if scheme == "int8" else 0.0
            scales = weight_scales(
                rows, np.ones((rows.shape[0], rows.shape[2])), bias, sx, per_tensor=layout.axis is None
            )
            q = quantized_weight(layout, nearest(rows, scales), scales)
            table_w[w.name] = q
            if scheme == "int8":
                step = (activations[x.name].scale * q.params.scale).astype(np.float32)
                table_b[b.name] = np.rint(bias.reshape(-1) / step).astype(np.int32)
        table = Quantization(activations, table_w, table_b, ranges, placement.schemes, labels)
        return QuantizedGraph(model, table, graph.record, graph.warnings)
