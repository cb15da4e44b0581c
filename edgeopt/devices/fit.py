"""A profile adapted to a few measurements of one's own board: ``edgeopt bench --fit NAME results.json…``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from edgeopt.devices import adapt, probing, rates
from edgeopt.devices.basis import Basis, find_basis
from edgeopt.devices.engines import fusion_of
from edgeopt.devices.kernels import FUSION, fuse, matrix
from edgeopt.devices.predict import predict_operations
from edgeopt.devices.profile import AdaptedRates, ComputeUnit, DeviceProfile, Like, Precision, Runtime, RuntimeSupport
from edgeopt.errors import UsageError
from edgeopt.graph.cost import operations
from edgeopt.types import Frozen

SCHEMA = "edgeopt.bench/1"
OWN_ROWS = 0.25
"""Share of the group's variance that a board of a measured kind may still differ by: clocks, cooling, versions."""


class MeasuredLatency(Frozen):
    """What ``--fit`` reads of one result of ``edgeopt bench --json``; the rest is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class Percentiles(Frozen):
        model_config = ConfigDict(frozen=True, extra="ignore")
        p50: float = Field(gt=0, allow_inf_nan=False)

    model: str
    runtime: Runtime
    compute_unit: ComputeUnit = "cpu"
    precision: Precision
    threads: int | None = None
    batch: int = 1
    kind: str
    stable: bool = True
    latency_ms: Percentiles


@dataclass(frozen=True)
class Probe:
    """A model, as canonical float graph, and how long one run of it took."""

    name: str
    model: ir.Model
    runtime: Runtime
    unit: ComputeUnit
    precision: Precision
    threads: int | None
    ms: float


class Change(Frozen):
    """What the measurements changed for one of the models that were measured."""

    model: str
    runtime: Runtime
    compute_unit: ComputeUnit
    precision: Precision
    threads: int | None
    measured_ms: float
    before_ms: float
    after_ms: float


def read_results(path: Path) -> list[MeasuredLatency]:
    """The measured results of one ``edgeopt bench --json`` document.

    Raises:
        UsageError: no such file, of another version, or with nothing measured in it.
    """
    hint = "Write it with this version: edgeopt bench MODEL --on ssh://user@host --json > results.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise UsageError("is no JSON document", where=str(path), hint=hint) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"is {schema or 'no result of edgeopt bench'}, not {SCHEMA}", where=str(path), hint=hint)
    measured = [result for result in content.get("results", []) if result.get("kind") == "measured"]
    try:
        found = [MeasuredLatency.model_validate(result) for result in measured]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"a result lacks what a fit needs: {where}: {first['msg']}", where=str(path), hint=hint
        ) from error
    if not found:
        raise UsageError("holds no measured result; predictions cannot be fitted to", where=str(path), hint=hint)
    return found


def fit(device: DeviceProfile, probes: Sequence[Probe]) -> tuple[DeviceProfile, tuple[Change, ...]]:
    """The profile with rates that follow the probes, and what changed.

    Each runtime, unit, precision and thread count is fitted by itself; several measurements of one graph count as one.
    Where the device was measured before, its prior
    is what the profile predicts without the probes; where not, all measured devices are, by how well they agree.

    Raises:
        UsageError: no probe, or one whose runtime the profile does not have.
        DeviceUnreachable: nothing is known of such a runtime on any device.
    """
    if not probes:
        raise UsageError("there is nothing to fit to", hint="Give the JSON of at least one measured result.")
    by_configuration: dict[tuple[Runtime, ComputeUnit, Precision, int | None], list[Probe]] = defaultdict(list)
    for probe in probes:
        by_configuration[probe.runtime, probe.unit, probe.precision, probe.threads].append(probe)
    adapted = [*device.adapted]
    changes: list[Change] = []
    for (runtime, unit, precision, threads), mine in by_configuration.items():
        support = _support(device, runtime, unit, precision)
        basis = find_basis(device.model_copy(update={"adapted": ()}), support, precision, threads)
        found = _adapted(basis, mine)
        adapted = [a for a in adapted if (a.engine, a.threads) != (found.engine, found.threads)] + [found]
        distinct = len(found.probes)
        after = Basis(basis.group, basis.engine, np.array(found.theta), None, distinct, basis.threads, adapted=found)
        for probe in mine:
            listed = operations(probe.model)
            before_ms, after_ms = (
                predict_operations(listed, device, support, precision, which).median_ms for which in (basis, after)
            )
            changes.append(
                Change(
                    model=probe.name, runtime=runtime, compute_unit=unit, precision=precision, threads=basis.threads,
                    measured_ms=probe.ms, before_ms=before_ms, after_ms=after_ms,
                )
            )  # fmt: skip
    return device.model_copy(update={"adapted": tuple(adapted)}), tuple(changes)


def _support(device: DeviceProfile, runtime: Runtime, unit: ComputeUnit, precision: Precision) -> RuntimeSupport:
    for support in device.runtimes:
        if (support.runtime, support.unit) == (runtime, unit) and precision in support.precisions:
            return support
    has = sorted({f"{s.runtime}/{s.unit} {p}" for s in device.runtimes for p in s.precisions})
    raise UsageError(
        f"the profile of {device.name} has no {runtime}/{unit} in {precision}", hint=f"It has {', '.join(has)}."
    )


def _adapted(basis: Basis, probes: Sequence[Probe]) -> AdaptedRates:
    group, own = basis.group, basis.configuration
    rules = FUSION[fusion_of(basis.engine)]
    each = np.array([matrix(fuse(operations(probe.model), rules)).sum(0) for probe in probes])
    x, first, which = np.unique(each, axis=0, return_index=True, return_inverse=True)
    logs = np.log([probe.ms for probe in probes])
    # several measurements of one graph are one probe, at their geometric mean
    y = np.array([logs[which == position].mean() for position in range(len(x))])
    names = [probes[position].name for position in first]
    if own is None:
        return probing.adapted(group, basis.engine, x, y, names, basis.threads)
    offset = group.shared_offset(x)[0] + group.own_offset(x, own)
    composition = rates.composition(x, group.mean)
    noise = group.residual(composition, composition) + 1e-4 * np.eye(len(probes))
    theta, weights = adapt.probed(x, y, offset, basis.theta, group.covariance * OWN_ROWS, noise)
    return AdaptedRates(
        engine=basis.engine,
        threads=basis.threads,
        theta=tuple(float(value) for value in theta),
        composition=tuple(tuple(float(value) for value in line) for line in composition),
        weights=tuple(float(value) for value in weights),
        like=(Like(device=own.device, engine=own.engine, threads=own.threads, campaign=own.campaign, share=1),),
        probes=tuple(names),
    )


def save(profile: DeviceProfile, path: Path) -> None:
    """Write a profile that ``--device FILE.yaml`` reads."""
    yaml = YAML(typ="safe", pure=True)
    yaml.width = 110
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(profile.model_dump(mode="json"), file)
