"""Rates of a device that the data do not have: from its relatives, from its peaks, and from a few probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeopt.devices import rates
from edgeopt.devices.kernels import COMPUTE, OVERHEAD, QUANTITIES

Array = npt.NDArray[np.float64]

_IS_COMPUTE: Array = np.array([float(name in COMPUTE) for name in QUANTITIES])
_IS_OVERHEAD: Array = np.array([float(name in OVERHEAD) for name in QUANTITIES])
_IS_MEMORY: Array = 1 - _IS_COMPUTE - _IS_OVERHEAD
RELATIVE_WEIGHT = 2.0
"""How many group means one relative counts for."""


@dataclass(frozen=True)
class Speed:
    """What rates scale by: arithmetic in 10⁹ operations per second, values read or written per ns. None: not known."""

    peak_gops: float | None
    values_per_ns: float | None


def by_proportion(theta: Array, of: Speed, to: Speed, *, host: bool) -> Array:
    """Log rates of one device brought to another: arithmetic by peaks, memory by bandwidth.

    The overhead of a kernel on a CPU goes with its arithmetic (``host``); of an accelerator's it is not known.
    """
    compute = np.log(of.peak_gops / to.peak_gops) if of.peak_gops and to.peak_gops else 0.0
    memory = compute
    if of.values_per_ns and to.values_per_ns:
        memory = float(np.log(of.values_per_ns / to.values_per_ns))
    overhead = compute if host else 0.0
    scaled: Array = theta + compute * _IS_COMPUTE + memory * _IS_MEMORY + overhead * _IS_OVERHEAD
    return scaled


def transferred(mean: Array, relatives: Sequence[Array]) -> Array:
    """Log rates from those of relatives that were brought to the device; without any, the group's mean.

    Their average leans towards the group's mean at their speed, as far as relatives are few.
    """
    if not relatives:
        return mean
    own = np.mean(relatives, axis=0)
    share = RELATIVE_WEIGHT * len(relatives) / (1 + RELATIVE_WEIGHT * len(relatives))
    theta: Array = share * own + (1 - share) * (mean + float((own - mean).mean()))
    return theta


def probed(
    x: Array,
    y: Array,
    offset: Array,
    mean: Array,
    covariance: Array,
    noise: Array | float,
) -> tuple[Array, Array]:
    """Log rates given probes: the group's prior, and what was measured.

    Args:
        x: (probes, quantities).
        y: (probes,), log ms.
        offset: what the group knows of these models beyond rates, log.
        mean, covariance: prior of the log rates.
        noise: variance, or covariance of the probes' residuals.

    Returns:
        log rates, and weights (probes,) that carry the probes' residuals on to models that covary with them.
    """
    theta, _ = rates.fit_rates(x, y - offset, mean, np.asarray(np.linalg.inv(covariance), np.float64), noise)
    left = y - offset - rates.log_latency(x, theta)
    weighed = np.linalg.solve(noise, left) if isinstance(noise, np.ndarray) else left / noise
    weights: Array = np.asarray(weighed, np.float64)
    return theta, weights


def by_threads(exponent: float, wanted: int, measured: int) -> float:
    """Shift of log latency from ``measured`` threads to ``wanted``."""
    return float(exponent * np.log(wanted / measured))


def nearest_threads(available: Iterable[int], wanted: int) -> int:
    return min(available, key=lambda count: (abs(np.log(count / wanted)), count))
