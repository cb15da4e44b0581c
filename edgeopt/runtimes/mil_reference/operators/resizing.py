"""Resizing of spatial axes, each axis by itself: the grid points are those of coremltools' operator reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def grid_points(size: int, count: int, mode: str) -> Array:
    """Where each of ``count`` samples lies on an axis of ``size`` (float64, within the axis)."""
    steps = np.arange(count, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            points = np.array([(size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0])
        else:
            points = steps * ((size - 1) / (count - 1))
    elif mode == "DEFAULT":
        points = steps * (size / count)
    elif mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * (max(1, size - 1) / count)
    elif mode == "UNALIGN_CORNERS":
        points = (steps + 0.5) * (size / count) - 0.5
    else:
        raise ValueError(f"sampling_mode '{mode}' is not known")
    return np.asarray(np.clip(points, 0, size - 1))


def _linear(x: Array, axis: int, count: int, mode: str) -> Array:
    size = x.shape[axis]
    if size == count and mode != "OFFSET_CORNERS":
        return x
    points = grid_points(size, count, mode)
    low = np.minimum(np.floor(points).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = (points - low).astype(np.float32).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    before = np.take(x, low, axis)
    return np.asarray(before + (np.take(x, high, axis) - before) * share)


def _nearest(x: Array, axis: int, count: int, mode: str) -> Array:
    """Rounded down in the default mode, else to the nearest, a tie up: TensorFlow's and PyTorch's rules."""
    points = grid_points(x.shape[axis], count, mode)
    places = np.floor(points if mode == "DEFAULT" else points + 0.5).astype(np.int64)
    return np.asarray(np.take(x, np.minimum(places, x.shape[axis] - 1), axis))


def upsample_nearest_neighbor(x: Array, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Array:
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _nearest(x, axis, math.floor(float(factor) * x.shape[axis]), "DEFAULT")
    return x


def resize_nearest_neighbor(x: Array, target_size_height: int, target_size_width: int) -> Array:
    return _nearest(_nearest(x, -2, int(target_size_height), "DEFAULT"), -1, int(target_size_width), "DEFAULT")


def upsample_bilinear(
    x: Array,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Array:
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _linear(x, axis, math.floor(float(factor) * x.shape[axis]), mode)
    return x


def resize_bilinear(
    x: Array, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Array:
    return _linear(_linear(x, -2, int(target_size_height), sampling_mode), -1, int(target_size_width), sampling_mode)


def resize(
    x: Array, shape: Array, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Array:
    """The last ``resized_dims`` axes; a size of 0 keeps the axis."""
    if interpolation_mode not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise ValueError(f"interpolation_mode '{interpolation_mode}' is not known")
    function = _linear if interpolation_mode == "LINEAR" else _nearest
    sizes = [int(size) for size in np.asarray(shape).reshape(-1)][-int(resized_dims) :]
    for axis, size in enumerate(sizes, x.ndim - len(sizes)):
        x = function(x, axis, size or x.shape[axis], sampling_mode)
    return x


OPERATORS = {
    function.__name__: function
    for function in (upsample_nearest_neighbor, resize_nearest_neighbor, upsample_bilinear, resize_bilinear, resize)
}
