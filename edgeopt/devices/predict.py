"""Latency of a model on a device that is not here: graph → fused kernels → cost of each → total, with an interval."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeopt.devices.basis import Basis, find_basis
from edgeopt.devices.engines import fusion_of
from edgeopt.devices.kernels import COMPUTE, FUSION, OVERHEAD, QUANTITIES, UNITS, Kernel, fuse, matrix
from edgeopt.devices.packs import LEVEL_UNKNOWN
from edgeopt.devices.prediction import Bound, KernelCost, Prediction, RestsOn
from edgeopt.devices.profile import BYTES, DeviceProfile, Precision, RuntimeSupport
from edgeopt.errors import DeviceUnreachable, UsageError
from edgeopt.graph.cost import Operation, operations, peak_activation_elements, weight_elements

Array = npt.NDArray[np.float64]

LEAST_COVERAGE = 0.8
"""Below this share of known cost the answer is refused: the rest would be a guess."""
KERNELS_SHOWN = 10
_CLASS: dict[str, Bound] = {
    name: "compute" if name in COMPUTE else "overhead" if name in OVERHEAD else "memory" for name in QUANTITIES
}
WINOGRAD_SAVES = 4.0
"""Multiplications that F(4×4, 3×3) spares (Lavin and Gray, CVPR 2016)."""
TOO_WIDE = 4.0
"""``high`` over ``low`` beyond which a prediction decides nothing, and says so."""


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
    own_scale = 1.0 if basis.regime in LEVEL_UNKNOWN else float(scale[0])
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
