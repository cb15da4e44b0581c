"""How far a device may lie from its double, and how its probes are weighed.

Chosen on the training devices, dealt into folds of their own: for each the groups are fitted to the others, and its
devices are predicted from three probes with every candidate. One candidate for all groups: a group by itself has too
few devices to choose by.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.latency import probes
from benchmarks.latency.fitting import WIDTHS, Measured, Split, as_group, bare, common_rates, fit_group, split
from edgeopt.devices import probing
from edgeopt.devices.packs import Group, Widths

Array = npt.NDArray[np.float64]
FOLDS = 3
NORMAL = 1e3  # degrees of freedom: as good as a normal distribution
CANDIDATES = tuple(
    Widths(rates=r, residual=e, speed=s, tail=tail, other_engine=1.0, threads=threads)
    for (r, e, s), tail, threads in itertools.product(
        ((0.05, 0.3, 0.1), (0.15, 0.3, 0.1), (0.15, 0.1, 0.1), (0.15, 0.1, 0.3), (0.3, 0.3, 0.3)),
        (WIDTHS.tail, NORMAL),
        (WIDTHS.threads, 0.0),
    )
)


def choose(groups: Split, seed: int = 1) -> Widths:
    """The candidate with the least mean absolute log error over all rows."""
    errors: list[list[Array]] = [[] for _ in CANDIDATES]
    for train, held in _dealt(groups, seed):
        common = common_rates(train)
        for name, configurations in held.items():
            if name not in train:
                continue
            group = as_group(name, train[name], fit_group(train[name], common))
            for all_found, found in zip(errors, _errors(group, train[name], configurations), strict=True):
                all_found.extend(found)
    means = [np.minimum(np.concatenate(listed), probes.MOST).mean() for listed in errors]
    return CANDIDATES[int(np.argmin(means))]


def _dealt(groups: Split, seed: int) -> Iterator[tuple[Split, Split]]:
    devices = sorted({m.key[0] for configurations in groups.values() for m in configurations})
    places = np.random.default_rng(seed).permutation(len(devices)) % FOLDS
    of = dict(zip(devices, places.tolist(), strict=True))
    for fold in range(FOLDS):
        yield split(groups, lambda row, fold=fold: of[row.device] == fold)  # type: ignore[misc]


def _errors(group: Group, train: list[Measured], held: list[Measured]) -> list[list[Array]]:
    """Absolute log errors (rows that are no probes,), by candidate and held-out configuration."""
    quantity = {row.model: x for m in train for row, x in zip(m.rows, m.x, strict=True)}
    place = {model: position for position, model in enumerate(quantity)}
    x = np.array(list(quantity.values()))
    doubles = probing.at_doubles(group, x)
    covariances = [probing.difference(group, x, widths) for widths in CANDIDATES]
    plans: dict[tuple[str, ...], list[str]] = {}
    found: list[list[Array]] = [[] for _ in CANDIDATES]
    for measured in held:
        models = [row.model for row in measured.rows if row.model in place]
        distinct = tuple(sorted(set(models)))
        if len(distinct) < 2 * probes.COUNT:
            continue
        if distinct not in plans:
            plans[distinct] = probes.plan(group, train, distinct)
        known = {row.model: float(y) for row, y in zip(reversed(measured.rows), measured.y[::-1], strict=True)}
        index = [place[model] for model in plans[distinct]]
        y = np.array([known[model] for model in plans[distinct]])
        rest = [(place[row.model], y) for row, y in zip(measured.rows, measured.y, strict=True) if row.model in place]
        at = np.array([position for position, _ in rest if position not in index])
        truth = np.array([y for position, y in rest if position not in index])
        engine = measured.key[1]
        count = probes.cpu_threads(engine, bare(measured.key).thread_count)
        for listed, widths, covariance in zip(found, CANDIDATES, covariances, strict=True):
            prior = probing.prior(group.pack.configurations, engine, count, widths)
            weights, pull = probing.weigh(doubles[:, index], y, covariance[np.ix_(index, index)], prior, widths.tail)
            predicted = weights @ doubles[:, at] + covariance[np.ix_(at, index)] @ pull
            listed.append(np.abs(predicted - truth))
    return found
