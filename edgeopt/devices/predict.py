"""Latency of a model on a device that is not here: graph → fused kernels → cost of each → total, with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.devices import adapt, catalogue, packs
from edgeopt.devices.engines import engine_of, fusion_of, group_of
from edgeopt.devices.kernels import COMPUTE, FUSION, OVERHEAD, QUANTITIES, UNITS, Kernel, fuse, matrix
from edgeopt.devices.packs import Configuration, Group
from edgeopt.devices.prediction import Bound, HeldOutKind, KernelCost, Prediction, RestsOn
from edgeopt.devices.profile import (
    BYTES,
    AdaptedRates,
    ComputeUnit,
    DeviceProfile,
    Precision,
    RuntimeSupport,
    speeds,
)
from edgeopt.errors import DeviceUnreachable, UsageError
from edgeopt.graph.cost import Operation, operations, peak_activation_elements, weight_elements

Array = npt.NDArray[np.float64]

LEAST_COVERAGE = 0.8
"""Below this share of known cost the answer is refused: the rest would be a guess."""
KERNELS_SHOWN = 10
DEFAULT_THREADS = 4
"""At most: what the published measurements and the runtimes' benchmark tools use."""
_CLASS: dict[str, Bound] = {
    name: "compute" if name in COMPUTE else "overhead" if name in OVERHEAD else "memory" for name in QUANTITIES
}
ENOUGH_PROBES = 3
"""With fewer rows or probes a device is judged as one of which nothing is known."""
LONGEST_START_MS = 0.5
"""Of a kernel on a CPU. Measured campaigns lie below 0.25 ms or above 0.75 ms; a scheduler's turn takes 1 to 4 ms."""
WINOGRAD_SAVES = 4.0
"""Multiplications that F(4×4, 3×3) spares (Lavin and Gray, CVPR 2016)."""
TOO_WIDE = 4.0
"""``high`` over ``low`` beyond which a prediction decides nothing, and says so."""
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

    @property
    def regime(self) -> packs.Regime:
        """Which held-out rows tell how far such a prediction may be off."""
        if self.adapted is not None:
            return "devices_3" if self.rows >= ENOUGH_PROBES else "devices_0"
        if self.other_threads:
            return "threads"
        return "families" if self.configuration is not None and self.rows >= ENOUGH_PROBES else "devices_0"

    @property
    def held_out(self) -> HeldOutKind:
        """The same in a word."""
        return "families" if self.regime == "families" else "threads" if self.regime == "threads" else "devices"


def predict(
    model: ir.Model,
    *,
    device: DeviceProfile,
    runtime: str | None = None,
    precision: str | None = None,
    unit: str | None = None,
    threads: int | None = None,
) -> list[Prediction]:
    """Predict one run of ``model`` for each runtime, compute unit and precision that the profile supports.

    Args:
        model: canonical float graph, static shapes; its batch is what one run processes.
        device: its profile (``catalogue.find``).
        runtime: only this one; edgeopt's name, or that of a delegate (``xnnpack``, ``armnn``).
        precision: only this one: ``fp32``, ``fp16``, ``int8``.
        unit: only this compute unit.
        threads: of CPU runtimes; None: as many as there are fast cores, at most four.

    Returns:
        in the profile's order; the one to expect by default comes first.

    Raises:
        UsageError: the device lacks the runtime, unit or precision that is asked for.
        DeviceUnreachable: coverage below ``LEAST_COVERAGE``, or nothing measured that is alike.
    """
    listed = operations(model)
    weights, activations = weight_elements(model), peak_activation_elements(model)
    found: list[Prediction] = []
    refused: list[DeviceUnreachable] = []
    for support, wanted in _supported(device, runtime, precision, unit):
        try:
            basis = find_basis(device, support, wanted, threads)
            memory_mb = (weights + activations) * BYTES[wanted] / 1e6
            found.append(predict_operations(listed, device, support, wanted, basis, memory_mb=memory_mb))
        except DeviceUnreachable as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def _supported(
    device: DeviceProfile, runtime: str | None, precision: str | None, unit: str | None
) -> list[tuple[RuntimeSupport, Precision]]:
    def asked(support: RuntimeSupport) -> bool:
        return (runtime is None or runtime in (support.runtime, support.delegate)) and unit in (None, support.unit)

    supports = [support for support in device.runtimes if asked(support)]
    has = sorted({f"{s.runtime} on {s.unit}" + (f" ({s.delegate})" if s.delegate else "") for s in device.runtimes})
    if not supports:
        what = " on ".join(text for text in (runtime or "a runtime", unit) if text)
        raise UsageError(f"{device.name} does not run {what}", hint=f"It runs {', '.join(has)}.")
    pairs: list[tuple[RuntimeSupport, Precision]] = [
        (support, found) for support in supports for found in support.precisions if precision in (None, found)
    ]
    if not pairs:
        precisions = sorted({found for support in supports for found in support.precisions})
        raise UsageError(
            f"{device.name} does not run {precision} with {supports[0].runtime}",
            hint=f"With it there is {', '.join(precisions)}.",
        )
    return pairs


def predict_operations(
    listed: Iterable[Operation],
    device: DeviceProfile,
    support: RuntimeSupport,
    precision: Precision,
    basis: Basis,
    *,
    memory_mb: float = 0.0,
) -> Prediction:
    """The same for a list of operations and rates that are already chosen."""
    kernels = fuse(listed, FUSION[fusion_of(basis.engine)])
    quantities = matrix(kernels)
    if not len(kernels):
        raise DeviceUnreachable("the model has no operator that takes time, so there is nothing to predict")
    x = quantities.sum(0, keepdims=True)
    offset, scale = basis.group.shared_offset(x)
    if basis.configuration is not None:
        offset = offset + basis.group.own_offset(x, basis.configuration)
    if basis.adapted is not None:
        offset = offset + basis.group.adapted_offset(x, basis.adapted)
    times = quantities * np.exp(basis.theta) * np.exp(offset[0])
    by_kernel = times.sum(1)
    median = float(by_kernel.sum())
    coverage = float(by_kernel[[kernel.known for kernel in kernels]].sum() / median)
    if coverage < LEAST_COVERAGE:
        unknown = sorted({kernel.lead.operator for kernel in kernels if not kernel.known})
        raise DeviceUnreachable(
            f"{100 * (1 - coverage):.0f} % of the cost would be of operators that nobody measured "
            f"({', '.join(unknown)}): no prediction",
            hint="Measure it on the device: edgeopt bench MODEL --on ssh://user@host.",
        )
    judged = basis.group.pack.held_out.get(basis.regime)
    own_scale = 1.0 if basis.regime in ("devices_0", "threads") else float(scale[0])
    width = float(np.exp((judged.spread if judged else 3.0) * own_scale))
    floor_ms = at_least_ms(quantities, device, support, precision, basis.threads)
    low, high = max(median / width, min(floor_ms, median)), median * width
    has_mb = device.memory_gb.value * 1e3 if device.memory_gb else None
    return Prediction(
        device=device.id,
        runtime=support.runtime,
        compute_unit=support.unit,
        precision=precision,
        delegate=support.delegate,
        threads=basis.threads,
        median_ms=median,
        low_ms=low,
        high_ms=high,
        basis="transferred" if basis.configuration is None and basis.adapted is None else "fitted",
        coverage=coverage,
        bound=_bound(times.sum(0)),
        kernels=_costliest(kernels, times, median),
        overhead_ms=float(times[:, [name in OVERHEAD for name in QUANTITIES]].sum()),
        memory_mb=memory_mb,
        device_memory_mb=has_mb,
        fits_memory=None if has_mb is None else memory_mb < has_mb,
        rests_on=RestsOn(
            rows=basis.rows,
            pooled_rows=sum(c.rows for c in basis.group.pack.configurations),
            held_out_error_pct=judged.error_pct if judged else None,
            held_out=basis.held_out,
        ),
        warnings=basis.warnings,
        narrower=_narrower(device, basis) if high > TOO_WIDE * low else None,
    )


def at_least_ms(
    quantities: Array, device: DeviceProfile, support: RuntimeSupport, precision: Precision, threads: int | None
) -> float:
    """What no run can be faster than: its arithmetic at the unit's peak. 0 where the profile knows no peak.

    Args:
        quantities: (kernels, QUANTITIES).
    """
    peak = device.peak_gops(support.unit, precision, threads)
    if peak is None:
        return 0.0
    total = quantities.sum(0) * UNITS
    macs = sum(
        float(total[position]) / (WINOGRAD_SAVES if name == "macs_3x3" else 1)
        for position, name in enumerate(QUANTITIES)
        if name in COMPUTE
    )
    return 2 * macs / peak / 1e6


def _narrower(device: DeviceProfile, basis: Basis) -> str:
    models = ", ".join(map(_plain, basis.group.pack.probes))
    return (
        f"measure three models on such a board, then edgeopt bench --fit {device.id} results.json; most telling for "
        f"{basis.engine} are nets like {models}"
    )


def _plain(model: str) -> str:
    """``mobilenet_v1 at 3x224x224`` for ``source:mobilenet_v1@3x224x224``; a size that says nothing is left out."""
    name, _, size = model.rpartition(":")[2].partition("@")
    return f"{name} at {size}" if "x" in size else name


def _bound(times: Array) -> Bound:
    totals: dict[Bound, float] = {"compute": 0.0, "memory": 0.0, "overhead": 0.0}
    for name, ms in zip(QUANTITIES, times, strict=True):
        totals[_CLASS[name]] += float(ms)
    return max(totals, key=lambda bound: totals[bound])


def _costliest(kernels: tuple[Kernel, ...], times: Array, total: float) -> tuple[KernelCost, ...]:
    order = np.argsort(-times.sum(1), kind="stable")[:KERNELS_SHOWN]
    return tuple(
        KernelCost(
            name=kernels[i].lead.name,
            kind=kernels[i].lead.kind,
            fused=kernels[i].fused,
            ms=float(times[i].sum()),
            share=float(times[i].sum() / total),
            bound=_bound(times[i]),
            known=kernels[i].known,
        )
        for i in order
    )


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
    same = [(group, c) for group, c in own if not cpu or threads_of(c) == wanted]
    exact = [(group, c) for group, c in same if not waits(c)]
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
        warnings.append(
            f"{device.id} {engine}: its {rows} published rows are left out: their threads waited for each other, "
            f"{float(np.exp(same[0][1].theta[0])):.1f} ms for every kernel"
        )
    if not relatives:
        warnings.append("no relative of this device was measured; the rates are those of all devices")
    mine = any(
        c.device in device.measured_as and not waits(c) for c in pooled.pack.configurations if c.engine == engine
    )
    return Basis(pooled, engine, theta, None, 0, wanted, tuple(warnings), other_threads=cpu and mine)


def nearest_engine(support: RuntimeSupport, precision: Precision) -> str:
    """What stands in for a runtime that was not measured: on a CPU, TFLite's kernels."""
    return f"{'tflite' if support.unit == 'cpu' else support.runtime}/{support.unit}/{precision}"


def threads_of(configuration: Configuration) -> int | None:
    """None where it is not known; TFLite submissions that do not say run as with one thread, Arm NN's as with many."""
    text = configuration.threads.split(" ")[0]
    if text.isdigit():
        return int(text)
    return 1 if configuration.engine.split("/")[0] == "tflite" else None


def waits(configuration: Configuration) -> bool:
    """Whether its threads wait for each other longer than a kernel's start can take: its times are the machine's rest.

    Such campaigns spend the same milliseconds for each kernel, small or large: more threads than free cores.
    """
    on_cpu = configuration.engine.split("/")[1] == "cpu"
    return on_cpu and float(np.exp(configuration.theta[QUANTITIES.index("weighted_kernels")])) > LONGEST_START_MS


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
    then all that have a profile.
    """
    owners = {name: profile for profile in catalogue.profiles() for name in profile.measured_as}
    known: list[Configuration] = []
    for names in (device.measured_as, *((name,) for name in device.relatives), tuple(owners)):
        known = known or [c for c in configurations if c.device in names and not waits(c)]
    found = []
    for name in dict.fromkeys(c.device for c in known):
        mine = [c for c in known if c.device == name]
        counts = {count for c in mine if (count := threads_of(c)) is not None}
        shift = 0.0
        if threads is not None and counts:
            used = adapt.nearest_threads(counts, threads)
            mine = [c for c in mine if threads_of(c) == used]
            shift = adapt.by_threads(thread_exponent, threads, used)
        chosen = max(mine, key=lambda c: (c.engine.endswith(precision), c.rows))
        theta = np.array(chosen.theta) + shift
        owner, measured_in = owners.get(name), chosen.engine.split("/")[2]
        if owner is not None and measured_in in BYTES:
            of, to = speeds(owner, measured_in, device, precision, unit, threads)  # type: ignore[arg-type]
            theta = adapt.by_proportion(theta, of, to, host=unit == "cpu")
        found.append(theta)
    return found
