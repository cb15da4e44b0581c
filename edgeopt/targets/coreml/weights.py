"""Compressed weights: constants that the runtime, or its compiler, makes floats of.

From iOS16 on there are ``constexpr_affine_dequantize`` and ``constexpr_lut_to_dense`` with packed indices; from iOS18
on ``constexpr_blockwise_shift_scale`` and a ``constexpr_lut_to_dense`` with typed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.compression import Blocks, Palette
from edgeopt.graph.half import SMALLEST_HALF
from edgeopt.graph.qdq import DEQUANTIZED_SUFFIX, INTEGERS_SUFFIX
from edgeopt.graph.quantization import Quantization
from edgeopt.targets.coreml.emit import Array, Emitter, Var

Write = Callable[[Emitter, str], Var]


def writers(table: Quantization, *, modern: bool) -> Mapping[str, Write]:
    """Name of a decompressed weight in the Q/DQ graph → what writes it. ``modern``: with the operators of iOS18."""

    def writer(name: str, stored: Palette | Blocks) -> Write:
        def write(e: Emitter, _: str) -> Var:
            var = _palette(e, name, stored, modern) if isinstance(stored, Palette) else _blocks(e, name, stored)
            e.weight_vars[name] = var.name
            return var

        return write

    return {name + DEQUANTIZED_SUFFIX: writer(name, stored) for name, stored in table.compressed.items()}


def integers(e: Emitter, dequantize: ir.Node, *, modern: bool) -> Var:
    """int8 weights with one scale per channel or per tensor."""
    value = dequantize.inputs[0]
    stored, scale = e.known(value), e.known(dequantize.inputs[1])
    assert value is not None and stored is not None and scale is not None
    name = (value.name or "weight").removesuffix(INTEGERS_SUFFIX)
    axis = dequantize.attributes.get_int("axis", 0) % stored.ndim if scale.ndim else 0
    scales = _scales(e, scale, name)
    if modern:
        along = [1] * stored.ndim
        if scale.ndim:
            along[axis] = -1
        var = e.mb.constexpr_blockwise_shift_scale(data=stored, scale=scales.reshape(along), name=e.temporary("weight"))
    else:
        var = e.mb.constexpr_affine_dequantize(
            quantized_data=stored, zero_point=np.int8(0), scale=scales, axis=axis, name=e.temporary("weight")
        )
    e.weight_vars[name] = var.name
    found: Var = var
    return found


def _scales(e: Emitter, scale: Array, name: str) -> Array:
    """In the node's precision; a scale that float16 would make zero is that of a channel of zeros."""
    return e.floats(np.maximum(scale, SMALLEST_HALF) if e.half else scale, f"scale of {name}")


def _blocks(e: Emitter, name: str, stored: Blocks) -> Var:
    from coremltools.converters.mil.mil.types import np_int4_dtype

    data = stored.integers.astype(np_int4_dtype)
    scale = _scales(e, stored.scale, name)
    found: Var = e.mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=e.temporary("weight"))
    return found


def _palette(e: Emitter, name: str, stored: Palette, modern: bool) -> Var:
    values = e.floats(stored.values, f"palette of {name}")
    found: Var
    if modern:
        from coremltools.converters.mil.mil import types

        dtype: Any = {4: types.np_uint4_dtype, 6: types.np_uint6_dtype, 8: np.uint8}[stored.bits]
        lut = values.reshape((1,) * stored.indices.ndim + (len(values), 1))
        found = e.mb.constexpr_lut_to_dense(indices=stored.indices.astype(dtype), lut=lut, name=e.temporary("weight"))
    else:
        found = e.mb.constexpr_lut_to_dense(
            indices=packed(stored.indices, stored.bits),
            lut=values,
            shape=np.asarray(stored.indices.shape, np.uint32),
            name=e.temporary("weight"),
        )
    return found


def packed(indices: Array, bits: int) -> Array:
    """Indices one behind the other, each from its lowest bit on, bytes filled from their lowest bit on."""
    each = (indices.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(each.astype(np.uint8).reshape(-1), bitorder="little")
