"""Operators on single values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import scalar, shape
from edgeopt.targets.coreml.emit import Emitter

Lower = Callable[[Emitter, ir.Node], None]


# --- two operands and more


def binary(op: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        x, y = (e.read(value) for value in node.inputs)
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            x = e.var(node.inputs[0])
        e.write(node, getattr(e.mb, op)(x=x, y=y, name=e.name(node)))

    return lower


def variadic(op: str) -> Lower:
    """Sum, Max and Min of any number of operands: one after the other."""

    def lower(e: Emitter, node: ir.Node) -> None:
        result = e.var(node.inputs[0])
        if len(node.inputs) == 1:
            e.write(node, e.mb.identity(x=result, name=e.name(node)))
            return
        for value in node.inputs[1:-1]:
            result = getattr(e.mb, op)(x=result, y=e.read(value), name=e.temporary(op))
        e.write(node, getattr(e.mb, op)(x=result, y=e.read(node.inputs[-1]), name=e.name(node)))

    return lower


def check_division(node: ir.Node) -> str | None:
    return None if node.outputs[0].dtype == ir.DataType.FLOAT else "a division of integers"


def where(e: Emitter, node: ir.Node) -> None:
    condition, a, b = (e.var(value) for value in node.inputs)
    out = shape(node.outputs[0])
    if shape(node.inputs[0]) != out and np.broadcast_shapes(shape(node.inputs[1]), shape(node.inputs[2])) != out:
        # The type that coremltools infers does not look at the condition: give one branch the whole shape.
        a = e.mb.add(x=a, y=e.array(np.zeros(out, np.float32), "zeros"), name=e.temporary("wide"))
    e.write(node, e.mb.select(cond=condition, a=a, b=b, name=e.name(node)))


def check_where(node: ir.Node) -> str | None:
    value = node.outputs[0]
    branches = np.broadcast_shapes(shape(node.inputs[1]), shape(node.inputs[2]))
    widened = branches != shape(value) and value.dtype != ir.DataType.FLOAT
    return "a condition wider than both branches of integers" if widened else None


def power(e: Emitter, node: ir.Node) -> None:
    exponent = scalar(node.inputs[1])
    if exponent == 2.0:
        e.write(node, e.mb.square(x=e.var(node.inputs[0]), name=e.name(node)))
    elif exponent == 0.5:
        e.write(node, e.mb.sqrt(x=e.var(node.inputs[0]), name=e.name(node)))
    else:
        binary("pow")(e, node)


def prelu(e: Emitter, node: ir.Node) -> None:
    """PRelu with one slope per channel where it is that, else max(x, 0) + slope · min(x, 0)."""
    x, slope, sizes = e.var(node.inputs[0]), e.known(node.inputs[1]), shape(node.inputs[0])
    wide = None if slope is None else (1,) * (len(sizes) - slope.ndim) + slope.shape
    if slope is not None and wide is not None and len(sizes) >= 3 and int(np.prod(wide)) == wide[1]:
        alpha = np.broadcast_to(slope.reshape(-1), (sizes[1],))
        e.write(node, e.mb.prelu(x=x, alpha=e.array(np.ascontiguousarray(alpha), "slope"), name=e.name(node)))
        return
    above = e.mb.relu(x=x, name=e.temporary("above"))
    below = e.mb.minimum(x=x, y=e.number(0.0), name=e.temporary("below"))
    bent = e.mb.mul(x=below, y=e.read(node.inputs[1]), name=e.temporary("bent"))
    e.write(node, e.mb.add(x=above, y=bent, name=e.name(node)))


# --- one operand


def unary(op: str, **settings: float | str | None) -> Lower:
    """``settings``: further arguments; a number is written in the node's precision."""

    def lower(e: Emitter, node: ir.Node) -> None:
        more: dict[str, Any] = {k: e.number(v) if isinstance(v, float) else v for k, v in settings.items()}
        e.write(node, getattr(e.mb, op)(x=e.var(node.inputs[0]), **more, name=e.name(node)))

    return lower


def with_attributes(op: str, **defaults: float) -> Lower:
    """An operator whose float attributes have the names and the meaning of ONNX's."""

    def lower(e: Emitter, node: ir.Node) -> None:
        given = {key: e.number(node.attributes.get_float(key, value)) for key, value in defaults.items()}
        e.write(node, getattr(e.mb, op)(x=e.var(node.inputs[0]), **given, name=e.name(node)))

    return lower


def negative(e: Emitter, node: ir.Node) -> None:
    minus = e.number(-1.0) if e.is_float(node.outputs[0]) else np.int32(-1)
    e.write(node, e.mb.mul(x=e.var(node.inputs[0]), y=minus, name=e.name(node)))


def reciprocal(e: Emitter, node: ir.Node) -> None:
    """1 / x, and not MIL's ``inverse``, which adds a constant to x."""
    e.write(node, e.mb.real_div(x=e.number(1.0), y=e.var(node.inputs[0]), name=e.name(node)))


def clip(e: Emitter, node: ir.Node) -> None:
    low, high = _bounds(node)
    x, name = e.var(node.inputs[0]), e.name(node)
    if not e.is_float(node.outputs[0]):
        limits = np.iinfo(np.int32)
        low, high = max(low, limits.min), min(high, limits.max)
        above = e.mb.maximum(x=x, y=np.int32(low), name=e.temporary("above"))
        e.write(node, e.mb.minimum(x=above, y=np.int32(high), name=name))
    elif (low, high) == (0.0, 6.0):
        e.write(node, e.mb.relu6(x=x, name=name))
    elif np.isinf(low) and np.isinf(high):
        e.write(node, e.mb.identity(x=x, name=name))
    elif np.isinf(high):
        e.write(node, e.mb.maximum(x=x, y=e.number(low), name=name))
    elif np.isinf(low):
        e.write(node, e.mb.minimum(x=x, y=e.number(high), name=name))
    else:
        e.write(node, e.mb.clip(x=x, alpha=e.number(low), beta=e.number(high), name=name))


def _bounds(node: ir.Node) -> tuple[float, float]:
    found = [scalar(node.inputs[index]) if index < len(node.inputs) else None for index in (1, 2)]
    low, high = found
    return -np.inf if low is None else low, np.inf if high is None else high


def hard_swish(e: Emitter, node: ir.Node) -> None:
    x = e.var(node.inputs[0])
    gate = e.mb.sigmoid_hard(x=x, alpha=e.number(1 / 6), beta=e.number(0.5), name=e.temporary("gate"))
    e.write(node, e.mb.mul(x=x, y=gate, name=e.name(node)))


def gelu(e: Emitter, node: ir.Node) -> None:
    mode = "TANH_APPROXIMATION" if node.attributes.get_string("approximate", "none") == "tanh" else "EXACT"
    e.write(node, e.mb.gelu(x=e.var(node.inputs[0]), mode=mode, name=e.name(node)))


def selu(e: Emitter, node: ir.Node) -> None:
    alpha, gamma = node.attributes.get_float("alpha", 1.6732632), node.attributes.get_float("gamma", 1.050701)
    bent = e.mb.elu(x=e.var(node.inputs[0]), alpha=e.number(alpha), name=e.temporary("elu"))
    e.write(node, e.mb.mul(x=bent, y=e.number(gamma), name=e.name(node)))


def celu(e: Emitter, node: ir.Node) -> None:
    """α · (exp(x / α) − 1) below zero: an ELU of x / α, times the same α, also where float16 rounds it."""
    alpha = node.attributes.get_float("alpha", 1.0)
    scaled = e.mb.real_div(x=e.var(node.inputs[0]), y=e.number(alpha), name=e.temporary("scaled"))
    bent = e.mb.elu(x=scaled, alpha=e.number(1.0), name=e.temporary("elu"))
    e.write(node, e.mb.mul(x=bent, y=e.number(alpha), name=e.name(node)))


def mish(e: Emitter, node: ir.Node) -> None:
    """x · tanh(softplus(x))."""
    x = e.var(node.inputs[0])
    gate = e.mb.tanh(x=e.mb.softplus(x=x, name=e.temporary("softplus")), name=e.temporary("tanh"))
    e.write(node, e.mb.mul(x=x, y=gate, name=e.name(node)))


CASTS = {
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int32",
    ir.DataType.BOOL: "bool",
}


def cast(e: Emitter, node: ir.Node) -> None:
    x, to = e.var(node.inputs[0]), node.outputs[0].dtype
    dtype = ("fp16" if e.half else "fp32") if to == ir.DataType.FLOAT else CASTS[to]  # type: ignore[index]
    e.write(node, e.mb.cast(x=x, dtype=dtype, name=e.name(node)))


def check_cast(node: ir.Node) -> str | None:
    known = {ir.DataType.FLOAT, *CASTS}
    return None if node.outputs[0].dtype in known else f"a cast to {node.outputs[0].dtype}"


def same(e: Emitter, node: ir.Node) -> None:
    """Operators that do nothing when a model is only run."""
    e.write(node, e.mb.identity(x=e.var(node.inputs[0]), name=e.name(node)))
