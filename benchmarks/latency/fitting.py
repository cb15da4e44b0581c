"""Rates of all configurations, group by group: empirical Bayes in two levels, then Gaussian processes on what is left.

Level one pools the configurations of a group, level two the groups: where a group has seen two families only, what a
depthwise convolution costs beside a dense one comes from the others. `edgeopt/devices/rates.py` has the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from benchmarks.latency.rows import Row, operators
from edgeopt.devices import rates
from edgeopt.devices.engines import fusion_of, group_of
from edgeopt.devices.kernels import COMPUTE, FUSION, QUANTITIES, UNITS, fuse, matrix
from edgeopt.devices.packs import Configuration, Group, Pack, Widths

Array = npt.NDArray[np.float64]
COUNT = len(QUANTITIES)
GROSS = 0.7  # log error beyond which a row is taken for another condition (a throttled run), and says no more
WIDTHS = Widths(rates=0.15, residual=0.3, speed=0.1, tail=5.0, other_engine=1.0, threads=1.5)
"""To choose probes with; what is predicted with, `selection.choose` finds."""
FEW = 25  # configurations of a group that level two looks at
FEWEST_TO_RANK = 6  # models


def _blocks(*prefixes: str) -> Array:
    member = np.array([float(name.startswith(prefixes)) for name in QUANTITIES])
    return np.outer(member, member)


def structure(single: float, kind: float, speed: float) -> Array:
    """A covariance: each rate by itself, rates of one kind together, all of them together."""
    kinds = _blocks("macs") + _blocks("moved") + _blocks("weights") + _blocks("weighted_kernels", "other_kernels")
    matrix: Array = single * np.eye(COUNT) + kind * kinds + speed * np.ones((COUNT, COUNT))
    return matrix


BETWEEN_GROUPS = structure(0.30, 0.35, 4.0)
BETWEEN_DEVICES = structure(0.10, 0.12, 0.5)
PRIOR_WEIGHT = 10.0  # how many configurations BETWEEN_DEVICES counts for
START: Array = np.array(
    [-3.0 if "kernels" in name else float(name.startswith("macs") and "depth" not in name) for name in QUANTITIES]
)
"""Log ms of each quantity to begin with: 10⁸ multiply-accumulates take e times as long as moving 10⁶ values."""


@dataclass
class Measured:
    """One configuration's rows: quantities (rows, COUNT), log ms, and the rows themselves."""

    key: tuple[str, str, str, str]
    x: Array
    y: Array
    rows: list[Row]

    def part(self, keep: Array) -> Measured:
        rows = [row for row, kept in zip(self.rows, keep, strict=True) if kept]
        return Measured(self.key, self.x[keep], self.y[keep], rows)


@dataclass
class Fitted:
    """A group's prior, shared process, and the configurations' rates and own processes."""

    mean: Array
    covariance: Array
    noise: float
    models: list[str]
    composition: Array
    weights: Array
    offset: Array
    residual: Array
    """(models, models): covariance between configurations of what rates and the shared process leave."""
    theta: dict[tuple[str, str, str, str], Array]
    own: dict[tuple[str, str, str, str], tuple[list[int], Array]]
    index: dict[str, int] = field(default_factory=dict)

    def shared(self, x: Array, models: Sequence[str], *, seen: bool = True) -> tuple[Array, Array]:
        """Offset and scale; a model that the group has seen has its own offset where `seen`."""
        place = rates.composition(x, self.mean)
        near = rates.likeness(place, self.composition, rates.PROCESS.length)
        offset = rates.PROCESS.shared * near @ self.weights
        nearest = near.max(1)
        if seen:
            for position, model in enumerate(models):
                if model in self.index:
                    offset[position] = self.offset[self.index[model]]
        return offset, np.sqrt(self.noise + rates.PROCESS.shared * (1 - nearest**2))

    def own_offset(self, x: Array, key: tuple[str, str, str, str]) -> Array:
        index, weights = self.own[key]
        place = rates.composition(x, self.mean)
        offset: Array = rates.PROCESS.own * (
            rates.likeness(place, self.composition[index], rates.PROCESS.own_length) @ weights
        )
        return offset

    def left(self, measured: Measured) -> Array:
        """What rows that the fit has seen have beyond it, log; of several of one model the mean."""
        place = [self.index[row.model] for row in measured.rows]
        error = measured.y - rates.log_latency(measured.x, self.theta[measured.key]) - self.offset[place]
        error = np.clip(error - self.own_offset(measured.x, measured.key), -GROSS, GROSS)
        mean: Array = np.array([np.mean([e for at, e in zip(place, error, strict=True) if at == one]) for one in place])
        return mean

    def predict(self, measured: Measured) -> tuple[Array, Array]:
        """Log ms, and the scale of the error, of a configuration that the fit has seen."""
        offset, scale = self.shared(measured.x, [row.model for row in measured.rows])
        log_ms = rates.log_latency(measured.x, self.theta[measured.key])
        return log_ms + offset + self.own_offset(measured.x, measured.key), scale


@cache
def model_quantities(folder: Path, model: str, fusion: str) -> tuple[float, ...]:
    listed = operators(folder, model)
    assert listed is not None
    return tuple(matrix(fuse(listed, FUSION[fusion])).sum(0))


def gather(folder: Path, rows: Iterable[Row]) -> dict[str, list[Measured]]:
    """Rows by group and configuration."""
    found: dict[str, dict[tuple[str, str, str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[group_of(row.engine)][row.configuration].append(row)
    return {
        group: [
            Measured(
                key,
                np.array([model_quantities(folder, row.model, fusion_of(row.engine)) for row in listed]),
                np.log([row.ms for row in listed]),
                listed,
            )
            for key, listed in configurations.items()
        ]
        for group, configurations in sorted(found.items())
    }


Split = dict[str, list[Measured]]


def split(groups: Split, is_held_out: Callable[[Row], bool]) -> tuple[Split, Split]:
    """Training part and held-out part."""
    train: Split = {}
    held: Split = {}
    for group, configurations in groups.items():
        for measured in configurations:
            out = np.array([is_held_out(row) for row in measured.rows])
            if not out.all():
                train.setdefault(group, []).append(measured.part(~out))
            if out.any():
                held.setdefault(group, []).append(measured.part(out))
    return train, held


def _padded(data: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    """Configurations of unequal rows as one block: x (n, rows, COUNT), y (n, rows), and 1 where there is a row."""
    longest = max(len(y) for _, y in data)
    x = np.ones((len(data), longest, COUNT))
    y_all, present = np.zeros((len(data), longest)), np.zeros((len(data), longest))
    for position, (x_one, y_one) in enumerate(data):
        x[position, : len(y_one)], y_all[position, : len(y_one)] = x_one, y_one
        present[position, : len(y_one)] = 1
    return x, y_all, present


def _fit_all(
    block: tuple[Array, Array, Array], mean: Array, precision: Array, noise: float, theta: Array, steps: int
) -> tuple[Array, Array, Array, Array]:
    """`rates.fit_rates` for all configurations at once; each takes the best of five step lengths.

    Returns log rates (n, COUNT), their covariances, errors of the rows and the slopes at them.
    """
    x, y, present = block

    def errors(at: Array) -> Array:
        return (np.log(np.einsum("crq,cq->cr", x, np.exp(at))) - y) * present

    def objective(at: Array) -> Array:
        away = at - mean
        value: Array = (errors(at) ** 2).sum(1) / noise + np.einsum("cq,qp,cp->c", away, precision, away)
        return value

    def slopes(at: Array) -> Array:
        times = x * np.exp(at)[:, None, :]
        slope: Array = times / times.sum(2, keepdims=True) * present[:, :, None]
        return slope

    lengths = (1.0, 0.5, 0.25, 0.08, 0.0)
    for _ in range(steps):
        slope = slopes(theta)
        curvature = np.einsum("crq,crp->cqp", slope, slope) / noise + precision
        gradient = np.einsum("crq,cr->cq", slope, errors(theta)) / noise + (theta - mean) @ precision
        step = np.clip(np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0], -2, 2)
        tried = np.array([objective(theta - length * step) for length in lengths])
        theta = theta - np.array(lengths)[tried.argmin(0)][:, None] * step
    slope = slopes(theta)
    covariance = np.linalg.inv(np.einsum("crq,crp->cqp", slope, slope) / noise + precision)
    return theta, covariance, errors(theta), slope


def _pool(data: Sequence[tuple[Array, Array]], prior: Array, rounds: int) -> tuple[Array, Array, float, Array]:
    """Mean and covariance of a group's log rates, noise, and each configuration's rates (expectation maximisation)."""
    prior_precision = np.linalg.inv(BETWEEN_GROUPS)
    shift = float(np.median([np.median(y - rates.log_latency(x, prior)) for x, y in data]))
    mean, covariance, noise = prior + shift, BETWEEN_DEVICES * 2, 0.04
    block = _padded(data)
    count = float(block[2].sum())
    theta = np.tile(mean, (len(data), 1))
    for _ in range(rounds):
        precision = np.linalg.inv(covariance)
        theta, own, error, slope = _fit_all(block, mean, precision, noise, theta, 4)
        squares = (np.clip(error, -GROSS, GROSS) ** 2).sum() + np.einsum("crq,cqp,crp->", slope, own, slope)
        mean = np.linalg.solve(
            len(theta) * precision + prior_precision, precision @ theta.sum(0) + prior_precision @ prior
        )
        away = theta - mean
        covariance = (away.T @ away + own.sum(0) + PRIOR_WEIGHT * BETWEEN_DEVICES) / (len(theta) + PRIOR_WEIGHT)
        noise = max(float(squares) / count, 4e-4)
    return mean, covariance, noise, theta


def common_rates(groups: Split, *, rounds: int = 2) -> Array:
    """Level two: log rates that groups have in common, up to their speed."""
    common, random = START.copy(), np.random.default_rng(0)
    for _ in range(rounds):
        found = []
        for configurations in groups.values():
            chosen = [configurations[i] for i in random.permutation(len(configurations))[:FEW]]
            mean, *_ = _pool([(m.x, m.y) for m in chosen], common, 6)
            found.append(mean - (mean - common).mean())
        common = (np.sum(found, axis=0) + START) / (len(found) + 1)
    return common


def fit_group(configurations: Sequence[Measured], common: Array, *, rounds: int = 2) -> Fitted:
    process = rates.PROCESS
    quantity = {row.model: x for m in configurations for row, x in zip(m.rows, m.x, strict=True)}
    models = sorted(quantity)
    index = {model: position for position, model in enumerate(models)}
    x_all = np.array([quantity[model] for model in models])
    places = [[index[row.model] for row in m.rows] for m in configurations]
    offset = np.zeros(len(models))
    for _ in range(rounds):
        data = [(m.x, m.y - offset[place]) for m, place in zip(configurations, places, strict=True)]
        mean, covariance, noise, thetas = _pool(data, common, 8)
        left: list[list[float]] = [[] for _ in models]
        for m, place, theta in zip(configurations, places, thetas, strict=True):
            for at, error in zip(place, np.clip(m.y - rates.log_latency(m.x, theta), -GROSS, GROSS), strict=True):
                left[at].append(float(error))
        means, counts = np.array([np.mean(e) for e in left]), np.array([len(e) for e in left])
        several = [np.var(e) for e in left if len(e) > 1]
        within = max(float(np.mean(several)) if several else 0.02, 1e-3)
        composition = rates.composition(x_all, mean)
        alike = process.shared * rates.likeness(composition, composition, process.length)
        covered = alike + process.identity * np.eye(len(models))
        weights = np.linalg.solve(covered + np.diag(within / counts + 1e-4), means)
        offset = covered @ weights
    own = {}
    seen = np.full((len(configurations), len(models)), np.nan)
    for position, (m, place, theta) in enumerate(zip(configurations, places, thetas, strict=True)):
        error = m.y - rates.log_latency(m.x, theta) - offset[place]
        near = process.own * rates.likeness(composition[place], composition[place], process.own_length)
        own[m.key] = (place, np.linalg.solve(near + max(noise, 2e-3) * np.eye(len(place)), error))
        for at, value in zip(place, np.clip(error, -GROSS, GROSS), strict=True):
            seen[position, at] = value if np.isnan(seen[position, at]) else (seen[position, at] + value) / 2
    return Fitted(
        mean, covariance, noise, models, composition, weights, offset, _residual_covariance(seen, composition, noise),
        {m.key: theta for m, theta in zip(configurations, thetas, strict=True)}, own, index,
    )  # fmt: skip


def _residual_covariance(seen: Array, composition: Array, noise: float, *, weight: float = 10.0) -> Array:
    """How models' residuals go together from device to device, shrunk towards likeness of composition."""
    known = (~np.isnan(seen)).astype(float)
    values = np.nan_to_num(seen)
    count = len(composition)
    prior = noise * (0.5 * rates.likeness(composition, composition, 0.25) + 0.5 * np.eye(count))
    mixed = (values.T @ values + weight * prior) / (known.T @ known + weight)
    eigenvalues, vectors = np.linalg.eigh((mixed + mixed.T) / 2)
    covariance: Array = (vectors * np.maximum(eigenvalues, 1e-5)) @ vectors.T
    return covariance


def fit(groups: Split, *, only: Iterable[str] | None = None) -> Mapping[str, Fitted]:
    """All groups, or those in `only` with what the others say of common rates."""
    common = common_rates(groups)
    wanted = groups if only is None else [name for name in only if name in groups]
    return {name: fit_group(groups[name], common) for name in wanted}


def thread_exponent(configurations: Iterable[Measured], fitted: Fitted) -> float:
    """Latency goes with threads to this power: the slope within devices, over their thread counts."""
    by_device: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for m in configurations:
        device, engine, threads, _ = m.key
        if threads.isdigit():
            level = float((fitted.theta[m.key] - fitted.mean).mean())
            by_device[device, engine][int(threads)].append(level)
    along, levels = [], []
    for counts in by_device.values():
        usual = {count: level for count, level in counts.items() if count <= 8}
        if len(usual) > 1:
            x = np.log(sorted(usual))
            y = np.array([np.mean(usual[count]) for count in sorted(usual)])
            along += list(x - x.mean())
            levels += list(y - y.mean())
    if not along:
        return -0.7  # no device of the group was measured with several counts: that of ncnn on CPUs
    return float(np.dot(along, levels) / np.dot(along, along))


def _rounded(values: Iterable[float], digits: int = 4) -> tuple[float, ...]:
    return tuple(round(float(value), digits) for value in values)


def grows(measured: Measured) -> bool:
    """Whether larger models took longer, by rank (Spearman 1904); with few models it is taken for granted."""
    work = measured.x @ np.where([name in COMPUTE for name in QUANTITIES], UNITS, 0)
    if len({row.model for row in measured.rows}) < FEWEST_TO_RANK:
        return True
    return float(spearmanr(work, measured.y).statistic) > 0


def bare(key: tuple[str, str, str, str]) -> Configuration:
    """A configuration of which nothing was measured."""
    device, engine, threads, campaign = key
    return Configuration(device=device, engine=engine, threads=threads, campaign=campaign, rows=0, theta=(), own=())


def as_group(name: str, configurations: Sequence[Measured], fitted: Fitted) -> Group:
    """The fit as `edgeopt.devices` reads it, digits and all; nothing is said yet of probes and held-out errors."""
    pack = Pack(
        schema_="edgeopt.rates/2",
        group=name,
        quantities=QUANTITIES,
        mean=_rounded(fitted.mean),
        covariance=tuple(_rounded(line, 5) for line in fitted.covariance),
        noise=round(fitted.noise, 6),
        thread_exponent=round(thread_exponent(configurations, fitted), 3),
        models=tuple(fitted.models),
        composition=tuple(_rounded(line) for line in fitted.composition),
        weights=_rounded(fitted.weights),
        offset=_rounded(fitted.offset),
        residual=tuple(_rounded(line[: i + 1], 5) for i, line in enumerate(fitted.residual)),
        widths=WIDTHS,
        probes=(),
        configurations=tuple(
            Configuration(
                device=m.key[0],
                engine=m.key[1],
                threads=m.key[2],
                campaign=m.key[3],
                rows=len(m.rows),
                grows=grows(m),
                theta=_rounded(fitted.theta[m.key]),
                own=tuple(
                    (index, round(float(weight), 3), round(float(left), 3))
                    for index, weight, left in zip(*fitted.own[m.key], fitted.left(m), strict=True)
                ),
            )
            for m in configurations
        ),
        held_out={},
    )
    return Group(pack)
