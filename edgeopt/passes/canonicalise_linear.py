"""Weighted operators in one form each: Conv, ConvTranspose, Gemm(x, W (N, K), b (N))."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UnsupportedOperator
from edgeopt.graph.model import (
    Array,
    add_initializer,
    constant,
    graph_of,
    insert_before,
    only_user,
    place,
    present,
    release_constant,
    remove_unused,
    replace,
    reshape_before,
    scalar,
    set_constant,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass

_UNARY = frozenset({"Relu", "Clip", "HardSwish", "Sigmoid", "HardSigmoid", "Gelu", "Tanh", "LeakyRelu", "Elu", "Selu"})


class CanonicaliseLinear(Pass):
    """MatMul by a constant becomes [Reshape →] Gemm [→ Reshape]; Gemm loses its flags; a bias always stands.

    A 1×1 Conv on one pixel whose result is flattened becomes a Gemm. MatMul of two activations stays, and scalar
    factors on its inputs move behind it as one Mul. An activation stands directly behind its Gemm, before the Reshape
    back, where it can be fused.
    """

    use: Literal["canonicalise_linear"] = "canonicalise_linear"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for rules in (_TO_GEMM, _HEADS):
            for node in reversed(list(graph.model.graph)):  # a head's Reshape moves up from Conv to Conv
                if node.domain in ("", "ai.onnx") and (rule := rules.get(node.op_type)) is not None:
                    rule(node)
            remove_unused(graph.model.graph)
        for node in list(graph.model.graph):
            if node.op_type in _UNARY or node.op_type == "Mul":
                _before_unrow(node)
        remove_unused(graph.model.graph)
        return graph


def _matmul(node: ir.Node) -> None:
    weight = constant(node.inputs[1])
    source, output = present(node.inputs[0]), node.outputs[0]
    if weight is not None and constant(source) is None:
        while weight.ndim > 2 and weight.shape[0] == 1 and len(shape(source)) >= weight.ndim:
            weight = weight[0]
        if weight.ndim == 2 and len(shape(source)) > 0:
            _to_gemm(node, source, weight, output)
            return
    _scalars_behind(node)


def _to_gemm(node: ir.Node, source: ir.Value, weight: Array, output: ir.Value) -> None:
    """y = x · W (+ b): the last axis of x is K, all others are rows."""
    outer = weight.shape[1]
    bias: Array = np.zeros(outer, np.float32)
    bias_name, last = f"{node.name}_bias", node
    user = only_user(output)
    if user is not None and user.op_type == "Add" and shape(user.outputs[0]) == shape(output):
        index = 1 if user.inputs[0] is output else 0
        array = constant(user.inputs[index])
        if array is not None and array.size in (1, outer) and (array.shape or (1,))[-1] == array.size:
            bias, last = np.broadcast_to(array.reshape(-1), (outer,)), user
            bias_name, output = release_constant(user, index), user.outputs[0]
    weight_name = release_constant(node, 1)
    _write_gemm(last, source, output, {weight_name: weight.T, bias_name: bias}, node.name)


def _write_gemm(
    node: ir.Node, source: ir.Value, output: ir.Value, operands: Mapping[str, Array], name: str | None
) -> None:
    """Gemm before ``node``, read instead of ``output``; operands are weight (N, K) and bias (N) by name."""
    graph, sizes = graph_of(node), shape(source)
    outer, inner = next(iter(operands.values())).shape
    rows = int(np.prod(sizes[:-1], dtype=np.int64))
    if len(sizes) != 2:
        source = reshape_before(node, source, (rows, inner), name=f"{name}_rows")
    constants = [
        add_initializer(graph, key, np.ascontiguousarray(array, np.float32)) for key, array in operands.items()
    ]
    result = insert_before(
        node,
        "Gemm",
        [source, *constants],
        {"transB": 1},
        output_shape=(rows, outer),
        like=output,
        name=name,
    )
    if shape(output) != (rows, outer):
        result = reshape_before(node, result, shape(output), name=f"{name}_unrow")
    replace(output, result)


def _gemm(node: ir.Node) -> None:
    weight, source, output = constant(node.inputs[1]), present(node.inputs[0]), node.outputs[0]
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    third = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(third)
    if node.attributes.get_int("transA", 0):
        flipped = shape(source)[::-1]
        source = insert_before(node, "Transpose", [source], {"perm": [1, 0]}, output_shape=flipped, like=source)
        node.replace_input_with(0, source)
    if weight is None or constant(source) is not None:
        _gemm_of_activations(node, source, third, alpha, beta)
        return
    outer = weight.shape[0] if node.attributes.get_int("transB", 0) else weight.shape[1]
    if not node.attributes.get_int("transB", 0) or alpha != 1:
        turned = weight if node.attributes.get_int("transB", 0) else weight.T
        set_constant(node, 1, np.ascontiguousarray(turned * np.float32(alpha)), "weight")
    for name in ("alpha", "beta", "transA"):
        node.attributes.pop(name, None)
    node.attributes.add(ir.AttrInt64("transB", 1))
    if third is None or (bias is not None and bias.size in (1, outer) and (bias.shape or (1,))[-1] == bias.size):
        full = np.broadcast_to(np.zeros(1) if bias is None else bias.reshape(-1) * beta, (outer,)).astype(np.float32)
        if bias is None or bias.shape != full.shape or beta != 1:
            set_constant(node, 2, full, f"{node.name}_bias")
        return
    # a matrix, a column or an activation as C: added behind
    set_constant_zero_bias(node, outer)
    sizes = shape(output)
    _add_behind(node, third, beta, sizes)


def set_constant_zero_bias(node: ir.Node, channels: int) -> None:
    if len(node.inputs) > 2:
        node.replace_input_with(2, None)
    set_constant(node, 2, np.zeros(channels, np.float32), f"{node.name}_bias")


def _add_behind(node: ir.Node, third: ir.Value, beta: float, sizes: tuple[int, ...]) -> None:
    graph, output = graph_of(node), node.outputs[0]
    if (array := constant(third)) is not None and beta != 1:
        third, beta = add_initializer(graph, f"{node.name}_c", (array * np.float32(beta)).astype(np.float32)), 1.0
    product = insert_before(
        node,
        node.op_type,
        list(node.inputs),
        dict(node.attributes),
        output_shape=sizes,
        like=output,
        name=f"{node.name}",
    )
    if beta != 1:
        factor = add_initializer(graph, f"{node.name}_beta", np.asarray(beta, np.float32))
        third = insert_before(node, "Mul", [third, factor], output_shape=shape(third), like=output)
    replace(
        output, insert_before(node, "Add", [product, third], output_shape=sizes, like=output, name=f"{node.name}_add")
    )


def _gemm_of_activations(node: ir.Node, source: ir.Value, third: ir.Value | None, alpha: float, beta: float) -> None:
    """alpha · A · B + beta · C of activations, as MatMul, Mul and Add."""
    graph, second, output = graph_of(node), present(node.inputs[1]), node.outputs[0]
    sizes = shape(output)
    if node.attributes.get_int("transB", 0):
        flipped = shape(second)[::-1]
        second = insert_before(node, "Transpose", [second], {"perm": [1, 0]}, output_shape=flipped, like=second)
    result = insert_before(node, "MatMul", [source, second], output_shape=sizes, like=output, name=node.name)
    if alpha != 1:
        factor = add_initializer(graph, f"{node.name}_alpha", np.asarray(alpha, np.float32))
        result = insert_before(node, "Mul", [result, factor], output_shape=sizes, like=output)
    if third is not None:
        if beta != 1:
            factor = add_initializer(graph, f"{node.name}_beta", np.asarray(beta, np.float32))
            third = insert_before(
                node, "Mul", [third, factor], output_shape=shape(third), like=output, name=f"{node.name}_c"
            )
        result = insert_before(node, "Add", [result, third], output_shape=sizes, like=output)
    replace(output, result)


def _scalars_behind(node: ir.Node) -> None:
    """(a·A) @ (b·B) = (a·b) · (A @ B)."""
    factor, names = 1.0, []
    for index in (0, 1):
        source = present(node.inputs[index])
        producer = source.producer()
        if producer is None or producer.op_type not in {"Mul", "Div"}:
            continue
        number = scalar(producer.inputs[1])
        if not number or shape(producer.inputs[0]) != shape(source):
            continue
        factor *= number if producer.op_type == "Mul" else 1 / number
        names.append(producer.name)
        node.replace_input_with(index, producer.inputs[0])
    if names:
        output, sizes = node.outputs[0], shape(node.outputs[0])
        product = insert_before(node, "MatMul", list(node.inputs), output_shape=sizes, like=output, name=node.name)
        array = add_initializer(graph_of(node), f"{node.name}_scale", np.asarray(factor, np.float32))
        scaled = insert_before(
            node, "Mul", [product, array], output_shape=sizes, like=output, name=f"{node.name}_scaled"
        )
        replace(output, scaled)


def _convolution(node: ir.Node) -> None:
    weight = constant(node.inputs[1])
    if weight is None:
        raise UnsupportedOperator(
            f"the weight of this {node.op_type} is computed from the input",
            where=place(node),
            hint="Only constant weights can be lowered. Write it as a MatMul, or leave it out of the model.",
        )
    channels = shape(node.outputs[0])[1]
    third = node.inputs[2] if len(node.inputs) > 2 else None
    if third is None:
        set_constant(node, 2, np.zeros(channels, np.float32), f"{node.name}_bias")
    elif constant(third) is None:
        sizes = (1, channels, *(1 for _ in shape(node.outputs[0])[2:]))
        wide = reshape_before(node, third, sizes, name=f"{node.name}_bias_wide")
        set_constant_zero_bias(node, channels)
        _add_behind(node, wide, 1.0, shape(node.outputs[0]))


def _head(node: ir.Node) -> None:
    """Conv 1×1 on one pixel (→ activation) → Reshape to (N, C): the Reshape moves up and the Conv is a Gemm."""
    source, output = present(node.inputs[0]), node.outputs[0]
    sizes, results = shape(source), shape(output)
    if any(d != 1 for d in sizes[2:] + results[2:]) or any(k != 1 for k in shape(node.inputs[1])[2:]):
        return
    if node.attributes.get_int("group", 1) != 1:
        return
    chain: list[ir.Node] = []
    user = only_user(output)
    while user is not None and user.op_type in _UNARY:
        chain.append(user)
        user = only_user(user.outputs[0])
    if user is None or user.op_type != "Reshape" or shape(user.outputs[0]) != results[:2]:
        return
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2])
    if weight is None or bias is None:
        return
    flat = reshape_before(node, source, sizes[:2], name=f"{node.name}_flatten")
    operands = [
        add_initializer(graph_of(node), release_constant(node, index), array)
        for index, array in ((1, weight.reshape(weight.shape[:2])), (2, bias))
    ]
    gemm = insert_before(
        node,
        "Gemm",
        [flat, *operands],
        {"transB": 1},
        output_shape=results[:2],
        like=output,
        name=node.name,
    )
    result = gemm
    for link in chain:
        rest = list(link.inputs[1:])
        result = insert_before(
            link,
            link.op_type,
            [result, *rest],
            dict(link.attributes),
            output_shape=results[:2],
            like=output,
            name=link.name,
        )
    replace(user.outputs[0], result)
    graph_of(node).remove([node, *chain, user], safe=True)  # so that the next Conv sees its only reader


def _before_unrow(node: ir.Node) -> None:
    """f(Reshape(x)) = Reshape(f(x)) for rows x of a Gemm; also for x · sigmoid(x)."""
    rows: dict[ir.Value, ir.Value] = {}
    for value in node.inputs:
        if value is None or (constant(value) is not None and not shape(value)):
            continue  # a bound of Clip
        if constant(value) is not None or (row := _rows(value)) is None:
            return
        rows[value] = row
    if len({shape(row) for row in rows.values()}) != 1:
        return
    sources = [rows.get(value, value) if value is not None else None for value in node.inputs]
    output, sizes = node.outputs[0], shape(next(iter(rows.values())))
    result = insert_before(
        node, node.op_type, sources, dict(node.attributes), output_shape=sizes, like=output, name=node.name
    )
    replace(output, reshape_before(node, result, shape(output), name=f"{node.name}_unrow"))


def _rows(value: ir.Value) -> ir.Value | None:
    """The (M, N) that a Reshape gives back its leading axes; None if the value is anything else."""
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    before, after = shape(node.inputs[0]), shape(value)
    return node.inputs[0] if len(before) == 2 and len(after) > 2 and before[1] == after[-1] else None


_TO_GEMM: dict[str, Callable[[ir.Node], None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
}
_HEADS: dict[str, Callable[[ir.Node], None]] = {"Conv": _head}
