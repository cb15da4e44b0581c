"""Pools over one to three spatial axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.operators.padding import Pads, integers, window_pads

Array = npt.NDArray[Any]


def max_pool(
    x: Array, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: bool = False
) -> Array:
    kernel, steps, pads, out = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return _reduced(_framed(x, kernel, steps, pads, out, -np.inf), kernel, steps, out, np.maximum)


def avg_pool(
    x: Array,
    kernel_sizes: Any,
    pad_type: str,
    strides: Any = None,
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    """Padding counts as zeros unless it is excluded; what ``ceil_mode`` adds behind it never counts, as in PyTorch."""
    kernel, steps, pads, out = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    total = _reduced(_framed(x, kernel, steps, pads, out, 0), kernel, steps, out, np.add)
    ones = np.ones((1, 1, *x.shape[2:]), np.float32)
    if not exclude_padding_from_average:
        ones = np.pad(ones, ((0, 0), (0, 0), *pads), constant_values=1)
        pads = ((0, 0),) * len(pads)
    return total / _reduced(_framed(ones, kernel, steps, pads, out, 0), kernel, steps, out, np.add)


def l2_pool(
    x: Array, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: bool = False
) -> Array:
    kernel, steps, pads, out = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return np.asarray(np.sqrt(_reduced(_framed(x * x, kernel, steps, pads, out, 0), kernel, steps, out, np.add)))


def _geometry(
    x: Array, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: bool
) -> tuple[tuple[int, ...], tuple[int, ...], Pads, tuple[int, ...]]:
    axes = x.ndim - 2
    kernel, steps = integers(kernel_sizes, axes, 1), integers(strides, axes, 1)
    pads = window_pads(pad_type, pad, x.shape[2:], kernel, steps, (1,) * axes)
    out = []
    for size, k, step, (before, after) in zip(x.shape[2:], kernel, steps, pads, strict=True):
        room = size + before + after - k
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and before + after and (count - 1) * step >= size + before:
            count -= 1  # a window must begin inside the input or its left padding
        out.append(count)
    return kernel, steps, pads, tuple(out)


def _framed(
    x: Array, kernel: Sequence[int], strides: Sequence[int], pads: Pads, out: Sequence[int], fill: Any
) -> Array:
    """``x`` with its padding, and with as much more behind it as the last window reaches."""
    frame = []
    for size, k, step, (before, after), count in zip(x.shape[2:], kernel, strides, pads, out, strict=True):
        frame.append((before, max(after, (count - 1) * step + k - size - before)))
    return x if not any(map(any, frame)) else np.pad(x, ((0, 0), (0, 0), *frame), constant_values=fill)


def _reduced(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    out: Sequence[int],
    function: Callable[[Array, Array], Array],
) -> Array:
    """One strided view per place in the window, taken together."""
    result: Array | None = None
    for place in itertools.product(*map(range, kernel)):
        parts = (
            slice(begin, begin + (count - 1) * step + 1, step)
            for begin, count, step in zip(place, out, strides, strict=True)
        )
        view = x[(slice(None), slice(None), *parts)]
        result = view.copy() if result is None else function(result, view)
    assert result is not None
    return result


OPERATORS = {function.__name__: function for function in (max_pool, avg_pool, l2_pool)}
