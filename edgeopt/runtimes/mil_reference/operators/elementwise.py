"""Elementwise operators of MIL. Floats arrive in float32 whatever they are declared as; the caller rounds results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _with_epsilon(x: Array, epsilon: Any) -> Array:
    return np.asarray(x + np.float32(epsilon))


def log(x: Array, epsilon: Any = 1e-45) -> Array:
    return np.asarray(np.log(_with_epsilon(x, epsilon)))


def inverse(x: Array, epsilon: Any = 1e-4) -> Array:
    return np.asarray(np.float32(1) / _with_epsilon(x, epsilon))


def rsqrt(x: Array, epsilon: Any = 1e-12) -> Array:
    return np.asarray(np.float32(1) / np.sqrt(_with_epsilon(x, epsilon)))


def clip(x: Array, alpha: Any, beta: Any) -> Array:
    return np.asarray(np.minimum(np.maximum(x, alpha), beta))


def threshold(x: Array, alpha: Any) -> Array:
    return np.asarray(np.maximum(x, alpha))


def erf(x: Array) -> Array:
    """The error function: torch's where it is loaded, else the standard library's, value by value."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        result: Array = torch.special.erf(torch.tensor(np.asarray(x, np.float32))).numpy()
        return result
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), np.float32)


def cast(x: Array, dtype: str) -> Array:
    """The result is brought to its declared dtype by the caller: floats to integers are cut towards zero."""
    return x


def identity(x: Array) -> Array:
    return x


def select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond, a, b)


def real_div(x: Array, y: Array) -> Array:
    return np.asarray(np.true_divide(x, y))


def logical_not(x: Array) -> Array:
    return np.logical_not(x)


def _unary(function: Any) -> Any:
    def evaluate(x: Array) -> Any:
        return function(x)

    return evaluate


def _binary(function: Any) -> Any:
    def evaluate(x: Array, y: Array) -> Any:
        return function(x, y)

    return evaluate


UNARY = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "round": np.round,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
OPERATORS = {
    **{name: _unary(function) for name, function in UNARY.items()},
    **{name: _binary(function) for name, function in BINARY.items()},
    "real_div": real_div,
    "log": log,
    "inverse": inverse,
    "rsqrt": rsqrt,
    "clip": clip,
    "threshold": threshold,
    "erf": erf,
    "cast": cast,
    "identity": identity,
    "select": select,
    "logical_not": logical_not,
}
