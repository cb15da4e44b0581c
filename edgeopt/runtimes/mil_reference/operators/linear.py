"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.operators.activations import softmax

Array = npt.NDArray[Any]


def linear(x: Array, weight: Array, bias: Any = None) -> Array:
    """``x · weightᵀ + bias`` over the last axis."""
    y = np.matmul(x, weight.T)
    return y if bias is None else np.asarray(y + bias)


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    left = np.swapaxes(x, -1, -2) if transpose_x and x.ndim > 1 else x
    right = np.swapaxes(y, -1, -2) if transpose_y and y.ndim > 1 else y
    return np.asarray(np.matmul(left, right))


def einsum(values: tuple[Array, ...], equation: str) -> Array:
    """Sizes of 1 are broadcast, which ``numpy.einsum`` does too."""
    return np.asarray(np.einsum(equation, *values, optimize=True))


def scaled_dot_product_attention(query: Array, key: Array, value: Array, attn_mask: Any = None) -> Array:
    """``softmax(query · keyᵀ / √E + mask) · value``; a boolean mask keeps where it is true."""
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        mask = np.asarray(attn_mask)
        scores = scores + (np.where(mask, np.float32(0), np.float32(-np.inf)) if mask.dtype == bool else mask)
    return np.asarray(np.matmul(softmax(scores), value))


OPERATORS = {function.__name__: function for function in (linear, matmul, einsum, scaled_dot_product_attention)}
