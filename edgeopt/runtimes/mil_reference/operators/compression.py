"""Quantization of activations and decompression of weights.

``constexpr_*`` of iOS16 carry their values as attributes and pack bits themselves; those of iOS18 carry them as inputs
in types smaller than a byte. Their parameters differ, so each function takes either form.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.weights import unpack

Array = npt.NDArray[Any]
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Any, axis: Any, rank: int) -> Array:
    """A scalar as it is, a vector along one axis, in float32."""
    array = np.asarray(values, np.float32)
    if array.ndim == 0 or axis is None:
        return array
    return array.reshape([-1 if place == int(axis) % rank else 1 for place in range(rank)])


def quantize(input: Array, scale: Any, output_dtype: str, zero_point: Any = None, axis: Any = None) -> Array:
    """``clip(round(input / scale) + zero_point)``, a tie to the even number, as ONNX's QuantizeLinear."""
    if output_dtype not in LIMITS:
        raise ValueError(f"output_dtype '{output_dtype}' is not known")
    steps = np.rint(input / _along(scale, axis, input.ndim))
    if zero_point is not None:
        steps = steps + _along(zero_point, axis, input.ndim)
    return np.clip(steps, *LIMITS[output_dtype])


def dequantize(input: Array, scale: Any, zero_point: Any = None, axis: Any = None) -> Array:
    """``scale · (input − zero_point)``."""
    real = input.astype(np.float32)
    if zero_point is not None:
        real = real - _along(zero_point, axis, input.ndim)
    return np.asarray(real * _along(scale, axis, input.ndim))


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Any, scale: Any, axis: int) -> Array:
    return dequantize(quantized_data, scale, zero_point, axis)


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Any = None) -> Array:
    """``scale · (data − offset)``, one scale per block: the block's size is what the shapes leave."""
    real = data.astype(np.float32)
    if offset is not None:
        real = real - _spread(np.asarray(offset, np.float32), data.shape)
    return np.asarray(real * _spread(np.asarray(scale, np.float32), data.shape))


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    """Each value repeated over its block; axes of one value are left to broadcasting."""
    if values.ndim != len(shape):
        raise ValueError(f"scales of shape {list(values.shape)} do not fit data of shape {list(shape)}")
    for axis, (count, size) in enumerate(zip(values.shape, shape, strict=True)):
        if size % count:
            raise ValueError(f"{count} scales cannot divide an axis of {size}")
        if count != 1:
            values = np.repeat(values, size // count, axis)
    return values


def constexpr_lut_to_dense(indices: Array, lut: Array, shape: Any = None, vector_axis: Any = None) -> Array:
    """Palette entries by index. iOS16: packed bytes, a palette and a shape; iOS18: a palette per block, of vectors."""
    if shape is not None:
        sizes = [int(size) for size in np.asarray(shape).reshape(-1)]
        bits = round(math.log2(lut.size))
        packed = np.ascontiguousarray(indices, np.uint8).tobytes()
        dtype = f"uint{bits}"
        return lut[unpack(packed, math.prod(sizes), dtype)].reshape(sizes)
    if lut.ndim != indices.ndim + 2:
        raise ValueError(f"a palette of shape {list(lut.shape)} does not fit indices of shape {list(indices.shape)}")
    entries, vector = lut.shape[-2:]
    places = indices.astype(np.int64)
    if places.size and places.max() >= entries:
        raise ValueError(f"index {places.max()} into a palette of {entries}")
    # Which block's palette each index reads, as one number over the palette's leading axes.
    block = np.zeros((1,) * indices.ndim, np.int64)
    for axis, (count, size) in enumerate(zip(lut.shape[:-2], indices.shape, strict=True)):
        if size % count:
            raise ValueError(f"{count} palettes cannot divide an axis of {size}")
        along = np.arange(size) // (size // count)
        block = block * count + along.reshape([-1 if place == axis else 1 for place in range(indices.ndim)])
    found = lut.reshape(-1, entries, vector)[np.broadcast_to(block, indices.shape), places]
    if vector == 1:
        return np.asarray(found[..., 0])
    if vector_axis is None:
        raise ValueError("a palette of vectors needs vector_axis")
    at = int(vector_axis) % indices.ndim
    sizes = [size * vector if axis == at else size for axis, size in enumerate(indices.shape)]
    return np.moveaxis(found, -1, at + 1).reshape(sizes)


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Any = None) -> Array:
    """Zeros but where the mask has a bit. iOS16: packed bits and a shape; iOS18: one value per element."""
    if shape is not None:
        sizes = [int(size) for size in np.asarray(shape).reshape(-1)]
        mask = unpack(np.ascontiguousarray(mask, np.uint8).tobytes(), math.prod(sizes), "uint1").reshape(sizes)
    kept = mask != 0
    if int(kept.sum()) != nonzero_data.size:
        raise ValueError(f"the mask keeps {int(kept.sum())} values; there are {nonzero_data.size}")
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[kept] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Any = None
) -> tuple[Array, Array]:
    """The mask and the values that it keeps, looked up; both grow with the palette's vectors."""
    dense = constexpr_lut_to_dense(
        constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis=vector_axis
    )
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Any = None
) -> tuple[Array, Array]:
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    return source_val


OPERATORS = {
    function.__name__: function
    for function in (
        quantize,
        dequantize,
        constexpr_affine_dequantize,
        constexpr_blockwise_shift_scale,
        constexpr_lut_to_dense,
        constexpr_sparse_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
        constexpr_cast,
    )
}
