"""One walk through the graph, layer by layer on inputs that are already quantized.

Every weighted node sees what it will see at run time: the integers of everything before it. Its weights are rounded
against the second moments of those inputs, then its bias is moved until the mean of its output is exactly that of the
float model. Correcting all layers at once instead diverges: each correction would answer errors that others have
already taken away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph import overflow
from edgeopt.graph.placement import FUSED_ACTIVATIONS
from edgeopt.graph.quantization import INT8_MAX, QuantizedTensor, QuantParams
from edgeopt.passes.base import Samples
from edgeopt.passes.quantize.calibration import only, shape_of
from edgeopt.passes.quantize.moments import Moments, enough_rows, moments
from edgeopt.passes.quantize.rounding import NO_PAIRS, Layout, gptq, nearest, quantized_weight, weight_scales
from edgeopt.passes.quantize.segments import BIAS, MEAN, WEIGHT, Cut, Segment, compile_segment
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]
Frontier = dict[str, list[Array]]
"""Stored value → one array per sample, int8 integers or float32."""

MOST_COLUMNS = 2400
"""GPTQ above this takes memory and time with the square and cube of it; wider layers are rounded to nearest."""


LEAST_ACTIVE = 0.1
"""A channel that is inside its grid more rarely answers to its bias too little to be led by it."""


@dataclass(frozen=True, eq=False)
class FloatLayers:
    """What the walk quantizes, apart from the graph: equalisation changes these and not the graph.

    Args:
        weights, biases: float arrays by initializer name.
        means: over the fitted samples, by value name: of every weighted node's output before its activation, and of
            what is stored behind the activation.
    """

    weights: Mapping[str, Array]
    biases: Mapping[str, Array]
    means: Mapping[str, Array]


@dataclass(frozen=True)
class How:
    """What the walk does to a weighted node."""

    rounding: Literal["nearest", "gptq"]
    correct_bias: bool
    safe_pairs: bool
    per_tensor: bool = False
    effort: float = 1.0
    """Factor on how many output positions the moments look at."""


@dataclass(frozen=True, eq=False)
class Walked:
    """Integers of every weighted node, and the graph's outputs (per sample, dequantized) as the reference has them."""

    weights: Mapping[str, QuantizedTensor]
    biases: Mapping[str, npt.NDArray[np.int32]]
    outputs: Mapping[str, list[Array]]


def walk(
    whole: Cut,
    entry: Mapping[str, list[Array]],
    layers: FloatLayers,
    schemes: Mapping[str, SchemeName],
    params: Mapping[str, QuantParams],
    *,
    outputs: Sequence[str],
    how: How,
    fitted: Sequence[int],
    threads: int,
    seed: int,
) -> Walked:
    """Quantize every weighted node in order.

    Args:
        whole: the graph, cut.
        entry: stored graph inputs (or what streaming already made of them), per sample.
        layers: float weights, biases and means.
        schemes, params: of the table.
        outputs: names of graph outputs to give back.
        how: rounding and bias correction.
        fitted: indices of the samples that weights and biases are fitted to; the others come along to be judged on.
        threads, seed: of the runs and draws.
    """
    state = _Walk(whole, entry, layers, schemes, params, how, tuple(fitted), seed)
    for index, segment in enumerate(whole.segments):
        if any(value.name not in state.frontier for value in segment.writes):
            with compile_segment(segment, whole, schemes, params, threads=threads) as session:
                fed = {} if segment.weighted is None else state.quantize(segment, segment.weighted, session, index)
                state.forward(segment, session, fed)
        for value in segment.reads:
            if whole.last_use.get(value.name or "") == index:
                state.frontier.pop(value.name or "", None)
    results = {
        name: [params[name].dequantize(a) for a in state.frontier[name]]
        if name in whole.integers
        else state.frontier[name]
        for name in outputs
    }
    return Walked(state.weights, state.biases, results)


def enter(
    model: ir.Model,
    whole: Cut,
    samples: Samples,
    chosen: Sequence[int],
    schemes: Mapping[str, SchemeName],
    params: Mapping[str, QuantParams],
    *,
    threads: int,
) -> Frontier:
    """What is stored of the chosen samples before the walk starts.

    Inputs go in as integers where every reader wants those. Segments that only read inputs and hold no weights (a
    normalisation, a padding) run here, sample by sample, so that the float inputs need not be kept for them.
    """
    inputs = {value.name or "" for value in model.graph.inputs}
    first = [s for s in whole.segments if s.weighted is None and s.reads and all(v.name in inputs for v in s.reads)]
    later = {v.name for s in whole.segments if s not in first for v in s.reads}
    frontier: Frontier = {name: [] for name in inputs if name in later}
    frontier |= {value.name or "": [] for segment in first for value in segment.writes}
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(compile_segment(segment, whole, schemes, params, threads=threads)) for segment in first
        ]
        for _, feed in only(samples, chosen):
            stored = {n: params[n].quantize(a) if n in whole.integers else np.asarray(a) for n, a in feed.items()}
            for name in inputs & later:
                frontier[name].append(stored[name])
            for segment, session in zip(first, sessions, strict=True):
                got = session.run({v.name or "": stored[v.name or ""] for v in segment.reads})
                for value in segment.writes:
                    frontier[value.name or ""].append(got[value.name or ""])
    return frontier


@dataclass(eq=False)
class _Walk:
    """What one walk knows so far."""

    whole: Cut
    entry: InitVar[Mapping[str, list[Array]]]
    layers: FloatLayers
    schemes: Mapping[str, SchemeName]
    params: Mapping[str, QuantParams]
    how: How
    fitted: tuple[int, ...]
    seed: int
    frontier: Frontier = field(init=False)
    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    biases: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    def __post_init__(self, entry: Mapping[str, list[Array]]) -> None:
        self.frontier = {name: list(arrays) for name, arrays in entry.items()}

    def forward(self, segment: Segment, session: Session, fed: Mapping[str, Array]) -> None:
        """Run a segment on every sample and store what it writes."""
        writes = [value.name or "" for value in segment.writes]
        count = max((len(arrays) for arrays in self.frontier.values()), default=0)
        results: Frontier = {name: [] for name in writes}
        for index in range(count):
            got = session.run({**self._reads(segment, index), **fed}, writes)
            for name in writes:
                results[name].append(got[name])
        self.frontier.update(results)

    def quantize(self, segment: Segment, node: ir.Node, session: Session, index: int) -> dict[str, Array]:
        """Find a node's integers; gives what its session is fed: weight and bias as the integers mean them."""
        x_name, w_name, b_name = (_name(node.inputs[i]) for i in range(3))
        weight, bias = self.layers.weights[w_name], self.layers.biases[b_name].astype(np.float64)
        layout = Layout.of(node, weight.shape)
        rows = layout.rows(weight)
        scheme = self.schemes.get(node.name or "")
        is_static = scheme == "int8"
        paired = self.how.safe_pairs and scheme in overflow.SCHEMES
        pairs = overflow.pairs(layout.op, layout.shape, layout.groups) if paired else NO_PAIRS
        grid = self.params[x_name] if is_static else None
        corrects = self.how.correct_bias and is_static and bool(self.fitted)
        seen = self._moments(node, layout, grid, index)
        # A bias that follows takes care of the mean; without one, the mean is part of the error.
        hessian = None if seen is None else (seen.covariance if corrects else seen.second)
        importance = np.ones((rows.shape[0], rows.shape[2])) if hessian is None else np.diagonal(hessian, 0, 1, 2)
        scales = weight_scales(
            rows,
            importance,
            bias.reshape(rows.shape[:2]),
            input_scale=0.0 if grid is None else float(grid.scale),
            per_tensor=self.how.per_tensor or layout.axis is None,
            pairs=pairs,
        )
        use_gptq = self.how.rounding == "gptq" and hessian is not None
        if use_gptq and hessian is not None:
            integers = gptq(rows, scales, hessian, pairs)
        else:
            integers = nearest(rows, scales, pairs)
        stored = quantized_weight(layout, integers, scales)
        self.weights[w_name] = stored
        fed = {WEIGHT: stored.dequantize(), BIAS: bias.astype(np.float32)}
        if grid is None:
            return fed
        if corrects:
            bias = bias + self._mean_missing(segment, node, session, fed)
        step = np.asarray(grid.scale * stored.params.scale, np.float32)
        fed[BIAS] = self._set_bias(b_name, bias, step)
        if corrects and (activation := _activation_behind(segment, node, self.whole, self.layers)) is not None:
            bias = bias + self._active_mean_missing(segment, session, fed, activation)
            fed[BIAS] = self._set_bias(b_name, bias, step)
        return fed

    def _set_bias(self, name: str, bias: Array, step: Array) -> Array:
        limit = np.iinfo(np.int32).max
        integers = np.clip(np.rint(bias / step.astype(np.float64)), -limit, limit).astype(np.int32)
        self.biases[name] = integers
        return (integers.astype(np.float32) * step).astype(np.float32)

    def _mean_missing(self, segment: Segment, node: ir.Node, session: Session, fed: Mapping[str, Array]) -> Array:
        """What the node's mean output lacks, per channel."""
        total: Array = np.zeros(1)
        for index in self.fitted:
            total = total + session.run({**self._reads(segment, index), **fed}, [MEAN])[MEAN].astype(np.float64)
        result: Array = self.layers.means[_name(node.outputs[0])] - total / len(self.fitted)
        return result

    def _active_mean_missing(self, segment: Segment, session: Session, fed: Mapping[str, Array], name: str) -> Array:
        """What must be added to the bias so that the mean behind the activation and the grid is the float model's.

        One Newton step: the mean follows the bias by the share of values that are inside the grid.
        """
        grid = self.params[name]
        total: Array = np.zeros(1)
        inside: Array = np.zeros(1)
        for index in self.fitted:
            integers = session.run({**self._reads(segment, index), **fed}, [name])[name]
            rest = tuple(axis for axis in range(integers.ndim) if axis != 1)
            total = total + integers.mean(rest, dtype=np.float64)
            inside = inside + ((integers > int(grid.zero_point)) & (integers < INT8_MAX)).mean(rest)
        found = (total / len(self.fitted) - int(grid.zero_point)) * float(grid.scale)
        share = inside / len(self.fitted)
        missing = (self.layers.means[name] - found) / np.maximum(share, LEAST_ACTIVE)
        return np.where(share < LEAST_ACTIVE, 0.0, missing)

    def _moments(self, node: ir.Node, layout: Layout, grid: QuantParams | None, index: int) -> Moments | None:
        inputs = [self.frontier[_name(node.inputs[0])][i] for i in self.fitted]
        columns = math.prod(layout.shape) // (layout.outputs if layout.op != "ConvTranspose" else layout.shape[1])
        if layout.op == "ConvTranspose":
            columns //= layout.groups
        if not inputs or columns > MOST_COLUMNS or (layout.op != "Gemm" and inputs[0].ndim not in (3, 4)):
            return None
        if grid is not None and inputs[0].dtype != np.int8:
            inputs = [grid.quantize(array) for array in inputs]
        return moments(
            node,
            layout,
            inputs,
            output_shape=shape_of(node.outputs[0]),
            rows=enough_rows(columns, self.how.effort),
            seed=self.seed + index,
            scale=1.0 if grid is None else float(grid.scale),
            zero_point=0 if grid is None else int(grid.zero_point),
        )

    def _reads(self, segment: Segment, index: int) -> dict[str, Array]:
        return {value.name or "": self.frontier[value.name or ""][index] for value in segment.reads}


def _activation_behind(segment: Segment, node: ir.Node, whole: Cut, layers: FloatLayers) -> str | None:
    """The tensor behind a Relu or Clip that is fused to the node, if its mean is known."""
    if len(segment.nodes) != 2 or segment.nodes[0] is not node or segment.nodes[1].op_type not in FUSED_ACTIVATIONS:
        return None
    name = _name(segment.nodes[1].outputs[0])
    return name if name in layers.means and name in whole.integers else None


def _name(value: ir.Value | None) -> str:
    return (value and value.name) or ""
