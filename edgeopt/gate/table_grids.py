"""Grids of a table beside what calibration recorded for them, and beside the values that they are to hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from edgeopt.data.samples import Feed
from edgeopt.gate.evidence import Evidence, Located
from edgeopt.gate.table_factors import factors
from edgeopt.graph.model import exposed
from edgeopt.graph.quantization import Quantization, QuantParams, Range
from edgeopt.parity.localize import LOCALIZE_SAMPLES
from edgeopt.runtimes.onnxruntime import Session

SATURATED = 0.02
"""Ranges by weighted error cut off well below a hundredth of the values; two hundredths do not fit."""
TOO_WIDE = 8.0
"""A grid may be wider than what a few samples reach; eight times wastes three of its eight bits."""
SAMPLES = 4 * LOCALIZE_SAMPLES
SAME_SCALE = 1e-3
"""Of two scales: float32 and its text differ by far less, one step more or less for a range by four times that."""
NAMED = 12
"""Layers of a shared grid that the first line names."""


def wrong_grids(evidence: Evidence) -> list[Located]:
    """Grids that are not those of their recorded ranges, and grids that do not fit their tensors' values."""
    graph = evidence.run.graph
    table = graph.quantization or Quantization()
    return [*not_as_recorded(graph.model, table), *_unfit(graph.model, table, evidence.few(SAMPLES))]


def not_as_recorded(model: ir.Model, table: Quantization) -> Iterator[Located]:
    """Grids that no target makes of the range that calibration chose: certain. Tensors of one wrong grid are one
    fault, at the first of them."""
    inputs = {value.name or "": value.name or "" for value in model.graph.inputs}
    makers = inputs | {value.name or "": node.name or "" for node in model.graph for value in node.outputs}
    found: list[tuple[QuantParams, Range, list[str]]] = []
    for name in (name for name in makers if name in table.activations and name in table.ranges):
        params, bounds = table.activations[name], table.ranges[name]
        if _is_grid_of(params, bounds):
            continue
        if (known := next((one for one in found if one[0] == params), None)) is not None:
            known[2].append(name)
        else:
            found.append((params, bounds, [name]))
    for params, bounds, names in found:
        nodes = list(dict.fromkeys(makers[name] for name in names))
        shared = f", shared with {', '.join(nodes[1:NAMED])}" if len(nodes) > 1 else ""
        shared += f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
        what = "input" if nodes[0] in inputs else "node"
        yield Located(
            nodes[0],
            f"{what} {nodes[0]}{shared}: the grid of '{names[0]}' is not that of its calibrated range "
            f"[{bounds.low:.3g}, {bounds.high:.3g}]: {_how(params, bounds)}",
            nodes[0],
            certain=True,
        )


def _is_grid_of(params: QuantParams, bounds: Range) -> bool:
    """Whether the grid is what some target makes of the range: with a zero point, symmetric, or the range itself."""
    own = params.range
    if np.allclose([own.low, own.high], [bounds.low, bounds.high], rtol=SAME_SCALE, atol=SAME_SCALE * params.scale):
        return True
    made = (QuantParams.from_range(bounds), QuantParams.from_range(bounds, symmetric=True))
    return any(
        bool(np.isclose(params.scale, one.scale, rtol=SAME_SCALE)) and int(params.zero_point) == int(one.zero_point)
        for one in made
    )


def _how(params: QuantParams, bounds: Range) -> str:
    right, own = QuantParams.from_range(bounds), params.range
    ratio, moved = float(params.scale / right.scale), int(params.zero_point) - int(right.zero_point)
    reaches = f"it covers [{own.low:.3g}, {own.high:.3g}]"
    if ratio > 1 + SAME_SCALE:
        return f"{reaches}, steps {ratio:.3g} times as wide: {min(np.log2(ratio), 8):.1f} of 8 bits are wasted"
    if ratio < 1 - SAME_SCALE:
        return f"{reaches}, steps {1 / ratio:.3g} times too small: what lies beyond is cut off"
    return (
        f"{reaches}: the zero point is {int(params.zero_point)}, {abs(moved)} steps {'above' if moved > 0 else 'below'}"
    )


def _unfit(model: ir.Model, table: Quantization, samples: Iterable[Feed]) -> Iterator[Located]:
    """Grids that cut off what float has, or waste bits on what it has not: some models bear either."""
    makers = {value.name or "": node.name or "" for node in model.graph for value in node.outputs}
    names = [name for name in table.activations if name in makers]
    if not names:
        return
    scaled = factors(model, table).of
    outside: dict[str, float] = dict.fromkeys(names, 0.0)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    reach: dict[str, float] = dict.fromkeys(names, 0.0)
    with Session(exposed(model, names)) as session:
        for feed in samples:
            for name, real in session.run(feed, names).items():
                array = real
                factor = np.nan_to_num(scaled.get(name, np.ones(1)), nan=1.0)
                if array.ndim > 1 and len(factor) == array.shape[1]:
                    array = array * factor.reshape(1, -1, *[1] * (array.ndim - 2))
                bounds, scale = table.activations[name].range, float(table.activations[name].scale)
                outside[name] += float(((array < bounds.low - scale) | (array > bounds.high + scale)).sum())
                counts[name] += array.size
                reach[name] = max(reach[name], float(np.abs(array).max(initial=0.0)))
    for name in (name for name in makers if name in counts):
        bounds = table.activations[name].range
        widest = max(-bounds.low, bounds.high)
        if counts[name] and outside[name] / counts[name] > SATURATED:
            yield Located(
                makers[name],
                f"node {makers[name]}: {outside[name] / counts[name]:.1%} of the values of '{name}' lie outside its "
                f"grid [{bounds.low:.3g}, {bounds.high:.3g}] (they reach {reach[name]:.3g})",
                makers[name],
            )
        elif reach[name] > 0 and widest > TOO_WIDE * reach[name] and table.labels.get(name) != "fixed":
            yield Located(
                makers[name],
                f"node {makers[name]}: the grid of '{name}' reaches {widest:.3g}, its values {reach[name]:.3g}: "
                f"{np.log2(widest / reach[name]):.1f} of 8 bits are wasted",
                makers[name],
            )
