"""Weights and biases as a node's scheme stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.errors import TargetError
from edgeopt.graph.quantization import QuantParams
from edgeopt.targets.tflite.attributes import constant
from edgeopt.targets.tflite.emit import Emitter, Stored

Array = npt.NDArray[Any]


def weight_of(e: Emitter, node: ir.Node, array: Array, scale_axis: int, permute: Any) -> int:
    """The weight of ``node`` as its scheme stores it.

    Args:
        node: the weighted node; its weight is input 1.
        array: the float weight.
        scale_axis: channel axis in the file.
        permute: function from the graph's layout of the weight to the file's.
    """
    value = node.inputs[1]
    assert value is not None
    name = value.name or "weight"
    stored = e.table.weights.get(name)
    if e.scheme in ("int8", "int8-weights", "int8-dynamic") and stored is not None:
        integers = permute(stored.integers)
        scale = stored.params.scale
        if scale.ndim and scale.size != integers.shape[scale_axis]:  # a grouped transposed convolution made dense
            scale = np.tile(scale, integers.shape[scale_axis] // scale.size)
        grid = QuantParams(scale, np.zeros(scale.shape, np.int32), scale_axis if scale.ndim else None)
        index = e.constant(name, integers, grid=grid, axis=scale_axis if scale.ndim else 0)
        return index if e.native or e.scheme == "int8-dynamic" else e.dequantized(index, name)
    if e.scheme == "fp16":
        return e.dequantized(e.constant(name, half(permute(array), name)), name)
    return e.constant(name, permute(array))


def bias_of(e: Emitter, node: ir.Node, channels: int, x: Stored, weight: int, *, more: float = 0.0) -> int:
    """The bias: int32 on the grid of input scale · weight scale, or float32. Zeros are made if there is none.

    ``more`` is added to it, in float.
    """
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(value)
    if array is None:
        array = np.zeros(channels, np.float32)
    array = array.reshape(-1)
    hint = (value.name if value is not None else None) or f"{node.name}/bias"
    if not e.native:
        return e.constant(hint, array + np.float32(more) if more else array)
    scale_in = e.model.tensors[x.index].scale
    scale_weight = e.model.tensors[weight].scale
    assert scale_in is not None and scale_weight is not None
    # The product of two tiny scales can vanish, and no runtime takes a scale of 0.
    scale = np.maximum((scale_in * scale_weight).astype(np.float32), np.finfo(np.float32).tiny)
    integers = e.table.biases.get(hint)
    if integers is None:
        limit = np.iinfo(np.int32)
        # Scales can be so small that a bias leaves int32; then it saturates, as every runtime would.
        integers = np.clip(np.rint(array.astype(np.float64) / scale), limit.min, limit.max).astype(np.int32)
    grid = QuantParams(scale if scale.size > 1 else scale[0], np.zeros(scale.shape if scale.size > 1 else ()),
                       0 if scale.size > 1 else None)  # fmt: skip
    return e.constant(hint, integers.reshape(-1).astype(np.int32), grid=grid)


def weight_scale(e: Emitter, node: ir.Node) -> Array | None:
    """Scale of an int8 weight of the table."""
    value = node.inputs[1]
    stored = None if value is None else e.table.weights.get(value.name or "")
    return None if stored is None else stored.params.scale


def half(array: Array, name: str) -> Array:
    """float16; TargetError where a value does not fit."""
    if array.size and float(np.abs(array).max()) > float(np.finfo(np.float16).max):
        raise TargetError(
            "has values above 65504, which float16 cannot hold", where=f"weight {name}", hint="Keep this node in fp32."
        )
    return array.astype(np.float16)
