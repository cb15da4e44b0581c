"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Axes = tuple[int, ...] | None


def _log_sum_exp(x: Array, axis: Axes, keepdims: bool) -> Array:
    largest = x.max(axis=axis, keepdims=True)
    total = np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return np.asarray(total if keepdims else total.squeeze(axis))


REDUCTIONS: dict[str, Callable[[Array, Axes, bool], Any]] = {
    "reduce_l1_norm": lambda x, axis, keep: np.abs(x).sum(axis=axis, keepdims=keep),
    "reduce_l2_norm": lambda x, axis, keep: np.sqrt(np.square(x).sum(axis=axis, keepdims=keep)),
    "reduce_log_sum": lambda x, axis, keep: np.log(x.sum(axis=axis, keepdims=keep)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": lambda x, axis, keep: x.max(axis=axis, keepdims=keep),
    "reduce_mean": lambda x, axis, keep: x.mean(axis=axis, keepdims=keep),
    "reduce_min": lambda x, axis, keep: x.min(axis=axis, keepdims=keep),
    "reduce_prod": lambda x, axis, keep: x.prod(axis=axis, keepdims=keep),
    "reduce_sum": lambda x, axis, keep: x.sum(axis=axis, keepdims=keep),
    "reduce_sum_square": lambda x, axis, keep: np.square(x).sum(axis=axis, keepdims=keep),
}


def _over_axes(function: Callable[[Array, Axes, bool], Any]) -> Callable[..., Array]:
    def evaluate(x: Array, axes: Any = None, keep_dims: bool = False) -> Array:
        over = None if axes is None else tuple(int(axis) for axis in np.asarray(axes).reshape(-1))
        return np.asarray(function(x, over, bool(keep_dims)))

    return evaluate


def _argument(function: Callable[..., Any]) -> Callable[..., Array]:
    """``output_dtype`` (iOS17) is the declared dtype, to which the caller brings the result."""

    def evaluate(x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str | None = None) -> Array:
        return np.asarray(function(x, axis=axis, keepdims=bool(keep_dims)))

    return evaluate


OPERATORS = {
    **{name: _over_axes(function) for name, function in REDUCTIONS.items()},
    "reduce_argmax": _argument(np.argmax),
    "reduce_argmin": _argument(np.argmin),
}
