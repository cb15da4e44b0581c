"""Equalisation: channels of one tensor scaled to fill its grid, and the neighbouring weights scaled back.

A positive factor per channel goes through everything that is linear or positively homogeneous, so the function stays
the same (Nagel et al., 2019, arXiv:1906.04721). Which channels must share a factor is found by sending channel
identities through the graph as data: residual sums join them, concatenations and shuffles carry them along.

A tensor that only feeds depthwise convolutions gains for nothing: weights on both sides have a scale per channel.
Others pay with a larger weight error, so they are scaled only as far as the expected error at the outputs falls.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.graph.placement import WEIGHTED, Placement
from edgeopt.graph.quantization import INT8_MAX
from edgeopt.passes.quantize.calibration import TensorStatistics, channel_axis, shape_of
from edgeopt.passes.quantize.ranges import STEPS
from edgeopt.passes.quantize.rounding import Layout
from edgeopt.passes.quantize.walk import FloatLayers

Array = npt.NDArray[Any]
Extent = Literal["none", "depthwise", "all"]

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""How far channels of a tensor with dense readers are brought together: 1 is all the way."""
WORTH = 0.9
"""A tensor with dense readers is scaled where the expected error falls below this share of what it was."""
LARGEST_FACTOR = 64.0
SAME_CHANNELS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(eq=False)
class _Cluster:
    """Tensors whose factors are chosen together: they share channels or a grid."""

    tensors: dict[str, Array] = field(default_factory=dict)  # table tensor → channel identities along its channel axis
    writers: list[tuple[ir.Node, Array]] = field(default_factory=list)  # node, identities of its output channels
    readers: list[tuple[ir.Node, Array]] = field(default_factory=list)  # node, identities of its input channels
    cap: float | None = None


@dataclass(frozen=True, eq=False)
class Equalized:
    """Factors of every scaled tensor (along its channel axis), and the layers that belong to them."""

    factors: Mapping[str, Array]
    layers: FloatLayers


def equalize(
    model: ir.Model,
    placement: Placement,
    layers: FloatLayers,
    statistics: Mapping[str, TensorStatistics],
    gains: Mapping[str, Array],
    extent: Extent,
) -> Equalized:
    """Choose factors and scale weights, biases and means.

    Args:
        model: canonical float graph; unchanged.
        placement: which nodes and tensors are quantized, and which share a grid.
        layers: float weights, biases and means.
        statistics: of the table's tensors.
        gains: what an error costs, by value name.
        extent: tensors that feed depthwise convolutions only, or all where it pays, or none.
    """
    if extent == "none":
        return Equalized({}, layers)
    identities = _Identities(model, placement)
    factors: dict[int, float] = {}
    clusters = identities.clusters(placement)
    for cluster in clusters:
        free = all(_is_depthwise(node) for node, _ in cluster.readers)
        if (extent == "depthwise" and not free) or not cluster.readers or not cluster.writers:
            continue
        factors |= _choose(cluster, free, layers, statistics, gains)
    if not factors:
        return Equalized({}, layers)
    return _apply(clusters, factors, layers)


def _is_depthwise(node: ir.Node) -> bool:
    """Every row of the weight sees one input channel."""
    weight = node.inputs[1]
    return node.op_type == "Conv" and weight is not None and shape_of(weight)[1] == 1


def _choose(
    cluster: _Cluster,
    free: bool,
    layers: FloatLayers,
    statistics: Mapping[str, TensorStatistics],
    gains: Mapping[str, Array],
) -> dict[int, float]:
    reach: dict[int, float] = defaultdict(float)
    for name, identities in cluster.tensors.items():
        known = statistics[name]
        largest = np.maximum(known.high, -known.low)
        for identity, value in zip(identities.tolist(), largest.tolist(), strict=True):
            reach[identity] = max(reach[identity], value)
    top = cluster.cap if cluster.cap is not None else max(reach.values(), default=0.0)
    if top <= 0:
        return {}

    def factors_at(strength: float) -> dict[int, float]:
        # A channel that reaches the cap keeps its scale, and none is cut below its own maximum: cutting each where its
        # squared error is least lost 5 dB on one net, for what is cut are the values that matter.
        return {i: min((top / r) ** strength, LARGEST_FACTOR) if 0 < r < top * 0.999 else 1.0 for i, r in reach.items()}

    if free:
        return factors_at(1.0)
    plain = _cost(cluster, dict.fromkeys(reach, 1.0), layers, statistics, gains)
    costs = {s: _cost(cluster, factors_at(s), layers, statistics, gains) for s in STRENGTHS}
    best = min(costs, key=lambda s: costs[s])
    return factors_at(best) if costs[best] < WORTH * plain else {}


def _cost(
    cluster: _Cluster,
    factors: Mapping[int, float],
    layers: FloatLayers,
    statistics: Mapping[str, TensorStatistics],
    gains: Mapping[str, Array],
) -> float:
    """Expected squared error at the outputs from rounding the cluster's tensors and the weights that read them.

    Weights count with the variance of what they multiply: their effect on the mean is taken away by bias correction.
    """
    total, step = 0.0, 0.0
    scaled: list[tuple[TensorStatistics, Array, Array]] = []
    for name, identities in cluster.tensors.items():
        known, s = statistics[name], _look_up(factors, identities)
        step = max(step, float((np.maximum((known.high * s).max(), 0) - np.minimum((known.low * s).min(), 0)) / STEPS))
        scaled.append((known, s, gains.get(name, np.ones(len(s)))))
    for known, s, gain in scaled:
        per_channel = known.elements / len(s)
        total += float((gain * per_channel * (1 - known.zeros) * (step / s) ** 2).sum() / 12)
    variance = _per_identity(cluster, statistics)
    for node, identities in cluster.readers:
        rows, layout = _rows(node, layers)
        repeats, shape = rows.shape[2] * layout.groups // len(identities), (layout.groups, 1, -1)
        factor = np.repeat(_look_up(factors, identities), repeats).reshape(shape)
        spread = np.repeat(_look_up(variance, identities), repeats).reshape(shape)
        row_step = np.abs(rows / factor).max(2) / INT8_MAX
        error = row_step**2 / 12 * (spread * factor**2).sum(2)
        output = node.outputs[0]
        gain = gains.get(output.name or "", np.zeros(1))
        places = math.prod(shape_of(output)) / layout.outputs
        gain = gain if len(gain) == layout.outputs else np.full(layout.outputs, float(gain.mean()))
        total += float((error.reshape(-1) * gain * places).sum())
    return total


def _per_identity(cluster: _Cluster, statistics: Mapping[str, TensorStatistics]) -> dict[int, float]:
    result: dict[int, float] = {}
    for name, identities in cluster.tensors.items():
        for identity, value in zip(identities.tolist(), statistics[name].variance.tolist(), strict=True):
            result[identity] = max(result.get(identity, 0.0), value)
    return result


def _rows(node: ir.Node, layers: FloatLayers) -> tuple[Array, Layout]:
    initializer = node.inputs[1]
    weight = layers.weights[(initializer and initializer.name) or ""]
    layout = Layout.of(node, weight.shape)
    return layout.rows(weight), layout


def _look_up(values: Mapping[int, float], identities: Array) -> Array:
    return np.array([values.get(identity, 1.0) for identity in identities.tolist()])


def _apply(clusters: Sequence[_Cluster], factors: Mapping[int, float], layers: FloatLayers) -> Equalized:
    weights, biases, means = dict(layers.weights), dict(layers.biases), dict(layers.means)
    tensors: dict[str, Array] = {}
    written = {node.outputs[0].name for cluster in clusters for node, _ in cluster.writers}
    for cluster in clusters:
        for name, identities in cluster.tensors.items():
            s = _look_up(factors, identities)
            if (s != 1.0).any():
                tensors[name] = s
        for name, identities in cluster.tensors.items():
            if name in means and name not in written:
                means[name] = means[name] * _look_up(factors, identities)
        for node, identities in cluster.writers:
            s = _look_up(factors, identities)
            w_name, b_name = (node.inputs[1], node.inputs[2])
            assert w_name is not None and b_name is not None
            layout = Layout.of(node, weights[w_name.name or ""].shape)
            rows = layout.rows(weights[w_name.name or ""]) * s.reshape(layout.groups, -1, 1)
            weights[w_name.name or ""] = layout.weight(rows.astype(np.float32))
            biases[b_name.name or ""] = (biases[b_name.name or ""] * s).astype(np.float32)
            output = node.outputs[0].name or ""
            if output in means:
                means[output] = means[output] * s
        for node, identities in cluster.readers:
            w = node.inputs[1]
            assert w is not None
            layout = Layout.of(node, weights[w.name or ""].shape)
            rows = layout.rows(weights[w.name or ""])
            factor = np.repeat(_look_up(factors, identities), rows.shape[2] * layout.groups // len(identities))
            weights[w.name or ""] = layout.weight((rows / factor.reshape(layout.groups, 1, -1)).astype(np.float32))
    return Equalized(tensors, FloatLayers(weights, biases, means))


class _Identities:
    """Which channels are the same thing. Identity 0 is what must not be scaled."""

    def __init__(self, model: ir.Model, placement: Placement) -> None:
        self._parent = [0]
        self._caps: dict[int, float] = {}
        self._of: dict[ir.Value, Array] = {}
        self._writers: list[tuple[ir.Node, Array]] = []
        self._readers: list[tuple[ir.Node, Array]] = []
        self._tensors: dict[str, Array] = {}
        last_use = {value: node for node in model.graph for value in node.inputs if value is not None}
        for value in model.graph.inputs:
            self._of[value] = np.broadcast_to(np.int32(0), shape_of(value))
        for node in model.graph:
            self._visit(node, placement)
            for value in node.outputs:
                if value.name in placement.fixed or value.is_graph_output():
                    self._freeze(self._of[value])
                if value.name in placement.activations:
                    self._note(value)
            for read in node.inputs:  # full-size arrays of large graphs are not kept longer than needed
                if read is not None and last_use[read] is node:
                    self._of.pop(read, None)

    def clusters(self, placement: Placement) -> list[_Cluster]:
        """Tensors joined by shared channels or a shared grid, without those that are frozen or unknown."""
        root_of_tensor = _Forest()
        owner: dict[int, str] = {}
        for name, identities in self._tensors.items():
            root_of_tensor.find(name)
            for identity in set(self._roots(identities).tolist()) - {0}:
                root_of_tensor.join(owner.setdefault(identity, name), name)
        for group in placement.groups:
            known = sorted(group & self._tensors.keys())
            for name in known[1:]:
                root_of_tensor.join(known[0], name)
        clusters: dict[str, _Cluster] = defaultdict(_Cluster)
        cluster_of: dict[int, _Cluster] = {}
        for name, identities in self._tensors.items():
            cluster = clusters[root_of_tensor.find(name)]
            cluster.tensors[name] = self._roots(identities)
            for identity in set(cluster.tensors[name].tolist()):
                cluster_of[identity] = cluster
        frozen: set[int] = set()
        for where in ("writers", "readers"):
            for node, identities in self._writers if where == "writers" else self._readers:
                roots = self._roots(identities)
                touched = {id(cluster_of[i]): cluster_of[i] for i in set(roots.tolist()) if i in cluster_of and i != 0}
                for cluster in touched.values():
                    getattr(cluster, where).append((node, roots))
                if len(touched) > 1:  # factors of one weight from two clusters: chosen apart, they would not add up
                    frozen.update(id(cluster) for cluster in touched.values())
        usable = []
        for cluster in clusters.values():
            members = {int(i) for tensor in cluster.tensors.values() for i in tensor.tolist()}
            caps = {self._caps[i] for i in members if i in self._caps}
            cluster.cap = next(iter(caps)) if len(caps) == 1 else None
            if 0 not in members and len(caps) <= 1 and id(cluster) not in frozen:
                usable.append(cluster)
        return usable

    def _visit(self, node: ir.Node, placement: Placement) -> None:
        out = node.outputs[0]
        inputs = [self._identities(value) for value in node.inputs if value is not None]
        if node.op_type in WEIGHTED:
            if placement.schemes.get(node.name or "") != "int8" or not self._read(node):
                self._freeze(inputs[0])
            self._of[out] = self._write(node, placement)
            return
        if (moved := self._move(node, inputs)) is not None:
            self._of.update(zip(node.outputs, moved, strict=True))
            return
        for identities in inputs:
            self._freeze(identities)
        for value in node.outputs:
            self._of[value] = np.broadcast_to(np.int32(0), shape_of(value))

    def _identities(self, value: ir.Value) -> Array:
        return self._of[value] if value in self._of else np.broadcast_to(np.int32(0), shape_of(value))

    def _read(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        assert value is not None
        ids = self._identities(value)
        if node.op_type == "Gemm":
            if len(ids) > 1 and not (ids == ids[:1]).all():
                return False
            channels = ids[0]
        else:
            channels = ids[0].reshape(ids.shape[1], -1)[:, 0]
            if not (ids == channels.reshape(1, -1, *(1,) * (ids.ndim - 2))).all():
                return False
        self._readers.append((node, np.array(channels)))
        return True

    def _write(self, node: ir.Node, placement: Placement) -> Array:
        out = node.outputs[0]
        shape = shape_of(out)
        if placement.schemes.get(node.name or "") != "int8":
            return np.broadcast_to(np.int32(0), shape)
        first, count = len(self._parent), shape[1]
        self._parent.extend(range(first, first + count))
        new = np.arange(first, first + count, dtype=np.int32)
        self._writers.append((node, new))
        return np.broadcast_to(new.reshape(1, -1, *(1,) * (len(shape) - 2)), shape)

    def _move(self, node: ir.Node, inputs: list[Array]) -> list[Array] | None:
        """Identities of the outputs where channels go through unmixed, else None."""
        out = node.outputs[0]
        shape = shape_of(out)
        first = inputs[0]
        match node.op_type:
            case op if op in SAME_CHANNELS:
                channels = first[:1, :, *(slice(0, 1),) * (first.ndim - 2)] if first.ndim > 1 else first
                pure = first.ndim == len(shape) and first.ndim > 2 and bool((first == channels).all())
                return [np.broadcast_to(channels, shape)] if pure else ([first] if first.shape == shape else None)
            case "Clip":
                return self._clip(node, first)
            case "Add" | "Sub" if len(inputs) == 2 and inputs[0].shape == inputs[1].shape == shape:
                for a, b in zip(*(self._distinct_pairs(*inputs)), strict=True):
                    self._join(int(a), int(b))
                return [first]
            case "Concat":
                return [np.concatenate(inputs, node.attributes.get_int("axis"))]
            case op if op in RESHAPES:
                return [first.reshape(shape)]
            case "Transpose":
                return [first.transpose(node.attributes.get_ints("perm"))]
            case "Split":
                axis, sizes = node.attributes.get_int("axis", 0), [shape_of(v) for v in node.outputs]
                return np.split(first, np.cumsum([s[axis] for s in sizes])[:-1], axis)
            case "Gather" if (index := _constant(node, 1)) is not None:
                return [np.take(first, index, node.attributes.get_int("axis", 0))]
            case "Slice":
                return sliced(node, first)
            case _:
                return None

    def _clip(self, node: ir.Node, ids: Array) -> list[Array] | None:
        low, high = _constant(node, 1), _constant(node, 2)
        if low is None or high is None or float(low) != 0:
            return None
        for identity in set(np.unique(ids).tolist()):
            root = self._root(identity)
            if self._caps.setdefault(root, float(high)) != float(high):
                self._join(root, 0)
        return [ids]

    def _distinct_pairs(self, a: Array, b: Array) -> tuple[Array, Array]:
        pairs = np.unique(a.astype(np.int64) * len(self._parent) + b)
        return pairs // len(self._parent), pairs % len(self._parent)

    def _note(self, value: ir.Value) -> None:
        """Identities along the tensor's channel axis; a tensor whose channels mix them shows what its group shows."""
        ids, axis = self._of[value], channel_axis(value)
        if axis is None:
            self._freeze(ids)
            return
        along = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
        if (along == along[:, :1]).all():
            self._tensors[value.name or ""] = np.array(along[:, 0])

    def _freeze(self, ids: Array) -> None:
        for identity in np.unique(ids).tolist():
            self._join(identity, 0)

    def _root(self, identity: int) -> int:
        while self._parent[identity] != identity:
            self._parent[identity] = self._parent[self._parent[identity]]
            identity = self._parent[identity]
        return identity

    def _roots(self, identities: Array) -> Array:
        return np.array([self._root(i) for i in identities.tolist()])

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))
        if a == b:
            return
        self._parent[b] = a
        caps = {self._caps.pop(i) for i in (a, b) if i in self._caps}
        if len(caps) == 1 and a != 0:
            self._caps[a] = caps.pop()
        elif len(caps) > 1 and a != 0:
            self._parent[a] = 0


class _Forest:
    """Union-find over names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self._parent[b] = a


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def sliced(node: ir.Node, ids: Array) -> list[Array] | None:
    """What a Slice with constant bounds makes of an array of its input's shape; None for other bounds."""
    starts, ends, axes, steps = (_constant(node, index) for index in (1, 2, 3, 4))
    if starts is None or ends is None:
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    cuts = [slice(None)] * ids.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        if step < 0:
            return None
        cuts[axis] = slice(start, end, step)
    return [ids[tuple(cuts)]]
