"""The graph cut between tensors that are stored: pieces that run one after the other on many samples.

A segment holds at most one weighted node that is to be quantized, and starts with it, so that the inputs of every such
node are at hand. Inside a segment nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.model import named_initializer
from edgeopt.graph.placement import WEIGHTED, activation_inputs
from edgeopt.graph.quantization import QuantParams
from edgeopt.passes.quantize.calibration import shape_of
from edgeopt.runtimes.onnxruntime import Session
from edgeopt.types import SchemeName

Array = npt.NDArray[Any]

WEIGHT, BIAS, MEAN = "segment__weight", "segment__bias", "segment__mean"


@dataclass(frozen=True, eq=False)
class Segment:
    """Nodes that run together.

    Args:
        nodes: in topological order; the last is the root, whose outputs are stored.
        weighted: the node to be quantized, or None.
        reads: stored values that it needs.
        writes: values that are stored.
    """

    nodes: tuple[ir.Node, ...]
    weighted: ir.Node | None
    reads: tuple[ir.Value, ...]
    writes: tuple[ir.Value, ...]


@dataclass(frozen=True, eq=False)
class Cut:
    """The whole graph as segments, in order.

    Args:
        segments: in topological order.
        integers: names of values that are stored as their int8 integers; others are stored as float32.
        last_use: value name → index of the last segment that reads it (graph outputs: never freed, absent).
    """

    segments: tuple[Segment, ...]
    integers: frozenset[str]
    last_use: Mapping[str, int]


def cut(model: ir.Model, schemes: Mapping[str, SchemeName], activations: frozenset[str]) -> Cut:
    """Cut a canonical graph along its table's tensors.

    Args:
        model: canonical float graph.
        schemes: node name → scheme (absent: float).
        activations: names of tensors that get a grid.
    """
    nodes = list(model.graph)
    quantized = {node for node in nodes if node.op_type in WEIGHTED and _scheme(node, schemes).startswith("int8")}
    root: dict[ir.Node, ir.Node] = {}
    holds: dict[ir.Node, ir.Node | None] = {}
    for node in reversed(nodes):
        own = node if node in quantized else None
        target = _only_consumer(node, activations)
        if target is None or target in quantized or (own is not None and holds[root[target]] is not None):
            root[node], holds[node] = node, own
        else:
            root[node] = root[target]
            holds[root[target]] = holds[root[target]] or own
    members: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        members.setdefault(root[node], []).append(node)
    segments = tuple(_segment(members[node], holds[node]) for node in nodes if root[node] is node)
    last_use = {v.name or "": index for index, segment in enumerate(segments) for v in segment.reads}
    for value in model.graph.outputs:
        last_use.pop(value.name or "", None)
    integers = frozenset(
        value.name or ""
        for value in _stored(model, segments)
        if value.name in activations and _only_as_integers(value, schemes)
    )
    return Cut(segments, integers, last_use)


def stored_bytes(whole: Cut) -> int:
    """Bytes that one sample takes at the widest place, while a segment's reads and writes are both there."""
    alive: dict[str, int] = {}
    widest = 0
    for index, segment in enumerate(whole.segments):
        for value in (*segment.reads, *segment.writes):
            name = value.name or ""
            alive[name] = math.prod(shape_of(value)) * (1 if name in whole.integers else 4)
        widest = max(widest, sum(alive.values()))
        for value in segment.reads:
            if whole.last_use.get(value.name or "") == index:
                alive.pop(value.name or "", None)
    return widest


def _scheme(node: ir.Node, schemes: Mapping[str, SchemeName]) -> SchemeName:
    return schemes.get(node.name or "", "fp32")


def _only_consumer(node: ir.Node, activations: frozenset[str]) -> ir.Node | None:
    if len(node.outputs) != 1:
        return None
    value = node.outputs[0]
    if value.name in activations or value.is_graph_output():
        return None
    consumers = {use.node for use in value.uses()}
    return next(iter(consumers)) if len(consumers) == 1 else None


def _segment(nodes: list[ir.Node], weighted: ir.Node | None) -> Segment:
    inside = {value for node in nodes for value in node.outputs}
    reads = {
        value: None
        for node in nodes
        for value in node.inputs
        if value is not None and value not in inside and value.const_value is None
    }
    writes = tuple(v for v in nodes[-1].outputs if v.is_graph_output() or v.uses())
    return Segment(tuple(nodes), weighted, tuple(reads), writes)


def _stored(model: ir.Model, segments: tuple[Segment, ...]) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for segment in segments for value in segment.writes)]


def _only_as_integers(value: ir.Value, schemes: Mapping[str, SchemeName]) -> bool:
    producer = value.producer()
    if producer is not None and _scheme(producer, schemes) == "int8":
        return True
    return not value.is_graph_output() and all(
        _scheme(use.node, schemes) == "int8" and value in activation_inputs(use.node) for use in value.uses()
    )


def compile_segment(
    segment: Segment,
    whole: Cut,
    schemes: Mapping[str, SchemeName],
    params: Mapping[str, QuantParams],
    *,
    threads: int,
) -> Session:
    """A session of one segment as the integer reference would run it.

    Its inputs are the stored values by name, and for a weighted node ``WEIGHT`` and ``BIAS`` in float32; its outputs
    the stored values, and for a weighted node ``MEAN``, the mean of its output per channel before any activation.
    """
    return Session(_Builder(segment, whole, schemes, params).model(), threads=threads, optimize=False)


class _Builder:
    """Writes one segment as a model of its own. Lives for the length of one call."""

    def __init__(
        self, segment: Segment, whole: Cut, schemes: Mapping[str, SchemeName], params: Mapping[str, QuantParams]
    ) -> None:
        self._segment, self._whole, self._schemes, self._params = segment, whole, schemes, params
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="segment")
        self._plain: dict[ir.Value, ir.Value] = {}
        self._on_grid: dict[ir.Value, ir.Value] = {}

    def model(self) -> bytes:
        for value in self._segment.reads:
            self._read(value)
        for node in self._segment.nodes:
            self._copy(node)
        for value in self._segment.writes:
            self._write(value)
        data: bytes = ir.to_proto(ir.Model(self._graph, ir_version=10)).SerializeToString()
        return data

    def _read(self, value: ir.Value) -> None:
        name = value.name or ""
        as_integers = name in self._whole.integers
        source = ir.val(name, ir.DataType.INT8 if as_integers else value.dtype, value.shape)
        self._graph.inputs.append(source)
        if as_integers:
            self._plain[value] = self._on_grid[value] = self._dequantize(source, name)
            return
        self._plain[value] = source
        if name in self._params:
            self._on_grid[value] = self._dequantize(self._quantize(source, name), name)

    def _copy(self, node: ir.Node) -> None:
        is_int8 = _scheme(node, self._schemes) == "int8"
        activations = activation_inputs(node)
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            if value is None:
                inputs.append(None)
            elif node is self._segment.weighted and index in (1, 2):
                inputs.append(self._fed((WEIGHT, BIAS)[index - 1], value))
            elif value.const_value is not None:
                inputs.append(self._constant(value, is_int8 and value in activations))
            elif is_int8 and value in activations and value in self._on_grid:
                inputs.append(self._on_grid[value])
            else:
                inputs.append(self._plain[value])
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        self._graph.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = f"{old.name}__real", old.type, old.shape
            self._plain[old] = new
        if node is self._segment.weighted:
            rank = len(copy.outputs[0].shape or ())
            rest = np.array([axis for axis in range(rank) if axis != 1], np.int64)
            mean = self._node(
                "ReduceMean", [copy.outputs[0], self._tensor(f"{MEAN}__axes", rest)], {"keepdims": 0}, MEAN
            )
            mean.type = ir.TensorType(ir.DataType.FLOAT)
            self._graph.outputs.append(mean)

    def _write(self, value: ir.Value) -> None:
        name = value.name or ""
        if name in self._whole.integers:
            result = self._quantize(self._plain[value], name)
            result.name, result.type = name, ir.TensorType(ir.DataType.INT8)
        else:
            result = self._plain[value]
            result.name = name
        result.shape = value.shape
        self._graph.outputs.append(result)

    def _fed(self, name: str, like: ir.Value) -> ir.Value:
        fed = ir.val(name, ir.DataType.FLOAT, like.shape)
        self._graph.inputs.append(fed)
        return fed

    def _constant(self, value: ir.Value, through_grid: bool) -> ir.Value:
        name, tensor = value.name or "", value.const_value
        assert tensor is not None
        if through_grid and name in self._params:
            params = self._params[name]
            return self._tensor(f"{name}__grid", params.dequantize(params.quantize(tensor.numpy())))
        return self._tensor(name, tensor.numpy())

    def _quantize(self, value: ir.Value, name: str) -> ir.Value:
        return self._node("QuantizeLinear", [value, *self._grid(name)], {}, f"{value.name}__quantized")

    def _dequantize(self, value: ir.Value, name: str) -> ir.Value:
        return self._node("DequantizeLinear", [value, *self._grid(name)], {}, f"{value.name}__dequantized")

    def _grid(self, name: str) -> tuple[ir.Value, ir.Value]:
        params = self._params[name]
        return (
            self._tensor(f"{name}__scale", params.scale),
            self._tensor(f"{name}__zero_point", params.zero_point.astype(np.int8)),
        )

    def _tensor(self, name: str, array: Array) -> ir.Value:
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return named_initializer(self._graph, name, array)

    def _node(self, op: str, inputs: list[ir.Value], attributes: Mapping[str, int], name: str) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        self._graph.append(node)
        node.outputs[0].name = name
        return node.outputs[0]
