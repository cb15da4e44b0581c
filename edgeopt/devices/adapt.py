"""Rates of a device that the data do not have: from its relatives, from its peaks, and from a few probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgeopt.devices import rates

Array = npt.NDArray[np.float64]


def transferred(
    mean: Array, relatives: Sequence[tuple[Array, float | None]], peak_gops: float | None, *, strength: float = 2.0
) -> Array:
    """Log rates by proportion: a relative's time, times the relative's peak over this one's.

    Args:
        mean: the group's log rates, which count for one relative.
        relatives: log rates of measured devices and their peaks in 10⁹ operations per second; None: not known.
        peak_gops: of the device in question; None: the relatives' rates are taken as they are.
        strength: how many group means one relative is worth.
    """
    if not relatives:
        return mean
    found = []
    for theta, peak in relatives:
        known = peak is not None and peak_gops is not None
        found.append(theta + (np.log(peak / peak_gops) if known and peak and peak_gops else 0.0))
    own = np.mean(found, axis=0)
    share = strength * len(found) / (1 + strength * len(found))
    speed = float((own - mean).mean())
    theta: Array = share * own + (1 - share) * (mean + speed)
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
    theta, _ = rates.fit_rates(x, y - offset, mean, np.linalg.inv(covariance), noise)
    left = y - offset - rates.log_latency(x, theta)
    weights: Array = np.linalg.solve(noise, left) if np.ndim(noise) else left / np.asarray(noise)
    return theta, weights


def choose_probes(x: Array, mean: Array, covariance: Array, residual: Array, count: int) -> list[int]:
    """Which models to measure first: each is the one that leaves least variance over all (greedy A-optimal design).

    Args:
        x: (models, quantities).
        residual: (models, models), covariance of what the rates do not say.
    """
    slope = rates.shares(x, mean)
    left = slope @ covariance @ slope.T + residual + 1e-4 * np.eye(len(x))
    chosen: list[int] = []
    for _ in range(min(count, len(x))):
        gain = (left**2).sum(0) / np.diag(left)
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        left = left - np.outer(left[best], left[best]) / left[best, best]
        left[np.diag_indices_from(left)] = np.maximum(np.diag(left), 1e-6)
    return chosen


def by_threads(exponent: float, wanted: int, measured: int) -> float:
    """Shift of log latency from ``measured`` threads to ``wanted``."""
    return float(exponent * np.log(wanted / measured))


def nearest_threads(available: Mapping[int, object], wanted: int) -> int:
    return min(available, key=lambda count: (abs(np.log(count / wanted)), count))
