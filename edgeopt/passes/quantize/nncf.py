"""NNCF as the engine: it quantizes the float graph, and its Q/DQ result is read back into the same table.

What NNCF decided is taken over where the table has a place for it: grids of activations (one per channel, which no
kernel runs, is widened to cover all), weight integers, and biases after its bias correction. Where it left a tensor
without a grid that a target needs, the range comes from our own calibration; where it left a weight float, the weight
is rounded to nearest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import EdgeoptError, MissingPackage
from edgeopt.graph.placement import WEIGHTED
from edgeopt.graph.quantization import Quantization, QuantizedTensor, QuantParams, Range
from edgeopt.graph.read_qdq import ReadBack, read_qdq
from edgeopt.passes.base import Feed, Samples
from edgeopt.passes.quantize.fit import Subject, choose_ranges
from edgeopt.passes.quantize.rounding import Layout, nearest, quantized_weight, weight_scales
from edgeopt.passes.quantize.sensitivity import sensitivity
from edgeopt.types import Kept

Array = npt.NDArray[Any]

MOST_SAMPLES = 300
"""NNCF's own default."""


def quantize_with_nncf(subject: Subject, samples: Samples) -> tuple[Quantization, Kept]:
    """The table as NNCF would have it, and one line for the record.

    Args:
        subject: graph, placement and our own statistics of it.
        samples: calibration data; read once, one by one.

    Raises:
        MissingPackage: NNCF is not installed.
        EdgeoptError: NNCF fails on this graph.
    """
    back = _run(subject, samples)
    given = _grids(subject, back)
    subject = replace(subject, fixed=given | dict(subject.fixed))
    layers = subject.layers([])
    gains = sensitivity(subject.model, layers.weights, subject.statistics)
    activations, ranges, labels = choose_ranges(subject, subject.statistics, gains, "minmax")
    theirs = {node.name: node for node in back.model.graph if node.op_type in WEIGHTED}
    weights: dict[str, QuantizedTensor] = {}
    biases: dict[str, npt.NDArray[np.int32]] = {}
    read = 0
    for node in subject.model.graph:
        if node.op_type not in WEIGHTED or subject.placement.schemes.get(node.name or "") != "int8":
            continue
        x, w, b = (value.name or "" for value in node.inputs[:3] if value is not None)
        layout = Layout.of(node, layers.weights[w].shape)
        rows = layout.rows(layers.weights[w])
        bias = layers.biases[b].astype(np.float64)
        other = theirs.get(node.name)
        found = _weight(other, back)
        if other is not None and (corrected := _constant(other, 2)) is not None and corrected.shape == bias.shape:
            bias = corrected.astype(np.float64)
        if found is not None and found.params.axis == layout.axis and found.integers.shape == layers.weights[w].shape:
            weights[w] = found
            read += 1
        else:
            scales = weight_scales(
                rows,
                np.ones((rows.shape[0], rows.shape[2])),
                bias.reshape(rows.shape[:2]),
                input_scale=float(activations[x].scale),
                per_tensor=layout.axis is None,
            )
            weights[w] = quantized_weight(layout, nearest(rows, scales), scales)
        step = (activations[x].scale * weights[w].params.scale).astype(np.float64)
        limit = np.iinfo(np.int32).max
        biases[b] = np.clip(np.rint(bias / step), -limit, limit).astype(np.int32)
    labels = {name: "nncf" if name in given and label == "fixed" else label for name, label in labels.items()}
    table = Quantization(activations, weights, biases, ranges, subject.placement.schemes, labels)
    theirs_of_all = f"{len(given)} of {len(activations)} grids and {read} of {len(weights)} weights are NNCF's"
    return table, Kept(what="NNCF as the engine", brought_db=None, kept=True, why=f"asked for; {theirs_of_all}")


def _run(subject: Subject, samples: Samples) -> ReadBack:
    try:
        import nncf
    except ImportError as error:
        raise MissingPackage("nncf", "nncf", "the engine 'nncf' of the quantize pass") from error
    nncf.set_log_level(logging.ERROR)
    ignored = [
        node.name or ""
        for node in subject.model.graph
        if node.op_type in (*WEIGHTED, "MatMul") and subject.placement.schemes.get(node.name or "") != "int8"
    ]
    try:
        made = nncf.quantize(
            ir.to_proto(subject.model),
            nncf.Dataset(_Feeds(samples)),
            subset_size=min(MOST_SAMPLES, len(samples)),
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
        )
        return read_qdq(ir.from_proto(made), widen=True)
    except Exception as error:  # whatever NNCF raises: its errors have no common base
        raise EdgeoptError(
            f"NNCF fails on this graph: {type(error).__name__}: {error}",
            where="passes.quantize",
            hint="leave 'engine' out: edgeopt's own engine takes every graph that it imports",
        ) from error


class _Feeds:
    """What NNCF's Dataset wants: an iterable that can start again."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def _grids(subject: Subject, back: ReadBack) -> dict[str, QuantParams]:
    """NNCF's grid of every tensor that the table has a place for; groups get the one that covers all members."""
    placement = subject.placement
    wanted = set(placement.activations)
    groups: Mapping[str, frozenset[str]] = {name: group for group in placement.groups for name in group}
    grids: dict[str, QuantParams] = {}
    for name, params in back.activations.items():
        if name not in wanted or name in grids or name in subject.fixed:
            continue
        members = groups.get(name, frozenset({name}))
        ranges: list[Range] = [back.activations[m].range for m in members if m in back.activations]
        bounds = ranges[0]
        for one in ranges[1:]:
            bounds = bounds.union(one)
        symmetric = name in placement.symmetric
        exact = params if len(ranges) == 1 and not symmetric else QuantParams.from_range(bounds, symmetric=symmetric)
        grids.update(dict.fromkeys(members & wanted, exact))
    return grids


def _weight(node: ir.Node | None, back: ReadBack) -> QuantizedTensor | None:
    if node is None or node.inputs[1] is None:
        return None
    return back.weights.get(node.inputs[1].name or "")


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None or value.const_value is None else value.const_value.numpy()
