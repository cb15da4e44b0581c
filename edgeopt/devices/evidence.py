"""What the predictions for a device rest on: rows, runtimes, held-out error."""

from __future__ import annotations

from edgeopt.devices import packs
from edgeopt.devices.basis import find_basis, measured_engines
from edgeopt.devices.engines import group_of
from edgeopt.devices.profile import ComputeUnit, DeviceProfile, Precision, Runtime
from edgeopt.errors import DeviceUnreachable
from edgeopt.types import Frozen


class Evidence(Frozen):
    """One runtime, unit and precision of a device."""

    runtime: Runtime
    compute_unit: ComputeUnit
    precision: Precision
    delegate: str | None
    basis: str
    """``fitted``, ``transferred``, or ``none`` where no prediction is to be had."""
    rows: int
    """Published measurements of the device itself; without campaigns that do not stand for it (``packs``)."""
    threads: tuple[str, ...]
    """Thread counts that they were made with; empty where that has no meaning or is not known."""
    held_out_error_pct: float | None
    """Median absolute percentage error: of this device with whole families held out if ten rows or more are known,
    else of the group; with whole devices held out where the basis is ``transferred``."""
    related: bool = True
    """False where no relative was measured, so that the mean of all devices stands in."""
    probes: int = 0
    """Measurements of one's own board that the profile was fitted to (``edgeopt bench --fit``)."""


def evidence(device: DeviceProfile) -> tuple[Evidence, ...]:
    """For every runtime, unit and precision of the profile, in its order."""
    found = []
    for support in device.runtimes:
        for precision in support.precisions:
            engines = measured_engines(support, precision)
            own = [
                c
                for engine in engines
                for c in packs.groups()[group_of(engine)].pack.configurations
                if c.engine == engine and c.device in device.measured_as and c.stands
            ]
            related, probes = True, 0
            try:
                basis = find_basis(device, support, precision)
            except DeviceUnreachable:
                error, kind = None, "none"
            else:
                own_rates = basis.configuration is not None
                kind = "fitted" if own_rates or basis.adapted is not None else "transferred"
                related, probes = basis.related, len(basis.adapted.probes) if basis.adapted else 0
                pack = basis.group.pack
                judged = pack.held_out.get("families" if own_rates else basis.regime)
                if basis.configuration is not None:
                    judged = pack.errors.get(f"{basis.configuration.device}|{basis.engine}", judged)
                error = judged.error_pct if judged else None
            found.append(
                Evidence(
                    runtime=support.runtime,
                    compute_unit=support.unit,
                    precision=precision,
                    delegate=support.delegate,
                    basis=kind,
                    rows=sum(c.rows for c in own),
                    threads=tuple(sorted({c.threads for c in own if c.threads}, key=lambda text: (len(text), text))),
                    held_out_error_pct=error,
                    related=related,
                    probes=probes,
                )
            )
    return tuple(found)
