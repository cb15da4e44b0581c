"""Errors on rows that the fit did not see: random models, whole families, whole devices with 0 and 3 probes."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.latency import selection
from benchmarks.latency.baselines import Baselines
from benchmarks.latency.fitting import (
    Fitted,
    Measured,
    Split,
    as_group,
    bare,
    common_rates,
    fit_group,
    grows,
    split,
    thread_exponent,
)
from benchmarks.latency.probes import COUNT as PROBES
from benchmarks.latency.probes import cpu_threads, plan
from benchmarks.latency.rows import Row
from edgeopt.devices import adapt, catalogue, probing, rates
from edgeopt.devices.basis import relative_rates
from edgeopt.devices.packs import LEVEL_UNKNOWN, Configuration, Group, Widths
from edgeopt.devices.profile import BYTES

Array = npt.NDArray[np.float64]
Key = tuple[str, str, str, str]
FOLDS = 5
FEWEST = 2 * PROBES  # a configuration with fewer rows has too little left to judge
RANDOM = "devices_3_random"


@dataclass(frozen=True)
class Outcome:
    """A held-out row: log error and scale of the prediction; log errors of the rooflines where they were fitted."""

    row: Row
    group: str
    fold: int
    error: float
    scale: float
    whole: float | None = None
    operator: float | None = None
    related: bool = True
    """Of a device with no probe: whether a relative was measured."""


def folds(regime: str, groups: Split) -> list[Callable[[Row], bool]]:
    """Which rows are held out, fold by fold. Models and devices are dealt at random, once, with a fixed seed."""
    rows = [row for configurations in groups.values() for m in configurations for row in m.rows]

    def dealt(values: set[str]) -> dict[str, int]:
        ordered = sorted(values)
        places = np.random.default_rng(0).permutation(len(ordered)) % FOLDS
        return dict(zip(ordered, places.tolist(), strict=True))

    if regime == "families":
        families = sorted({row.family for row in rows})
        return [lambda row, name=name: row.family == name for name in families]  # type: ignore[misc]
    key = "model" if regime == "random" else "device"
    places = dealt({getattr(row, key) for row in rows})
    return [lambda row, fold=fold: places[getattr(row, key)] == fold for fold in range(FOLDS)]  # type: ignore[misc]


def by_models(regime: str, groups: Split, baselines: Baselines | None) -> Iterator[Outcome]:
    """Random models or families: the configuration is known, the model is not."""
    for fold, is_held_out in enumerate(folds(regime, groups)):
        train, held = split(groups, is_held_out)
        common = common_rates(train)
        for group, configurations in held.items():
            if group not in train:
                continue
            fitted = fit_group(train[group], common)
            known = {m.key: m for m in train[group]}
            for measured in configurations:
                if measured.key in known:
                    log_ms, scale = fitted.predict(measured)
                    yield from _outcomes(group, fold, measured, log_ms, scale, known[measured.key], baselines)


def by_devices(groups: Split, baselines: Baselines | None) -> Iterator[tuple[str, Outcome]]:
    """Whole devices: first with nothing measured, then with three probes per configuration.

    The probes are those that `probes.plan` recommends among the models at hand, from the other devices, and are
    weighed as `selection.choose` finds on those; beside them three drawn at random.
    """
    for fold, is_held_out in enumerate(folds("devices", groups)):
        train, held = split(groups, is_held_out)
        common, widths = common_rates(train), selection.choose(train)
        for name, configurations in held.items():
            if name not in train:
                continue
            fitted = fit_group(train[name], common)
            group = as_group(name, train[name], fitted)
            plans: dict[tuple[str, ...], list[str]] = {}
            for whole in configurations:
                measured = whole.part(np.array([row.model in fitted.index for row in whole.rows]))
                if len(measured.rows) < FEWEST:
                    continue
                offset, scale = fitted.shared(measured.x, [row.model for row in measured.rows])
                relatives = relatives_of(fitted, train[name], measured.key)
                for regime, theta in (
                    ("devices_0", adapt.transferred(fitted.mean, relatives)), ("devices_mean", fitted.mean)
                ):  # fmt: skip
                    log_ms = rates.log_latency(measured.x, theta) + offset
                    for outcome in _outcomes(name, fold, measured, log_ms, np.ones_like(scale), None, None):
                        yield regime, replace(outcome, related=bool(relatives))
                models = tuple(sorted({row.model for row in measured.rows}))
                if len(models) < FEWEST:
                    continue
                if models not in plans:
                    plans[models] = plan(group, train[name], models)
                drawn = np.random.default_rng(zlib.crc32(repr(measured.key).encode())).permutation(len(models))[:PROBES]
                for regime, probed in (("devices_3", plans[models]), (RANDOM, [models[i] for i in drawn])):
                    for outcome in _probed(name, fold, group, widths, measured, probed, baselines):
                        yield regime, outcome


def by_threads(groups: Split, fitted: Mapping[str, Fitted], aside: Collection[Key]) -> Iterator[Outcome]:
    """Rows of a device with one number of threads, from its rows with another; a fold is a device.

    Models are known, and the other configurations have the rates of the whole fit: only what threads do is held out.
    """
    profiles = {name: profile for profile in catalogue.profiles() for name in profile.measured_as}
    names = sorted(profiles)
    for name, configurations in groups.items():
        quiet = [m for m in configurations if m.key not in aside and name.startswith("cpu/")]
        for measured in quiet:
            device, engine, threads, _ = measured.key
            others = [m for m in quiet if m.key[:2] == (device, engine) and m.key[2].isdigit() and m.key[2] != threads]
            precision = engine.split("/")[2]
            if device not in profiles or not threads.isdigit() or not others or precision not in BYTES:
                continue
            elsewhere = [m for m in configurations if m.key[0] != device]
            exponent = thread_exponent(elsewhere, fitted[name])
            known = [_configuration(m, fitted[name]) for m in others]
            relatives = relative_rates(profiles[device], known, exponent, int(threads), "cpu", precision)  # type: ignore[arg-type]
            offset, scale = fitted[name].shared(measured.x, [row.model for row in measured.rows])
            log_ms = rates.log_latency(measured.x, adapt.transferred(fitted[name].mean, relatives)) + offset
            yield from _outcomes(name, names.index(device), measured, log_ms, np.ones_like(scale), None, None)


def _configuration(measured: Measured, fitted: Fitted) -> Configuration:
    theta = tuple(fitted.theta[measured.key])
    return bare(measured.key).model_copy(update={"rows": len(measured.rows), "theta": theta, "grows": grows(measured)})


def _probed(
    name: str, fold: int, group: Group, widths: Widths, measured: Measured, probed: list[str],
    baselines: Baselines | None,
) -> Iterator[Outcome]:  # fmt: skip
    """One measurement of each probe; other rows of the same models are not asked for."""
    models = [row.model for row in measured.rows]
    first = [models.index(model) for model in probed]
    engine = measured.key[1]
    count = cpu_threads(engine, bare(measured.key).thread_count)
    adapted = probing.adapted(group, engine, measured.x[first], measured.y[first], probed, count, widths)
    rest = measured.part(np.array([model not in probed for model in models]))
    offset, scale = group.shared_offset(rest.x)
    log_ms = rates.log_latency(rest.x, np.array(adapted.theta)) + offset + group.adapted_offset(rest.x, adapted)
    seen = np.zeros(len(models), bool)
    seen[first] = True
    yield from _outcomes(name, fold, rest, log_ms, scale, measured.part(seen), baselines)


def relatives_of(fitted: Fitted, train: list[Measured], key: Key) -> list[Array]:
    """As `edgeopt.devices.basis` has them for a device without rows; without a profile, none."""
    device, engine = key[:2]
    profile = next((profile for profile in catalogue.profiles() if device in profile.measured_as), None)
    unit, precision = engine.split("/")[1:]
    if profile is None or precision not in BYTES:
        return []
    others = [_configuration(m, fitted) for m in train if m.key[0] not in profile.measured_as]
    count = cpu_threads(engine, bare(key).thread_count)
    exponent = thread_exponent(train, fitted)
    return relative_rates(profile, others, exponent, count, unit, precision)  # type: ignore[arg-type]


def _outcomes(
    group: str, fold: int, measured: Measured, log_ms: Array, scale: Array, seen: Measured | None,
    baselines: Baselines | None,
) -> Iterator[Outcome]:  # fmt: skip
    whole: Array | None = None
    operator: Array | None = None
    if baselines is not None and seen is not None and measured.rows[0].role == "calibrate":
        whole, operator = baselines.predict(seen, measured)
    for position, row in enumerate(measured.rows):
        yield Outcome(
            row, group, fold, float(log_ms[position] - measured.y[position]), float(scale[position]),
            None if whole is None else float(whole[position] - measured.y[position]),
            None if operator is None else float(operator[position] - measured.y[position]),
        )  # fmt: skip


def error_pct(errors: list[float]) -> float:
    """Median absolute percentage error of log errors."""
    return float(100 * np.median(np.abs(np.expm1(errors))))


def spread(outcomes: list[Outcome]) -> float:
    """Multiple of the scale that covers 90 % of the rows (split conformal; Vovk et al. 2005)."""
    ratios = np.sort([abs(outcome.error) / outcome.scale for outcome in outcomes])
    return float(ratios[min(len(ratios) - 1, int(np.ceil(0.9 * (len(ratios) + 1))) - 1)])


def pool_of(regime: str, group: str) -> str:
    """Whose errors tell how far a prediction may be off: the group's; of devices that are not in the data, for which
    there are too few in a group, those of all groups that run on such a unit."""
    if regime not in LEVEL_UNKNOWN:
        return group
    unit = group.partition("/")[0]
    return group if group == "gpu/nvidia" else unit


def asked_for(regime: str, outcomes: list[Outcome], aside: Collection[Key] = ()) -> list[Outcome]:
    """Outcomes that stand for what is asked for in a regime; without campaigns that say nothing of their device.

    Only devices with a profile can be asked for without a probe, and they are predicted from their relatives if there
    are any; what the mean of all devices is worth, all show.
    """
    if regime not in ("devices_0", "devices_mean"):
        return outcomes
    profiled = {name for profile in catalogue.profiles() for name in profile.measured_as}
    quiet = [o for o in outcomes if o.row.configuration not in aside]
    return quiet if regime == "devices_mean" else [o for o in quiet if o.row.device in profiled and o.related]


FEWEST_FOR_SPREAD = 30  # a group with fewer outcomes takes the spread of all groups


def coverage(outcomes: list[Outcome], regime: str) -> dict[str, bool]:
    """Row → whether its 90 % interval held it. Each fold's spread comes from the other folds of its pool."""
    inside: dict[str, bool] = {}
    by_group: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_group[pool_of(regime, outcome.group)].append(outcome)
    for members in by_group.values():
        for fold in {outcome.fold for outcome in members}:
            others = [outcome for outcome in members if outcome.fold != fold]
            if len(others) < FEWEST_FOR_SPREAD:
                others = [outcome for outcome in outcomes if outcome.fold != fold]
            if not others:
                continue
            limit = spread(others)
            for outcome in members:
                if outcome.fold == fold:
                    inside[outcome.row.id] = abs(outcome.error) <= limit * outcome.scale
    return inside
