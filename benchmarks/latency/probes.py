"""Which models to measure first on a new device, and how far it may differ from those that it is like.

Both are chosen on the measured devices of a group alone: each in turn is taken for new, and is predicted from the
others and its probes. Greedy, by the mean error over devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.latency.fitting import WIDE, Measured
from edgeopt.devices import adapt, probing, rates
from edgeopt.devices.packs import Group, Widths

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
COUNT = 3
FEWEST_DEVICES = 8
WIDTHS = tuple(
    Widths(rates=r, residual=e, speed=s, other_engine=o)
    for r, e, s, o in itertools.product((0.05, 0.15), (0.15, 0.4), (0.03, 0.2), (0.0, 1.0))
)
MOST = 0.4  # an error beyond it is bad, however large: one odd device should not choose the probes
COMMON = 0.3  # of the devices must have been measured with a model that is to be recommended


class Trial:
    """The measured devices of a group, each to be predicted from the others."""

    def __init__(self, group: Group, measured: Sequence[Measured], models: Sequence[str]) -> None:
        known = group.pack.configurations
        quantity = {row.model: x for m in measured for row, x in zip(m.rows, m.x, strict=True)}
        self.models = list(models)
        self._x = np.array([quantity[model] for model in self.models])
        self._group = group
        self._doubles = probing.at_doubles(group, self._x)
        devices = [c.device for c in known]
        engines = np.array([c.engine for c in known])
        self._own = np.array(devices)[:, None] == np.array(devices)
        self._share = 1 / self._own.sum(1)
        self._other_engine = engines[:, None] != engines
        self._y = np.full((len(known), len(self.models)), np.nan)
        place = {model: position for position, model in enumerate(self.models)}
        for row, m in enumerate(measured):
            for at, ms in zip(m.rows, m.y, strict=True):
                if at.model in place:
                    self._y[row, place[at.model]] = ms
        self._covariances: dict[Widths, Array] = {}

    def common(self) -> list[int]:
        """Models that enough of the devices were measured with."""
        counts = (~np.isnan(self._y)).mean(0)
        return [int(i) for i in np.flatnonzero(counts >= min(COMMON, float(counts.max())))]

    def error(self, chosen: Sequence[int], widths: Widths) -> float:
        """Mean absolute log error over devices, of what is not a probe. Unmeasured probes take the double's time."""
        if widths not in self._covariances:
            self._covariances[widths] = probing.difference(self._group, self._x, widths)
        covariance, index = self._covariances[widths], list(chosen)
        given = np.where(np.isnan(self._y), self._doubles, self._y)
        error = given[:, None, index] - self._doubles[None][:, :, index]  # device, double, probe
        pull = error @ np.linalg.inv(covariance[np.ix_(index, index)])
        log_prior = np.log(self._share) - widths.other_engine * self._other_engine  # as probing.prior
        weights = np.where(self._own, -np.inf, log_prior - 0.5 * (error * pull).sum(2))
        top = weights.max(1, keepdims=True)
        weights = np.exp(weights - np.where(np.isfinite(top), top, 0))
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
        predicted = weights @ self._doubles + np.einsum("dk,dkp->dp", weights, pull) @ covariance[index]
        away = np.minimum(np.abs(predicted - self._y), MOST)
        away[:, index] = np.nan
        told = ~np.isnan(away).all(1)
        return float(np.average(np.nanmean(away[told], axis=1), weights=self._share[told])) if told.any() else np.inf

    def spread(self, candidates: Sequence[int]) -> list[str]:
        """What leaves least variance, where there are too few devices to try it out."""
        x, place = self._x[candidates], rates.composition(self._x[candidates], self._group.mean)
        residual = self._group.residual(place, place) + 1e-4 * np.eye(len(x))
        chosen = adapt.choose_probes(x, self._group.mean, self._group.covariance, residual, COUNT)
        return [self.models[candidates[i]] for i in chosen]

    def choose(self, widths: Widths, candidates: Sequence[int], count: int = COUNT) -> list[int]:
        chosen: list[int] = []
        for _ in range(min(count, len(candidates))):
            rest = [one for one in candidates if one not in chosen]
            chosen.append(min(rest, key=lambda one: self.error([*chosen, one], widths)))
        return chosen


def plan(group: Group, measured: Sequence[Measured], models: Sequence[str]) -> tuple[list[str], Widths]:
    """The models to measure, most telling first, and the widths that did best with them on the measured devices."""
    trial = Trial(group, measured, models)
    candidates = trial.common()
    if len({m.key[0] for m in measured}) < FEWEST_DEVICES:
        return trial.spread(candidates), WIDE
    chosen = trial.choose(WIDE, candidates)
    widths = min(WIDTHS, key=lambda one: trial.error(chosen, one))
    chosen = trial.choose(widths, candidates)
    return [trial.models[i] for i in chosen], widths
