"""Which models to measure first on a new device.

Chosen on the measured devices of a group alone: each in turn is taken for new and predicted from the others and its
probes. Where few were measured, that says little; then what counts is how much the probes leave open by the group's
own covariances. Both are log latency, and are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.latency.fitting import WIDTHS, Measured
from edgeopt.devices import probing
from edgeopt.devices.packs import Group

Array = npt.NDArray[np.float64]
COUNT = 3
FEWEST_DEVICES = 4
MOST = 0.4  # an error beyond it is bad, however large: one odd device should not choose the probes
COMMON = 0.3  # of the devices must have been measured with a model that is to be recommended
EXCHANGES = 3  # rounds


class Trial:
    """The measured devices of a group, each to be predicted from the others."""

    def __init__(self, group: Group, measured: Sequence[Measured], models: Sequence[str]) -> None:
        known = group.pack.configurations
        quantity = {row.model: x for m in measured for row, x in zip(m.rows, m.x, strict=True)}
        x = np.array([quantity[model] for model in models])
        self.models = list(models)
        self.devices = len({c.device for c in known})
        self._doubles = probing.at_doubles(group, x)
        self._covariance = probing.difference(group, x, WIDTHS)
        own = np.array([[one.device == other.device for other in known] for one in known])
        prior = [probing.prior(known, c.engine, cpu_threads(c.engine, c.thread_count), WIDTHS) for c in known]
        self._log_prior = np.where(own, -np.inf, prior)
        self._y = np.full((len(known), len(self.models)), np.nan)
        place = {model: position for position, model in enumerate(self.models)}
        for row, m in enumerate(measured):
            for at, ms in zip(m.rows, m.y, strict=True):
                if at.model in place:
                    self._y[row, place[at.model]] = ms
        self._given = np.where(np.isnan(self._y), self._doubles, self._y)
        """Unmeasured probes take the double's time."""

    def common(self) -> list[int]:
        """Models that enough of the configurations were measured with; as many as there are to be probes at least."""
        counts = (~np.isnan(self._y)).mean(0)
        least = float(np.sort(counts)[-min(COUNT, len(counts))])
        return [int(i) for i in np.flatnonzero(counts >= min(COMMON, least))]

    def error(self, chosen: Sequence[int]) -> float:
        """Mean absolute log error of the rows that are no probe."""
        index = list(chosen)
        error = self._given[:, None, index] - self._doubles[None][:, :, index]  # configuration, double, probe
        pull = error @ np.linalg.inv(self._covariance[np.ix_(index, index)])
        away = (error * pull).sum(2) / WIDTHS.tail
        weights = self._log_prior - 0.5 * (WIDTHS.tail + len(index)) * np.log1p(away)  # as probing.weigh
        weights = np.exp(weights - weights.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        predicted = weights @ self._doubles + np.einsum("dk,dkp->dp", weights, pull) @ self._covariance[index]
        wrong = np.minimum(np.abs(predicted - self._y), MOST)
        wrong[:, index] = np.nan
        return float(np.nanmean(wrong)) if not np.isnan(wrong).all() else MOST

    def left(self, chosen: Sequence[int]) -> float:
        """Mean standard deviation of log latency that the probes leave between a device and its double."""
        index = list(chosen)
        seen = self._covariance[np.ix_(index, index)] + 1e-6 * np.eye(len(index))
        explained = self._covariance[:, index] @ np.linalg.solve(seen, self._covariance[index])
        return float(np.sqrt(np.maximum(np.diag(self._covariance - explained), 0)).mean())

    def cost(self, chosen: Sequence[int]) -> float:
        return self.left(chosen) + (self.error(chosen) if self.devices >= FEWEST_DEVICES else 0.0)

    def choose(self, candidates: Sequence[int], count: int = COUNT) -> list[int]:
        """One after the other, and then each exchanged for a better one while there is one (Fedorov 1972)."""
        chosen: list[int] = []
        for _ in range(min(count, len(candidates))):
            chosen.append(min((i for i in candidates if i not in chosen), key=lambda i: self.cost([*chosen, i])))
        best = self.cost(chosen)
        for _ in range(EXCHANGES):
            before = best
            for position in range(len(chosen)):
                for other in (i for i in candidates if i not in chosen):
                    tried = [*chosen[:position], other, *chosen[position + 1 :]]
                    if (cost := self.cost(tried)) < best:
                        best, chosen = cost, tried
            if best == before:
                break
        return chosen


def cpu_threads(engine: str, count: int | None) -> int | None:
    """Threads mean something on a CPU only."""
    return count if engine.split("/")[1] == "cpu" else None


def plan(group: Group, measured: Sequence[Measured], models: Sequence[str]) -> list[str]:
    """The models to measure."""
    trial = Trial(group, measured, models)
    return [trial.models[i] for i in trial.choose(trial.common())]
