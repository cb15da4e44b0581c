"""Operators that move values, or make them from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _ints(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).reshape(-1)]


def reshape(x: Array, shape: Array) -> Array:
    """0 keeps a size, −1 is what is left."""
    wanted = _ints(shape)
    return x.reshape([x.shape[axis] if size == 0 and x.size else size for axis, size in enumerate(wanted)])


def reshape_like(
    x: Array,
    ref_tensors: tuple[Array, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    end_masks: tuple[bool, ...],
) -> Array:
    wanted: list[int] = []
    for tensor, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        wanted += tensor.shape[begin:] if mask else tensor.shape[begin:end]
    return x.reshape(wanted)


def expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(_ints(axes)))


def squeeze(x: Array, axes: Any = None) -> Array:
    """Axes of another size than 1 stay, as in PyTorch."""
    if axes is None:
        return np.squeeze(x)
    return np.squeeze(x, tuple(axis for axis in _ints(axes) if x.shape[axis] == 1))


def transpose(x: Array, perm: Array) -> Array:
    return np.transpose(x, _ints(perm))


def flatten2d(x: Array, axis: int = 1) -> Array:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def concat(values: tuple[Array, ...], axis: int, interleave: bool = False) -> Array:
    parts = [np.atleast_1d(value) for value in values]
    if not interleave:
        return np.concatenate(parts, axis)
    at = axis % parts[0].ndim
    shape = list(parts[0].shape)
    shape[at] *= len(parts)
    return np.stack(parts, at + 1).reshape(shape)


def stack(values: tuple[Array, ...], axis: int) -> Array:
    return np.stack(values, axis)


def split(x: Array, axis: int, num_splits: int | None = None, split_sizes: Any = None) -> tuple[Array, ...]:
    if split_sizes is not None:
        return tuple(np.split(x, np.cumsum(_ints(split_sizes))[:-1], axis))
    if num_splits is None:
        raise ValueError("neither num_splits nor split_sizes is given")
    return tuple(np.split(x, int(num_splits), axis))


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Any = 0.0) -> Array:
    """``pad`` is for the last axes, before and after each."""
    both = np.asarray(pad).reshape(-1, 2).tolist()
    widths = [[0, 0]] * (x.ndim - len(both)) + both
    if mode == "constant":
        return np.pad(x, widths, constant_values=constant_val)
    if mode == "reflect":
        return np.pad(x, widths, "reflect")
    if mode == "replicate":
        return np.pad(x, widths, "edge")
    raise ValueError(f"mode '{mode}' is not known")


def tile(x: Array, reps: Array) -> Array:
    return np.tile(x, _ints(reps))


def reverse(x: Array, axes: Any = None) -> Array:
    return np.flip(x, None if axes is None else tuple(_ints(axes)))


def crop(x: Array, crop_height: Array, crop_width: Array) -> Array:
    (top, bottom), (left, right) = _ints(crop_height), _ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def depth_to_space(x: Array, block_size: int) -> Array:
    """The block's place is the slower part of the channel (TensorFlow's order)."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Array, block_size: int) -> Array:
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """The block's place is the faster part of the channel (PyTorch's order)."""
    n, c, h, w = x.shape
    f = int(upscale_factor)
    return x.reshape(n, c // f**2, f, f, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // f**2, h * f, w * f)


def pixel_unshuffle(x: Array, downscale_factor: int) -> Array:
    n, c, h, w = x.shape
    f = int(downscale_factor)
    return x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * f**2, h // f, w // f)


def space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    """The block's place is the slower part of the batch."""
    height, width = _ints(block_shape)
    x = np.pad(x, ((0, 0), (0, 0), *np.asarray(paddings).tolist()))
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // height, height, w // width, width).transpose(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * height * width, c, h // height, w // width)


def batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    height, width = _ints(block_shape)
    n, c, h, w = x.shape
    blocks = x.reshape(height, width, n // (height * width), c, h, w).transpose(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (height * width), c, h * height, w * width)
    (top, bottom), (left, right) = np.asarray(crops).tolist()
    return crop(whole, np.array([top, bottom]), np.array([left, right]))


def sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> Array:
    at = axis % x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, int(size), at)
    windows = windows[(slice(None),) * at + (slice(None, None, int(stride)),)]
    return np.moveaxis(windows, -1, at + 1)


def shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


def fill(shape: Array, value: Any = 0.0) -> Array:
    return np.full(_ints(shape), value)


def fill_like(ref_tensor: Array, value: Any = 0.0) -> Array:
    return np.full(ref_tensor.shape, value)


def range_1d(start: Any, end: Any, step: Any) -> Array:
    return np.arange(np.asarray(start).item(), np.asarray(end).item(), np.asarray(step).item())


def one_hot(indices: Array, one_hot_vector_size: int, axis: int = -1, on_value: Any = 1, off_value: Any = 0) -> Array:
    places = np.arange(int(one_hot_vector_size))
    hot = np.asarray(indices)[..., None] == places
    return np.moveaxis(np.where(hot, on_value, off_value), -1, axis)


def band_part(x: Array, lower: int = -1, upper: int = -1) -> Array:
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    band = ((lower < 0) | (rows - columns <= lower)) & ((upper < 0) | (columns - rows <= upper))
    return np.where(band, x, np.zeros((), x.dtype))


def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    data = np.flip(x, axis) if reverse else x
    total = np.cumsum(data, axis, dtype=data.dtype)
    if exclusive:
        total = total - data
    return np.flip(total, axis) if reverse else total


def _slices(
    x: Array, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any
) -> tuple[tuple[Any, ...], Sequence[int]]:
    """The slices, and the axes that an index makes go away."""

    def masks(values: Any) -> list[bool]:
        return [False] * x.ndim if values is None else [bool(value) for value in np.asarray(values).reshape(-1)]

    steps = [1] * x.ndim if stride is None else _ints(stride)
    parts: list[Any] = []
    gone = []
    for axis, (first, last, step, open_first, open_last, single) in enumerate(
        zip(_ints(begin), _ints(end), steps, masks(begin_mask), masks(end_mask), masks(squeeze_mask), strict=True)
    ):
        start = None if open_first else first
        if single:
            at = (start or 0) % x.shape[axis]
            parts.append(slice(at, at + 1))
            gone.append(axis)
        else:
            parts.append(slice(start, None if open_last else last, step))
    return tuple(parts), gone


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Array:
    parts, gone = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return np.asarray(np.squeeze(x[parts], tuple(gone)))


def slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Array:
    parts, _ = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.copy()
    result[parts] = np.asarray(update).reshape(result[parts].shape)
    return result


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A size of −1 takes all that is left."""
    parts = []
    for first, count, extent in zip(_ints(begin), _ints(size), x.shape, strict=True):
        start = first % extent if first < 0 else first
        parts.append(slice(start, extent if count == -1 else start + count))
    return x[tuple(parts)]


OPERATORS = {
    function.__name__: function
    for function in (
        reshape,
        reshape_like,
        expand_dims,
        squeeze,
        transpose,
        flatten2d,
        concat,
        stack,
        split,
        pad,
        tile,
        reverse,
        crop,
        depth_to_space,
        space_to_depth,
        pixel_shuffle,
        pixel_unshuffle,
        space_to_batch,
        batch_to_space,
        sliding_windows,
        shape,
        fill,
        fill_like,
        range_1d,
        one_hot,
        band_part,
        cumsum,
        slice_by_index,
        slice_update,
        slice_by_size,
    )
}
