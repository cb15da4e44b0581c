"""Reads of a canonical node: static shapes, attributes, constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import ModelError

Array = npt.NDArray[Any]


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Static shape; a canonical graph has no other."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise ModelError("has no static shape", where=f"tensor {value.name if value else '(absent)'}")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]  # checked above


def constant(value: ir.Value | None) -> Array | None:
    """The values of a constant, or None for what is computed or absent."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def constant_input(node: ir.Node, index: int) -> Array | None:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def has_input(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(int(value) for value in attribute.as_ints())


def axes_of(node: ir.Node, rank: int, index: int = 1) -> tuple[int, ...]:
    """Axes of a reduction: attribute, or constant input ``index``; all of them by default. Not negative, sorted."""
    given: Sequence[int] = ints(node, "axes")
    if not given and (values := constant_input(node, index)) is not None:
        given = [int(axis) for axis in np.atleast_1d(values)]
    return tuple(sorted(axis % rank for axis in given)) if given else tuple(range(rank))


def floats_input(node: ir.Node, index: int, default: float) -> float:
    """A scalar constant input, or the default where it is left out."""
    values = constant_input(node, index)
    return default if values is None or values.size == 0 else float(values.reshape(-1)[0])


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Lower and upper bound of a Relu or Clip."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    return floats_input(node, 1, -float("inf")), floats_input(node, 2, float("inf"))
