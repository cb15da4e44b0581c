"""Normalizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _channels(values: Any, x: Array) -> Array:
    return np.asarray(values).reshape(1, -1, *(1,) * (x.ndim - 2))


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> Array:
    y = (x - _channels(mean, x)) / np.sqrt(_channels(variance, x) + np.float32(epsilon))
    return _scaled(y, None if gamma is None else _channels(gamma, x), None if beta is None else _channels(beta, x))


def instance_norm(x: Array, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Array:
    y = _normalised(x, tuple(range(2, x.ndim)), epsilon)
    return _scaled(y, None if gamma is None else _channels(gamma, x), None if beta is None else _channels(beta, x))


def layer_norm(x: Array, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Array:
    over = tuple(range(x.ndim)) if axes is None else tuple(int(axis) % x.ndim for axis in np.asarray(axes).reshape(-1))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    return _scaled(
        _normalised(x, over, epsilon),
        None if gamma is None else np.asarray(gamma).reshape(shape),
        None if beta is None else np.asarray(beta).reshape(shape),
    )


def l2_norm(x: Array, epsilon: Any = 1e-6) -> Array:
    """Over the last three axes."""
    squares = np.square(x).sum(axis=(-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(squares + np.float32(epsilon)))


def local_response_norm(x: Array, size: int, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Array:
    """Over ``size`` neighbouring channels, of which the smaller half lies before, as in PyTorch."""
    squares = np.pad(np.square(x), ((0, 0), (size // 2, (size - 1) // 2), *((0, 0),) * (x.ndim - 2)))
    total = sum(squares[:, place : place + x.shape[1]] for place in range(size))
    return np.asarray(x / np.power(np.float32(k) + np.float32(alpha) / np.float32(size) * total, np.float32(beta)))


def _normalised(x: Array, axes: tuple[int, ...], epsilon: Any) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + np.float32(epsilon)))


def _scaled(y: Array, gamma: Array | None, beta: Array | None) -> Array:
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


OPERATORS = {
    function.__name__: function for function in (batch_norm, instance_norm, layer_norm, l2_norm, local_response_norm)
}
