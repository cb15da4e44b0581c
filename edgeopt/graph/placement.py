"""Where quantization goes: which nodes compute in int8, and which tensors get a grid.

Decided once, from the float graph alone, for all targets. A node computes in int8 where that is both right and fast:

- *Compute* (Conv, ConvTranspose, Gemm, MatMul of two activations): int8. A Relu or Clip directly behind is part of it:
  the tensor between them is never rounded.
- *Followers* (Add, Sub, Mul, pools, unary activations) and *movers* (Reshape, Concat, …, which compute nothing):
  int8 where every input already is integers and some compute node downstream wants integers. So a residual Add of a
  ResNet is int8; the residual stream of a transformer, which feeds LayerNormalization, stays float, where int8 would
  be both slower and wrong.
- Everything else: float.

A unary activation in int8 means dequantize → exact float function → quantize: 256 possible inputs, so one table in
any runtime that looks (XNNPACK does). Chains of one variable (``x · sigmoid(x)``) are one such function; nothing is
rounded inside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgeopt.graph.compression import COMPRESSED
from edgeopt.graph.constraints import Constraints, FixedOutput
from edgeopt.types import SchemeName

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""The weighted operators of a canonical graph: activation, weight, bias."""
ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})
UNARY = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Elu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "Softplus", "Mish"}
)
POOLS = frozenset({"GlobalAveragePool", "AveragePool"})
MOVERS = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad", "Concat",
        "MaxPool", "Resize", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Identity",
    }
)  # fmt: skip
"""They move values and compute nothing, so inputs and outputs share one grid, whatever a target asks."""

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
MOVED_INPUTS: Mapping[str, int | None] = {"Concat": None}
"""Which inputs of a mover carry the moved values: the first, or all (None). The others are shapes and indices."""


@dataclass(frozen=True)
class Placement:
    """What ``place`` decided.

    Args:
        schemes: node name → scheme, for every node that is not ``fp32``.
        activations: names of tensors that get ``QuantParams``, in topological order. Constants that an int8 node
            reads as an activation are among them.
        range_only: graph inputs and outputs that stay float, but need a range for files with integer ones.
        groups: sets of tensors that share one grid; disjoint, each of two or more.
        fixed: tensor → the grid it must have.
        symmetric: tensors whose zero point must be 0, with everything in their group.
    """

    schemes: Mapping[str, SchemeName]
    activations: tuple[str, ...]
    range_only: tuple[str, ...]
    groups: tuple[frozenset[str], ...]
    fixed: Mapping[str, FixedOutput]
    symmetric: frozenset[str]


def place(
    model: ir.Model,
    *,
    scheme: SchemeName = "int8",
    rules: Sequence[tuple[str, SchemeName]] = (),
    constraints: Constraints | None = None,
) -> Placement:
    """Decide schemes and tensors for a canonical float graph.

    Args:
        model: the canonical float graph.
        scheme: what every node gets that no rule names.
        rules: (pattern of node names, scheme); the first match holds. Patterns as in ``fnmatch``, case matters.
        constraints: the union over all targets.
    """
    constraints = constraints or Constraints()
    nodes = list(model.graph)
    asked = {id(node): _asked(node, scheme, rules) for node in nodes}
    int8 = _int8_nodes(nodes, {key for key, value in asked.items() if value == "int8"})
    schemes: dict[str, SchemeName] = {}
    for node in nodes:
        realised = _realised_scheme(node, asked[id(node)], id(node) in int8)
        if realised != "fp32":
            schemes[node.name or ""] = realised
    inside = _inside_chains(nodes, int8)
    activations: dict[str, None] = {}
    groups = _Groups()
    fixed: dict[str, FixedOutput] = {}
    symmetric: set[str] = set()
    for node in nodes:
        if id(node) not in int8:
            continue
        read = [value for value in activation_inputs(node) if value not in inside]
        written = [value for value in node.outputs if value not in inside]
        for value in (*read, *written):
            activations.setdefault(_name(value))
        if node.op_type in MOVERS or node.op_type in constraints.equal_scales:
            groups.join(_name(value) for value in (*read, *written))
        if (output := constraints.fixed_outputs.get(node.op_type)) is not None:
            fixed.update({_name(value): output for value in written})
        for index in constraints.symmetric_inputs.get(node.op_type, ()):
            operand = node.inputs[index]
            if operand is not None and not _is_weight(node, index):
                symmetric.add(_name(operand))
    members = groups.sets()
    for group in members:
        if group & symmetric:
            symmetric |= group
        if grids := {fixed[name] for name in group if name in fixed}:
            # Two different fixed grids in one group cannot both hold: none is fixed then, and ranges decide.
            for name in group:
                fixed.pop(name, None)
                if len(grids) == 1 and not group & symmetric:
                    fixed[name] = next(iter(grids))
    outputs = [value for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    inputs = [value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT]
    range_only = tuple(dict.fromkeys(_name(value) for value in (*inputs, *outputs) if _name(value) not in activations))
    fixed_outputs = {
        _name(value): grid
        for value in outputs
        if _name(value) in range_only
        and (producer := value.producer()) is not None
        and (grid := constraints.fixed_outputs.get(producer.op_type)) is not None
    }
    return Placement(schemes, tuple(activations), range_only, members, fixed | fixed_outputs, frozenset(symmetric))


def activation_inputs(node: ir.Node) -> list[ir.Value]:
    """Float inputs of a node that are activations: not the weight and bias of a weighted node, not shapes or bounds.

    Constants are among them where the node treats them like an activation (``x + constant``, ``concat(token, x)``).
    """
    if node.op_type in WEIGHTED:
        return [value for value in node.inputs[:1] if value is not None]
    if node.op_type in MOVERS:
        last = 1 if MOVED_INPUTS.get(node.op_type, 1) is not None else None
        candidates = node.inputs[:last]
    elif node.op_type in UNARY:
        candidates = node.inputs[:1]
    else:
        candidates = node.inputs
    return [value for value in candidates if value is not None and value.dtype == ir.DataType.FLOAT]


def fused_activation(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that is part of ``node``: its only consumer, and the node's output is no graph output."""
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1:
        return None
    consumer = uses[0].node
    return consumer if consumer.op_type in FUSED_ACTIVATIONS else None


def _asked(node: ir.Node, scheme: SchemeName, rules: Iterable[tuple[str, SchemeName]]) -> SchemeName:
    for pattern, ruled in rules:
        if fnmatchcase(node.name or "", pattern):
            return ruled
    return scheme


def _realised_scheme(node: ir.Node, asked: SchemeName, is_int8: bool) -> SchemeName:
    if asked == "int8":
        return "int8" if is_int8 else "fp32"
    if asked in ("int8-weights", "int8-dynamic"):
        if node.op_type not in WEIGHTED:
            return "fp32"
        # No runtime quantizes the input of a transposed or depthwise convolution at run time.
        static_only = node.op_type == "ConvTranspose" or node.attributes.get_int("group", 1) != 1
        return "int8-weights" if static_only else asked
    if asked in COMPRESSED:
        return asked if node.op_type in WEIGHTED else "fp32"
    return asked


def _int8_nodes(nodes: Sequence[ir.Node], asked: set[int]) -> set[int]:
    """Ids of nodes that compute in int8: the most in which followers have integer inputs and a wanted output."""
    compute = {id(node) for node in nodes if id(node) in asked and _is_compute(node)}
    fused = {
        id(behind)
        for node in nodes
        if id(node) in compute and (behind := fused_activation(node)) is not None and id(behind) in asked
    }
    candidates = {id(node) for node in nodes if id(node) in asked and _is_follower(node)} - fused
    while True:
        wanted: set[ir.Value] = set()
        for node in reversed(nodes):
            pulls = id(node) in compute or (
                (id(node) in candidates or id(node) in fused) and any(output in wanted for output in node.outputs)
            )
            if pulls:
                wanted.update(activation_inputs(node))
        integers: set[ir.Value] = set()
        kept: set[int] = set()
        for node in nodes:
            if id(node) in compute or id(node) in fused:
                integers.update(node.outputs)
            elif id(node) in candidates and any(output in wanted for output in node.outputs):
                inputs = activation_inputs(node)
                moving = [value for value in inputs if value.const_value is None]
                if moving and all(value in integers for value in moving):
                    kept.add(id(node))
                    integers.update(node.outputs)
        if kept == candidates:
            return compute | fused | kept
        candidates = kept


def _is_compute(node: ir.Node) -> bool:
    if node.op_type in WEIGHTED:
        return True
    return node.op_type == "MatMul" and all(value is not None and value.const_value is None for value in node.inputs)


def _is_follower(node: ir.Node) -> bool:
    if node.op_type == "Pad":
        return _pads_with_zero(node)
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") in ("nearest", "linear")
    return node.op_type in ELEMENTWISE | UNARY | POOLS | MOVERS


def _pads_with_zero(node: ir.Node) -> bool:
    """Zero is on every grid; another constant may not be, and reflecting pads are left to float."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or (value.const_value is not None and not value.const_value.numpy().any())


def _inside_chains(nodes: Sequence[ir.Node], int8: set[int]) -> set[ir.Value]:
    """Tensors between two int8 nodes that are never rounded: before a fused activation, and inside unary chains."""
    inside: set[ir.Value] = set()
    for node in nodes:
        if id(node) not in int8:
            continue
        behind = fused_activation(node)
        fuses = behind is not None and id(behind) in int8 and (_is_compute(node) or node.op_type in ELEMENTWISE)
        if fuses or (node.op_type in UNARY and _feeds_product_with_own_input(node, int8)):
            inside.add(node.outputs[0])
    return inside


def _feeds_product_with_own_input(node: ir.Node, int8: set[int]) -> bool:
    """``x · f(x)``: the unary node's only consumer multiplies with the unary node's own input."""
    uses = tuple(node.outputs[0].uses())
    if node.outputs[0].is_graph_output() or len(uses) != 1:
        return False
    product = uses[0].node
    return product.op_type == "Mul" and id(product) in int8 and node.inputs[0] in product.inputs


def _is_weight(node: ir.Node, index: int) -> bool:
    return node.op_type in WEIGHTED and index > 0


def _name(value: ir.Value) -> str:
    if value.name is None:
        raise ValueError("a canonical graph names every value")
    return value.name


class _Groups:
    """Union-find over tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def _root(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = names
        for other in others:
            self._parent[self._root(other)] = self._root(first)

    def sets(self) -> tuple[frozenset[str], ...]:
        by_root: dict[str, set[str]] = defaultdict(set)
        for name in self._parent:
            by_root[self._root(name)].add(name)
        return tuple(frozenset(names) for names in by_root.values() if len(names) > 1)
