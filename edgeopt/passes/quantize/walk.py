"""One walk through the graph, layer by layer on inputs that are already quantized.

Every weighted node sees what it will see at run time: the integers of everything before it. Its weights are rounded
against the second moments of those inputs, then its bias is moved until the mean of its output is exactly that of the
float model. Correcting all layers at once instead diverges: each correction would answer errors that others have
already taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.quantization import QuantizedTensor, QuantParams
from edgeopt.passes.base import Samples
from edgeopt.passes.quantize.calibration import only, shape_of
from edgeopt.passes.quantize.moments import Moments, moments
from edgeopt.passes.quantize.rounding import Layout, gptq, nearest, quantized_weight, weight_scales
from edgeopt.passes.quantize.segments import BIAS, MEAN, WEIGHT, Cut, Segment, compile_segment
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]
Frontier = dict[str, list[Array]]
"""Stored value → one array per sample, int8 integers or float32."""

MOST_COLUMNS = 2400
"""GPTQ above this takes memory and time with the square and cube of it; wider layers are rounded to nearest."""


@dataclass(frozen=True, eq=False)
class FloatLayers:
    """What the walk quantizes, apart from the graph: equalisation changes these and not the graph.

    Args:
        weights, biases: float arrays by initializer name.
        means: mean of every weighted node's output before its activation over the fitted samples, by value name.
    """

    weights: Mapping[str, Array]
    biases: Mapping[str, Array]
    means: Mapping[str, Array]


@dataclass(frozen=True)
class How:
    """What the walk does to a weighted node."""

    rounding: Literal["nearest", "gptq"]
    correct_bias: bool
    per_tensor: bool = False
    rows: int = 40_000_000
    """Output positions that the moments look at, times columns."""


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
    outputs: Sequence[str],
    how: How,
    *,
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
    frontier: Frontier = {name: list(arrays) for name, arrays in entry.items()}
    weights: dict[str, QuantizedTensor] = {}
    biases: dict[str, npt.NDArray[np.int32]] = {}
    for index, segment in enumerate(whole.segments):
        if any(value.name not in frontier for value in segment.writes):
            with compile_segment(segment, whole, schemes, params, threads=threads) as session:
                fed: dict[str, Array] = {}
                if segment.weighted is not None:
                    fed = _quantize_node(
                        segment, session, frontier, layers, schemes, params, how, weights, biases, fitted, seed + index
                    )
                _forward(segment, session, frontier, fed)
        for value in segment.reads:
            if whole.last_use.get(value.name or "") == index:
                frontier.pop(value.name or "", None)
    results = {
        name: [params[name].dequantize(a) for a in frontier[name]] if name in whole.integers else frontier[name]
        for name in outputs
    }
    return Walked(weights, biases, results)


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


def _forward(segment: Segment, session: Session, frontier: Frontier, fed: Mapping[str, Array]) -> None:
    reads = [value.name or "" for value in segment.reads]
    writes = [value.name or "" for value in segment.writes]
    count = max((len(arrays) for arrays in frontier.values()), default=0)
    results: Frontier = {name: [] for name in writes}
    for index in range(count):
        got = session.run({name: frontier[name][index] for name in reads} | fed, writes)
        for name in writes:
            results[name].append(got[name])
    frontier.update(results)


def _quantize_node(
    segment: Segment,
    session: Session,
    frontier: Frontier,
    layers: FloatLayers,
    schemes: Mapping[str, SchemeName],
    params: Mapping[str, QuantParams],
    how: How,
    weights: dict[str, QuantizedTensor],
    biases: dict[str, npt.NDArray[np.int32]],
    fitted: Sequence[int],
    seed: int,
) -> dict[str, Array]:
    """Fill in the node's integers; returns what its session is fed: weight and bias as the integers mean them."""
    node = segment.weighted
    assert node is not None
    x, w, b = (value for value in node.inputs[:3] if value is not None)
    x_name, w_name, b_name = x.name or "", w.name or "", b.name or ""
    is_static = schemes.get(node.name or "") == "int8"
    weight, bias = layers.weights[w_name], layers.biases[b_name].astype(np.float64)
    layout = Layout.of(node, weight.shape)
    rows = layout.rows(weight)
    grid = params[x_name] if is_static else None
    inputs = [frontier[x_name][index] for index in fitted]
    if grid is not None and inputs and inputs[0].dtype != np.int8:
        inputs = [grid.quantize(array) for array in inputs]
    seen = _moments(node, layout, inputs, grid, rows.shape[2], how, seed)
    # A bias that follows takes care of the mean; without one, the mean is part of the error.
    corrects = how.correct_bias and is_static
    hessian = None if seen is None else (seen.covariance if corrects else seen.second)
    importance = np.ones((rows.shape[0], rows.shape[2])) if hessian is None else np.diagonal(hessian, 0, 1, 2)
    input_scale = float(grid.scale) if grid is not None else 0.0
    shared = how.per_tensor or layout.axis is None
    scales = weight_scales(rows, importance, bias.reshape(rows.shape[:2]), input_scale, per_tensor=shared)
    use_gptq = how.rounding == "gptq" and hessian is not None
    integers = gptq(rows, scales, hessian) if use_gptq and hessian is not None else nearest(rows, scales)
    stored = quantized_weight(layout, integers, scales)
    weights[w_name] = stored
    fed = {WEIGHT: stored.dequantize(), BIAS: bias.astype(np.float32)}
    if grid is None:
        return fed
    if corrects and fitted:
        reads = [value.name or "" for value in segment.reads]
        found = [session.run({n: frontier[n][i] for n in reads} | fed, [MEAN])[MEAN] for i in fitted]
        bias = bias + layers.means[node.outputs[0].name or ""] - np.mean(found, axis=0, dtype=np.float64)
    step = np.asarray(grid.scale * stored.params.scale, np.float32)
    limit = np.iinfo(np.int32).max
    biases[b_name] = np.clip(np.rint(bias / step.astype(np.float64)), -limit, limit).astype(np.int32)
    fed[BIAS] = (biases[b_name].astype(np.float32) * step).astype(np.float32)
    return fed


def _moments(
    node: ir.Node, layout: Layout, inputs: Sequence[Array], grid: QuantParams | None, columns: int, how: How, seed: int
) -> Moments | None:
    if not inputs or columns > MOST_COLUMNS or (layout.op != "Gemm" and inputs[0].ndim not in (3, 4)):
        return None
    rows = int(np.clip(how.rows / columns, 8_192, 65_536))
    scale, zero_point = (1.0, 0) if grid is None else (float(grid.scale), int(grid.zero_point))
    shape = shape_of(node.outputs[0])
    return moments(node, layout, inputs, output_shape=shape, rows=rows, seed=seed, scale=scale, zero_point=zero_point)
