"""From statistics to ranges: what each grid covers, and what is cut off.

Every estimator is judged by one number, the expected squared error of rounding and of cutting, weighted by how much
each channel's error matters downstream (``sensitivity``). Exact zeros cost nothing: zero is on every grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeopt.graph.quantization import Range
from edgeopt.passes.quantize.calibration import BINS, TensorStatistics

Estimator = Literal["auto", "minmax", "percentile", "mse"]
STEPS = 255
PERCENTILE = 0.9999
WIDER_IS_SAFER = 1.02
"""``auto`` takes the full range where cutting wins less than 2 % of the error: unseen data may reach further."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Use:
    """One tensor of an equal-scale group: what it holds and how much an error in each channel matters.

    Args:
        statistics: of the tensor.
        weights: float64 (channels,), cost of one unit of squared error in one element of the channel.
    """

    statistics: TensorStatistics
    weights: Array


@dataclass(frozen=True)
class Chosen:
    """A range, the estimator it came from, and its expected weighted squared error per sample."""

    range: Range
    estimator: str
    error: float


def choose(uses: Sequence[Use], estimator: Estimator, *, symmetric: bool = False) -> Chosen:
    """One range for all tensors of a group.

    Args:
        uses: the group's tensors, one or more.
        estimator: ``minmax``: all that was seen; ``percentile``: 0.01 % cut off at each end; ``mse``: least expected
            weighted squared error; ``auto``: the best of them by that error, the wider one where they are close.
        symmetric: the grid will have zero point 0.
    """
    mass = _Mass(uses)
    full = Range(min(mass.low, 0.0), max(mass.high, 0.0))
    candidates = {"minmax": full}
    if estimator in ("percentile", "auto"):
        candidates["percentile"] = mass.percentile(PERCENTILE)
    if estimator in ("mse", "auto"):
        candidates["mse"] = mass.least_error(full, symmetric)
    errors = {name: mass.error(bounds, symmetric) for name, bounds in candidates.items()}
    if estimator != "auto":
        return Chosen(candidates[estimator], estimator, errors[estimator])
    best = min(errors.values())
    # In order of width: minmax, then percentile, then whatever least_error found.
    name = next(name for name in ("minmax", "percentile", "mse") if errors[name] <= best * WIDER_IS_SAFER)
    return Chosen(candidates[name], name, errors[name])


class _Mass:
    """All values of a group as weighted points, sorted, with running sums: the error of a range in O(log n)."""

    def __init__(self, uses: Sequence[Use]) -> None:
        points, weights, shares = [], [], []
        for use in uses:
            s = use.statistics
            per_channel = s.elements / len(s.low)
            centres = s.low[:, None] + (s.high - s.low)[:, None] * ((np.arange(BINS) + 0.5) / BINS)
            filled = s.histogram > 0
            share = s.histogram[filled].astype(np.float64) * per_channel
            points.append(centres[filled])
            shares.append(share)
            weights.append((use.weights[:, None] * per_channel * s.histogram)[filled])
        self.low = min(float(use.statistics.low.min()) for use in uses)
        self.high = max(float(use.statistics.high.max()) for use in uses)
        x = np.concatenate(points) if points else np.zeros(0)
        order = np.argsort(x, kind="stable")
        self._x = x[order]
        weight = np.concatenate(weights)[order]
        if not weight.sum() > 0:
            weight = np.concatenate(shares)[order]
        self._share = _running(np.concatenate(shares)[order])
        self._w0, self._w1, self._w2 = (_running(weight * self._x**power) for power in (0, 1, 2))

    def percentile(self, share: float) -> Range:
        if not len(self._x):
            return Range(0.0, 0.0)
        total = self._share[-1]
        low = self._x[min(int(np.searchsorted(self._share, total * (1 - share))), len(self._x) - 1)]
        high = self._x[min(int(np.searchsorted(self._share, total * share)), len(self._x) - 1)]
        return Range(min(float(low), 0.0), max(float(high), 0.0))

    def error(self, bounds: Range, symmetric: bool) -> float:
        """Rounding (step²/12 for every value inside that is not zero) plus squared overshoot of what is cut."""
        low, high = bounds.low, bounds.high
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        step = (high - low) / STEPS
        below, above = np.searchsorted(self._x, low), np.searchsorted(self._x, high, side="right")
        inside = self._w0[above] - self._w0[below]
        cut_low = self._w2[below] - 2 * low * self._w1[below] + low**2 * self._w0[below]
        rest = [sums[-1] - sums[above] for sums in (self._w0, self._w1, self._w2)]
        cut_high = rest[2] - 2 * high * rest[1] + high**2 * rest[0]
        return float(inside * step**2 / 12 + max(cut_low, 0.0) + max(cut_high, 0.0))

    def least_error(self, full: Range, symmetric: bool) -> Range:
        """Shrink each end in turn, coarse to fine; three rounds are enough as the ends hardly interact."""
        best = full
        if symmetric:
            widest = max(-full.low, full.high)
            return self._shrink([Range(max(full.low, -widest * k), min(full.high, widest * k)) for k in _FACTORS], True)
        for _ in range(3):
            best = self._shrink([Range(best.low, full.high * k) for k in _FACTORS], False)
            best = self._shrink([Range(full.low * k, best.high) for k in _FACTORS], False)
        return best

    def _shrink(self, candidates: Sequence[Range], symmetric: bool) -> Range:
        return min(candidates, key=lambda bounds: self.error(bounds, symmetric))


_FACTORS = tuple(np.concatenate([np.linspace(1, 0.5, 51), np.geomspace(0.49, 0.01, 40)]).tolist())


def _running(values: Array) -> Array:
    return np.concatenate([np.zeros(1), np.cumsum(values)])
