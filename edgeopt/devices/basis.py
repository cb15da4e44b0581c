"""The rates that a prediction rests on: of the device's own rows, of its probes, or of its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
import numpy.typing as npt

from edgeopt.devices import adapt, catalogue, packs
from edgeopt.devices.engines import engine_of, group_of
from edgeopt.devices.packs import Configuration, Group
from edgeopt.devices.prediction import HeldOutKind
from edgeopt.devices.profile import BYTES, AdaptedRates, ComputeUnit, DeviceProfile, Precision, RuntimeSupport, speeds
from edgeopt.errors import DeviceUnreachable

Array = npt.NDArray[np.float64]

DEFAULT_THREADS = 4
"""At most: what the published measurements and the runtimes' benchmark tools use."""
ENOUGH_PROBES = 3
"""With fewer rows or probes a device is judged as one of which nothing is known."""
_UNDELEGATED = {"tflite": ("tflite", "xnnpack"), "qnn": ("qnn", "snpe")}
"""Runtime → what the measurements call it where the profile names no delegate."""


@dataclass(frozen=True)
class Basis:
    """The rates that a prediction uses, and how they came about."""

    group: Group
    engine: str
    theta: Array
    configuration: Configuration | None
    """None: transferred."""
    rows: int
    threads: int | None
    warnings: tuple[str, ...] = ()
    adapted: AdaptedRates | None = None
    other_threads: bool = False
    """Transferred from the device's own rows with another number of threads."""
    related: bool = True
    """Whether a relative was measured, if it is transferred."""

    @property
    def regime(self) -> packs.Regime:
        """Which held-out rows tell how far such a prediction may be off."""
        if self.adapted is not None:
            return "devices_3" if self.rows >= ENOUGH_PROBES else "devices_0"
        if self.other_threads:
            return "threads"
        if self.configuration is not None and self.rows >= ENOUGH_PROBES:
            return "families"
        return "devices_0" if self.related else "devices_mean"

    @property
    def held_out(self) -> HeldOutKind:
        """The same in a word."""
        return "families" if self.regime == "families" else "threads" if self.regime == "threads" else "devices"


@lru_cache(maxsize=1)
def _measured() -> tuple[str, ...]:
    """All engines of the packs."""
    return tuple(sorted({c.engine for group in packs.groups().values() for c in group.pack.configurations}))


def measured_engines(support: RuntimeSupport, precision: Precision) -> tuple[str, ...]:
    """What the published measurements call a runtime of the profile."""
    found = []
    for name in _measured():
        if name.split("/")[1:] != [support.unit, precision]:
            continue
        engine = engine_of(name)
        bare = support.delegate is None and name.split("/")[0] in _UNDELEGATED.get(support.runtime, ())
        if engine.runtime == support.runtime and (engine.delegate == support.delegate or bare):
            found.append(name)
    return tuple(found)


def find_basis(
    device: DeviceProfile, support: RuntimeSupport, precision: Precision, threads: int | None = None
) -> Basis:
    """Rates of the device's own rows, or of its relatives.

    Raises:
        DeviceUnreachable: nothing was measured with this runtime and unit on any device.
    """
    cpu = support.unit == "cpu"
    wanted = (threads or min(max(1, device.fast_cores), DEFAULT_THREADS)) if cpu else None
    engines = measured_engines(support, precision)
    for fitted in device.adapted:
        if fitted.engine in (*engines, nearest_engine(support, precision)) and fitted.threads == wanted:
            theta = np.array(fitted.theta)
            return Basis(
                packs.groups()[group_of(fitted.engine)], fitted.engine, theta, None, len(fitted.probes), wanted,
                adapted=fitted,
            )  # fmt: skip
    own = [
        (group, c)
        for engine in engines
        for group in [packs.groups()[group_of(engine)]]
        for c in group.pack.configurations
        if c.engine == engine and c.device in device.measured_as
    ]
    same = [(group, c) for group, c in own if not cpu or c.thread_count == wanted]
    exact = [(group, c) for group, c in same if c.stands]
    if exact:
        group, chosen = max(exact, key=lambda pair: _preference(pair[1], device))
        rows = sum(c.rows for _, c in exact if c.device == chosen.device and c.engine == chosen.engine)
        return Basis(group, chosen.engine, np.array(chosen.theta), chosen, rows, wanted)
    engine = next((name for name in engines if group_of(name).startswith(support.unit)), None)
    engine = engine or (engines[0] if engines and not cpu else nearest_engine(support, precision))
    pooled = packs.groups().get(group_of(engine))
    if pooled is None:
        raise DeviceUnreachable(
            f"nothing was measured with {support.runtime} on a {support.unit} in {precision}, on no device",
            hint="Measure it on the device: edgeopt bench MODEL --on ssh://user@host.",
        )
    relatives = relative_rates(
        device, pooled.pack.configurations, pooled.pack.thread_exponent, wanted, support.unit, precision
    )
    theta = adapt.transferred(pooled.mean, relatives)
    warnings = []
    if same:
        rows = sum(c.rows for _, c in same)
        why = "larger models took less time than small ones"
        if same[0][1].grows:
            why = f"their threads waited for each other, {float(np.exp(same[0][1].theta[0])):.1f} ms for every kernel"
        warnings.append(f"{device.id} {engine}: its {rows} published rows are left out: {why}")
    if not relatives:
        warnings.append("no relative of this device was measured; the rates are those of all devices")
    mine = any(c.device in device.measured_as and c.stands for c in pooled.pack.configurations if c.engine == engine)
    return Basis(
        pooled, engine, theta, None, 0, wanted, tuple(warnings), other_threads=cpu and mine, related=bool(relatives)
    )


def nearest_engine(support: RuntimeSupport, precision: Precision) -> str:
    """What stands in for a runtime that was not measured: on a CPU, TFLite's kernels."""
    return f"{'tflite' if support.unit == 'cpu' else support.runtime}/{support.unit}/{precision}"


def _preference(configuration: Configuration, device: DeviceProfile) -> tuple[int, int, str]:
    """The device's first id before its others; many rows before few; late campaigns before early ones."""
    return -device.measured_as.index(configuration.device), configuration.rows, configuration.campaign


def relative_rates(
    device: DeviceProfile,
    configurations: Sequence[Configuration],
    thread_exponent: float,
    threads: int | None,
    unit: ComputeUnit,
    precision: Precision,
) -> list[Array]:
    """Rates of measured devices of a group, brought to this one's speed and to the wanted threads.

    The device's own rows with other threads or precisions come first, then the nearest relative that was measured,
    then all that have a profile; of those with an accelerator the ones whose speed can be compared with this one's.
    """
    owners = {name: profile for profile in catalogue.profiles() for name in profile.measured_as}
    known: list[Configuration] = []
    comparable = tuple(name for name, owner in owners.items() if unit == "cpu" or _comparable(owner, device, unit))
    for names in (device.measured_as, *((name,) for name in device.kin(unit)), comparable):
        known = known or [c for c in configurations if c.device in names and c.stands]
    found = []
    for name in dict.fromkeys(c.device for c in known):
        mine = [c for c in known if c.device == name]
        counts = {count for c in mine if (count := c.thread_count) is not None}
        shift = 0.0
        if threads is not None and counts:
            used = adapt.nearest_threads(counts, threads)
            mine = [c for c in mine if c.thread_count == used]
            shift = adapt.by_threads(thread_exponent, threads, used)
        chosen = max(mine, key=lambda c: (c.engine.endswith(precision), c.rows))
        theta = np.array(chosen.theta) + shift
        owner, measured_in = owners.get(name), chosen.engine.split("/")[2]
        if owner is not None and measured_in in BYTES:
            of, to = speeds(owner, measured_in, device, precision, unit, threads)  # type: ignore[arg-type]
            theta = adapt.by_proportion(theta, of, to, host=unit == "cpu")
        found.append(theta)
    return found


def _comparable(one: DeviceProfile, other: DeviceProfile, unit: ComputeUnit) -> bool:
    """Whether both profiles know the unit's peak in one precision at least."""
    return any(one.peak_gops(unit, p) and other.peak_gops(unit, p) for p in get_args(Precision))
