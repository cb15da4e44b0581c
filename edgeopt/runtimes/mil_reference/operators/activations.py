"""Activation functions of MIL, by the formulas of coremltools' operator reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.runtimes.mil_reference.operators.elementwise import erf

Array = npt.NDArray[Any]


def relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, np.float32(0)), np.float32(6))


def clamped_relu(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(np.minimum(np.where(x >= 0, x, alpha * x), beta))


def elu(x: Array, alpha: Any) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return np.asarray(np.float32(0.5) * x * (np.float32(1) + erf(x / np.float32(math.sqrt(2)))))
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (np.float32(1) + np.tanh(inner)))
    if mode == "SIGMOID_APPROXIMATION":
        return np.asarray(x * sigmoid(np.float32(1.702) * x))
    raise ValueError(f"mode '{mode}' is not known")


def leaky_relu(x: Array, alpha: Any) -> Array:
    return np.where(x >= 0, x, alpha * x)


def linear_activation(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(alpha * x + beta)


def _per_channel(values: Any, x: Array) -> Array:
    """A vector over axis 1."""
    return np.asarray(values).reshape([-1 if axis == 1 else 1 for axis in range(x.ndim)])


def prelu(x: Array, alpha: Any) -> Array:
    return np.where(x > 0, x, _per_channel(alpha, x) * x)


def scaled_tanh(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(alpha * np.tanh(beta * x))


def sigmoid(x: Array) -> Array:
    return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-x)))


def sigmoid_hard(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(np.minimum(np.maximum(alpha * x + beta, np.float32(0)), np.float32(1)))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def softplus(x: Array) -> Array:
    return np.asarray(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, np.float32(0)))


def softplus_parametric(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(_per_channel(alpha, x) * softplus(_per_channel(beta, x) * x))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def softsign(x: Array) -> Array:
    return np.asarray(x / (np.float32(1) + np.abs(x)))


def thresholded_relu(x: Array, alpha: Any) -> Array:
    return np.where(x >= alpha, x, np.float32(0))


OPERATORS = {
    function.__name__: function
    for function in (
        relu,
        relu6,
        clamped_relu,
        elu,
        gelu,
        leaky_relu,
        linear_activation,
        prelu,
        scaled_tanh,
        sigmoid,
        sigmoid_hard,
        silu,
        softplus,
        softplus_parametric,
        softmax,
        softsign,
        thresholded_relu,
    )
}
