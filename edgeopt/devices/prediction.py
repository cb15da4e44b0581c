"""What a prediction says. Every number in it is labelled ``predicted`` wherever it is shown."""

from __future__ import annotations

from typing import Literal

from edgeopt.devices.profile import ComputeUnit, Precision, Runtime
from edgeopt.types import Frozen

Bound = Literal["compute", "memory", "overhead"]
HeldOutKind = Literal["families", "devices", "threads"]


class KernelCost(Frozen):
    """One fused kernel. ``ms`` are of the median; all kernels together and the fixed part of a run make it up."""

    name: str
    """The node that the kernel is called after."""
    kind: str
    fused: tuple[str, ...]
    """Operator types that became this kernel, first to last."""
    ms: float
    share: float
    bound: Bound
    known: bool
    """Whether the fit has seen kernels of this kind; otherwise the cost is that of the bytes it moves."""


class RestsOn(Frozen):
    """The evidence behind a prediction."""

    rows: int
    """Published measurements of this device, runtime, unit and precision; 0 where the basis is ``transferred``."""
    pooled_rows: int
    """Rows of all devices that the fit of this runtime rests on."""
    held_out_error_pct: float | None
    """Median absolute percentage error on held-out rows of the same kind."""
    held_out: HeldOutKind
    """What was held out: whole model families where the device is in the data, its rows with such a number of threads
    where it was measured with another, else whole devices."""


class Prediction(Frozen):
    kind: Literal["predicted"] = "predicted"
    device: str
    """The profile's id."""
    runtime: Runtime
    compute_unit: ComputeUnit
    precision: Precision
    delegate: str | None
    threads: int | None
    """None where the runtime has no such setting (a GPU, an NPU)."""
    median_ms: float
    low_ms: float
    high_ms: float
    """``low_ms``–``high_ms``: the 90 % interval of one published-style measurement."""
    basis: Literal["fitted", "transferred"]
    coverage: float
    """Share of the predicted cost that comes from operators of kinds that the fit has seen, 0–1."""
    bound: Bound
    kernels: tuple[KernelCost, ...]
    """The ten costliest."""
    overhead_ms: float
    """What a run costs beside its kernels."""
    memory_mb: float
    """Weights and the largest activations alive at once, in the precision, 10⁶ bytes."""
    device_memory_mb: float | None
    fits_memory: bool | None
    rests_on: RestsOn
    warnings: tuple[str, ...] = ()
    narrower: str | None = None
    """What would narrow an interval that is too wide to decide on (``predict.TOO_WIDE``); None where it is not."""
