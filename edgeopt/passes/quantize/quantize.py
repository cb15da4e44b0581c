"""The quantize pass: from a float graph and real samples to a table of scales and integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import DataError
from edgeopt.graph.metrics import sqnr_db
from edgeopt.graph.placement import WEIGHTED, Placement, place
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams, Range
from edgeopt.passes.base import Context, Pass, Samples
from edgeopt.passes.quantize.calibration import (
    Calibration,
    TensorStatistics,
    calibrate,
    channel_axis,
    describe_constant,
    shape_of,
    spread,
    values_by_name,
)
from edgeopt.passes.quantize.equalize import Extent, equalize
from edgeopt.passes.quantize.ranges import Estimator, Use, choose
from edgeopt.passes.quantize.segments import Cut, cut
from edgeopt.passes.quantize.sensitivity import sensitivity
from edgeopt.passes.quantize.walk import FloatLayers, Frontier, How, Walked, enter, walk
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]

MOST_SAMPLES = 140
"""Samples that the walk carries: more change the second moments hardly, and cost time and memory in proportion."""
HELD_BACK = 0.2
LEAST_HELD_BACK = 40


class Quantize(Pass):
    use: Literal["quantize"] = "quantize"
    scheme: SchemeName = "int8"
    ranges: Estimator = "auto"
    equalize: Literal["auto", "none", "depthwise", "all"] = "auto"
    rounding: Literal["auto", "nearest", "gptq"] = "auto"
    bias_correction: Literal["auto"] | bool = "auto"
    weights: Literal["per-channel", "per-tensor"] = "per-channel"
    keep_float: tuple[str, ...] = ()
    rules: dict[str, SchemeName] = {}

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        model = graph.model
        rules = [(p, "fp32") for p in self.keep_float] + list(self.rules.items())
        placement = place(model, scheme=self.scheme, rules=rules, constraints=context.constraints)
        weighted = [
            n
            for n in model.graph
            if n.op_type in WEIGHTED and placement.schemes.get(n.name or "", "").startswith("int8")
        ]
        if context.calibration is None and "int8" in placement.schemes.values():
            raise DataError("int8 needs calibration data", hint="name images under data.calibration")
        names = (*placement.activations, *placement.range_only)
        values = values_by_name(model)
        samples = context.calibration
        chosen = spread(len(samples), MOST_SAMPLES)
        calibration = calibrate(
            model,
            [n for n in names if values[n].const_value is None],
            [n.outputs[0].name for n in weighted],
            samples,
            chosen=chosen,
            judged=chosen,
            threads=context.threads,
            seed=context.seed,
        )
        statistics = dict(calibration.tensors)
        for n in names:
            if n not in statistics:
                statistics[n] = describe_constant(values[n].const_value.numpy(), channel_axis(values[n]))
        layers = FloatLayers(
            {n.inputs[1].name: n.inputs[1].const_value.numpy() for n in model.graph if n.op_type in WEIGHTED},
            {n.inputs[2].name: n.inputs[2].const_value.numpy() for n in model.graph if n.op_type in WEIGHTED},
            {k: v.mean(0) for k, v in calibration.means.items()},
        )
        gains = sensitivity(model, layers.weights, statistics)
        eq = equalize(
            model, placement, layers, statistics, gains, "depthwise" if self.equalize == "auto" else self.equalize
        )
        for n, f in eq.factors.items():
            statistics[n] = statistics[n].scaled(f)
            if n in gains:
                gains[n] = gains[n] / f**2
        activations, ranges, labels = choose_ranges(model, placement, statistics, gains, self.ranges)
        whole = cut(model, placement.schemes, frozenset(placement.activations))
        entry = enter(model, whole, samples, chosen, placement.schemes, activations, threads=context.threads)
        outputs = [v.name for v in model.graph.outputs]
        how = How(
            "gptq" if self.rounding == "auto" else self.rounding,
            str(self.bias_correction) != "False",
            self.weights == "per-tensor",
        )
        walked = walk(
            whole,
            entry,
            eq.layers,
            placement.schemes,
            activations,
            outputs,
            how,
            fitted=range(len(chosen)),
            threads=context.threads,
            seed=context.seed,
        )
        self_db = {
            o: sqnr_db(np.concatenate(calibration.outputs[o]), np.concatenate(walked.outputs[o])) for o in outputs
        }
        if eq.factors:
            for k, v in {**eq.layers.weights, **eq.layers.biases}.items():
                model.graph.initializers[k].const_value = ir.tensor(v, name=k)
        table = Quantization(activations, walked.weights, walked.biases, ranges, placement.schemes, labels)
        return QuantizedGraph(model, table, graph.record, graph.warnings)


def choose_ranges(model, placement, statistics, gains, estimator):
    names = (*placement.activations, *placement.range_only)
    activations, ranges, labels = {}, {}, {}
    groups = list(placement.groups)
    grouped = {n for g in groups for n in g}
    groups += [frozenset({n}) for n in names if n not in grouped]
    outputs = {v.name for v in model.graph.outputs}
    for group in groups:
        members = [n for n in names if n in group]
        if not members:
            continue
        uses = [Use(statistics[n], gains.get(n, np.ones(len(statistics[n].low)))) for n in members]
        chosen = choose(
            uses, "minmax" if outputs & set(members) else estimator, symmetric=members[0] in placement.symmetric
        )
        for n in members:
            bounds, label = chosen.range, chosen.estimator
            if n in placement.fixed:
                f = placement.fixed[n]
                params = QuantParams(np.asarray(f.scale), np.asarray(f.zero_point))
                bounds, label = params.range, "fixed"
            else:
                params = QuantParams.from_range(bounds, symmetric=n in placement.symmetric)
            ranges[n], labels[n] = bounds, label
            if n in placement.activations:
                activations[n] = params
    return activations, ranges, labels
