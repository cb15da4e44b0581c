"""Activations that exporters spell out become the one operator that they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import (
    constant,
    insert_before,
    only_user,
    present,
    remove_unused,
    replace,
    scalar,
    set_constant,
    shape,
)
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.passes.base import Context, Pass

_CLOSE = 1e-5
"""Relative: how far a constant may be from 1/√2, 1/6 and so on. Exporters round them to float32 or to six digits."""


class CanonicaliseActivations(Pass):
    """Clip has constant bounds, Clip(0, ∞) is Relu; Gelu, HardSwish and HardSigmoid are found in their parts.

    x · sigmoid(x) stays as it is. Gelu: Hendrycks and Gimpel, 2016, arXiv:1606.08415; HardSwish: Howard et al., 2019,
    arXiv:1905.02244.
    """

    use: Literal["canonicalise_activations"] = "canonicalise_activations"

    def run(self, graph: QuantizedGraph, context: Context) -> QuantizedGraph:
        for rules in (_BOUNDS, _PRODUCTS):
            for node in list(graph.model.graph):
                if node.domain in ("", "ai.onnx") and (rule := rules.get(node.op_type)) is not None:
                    rule(node)
            remove_unused(graph.model.graph)
        return graph


def _is_close(value: float | None, wanted: float) -> bool:
    return value is not None and math.isclose(value, wanted, rel_tol=_CLOSE)


def _replace_by(node: ir.Node, op_type: str, source: ir.Value, attributes: dict[str, float | str]) -> None:
    output = node.outputs[0]
    replace(
        output,
        insert_before(node, op_type, [source], attributes, output_shape=shape(output), like=output, name=node.name),
    )


def _clip(node: ir.Node) -> None:
    low, high = _bounds(node)
    source = node.inputs[0]
    if low is None or high is None or source is None:
        return
    if low == 0 and high > float(np.finfo(np.float32).max) / 2:
        _replace_by(node, "Relu", source, {})
        return
    # HardSigmoid as Clip(x/6 + 1/2, 0, 1)
    if low == 0 and high == 1 and (line := _line(source)) is not None:
        origin, slope, offset = line
        if slope != 1 or offset != 0:
            _replace_by(node, "HardSigmoid", origin, {"alpha": slope, "beta": offset})


def _bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Low and high of a Clip or Relu; None for a bound that is no constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = (
        (scalar(node.inputs[index]) if len(node.inputs) > index and node.inputs[index] is not None else open_end)
        for index, open_end in ((1, -math.inf), (2, math.inf))
    )
    return low, high


def _line(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """(x, a, b) where ``value`` is a·x + b by a Mul or Div and an Add of scalars, each used once."""
    node = value.producer()
    if node is None or only_user(value) is None:
        return None
    offset = 0.0
    if node.op_type in {"Add", "Sub"} and (number := scalar(node.inputs[1])) is not None:
        offset = number if node.op_type == "Add" else -number
        value = present(node.inputs[0])
        node = value.producer()
        if node is None or only_user(value) is None:
            return value, 1.0, offset
    if node.op_type in {"Mul", "Div"} and (number := scalar(node.inputs[1])):
        return present(node.inputs[0]), number if node.op_type == "Mul" else 1 / number, offset
    return value, 1.0, offset


def _bound(node: ir.Node) -> None:
    """Max(x, scalar) and Min(x, scalar) are Clip; both in a row are one."""
    numbers = [scalar(value) for value in node.inputs]
    if len(numbers) != 2 or (numbers[0] is None) == (numbers[1] is None):
        return
    index = 0 if numbers[1] is not None else 1
    source, number = present(node.inputs[index]), numbers[1 - index]
    if shape(source) != shape(node.outputs[0]) or source.dtype != ir.DataType.FLOAT or number is None:
        return
    low, high = (number, math.inf) if node.op_type == "Max" else (-math.inf, number)
    inner = source.producer()
    if inner is not None and inner.op_type in {"Clip", "Relu"} and only_user(source) is node:
        inner_low, inner_high = _bounds(inner)
        if inner_low is not None and inner_high is not None and max(low, inner_low) <= min(high, inner_high):
            low, high, source = max(low, inner_low), min(high, inner_high), present(inner.inputs[0])
    output = node.outputs[0]
    clip = insert_before(node, "Clip", [source], output_shape=shape(output), like=output, name=node.name)
    producer = clip.producer()
    assert producer is not None
    for place, bound in ((1, low), (2, high)):
        if math.isfinite(bound):
            set_constant(producer, place, np.asarray(bound, np.float32), f"{node.name}_{('min', 'max')[place - 1]}")
    replace(output, clip)
    _clip(producer)


def _prelu(node: ir.Node) -> None:
    """PRelu with one slope is LeakyRelu."""
    slopes = constant(node.inputs[1])
    if slopes is not None and slopes.size and (slopes == slopes.flat[0]).all():
        _replace_by(node, "LeakyRelu", present(node.inputs[0]), {"alpha": float(slopes.flat[0])})


def _factors(value: ir.Value, is_root: bool = True) -> tuple[list[ir.Value], float]:
    """``value`` as a product: what is multiplied, and the scalar in front. Only through values that are used once."""
    node = value.producer()
    if node is None or node.op_type not in {"Mul", "Div"} or not (is_root or only_user(value) is not None):
        return [value], 1.0
    first, second = present(node.inputs[0]), present(node.inputs[1])
    number = scalar(second)
    if node.op_type == "Div":
        if not number or shape(first) != shape(value):
            return [value], 1.0
        leaves, factor = _factors(first, False)
        return leaves, factor / number
    if number is not None and shape(first) == shape(value):
        leaves, factor = _factors(first, False)
        return leaves, factor * number
    if shape(first) != shape(second):
        return [value], 1.0
    leaves, factor = _factors(first, False)
    more, again = _factors(second, False)
    return leaves + more, factor * again


def _plus(value: ir.Value, number: float) -> ir.Value | None:
    """x where ``value`` is x + number."""
    node = value.producer()
    if node is None or node.op_type != "Add" or only_user(value) is None:
        return None
    return node.inputs[0] if _is_close(scalar(node.inputs[1]), number) else None


def _product(node: ir.Node) -> None:
    leaves, factor = _factors(node.outputs[0])
    if len(leaves) == 1:
        if (
            _is_close(factor, 1 / 6)
            and (x := _clip_shifted(leaves[0])) is not None
            and only_user(leaves[0]) is not None
        ):
            _replace_by(node, "HardSigmoid", x, {"alpha": 1 / 6, "beta": 0.5})
        return
    if len(leaves) != 2:
        return
    for x, gate in (leaves, leaves[::-1]):
        if _is_close(factor, 1 / 6) and _clip_shifted(gate) is x:
            _replace_by(node, "HardSwish", x, {})
            return
        producer = gate.producer()
        if _is_close(factor, 1.0) and producer is not None and producer.op_type == "HardSigmoid":
            alpha, beta = producer.attributes.get_float("alpha", 0.2), producer.attributes.get_float("beta", 0.5)
            if producer.inputs[0] is x and _is_close(alpha, 1 / 6) and beta == 0.5:
                _replace_by(node, "HardSwish", x, {})
                return
        if _is_close(factor, 0.5) and (inner := _plus(gate, 1.0)) is not None:
            if _is_erf_of(inner, x):
                _replace_by(node, "Gelu", x, {"approximate": "none"})
                return
            if _is_tanh_gate_of(inner, x):
                _replace_by(node, "Gelu", x, {"approximate": "tanh"})
                return


def _clip_shifted(value: ir.Value) -> ir.Value | None:
    """x where ``value`` is Clip(x + 3, 0, 6)."""
    clip = value.producer()
    if clip is None or clip.op_type != "Clip" or len(clip.inputs) < 3:
        return None
    if scalar(clip.inputs[1]) != 0 or scalar(clip.inputs[2]) != 6:
        return None
    return _plus(present(clip.inputs[0]), 3.0)


def _is_erf_of(value: ir.Value, x: ir.Value) -> bool:
    """``value`` is erf(x / √2)."""
    node = value.producer()
    if node is None or node.op_type != "Erf":
        return False
    leaves, factor = _factors(present(node.inputs[0]), False)
    return leaves == [x] and _is_close(factor, 1 / math.sqrt(2))


def _is_tanh_gate_of(value: ir.Value, x: ir.Value) -> bool:
    """``value`` is tanh(√(2/π) · (x + 0.044715 · x³))."""
    node = value.producer()
    if node is None or node.op_type != "Tanh":
        return False
    leaves, factor = _factors(present(node.inputs[0]), False)
    if len(leaves) == 2 and x in leaves:  # √(2/π) · x · (1 + 0.044715 · x²)
        other = leaves[1 - leaves.index(x)]
        inner = _plus(other, 1.0)
        return inner is not None and _is_close(factor, math.sqrt(2 / math.pi)) and _is_cubic(inner, x, 2)
    add = leaves[0].producer() if len(leaves) == 1 else None
    if add is None or add.op_type != "Add" or not _is_close(factor, math.sqrt(2 / math.pi)):
        return False
    first, second = present(add.inputs[0]), present(add.inputs[1])
    return (first is x and _is_cubic(second, x, 3)) or (second is x and _is_cubic(first, x, 3))


def _is_cubic(value: ir.Value, x: ir.Value, power: int) -> bool:
    """``value`` is 0.044715 · x^power."""
    leaves, factor = _factors(value, False)
    if not _is_close(factor, 0.044715):
        return False
    total = 0
    for leaf in leaves:
        node = leaf.producer()
        if leaf is x:
            total += 1
        elif node is not None and node.op_type == "Pow" and node.inputs[0] is x:
            total += int(scalar(node.inputs[1]) or 0)
        elif node is not None and node.op_type == "Mul" and all(source is x for source in node.inputs):
            total += 2
        else:
            return False
    return total == power


_BOUNDS: dict[str, Callable[[ir.Node], None]] = {"Clip": _clip, "Max": _bound, "Min": _bound, "PRelu": _prelu}
_PRODUCTS: dict[str, Callable[[ir.Node], None]] = {"Mul": _product, "Div": _product}
