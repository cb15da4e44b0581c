"""The quantize pass: from a float graph and real samples to a table of scales and integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from edgeopt.errors import DataError, UsageError
from edgeopt.events import Event, emit
from edgeopt.graph import overflow
from edgeopt.graph.compression import COMPRESSED
from edgeopt.graph.placement import WEIGHTED, Placement, fused_activation, place
from edgeopt.graph.quantization import Quantization, QuantizedGraph, QuantParams
from edgeopt.passes.base import Context, Pass, Samples
from edgeopt.passes.quantize.calibration import (
    Calibration,
    calibrate,
    channel_axis,
    describe_constant,
    only,
    spread,
    values_by_name,
)
from edgeopt.passes.quantize.compress import compress
from edgeopt.passes.quantize.fit import Subject, fit, judge, with_entry
from edgeopt.passes.quantize.lattice import (
    MOST_SAMPLES as MOST_LATTICE_SAMPLES,
)
from edgeopt.passes.quantize.lattice import (
    convolution_reading,
    find_lattice,
    fold_lattice,
    on_levels,
)
from edgeopt.passes.quantize.nncf import quantize_with_nncf
from edgeopt.passes.quantize.ranges import Estimator
from edgeopt.passes.quantize.segments import cut, stored_bytes
from edgeopt.passes.quantize.select import Alternative, Division, Score, Setting, describe, divide, select
from edgeopt.types import Effort, Kept, SchemeName

Array = npt.NDArray[Any]

MOST_STORED_BYTES = 128 << 20
"""Of all carried samples together at the widest place of the graph."""
LEAST_CARRIED = 16


@dataclass(frozen=True)
class Budget:
    """How much an effort tries.

    Args:
        carried: samples of the final walk at most; more change second moments hardly.
        trial: samples that trials fit to.
        effort: factor on how many output positions second moments look at.
    """

    carried: int
    trial: int
    effort: float


BUDGETS: Mapping[Effort, Budget] = {
    "fast": Budget(64, 24, 0.5),
    "default": Budget(200, 80, 1.0),
    "best": Budget(400, 160, 4.0),
}
FALLBACK = Setting("depthwise", "gptq", correct_bias=True, lattice=False, ranges="auto", safe_pairs=True)


class Quantize(Pass):
    """Post-training quantization: to int8, or of weights alone.

    Args:
        scheme: of every node that no rule names.
        ranges: estimator of activation ranges; ``auto`` chooses per tensor by expected error downstream.
        equalize: which tensors' channels are scaled to fill their grid.
        rounding: of weights.
        bias_correction: match every layer's mean output to the float model's.
        weights: one scale per output channel, or one per tensor (repaired as far as that goes, with a warning).
        overflow_fix: round weights so that no two products of neighbours exceed 16 bits (``graph.overflow``): then
            int8 weights are exact, and their kernels fastest, on x86 without VNNI too.
        keep_float: patterns of node names that stay float.
        rules: pattern of node names → scheme; the first match holds, after ``keep_float``.
        input_lattice: quantize inputs that hold 8-bit images exactly.
        engine: ``nncf`` lets NNCF quantize and reads its result into the same table.

    ``auto`` means: chosen on held-back samples. Raises ``DataError`` for ``int8`` without calibration data.
    """

    use: Literal["quantize"] = "quantize"
    scheme: SchemeName = "int8"
    ranges: Estimator = "auto"
    equalize: Literal["auto", "none", "depthwise", "all"] = "auto"
    rounding: Literal["auto", "nearest", "gptq"] = "auto"
    bias_correction: Literal["auto"] | bool = "auto"
    weights: Literal["per-channel", "per-tensor"] = "per-channel"
    overflow_fix: Literal["auto"] | bool = "auto"
    keep_float: tuple[str, ...] = ()
    rules: dict[str, SchemeName] = Field(default_factory=dict)
    input_lattice: Literal["auto"] | bool = "auto"
    engine: Literal["edgeopt", "nncf"] = "edgeopt"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        self._check_patterns(graph.model)
        if self.engine == "nncf" and (self.scheme != "int8" or set(self.rules.values()) - {"int8", "fp32"}):
            raise UsageError(
                "the engine 'nncf' makes int8 and nothing else",
                where="passes.quantize",
                hint="leave 'engine' out for other schemes",
            )
        if self.engine == "nncf" and self.overflow_fix is True:
            raise UsageError(
                "'overflow_fix' is the work of the engine 'edgeopt'",
                where="passes.quantize",
                hint="leave one of the two out",
            )
        placement = self._place(graph.model, context)
        if COMPRESSED & set(placement.schemes.values()):
            return self._compress(graph, placement, context)
        quantized = [node for node in graph.model.graph if _is_quantized(node, placement)]
        if "int8" not in placement.schemes.values() and not quantized:
            return replace(graph, quantization=Quantization(schemes=placement.schemes))
        if "int8" in placement.schemes.values() and context.calibration is None:
            raise DataError(
                "int8 needs calibration data, and none is given",
                hint="name real samples under data.calibration (or --calibration DIR), or ask for int8-weights",
            )
        return self._quantize(graph, placement, context)

    def _compress(self, graph: QuantizedGraph, placement: Placement, context: Context) -> QuantizedGraph:
        """Palettes and 4-bit weights beside whatever the other nodes get."""
        found, too_small = compress(graph.model, placement)
        schemes = {name: scheme for name, scheme in placement.schemes.items() if name not in too_small}
        if any(scheme.startswith("int8") for scheme in schemes.values()):
            raise UsageError(
                "int8 beside palettes or 4-bit weights in one model is not to be had",
                where="passes.quantize.rules",
                hint="Mix int4-weights and palettes with fp32, fp16 and one another.",
            )
        text = f"{len(found)} weights compressed"
        if too_small:
            text += f"; {len(too_small)} stay as they are: their palette would be as large as they"
        line = Kept(what=self.scheme, brought_db=None, kept=True, why=text)
        table = Quantization(schemes=schemes, compressed=found)
        return QuantizedGraph(graph.model, table, (*graph.record, line), graph.warnings)

    def _check_patterns(self, model: ir.Model) -> None:
        names = [node.name or "" for node in model.graph]
        for pattern in (*self.keep_float, *self.rules):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"the pattern '{pattern}' matches no node",
                    where="passes.quantize",
                    hint="`edgeopt inspect` lists the names of nodes",
                )

    def _place(self, model: ir.Model, context: Context) -> Placement:
        rules: list[tuple[str, SchemeName]] = [(pattern, "fp32") for pattern in self.keep_float]
        rules += self.rules.items()
        return place(model, scheme=self.scheme, rules=rules, constraints=context.constraints)

    def _quantize(self, graph: QuantizedGraph, placement: Placement, context: Context) -> QuantizedGraph:
        budget = BUDGETS[context.effort]
        samples: Samples = context.calibration if context.calibration is not None else ()
        chosen = spread(len(samples), _carried(graph.model, placement, len(samples), budget.carried))
        division = divide(len(chosen), budget.trial)
        plain, calibration = self._calibrated(graph.model, placement, samples, chosen, division, context)
        if self.engine == "nncf":
            table, line = quantize_with_nncf(plain, samples)
            return QuantizedGraph(plain.model, table, (*graph.record, line), graph.warnings)
        variants = {False: plain}
        if self.input_lattice is not False and context.calibration is not None:
            latticed = self._latticed(plain, samples, chosen, context)
            if latticed is not None:
                variants[True] = latticed
        start = self._start(variants)
        setting, record, warnings = self._selected(variants, start, division, calibration, context)
        subject = variants[setting.lattice]
        everything = range(len(chosen))
        emit(Event("step", "quantize: final fit"))
        final = fit(
            subject, setting, everything, everything, per_tensor=self.weights == "per-tensor", effort=budget.effort
        )
        emit(Event("done", "quantize: final fit"))
        return QuantizedGraph(subject.model, final.table, (*graph.record, *record), (*graph.warnings, *warnings))

    def _calibrated(
        self,
        model: ir.Model,
        placement: Placement,
        samples: Samples,
        chosen: Sequence[int],
        division: Division,
        context: Context,
    ) -> tuple[Subject, Calibration]:
        values = values_by_name(model)
        names = (*placement.activations, *placement.range_only)
        fixed = {
            name: QuantParams(np.asarray(grid.scale), np.asarray(grid.zero_point))
            for name, grid in placement.fixed.items()
        }
        if not len(samples):
            nothing = Calibration({}, {}, {}, 0)
            return Subject(model, placement, {}, {}, fixed, context.threads, context.seed), nothing
        calibration = calibrate(
            model,
            [name for name in names if values[name].const_value is None],
            _means_wanted(model, placement),
            samples,
            chosen=chosen,
            judged=[chosen[index] for index in division.held],
            threads=context.threads,
            seed=context.seed,
        )
        statistics = dict(calibration.tensors)
        for name in names:
            constant = values[name].const_value
            if name not in statistics and constant is not None:
                statistics[name] = describe_constant(constant.numpy(), channel_axis(values[name]))
        subject = Subject(model, placement, statistics, calibration.means, fixed, context.threads, context.seed)
        return with_entry(subject, samples, chosen, self.ranges), calibration

    def _latticed(self, plain: Subject, samples: Samples, chosen: Sequence[int], context: Context) -> Subject | None:
        """The graph with every input that lies on a lattice folded, or None."""
        placed = frozenset(plain.placement.activations)
        few = [chosen[index] for index in spread(len(chosen), MOST_LATTICE_SAMPLES)]
        model, statistics, fixed = plain.model.clone(), dict(plain.statistics), dict(plain.fixed)
        found = False
        for value in plain.model.graph.inputs:
            name = value.name or ""
            node = convolution_reading(value)
            if name not in placed or node is None or plain.placement.schemes.get(node.name or "") != "int8":
                continue
            lattice = find_lattice((feed for _, feed in only(samples, few)), name, plain.grid(name, self.ranges))
            if lattice is None:
                continue
            levels = fold_lattice(model, name, lattice)
            statistics[levels] = on_levels(plain.statistics[name], lattice)
            fixed[levels] = QuantParams(np.asarray(1.0), np.asarray(0))
            found = True
        if not found:
            return None
        subject = replace(plain, model=model, placement=self._place(model, context), statistics=statistics, fixed=fixed)
        return with_entry(subject, samples, chosen, self.ranges)

    def _start(self, variants: Mapping[bool, Subject]) -> Setting:
        # An input without rounding error is the better one; whether by enough to pay for it is tried.
        lattice = self.input_lattice is not False and True in variants
        return Setting(
            FALLBACK.equalize if self.equalize == "auto" else self.equalize,
            FALLBACK.rounding if self.rounding == "auto" else self.rounding,
            FALLBACK.correct_bias if self.bias_correction == "auto" else self.bias_correction,
            lattice,
            self.ranges,
            self.overflow_fix is not False and _multiplies_integers(variants[False].placement),
        )

    def _selected(
        self,
        variants: Mapping[bool, Subject],
        start: Setting,
        division: Division,
        calibration: Calibration,
        context: Context,
    ) -> tuple[Setting, tuple[Kept, ...], tuple[str, ...]]:
        """What to use, what was tried, and what the person should know."""
        per_tensor = self.weights == "per-tensor"
        if not division.held:
            count = calibration.samples
            why = f"the default; {count} calibration samples are too few to hold some back and compare"
            unknown = (f"one scale per weight costs accuracy; how much, {count} samples are too few to say",)
            line = Kept(what=describe(start), brought_db=None, kept=True, why=why)
            return start, (line,), unknown if per_tensor else ()
        subjects = dict(variants)
        carried = sorted({*division.fitted, *division.held})
        held = [carried.index(index) for index in division.held]
        effort = BUDGETS[context.effort].effort / 2

        def score(setting: Setting, per_tensor: bool = per_tensor) -> Score:
            emit(Event("step", f"quantize: try {describe(setting)}"))
            tried = fit(
                subjects[setting.lattice], setting, division.fitted, carried, per_tensor=per_tensor, effort=effort
            )
            emit(Event("done", f"quantize: try {describe(setting)}"))
            return judge(calibration.outputs, tried.outputs, held)

        alternatives = self._alternatives(variants, start, division, context)
        setting, record = select(start, alternatives, score, len(held))
        if not per_tensor:
            return setting, record, ()
        ours, better = score(setting).db(), score(setting, per_tensor=False).db()
        text = f"{ours:.1f} dB with one scale per weight, {better:.1f} dB with one per channel"
        why = f"asked for; {text}, on {len(held)} held-back samples"
        line = Kept(what="one scale per weight", brought_db=round(ours - better, 2), kept=True, why=why)
        return setting, (*record, line), (f"one scale per weight costs {better - ours:.1f} dB: {text}",)

    def _alternatives(
        self, variants: Mapping[bool, Subject], start: Setting, division: Division, context: Context
    ) -> list[Alternative]:
        found: list[Alternative] = []
        if self.input_lattice == "auto" and True in variants:
            found.append(Alternative("no input lattice", "lattice", False, cheaper=True))
        if self.equalize == "auto":
            subject = variants[False]
            plans = {
                extent: subject.equalized_tensors(extent, division.fitted) for extent in ("none", "depthwise", "all")
            }
            if plans["all"] != plans["depthwise"]:
                found.append(Alternative("equalisation of all tensors where it pays", "equalize", "all"))
            if plans["depthwise"] and context.effort != "fast":
                found.append(Alternative("no equalisation", "equalize", "none"))
        if context.effort == "fast":
            return found
        if self.rounding == "auto":
            found.append(Alternative("rounding to nearest", "rounding", "nearest"))
        if self.bias_correction == "auto" and "int8" in variants[False].placement.schemes.values():
            found.append(Alternative("no bias correction", "correct_bias", False))
        if self.overflow_fix == "auto" and _multiplies_integers(variants[False].placement):
            found.append(Alternative("no overflow fix", "safe_pairs", False))
        return found


def _multiplies_integers(placement: Placement) -> bool:
    return bool(overflow.SCHEMES & set(placement.schemes.values()))


def _is_quantized(node: ir.Node, placement: Placement) -> bool:
    return node.op_type in WEIGHTED and placement.schemes.get(node.name or "", "fp32").startswith("int8")


def _carried(model: ir.Model, placement: Placement, samples: int, most: int) -> int:
    """How many samples fit into memory at the widest place of the graph, and no more than are wanted."""
    widest = stored_bytes(cut(model, placement.schemes, frozenset(placement.activations)))
    return min(samples, most, max(LEAST_CARRIED, MOST_STORED_BYTES // max(1, widest)))


def _means_wanted(model: ir.Model, placement: Placement) -> list[str]:
    """Outputs of the nodes to be quantized, and of the activations fused to them."""
    wanted: list[str] = []
    for node in model.graph:
        if _is_quantized(node, placement):
            behind = fused_activation(node)
            wanted += [value.name or "" for one in (node, behind) if one is not None for value in one.outputs]
    return wanted
