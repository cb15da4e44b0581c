"""What each node of a graph costs in arithmetic and in values moved, from static shapes alone.

Multiply-accumulates and elements are those of one run with the graph's own batch. Bytes follow from elements once a
precision is chosen. Views (Reshape and the like) compute and move nothing and are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeopt.graph.model import constant, only_user, shape

WEIGHTED = frozenset({"conv", "conv_pw", "conv_dw", "conv_grp", "deconv", "linear", "matmul"})
"""Kinds that multiply and accumulate."""

KINDS = {
    "act": """Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Gelu Tanh Elu Selu Celu Softplus Softsign Mish
        ThresholdedRelu Erf Exp Log Sqrt Abs Neg Reciprocal Floor Ceil Round Sign Sin Cos""",
    "elt": "Add Sub Mul Div Pow Min Max Sum Mean Mod Where Equal Greater Less And Or Not Xor Cast GreaterOrEqual",
    "pool": """AveragePool MaxPool GlobalAveragePool GlobalMaxPool LpPool ReduceMean ReduceMax ReduceSum ReduceMin
        ReduceL2 ReduceSumSquare ReduceProd""",
    "softmax": "Softmax LogSoftmax",
    "norm": "LayerNormalization InstanceNormalization GroupNormalization BatchNormalization LpNormalization LRN",
    "move": """Transpose Concat Slice Split Pad Resize Upsample Gather DepthToSpace SpaceToDepth Expand Tile""",
}
_KIND_OF = {operator: kind for kind, operators in KINDS.items() for operator in operators.split()}
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Constant"})


@dataclass(frozen=True)
class Operation:
    """One operator. Sizes are in elements.

    Args:
        name: of the node.
        operator: its ONNX type.
        kind: ``conv`` (kernel > 1), ``conv_pw`` (1×1), ``conv_dw`` (depthwise), ``conv_grp``, ``deconv``, ``linear``,
            ``matmul`` (two activations), ``act``, ``elt``, ``pool``, ``softmax``, ``norm``, ``move``, or ``other``
            where nothing is known of its arithmetic.
        macs: multiply-accumulates.
        weights: elements of its constants of rank 2 and more.
        inputs, outputs: elements of its activations.
        kernel: positions of the window, 9 for 3×3.
        groups, channels_in, channels_out: of a convolution; channels are the inner sizes of a product.
        positions: output pixels, or rows of a product.
        stride: of a convolution.
        follows: whether the operation before it in the list made its input, and nobody else reads that.
    """

    name: str
    operator: str
    kind: str
    macs: int
    weights: int
    inputs: int
    outputs: int
    kernel: int = 1
    groups: int = 1
    channels_in: int = 0
    channels_out: int = 0
    positions: int = 0
    stride: int = 1
    follows: bool = False


def operations(model: ir.Model) -> tuple[Operation, ...]:
    """The operators of a graph with static shapes, in its order.

    ``x·sigmoid(x)`` is one activation (SiLU), and the Slices of one tensor are one split: so runtimes have them.
    """
    found: list[Operation] = []
    last: ir.Value | None = None
    sigmoids = {node.outputs[0]: node for node in model.graph if node.op_type == "Sigmoid" and _is_silu(node)}
    splits: dict[ir.Value, int] = {}
    for node in model.graph:
        if node.outputs[0] in sigmoids:
            continue
        if node.op_type == "Slice" and node.inputs[0] in splits:
            first = splits[node.inputs[0]]
            part = _elements(node.outputs[0])
            found[first] = replace(found[first], inputs=found[first].inputs + part, outputs=found[first].outputs + part)
            continue
        if node.op_type in _VIEWS:
            if last is not None and node.inputs and node.inputs[0] is last and only_user(last) is node:
                last = node.outputs[0]
            continue
        silu = next((sigmoids[v] for v in node.inputs if v is not None and v in sigmoids), None)
        source = silu.inputs[0] if silu is not None else None
        reads = [source] if source is not None else [v for v in node.inputs if v is not None and constant(v) is None]
        alone = last is not None and last in reads and {use.node for use in last.uses()} <= {node, silu}
        follows = alone and last is not None and not last.is_graph_output()
        operation = _operation(node, [v for v in reads if v is not None], silu is not None, follows)
        if node.op_type == "Slice" and node.inputs[0] is not None:
            splits[node.inputs[0]] = len(found)
            operation = replace(operation, inputs=operation.outputs)
        found.append(operation)
        last = node.outputs[0]
    return tuple(found)


def _is_silu(node: ir.Node) -> bool:
    user = only_user(node.outputs[0])
    return user is not None and user.op_type == "Mul" and node.inputs[0] in user.inputs


def _elements(value: ir.Value) -> int:
    return math.prod(shape(value))


def _operation(node: ir.Node, reads: list[ir.Value], silu: bool, follows: bool) -> Operation:
    name = node.name or node.op_type
    inputs = sum(_elements(value) for value in reads)
    outputs = sum(
        _elements(value) for value in node.outputs if value.name and (value.uses() or value.is_graph_output())
    )
    constants = [array for value in node.inputs if (array := constant(value)) is not None and array.ndim > 1]
    weights = sum(int(array.size) for array in constants)
    if silu:
        return Operation(name, "Silu", "act", 0, 0, inputs, outputs, follows=follows)
    operator = node.op_type
    if operator in ("Conv", "ConvTranspose"):
        return _convolution(node, name, inputs, outputs, weights, follows)
    if operator in ("Gemm", "MatMul"):
        result = shape(node.outputs[0])
        inner = shape(node.inputs[0])[-1]
        positions = math.prod(result[:-1])
        if len(result) > 2 and not constants:
            positions //= max(1, math.prod(result[:-2]))
        return Operation(
            name, operator, "linear" if constants else "matmul", math.prod(result) * inner, weights, inputs, outputs,
            channels_in=inner, channels_out=result[-1], positions=positions, follows=follows,
        )  # fmt: skip
    return Operation(name, operator, _KIND_OF.get(operator, "other"), 0, weights, inputs, outputs, follows=follows)


def _convolution(node: ir.Node, name: str, inputs: int, outputs: int, weights: int, follows: bool) -> Operation:
    weight, result, source = shape(node.inputs[1]), shape(node.outputs[0]), shape(node.inputs[0])
    groups = node.attributes.get_int("group", 1)
    kernel = math.prod(weight[2:])
    if node.op_type == "ConvTranspose":
        macs, kind = math.prod(source) * weight[1] * kernel, "deconv"
    else:
        macs = math.prod(result) * weight[1] * kernel
        if groups == 1:
            kind = "conv_pw" if kernel == 1 else "conv"
        else:
            kind = "conv_dw" if groups == source[1] else "conv_grp"
    strides = node.attributes.get_ints("strides", (1,))
    return Operation(
        name, node.op_type, kind, macs, weights, inputs, outputs, kernel, groups, source[1], result[1],
        math.prod(result[2:]), strides[0], follows,
    )  # fmt: skip


def peak_activation_elements(model: ir.Model) -> int:
    """The most elements of activations that are alive at once when nodes run in the graph's order."""
    last_use: dict[ir.Value, int] = {}
    nodes = list(model.graph)
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and constant(value) is None:
                last_use[value] = index
    for value in model.graph.outputs:
        last_use[value] = len(nodes)
    alive = sum(_elements(value) for value in model.graph.inputs)
    peak = alive
    for index, node in enumerate(nodes):
        if node.op_type not in _VIEWS:
            alive += sum(_elements(value) for value in node.outputs if value in last_use)
        peak = max(peak, alive)
        if node.op_type not in _VIEWS:
            dead = {value for value in node.inputs if value is not None and last_use.get(value) == index}
            alive -= sum(_elements(value) for value in dead if value.producer() is not None)
    return peak


def weight_elements(model: ir.Model) -> int:
    """Elements of all constants."""
    arrays = [constant(value) for value in model.graph.initializers.values()]
    return sum(int(array.size) for array in arrays if array is not None)
