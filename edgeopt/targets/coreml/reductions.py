"""Reductions, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeopt.graph.model import constant, shape
from edgeopt.targets.coreml.emit import Array, Emitter

Lower = Callable[[Emitter, ir.Node], None]


def _constant_input(node: ir.Node, index: int) -> Array | None:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def global_pool(op: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        axes = list(range(2, len(shape(node.inputs[0]))))
        e.write(node, getattr(e.mb, op)(x=e.var(node.inputs[0]), axes=axes, keep_dims=True, name=e.name(node)))

    return lower


def _axes(node: ir.Node) -> list[int]:
    rank = len(shape(node.inputs[0]))
    given = _constant_input(node, 1)
    found = node.attributes.get_ints("axes") if given is None else given.reshape(-1)
    return sorted(int(axis) % rank for axis in found) if found is not None and len(found) else list(range(rank))


def reduce(op: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        keep = bool(node.attributes.get_int("keepdims", 1))
        x = e.var(node.inputs[0])
        e.write(node, getattr(e.mb, op)(x=x, axes=_axes(node), keep_dims=keep, name=e.name(node)))

    return lower


def check_reduce(node: ir.Node) -> str | None:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None and constant(given) is None:
        return "axes that are computed"
    if node.attributes.get_int("noop_with_empty_axes", 0) and given is None:
        return "a reduction over nothing"
    return None


def reduce_log_sum(e: Emitter, node: ir.Node) -> None:
    keep = bool(node.attributes.get_int("keepdims", 1))
    x = e.var(node.inputs[0])
    summed = e.mb.reduce_sum(x=x, axes=_axes(node), keep_dims=keep, name=e.temporary("sum"))
    e.write(node, e.mb.log(x=summed, epsilon=e.number(0.0), name=e.name(node)))


def softmax(e: Emitter, node: ir.Node) -> None:
    axis = node.attributes.get_int("axis", -1) % len(shape(node.inputs[0]))
    e.write(node, e.mb.softmax(x=e.var(node.inputs[0]), axis=axis, name=e.name(node)))


def log_softmax(e: Emitter, node: ir.Node) -> None:
    """(x − max) − log(sum(exp(x − max))), which cannot underflow as the logarithm of a softmax does."""
    x, axis = e.var(node.inputs[0]), node.attributes.get_int("axis", -1) % len(shape(node.inputs[0]))
    largest = e.mb.reduce_max(x=x, axes=[axis], keep_dims=True, name=e.temporary("max"))
    below = e.mb.sub(x=x, y=largest, name=e.temporary("below"))
    summed = e.mb.reduce_sum(
        x=e.mb.exp(x=below, name=e.temporary("exp")), axes=[axis], keep_dims=True, name=e.temporary("sum")
    )
    logarithm = e.mb.log(x=summed, epsilon=e.number(0.0), name=e.temporary("log"))
    e.write(node, e.mb.sub(x=below, y=logarithm, name=e.name(node)))


def arg(op: str) -> Lower:
    def lower(e: Emitter, node: ir.Node) -> None:
        axis = node.attributes.get_int("axis", 0) % len(shape(node.inputs[0]))
        keep = bool(node.attributes.get_int("keepdims", 1))
        e.write(node, getattr(e.mb, op)(x=e.var(node.inputs[0]), axis=axis, keep_dims=keep, name=e.name(node)))

    return lower


def check_arg(node: ir.Node) -> str | None:
    return "the last of equal values" if node.attributes.get_int("select_last_index", 0) else None


# --- normalisations


def check_normalization(node: ir.Node) -> str | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "the mean or deviation as outputs"
    return None if _constant_input(node, 1) is not None else "a scale that is computed"


def layer_normalization(e: Emitter, node: ir.Node) -> None:
    sizes = shape(node.inputs[0])
    first = node.attributes.get_int("axis", -1) % len(sizes)
    inner = sizes[first:]
    given = {}
    for name, index in (("gamma", 1), ("beta", 2)):
        array = _constant_input(node, index)
        if array is not None:
            given[name] = e.array(np.ascontiguousarray(np.broadcast_to(array, inner)), name)
    e.write(
        node,
        e.mb.layer_norm(
            x=e.var(node.inputs[0]),
            axes=list(range(first, len(sizes))),
            epsilon=e.number(node.attributes.get_float("epsilon", 1e-5)),
            **given,
            name=e.name(node),
        ),
    )


def instance_normalization(e: Emitter, node: ir.Node) -> None:
    """Over each image's pixels. MIL's operator has two spatial axes at most; more are read as one."""
    scale, bias = _constant_input(node, 1), _constant_input(node, 2)
    assert scale is not None and bias is not None
    sizes, x = shape(node.inputs[0]), e.var(node.inputs[0])
    flat = len(sizes) > 4
    if flat:
        x = e.reshape(x, (*sizes[:2], int(np.prod(sizes[2:]))), e.temporary("flat"), sizes)
    result = e.mb.instance_norm(
        x=x,
        gamma=e.array(scale, "scale"),
        beta=e.array(bias, "bias"),
        epsilon=e.number(node.attributes.get_float("epsilon", 1e-5)),
        name=e.temporary("flat_norm") if flat else e.name(node),
    )
    if flat:
        result = e.reshape(result, sizes, e.name(node), (*sizes[:2], int(np.prod(sizes[2:]))))
    e.write(node, result)


def batch_normalization(e: Emitter, node: ir.Node) -> None:
    """One product and one sum per channel; a canonical graph has it only where no convolution could take it."""
    scale, bias, mean, variance = (_constant_input(node, index) for index in (1, 2, 3, 4))
    assert scale is not None and bias is not None and mean is not None and variance is not None
    factor = scale / np.sqrt(variance.astype(np.float64) + node.attributes.get_float("epsilon", 1e-5))
    offset = bias - mean * factor
    along = (1, -1, *(1,) * (len(shape(node.inputs[0])) - 2))
    scaled = e.mb.mul(
        x=e.var(node.inputs[0]),
        y=e.array(factor.astype(np.float32).reshape(along), "factor"),
        name=e.temporary("scaled"),
    )
    e.write(node, e.mb.add(x=scaled, y=e.array(offset.astype(np.float32).reshape(along), "offset"), name=e.name(node)))


def check_lp_normalization(node: ir.Node) -> str | None:
    return None if node.attributes.get_int("p", 2) in (1, 2) else "a norm other than L1 and L2"


def lp_normalization(e: Emitter, node: ir.Node) -> None:
    x, axis = e.var(node.inputs[0]), node.attributes.get_int("axis", -1) % len(shape(node.inputs[0]))
    op = "reduce_l2_norm" if node.attributes.get_int("p", 2) == 2 else "reduce_l1_norm"
    norm = getattr(e.mb, op)(x=x, axes=[axis], keep_dims=True, name=e.temporary("norm"))
    e.write(node, e.mb.real_div(x=x, y=norm, name=e.name(node)))


def check_local_response(node: ir.Node) -> str | None:
    return None if node.attributes.get_int("size", 1) % 2 else "an even window"


def local_response_normalization(e: Emitter, node: ir.Node) -> None:
    e.write(
        node,
        e.mb.local_response_norm(
            x=e.var(node.inputs[0]),
            size=node.attributes.get_int("size", 1),
            alpha=e.number(node.attributes.get_float("alpha", 1e-4)),
            beta=e.number(node.attributes.get_float("beta", 0.75)),
            k=e.number(node.attributes.get_float("bias", 1.0)),
            name=e.name(node),
        ),
    )
