"""Gathering, scattering and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def gather(x: Array, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Array:
    """Negative indices count from the end; the first ``batch_dims`` axes of both go together."""
    places = np.asarray(indices)
    if not batch_dims:
        return np.take(x, places, axis)
    batch = x.shape[:batch_dims]
    flat, flat_places = x.reshape(-1, *x.shape[batch_dims:]), places.reshape(-1, *places.shape[batch_dims:])
    at = axis % x.ndim - batch_dims
    rows = np.stack([np.take(row, place, at) for row, place in zip(flat, flat_places, strict=True)])
    return rows.reshape(*batch, *rows.shape[1:])


def gather_along_axis(x: Array, indices: Array, axis: int = 0, validate_indices: bool = False) -> Array:
    return np.take_along_axis(x, indices.astype(np.int64), axis)


def gather_nd(x: Array, indices: Array, batch_dims: int = 0, validate_indices: bool = False) -> Array:
    if not batch_dims:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    batch = x.shape[:batch_dims]
    flat, places = x.reshape(-1, *x.shape[batch_dims:]), indices.reshape(-1, *indices.shape[batch_dims:])
    rows = np.stack([row[tuple(np.moveaxis(place, -1, 0))] for row, place in zip(flat, places, strict=True)])
    return rows.reshape(*batch, *rows.shape[1:])


def _put(data: Array, places: Any, updates: Array, mode: str) -> Array:
    """``data`` with ``updates`` put at ``places``; equal places add up."""
    result = data.copy()
    if mode == "update":
        result[places] = updates
        return result
    functions: dict[str, Any] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "max": np.maximum,
        "min": np.minimum,
    }
    if mode not in functions:
        raise ValueError(f"mode '{mode}' is not known")
    functions[mode].at(result, places, updates)
    return result


def scatter(
    data: Array, indices: Array, updates: Array, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Array:
    return _put(data, (slice(None),) * (axis % data.ndim) + (indices,), updates, mode)


def scatter_along_axis(
    data: Array, indices: Array, updates: Array, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Array:
    places: list[Any] = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return _put(data, tuple(places), updates, mode)


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: bool = False) -> Array:
    return _put(data, tuple(np.moveaxis(indices, -1, 0)), updates, mode)


def non_zero(x: Array) -> Array:
    return np.argwhere(x)


def _order(x: Array, axis: int, ascending: bool) -> Array:
    """Indices that sort; of equal values the first comes first."""
    key = x if ascending else -x.astype(np.int64) if x.dtype.kind in "iub" else -x
    return np.argsort(key, axis=axis, kind="stable")


def argsort(x: Array, axis: int = -1, ascending: bool = False) -> Array:
    return _order(x, axis, ascending)


def topk(
    x: Array,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str | None = None,
) -> tuple[Array, ...]:
    """Always sorted: without ``sort`` any order is right."""
    order = np.take(_order(x, axis, ascending), np.arange(int(k)), axis)
    values = np.take_along_axis(x, order, axis)
    return (values, order) if return_indices else (values,)


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        gather,
        gather_along_axis,
        gather_nd,
        scatter,
        scatter_along_axis,
        scatter_nd,
        non_zero,
        argsort,
        topk,
    )
}
