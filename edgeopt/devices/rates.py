"""The latency model: a kernel's time is the sum of what it does, each at a rate of the configuration.

A *configuration* is a device with a runtime, unit, precision, thread count and measuring campaign. Its run of a model
takes ``Σⱼ exp(θⱼ)·xⱼ`` ms, where x are the model's quantities (``kernels.QUANTITIES``). The log rates θ of all
configurations of a group share a normal prior, N(mean, covariance), which was estimated from all of them (empirical
Bayes; Efron and Morris 1975): with many rows a configuration's rates are its own, with three they lean on the group,
with none they are the group's. What the sum misses in the same way for like models is added in log latency by a
Gaussian process on the models' composition (Rasmussen and Williams 2006, ch. 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Residuals:
    """Parameters of the Gaussian processes: variances (log latency squared) and lengths (in composition)."""

    shared: float = 0.03
    identity: float = 0.02
    length: float = 0.2
    own: float = 0.02
    own_length: float = 0.2
    size_weight: float = 0.05


PROCESS = Residuals()


def log_latency(x: Array, theta: Array) -> Array:
    """log ms of models with quantities ``x`` (models, quantities) at log rates ``theta``."""
    log_ms: Array = np.log(np.maximum(x @ np.exp(theta), 1e-12))
    return log_ms


def shares(x: Array, theta: Array) -> Array:
    """Share of each quantity in the time, shape of ``x``."""
    times = x * np.exp(theta)
    found: Array = times / np.maximum(times.sum(1, keepdims=True), 1e-12)
    return found


def composition(x: Array, mean: Array) -> Array:
    """Where models lie for the processes: square roots of their time shares at the group's rates, and their size."""
    size = np.log(x[:, 2:8].sum(1, keepdims=True) + 1e-3)
    kernels = np.log(x[:, :1] + 1)
    return np.hstack([np.sqrt(shares(x, mean)), PROCESS.size_weight * size, PROCESS.size_weight * kernels])


def likeness(a: Array, b: Array, length: float) -> Array:
    """Squared-exponential kernel between rows of compositions."""
    distance = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    likeness: Array = np.exp(-distance / (2 * length**2))
    return likeness


def fit_rates(
    x: Array,
    y: Array,
    mean: Array,
    precision: Array,
    noise: Array | float,
    start: Array | None = None,
    *,
    steps: int = 12,
) -> tuple[Array, Array]:
    """The most probable log rates given log latencies ``y``, by damped Gauss-Newton, and their covariance.

    Args:
        x: (rows, quantities).
        y: (rows,), log ms.
        mean, precision: of the prior.
        noise: variance of a row in log latency, or the rows' covariance (rows, rows).
        start: where to begin; the mean by default.
    """
    weight = np.eye(len(y)) / noise if np.ndim(noise) == 0 else np.linalg.inv(np.asarray(noise))
    theta = (mean if start is None else start).copy()

    def objective(at: Array) -> tuple[float, Array]:
        error = log_latency(x, at) - y
        return float(error @ weight @ error + (at - mean) @ precision @ (at - mean)), error

    value, error = objective(theta)
    for _ in range(steps):
        slope = shares(x, theta)
        curvature = slope.T @ weight @ slope + precision
        step = np.clip(np.linalg.solve(curvature, slope.T @ weight @ error + precision @ (theta - mean)), -2, 2)
        damping = 1.0
        while True:
            candidate = theta - damping * step
            new_value, new_error = objective(candidate)
            if new_value <= value or damping < 0.01:
                break
            damping /= 2
        if new_value > value:
            break
        done = value - new_value < 1e-6 * abs(value)
        theta, value, error = candidate, new_value, new_error
        if done:
            break
    slope = shares(x, theta)
    covariance: Array = np.asarray(np.linalg.inv(slope.T @ weight @ slope + precision), np.float64)
    return theta, covariance
