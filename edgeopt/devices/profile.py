"""The schema of a hardware profile: ``hardware_profiles/ID.yaml``. Every number has its source and a confidence."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeopt.devices.adapt import Speed
from edgeopt.types import Frozen

Confidence = Literal["high", "medium", "low"]
"""``high``: the vendor says so; ``medium``: follows from what the vendor or an architecture manual says, or a trusted
secondary source; ``low``: a single secondary source, or vendors' figures that count differently."""

Runtime = Literal["onnxruntime", "tflite", "tensorrt", "coreml", "qnn", "ncnn", "pytorch"]
ComputeUnit = Literal["cpu", "gpu", "npu", "ane", "dla", "tpu"]
Precision = Literal["fp32", "fp16", "int8"]
BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of one value."""
Positive = Annotated[float, Field(gt=0)]


class Figure(Frozen):
    """One number, where it comes from, and how far it can be trusted. Unknown is ``null`` in place of a figure."""

    value: Positive
    source: str = Field(min_length=8)
    confidence: Confidence


class Peaks(Frozen):
    """Peak arithmetic rate by precision, dense, in billions (10⁹) of operations per second; a multiply-add is two."""

    fp32_gops: Figure | None = None
    fp16_gops: Figure | None = None
    int8_gops: Figure | None = None

    def of(self, precision: Precision) -> float | None:
        figure = {"fp32": self.fp32_gops, "fp16": self.fp16_gops, "int8": self.int8_gops}[precision]
        return figure.value if figure else None


class CpuCluster(Frozen):
    core: str
    """Microarchitecture, as Arm or the vendor calls it: ``Cortex-A76``."""
    count: Figure
    ghz: Figure | None
    """Highest clock."""


class Accelerator(Frozen):
    unit: Literal["gpu", "npu", "ane", "dla", "tpu"]
    name: str
    peaks: Peaks = Peaks()
    relatives: tuple[str, ...] | None = None
    """Instead of the profile's ``relatives``, where this unit has others than the CPU; empty: nothing is like it."""


class RuntimeSupport(Frozen):
    """A runtime that the device runs, on one compute unit."""

    runtime: Runtime
    unit: ComputeUnit
    precisions: tuple[Precision, ...] = Field(min_length=1)
    delegate: str | None = None
    """What takes the graph over inside the runtime: ``xnnpack``, ``armnn``, ``gpu``, ``edgetpu``, ``htp``…"""
    source: str = Field(min_length=8)


class PowerMode(Frozen):
    name: str
    watts: Figure | None


class Like(Frozen):
    """A measured configuration that a probed device resembles."""

    device: str
    engine: str
    threads: str
    campaign: str
    share: Positive


class AdaptedRates(Frozen):
    """Rates that were fitted to measurements of one's own board: ``edgeopt bench --fit``."""

    engine: str
    """As in the packs: ``tflite/cpu/int8``."""
    threads: int | None
    theta: tuple[float, ...]
    """Log rates, by ``kernels.QUANTITIES``."""
    composition: tuple[tuple[float, ...], ...]
    """Where the measured models lie, and"""
    weights: tuple[float, ...]
    """their weights in what the rates do not say."""
    like: tuple[Like, ...] = ()
    """Whose own process counts here; of a device without rows, whom it resembles. Shares add up to 1."""
    pull: tuple[float, ...] = ()
    """Of a device without rows: how log latency differs from that of those it is like, by share of a quantity, and"""
    shift: float = 0.0
    """the same for all models."""
    probes: tuple[str, ...] = Field(min_length=1)
    """The models that were measured."""


class DeviceProfile(Frozen):
    """What is known of a device, and which rows of the published measurements are of it."""

    profile: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    name: str
    aliases: tuple[str, ...] = ()
    measured_as: tuple[str, ...] = ()
    """Ids in the published measurements, the best known first."""
    relatives: tuple[str, ...] = ()
    """Measured ids that stand in where the device itself has no rows, nearest first: the same silicon, the generation
    before. The first that was measured with the runtime counts."""
    soc: str
    cpu: tuple[CpuCluster, ...]
    cpu_peaks: Peaks = Peaks()
    """Of the fast cores together (``fast_cores``); null where it is not known."""
    memory_gb: Figure | None
    """Of the largest variant, unless the name says which."""
    memory_bandwidth_gb_s: Figure | None
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[RuntimeSupport, ...] = Field(min_length=1)
    power_modes: tuple[PowerMode, ...] = ()
    notes: str | None = None
    adapted: tuple[AdaptedRates, ...] = ()

    @model_validator(mode="after")
    def _runs_on_what_it_has(self) -> DeviceProfile:
        units = {"cpu"} | {accelerator.unit for accelerator in self.accelerators}
        for support in self.runtimes:
            if support.unit not in units:
                raise ValueError(f"{support.runtime} runs on {support.unit}, which is not among the accelerators")
        return self

    @property
    def cores(self) -> int:
        """Of all clusters."""
        return sum(int(cluster.count.value) for cluster in self.cpu)

    @property
    def fast_cores(self) -> int:
        """Of the first cluster and, where that is one core or two, the next: what runtimes use by default."""
        counts = [int(cluster.count.value) for cluster in self.cpu]
        return sum(counts[:2]) if counts and counts[0] <= 2 else sum(counts[:1])

    def kin(self, unit: ComputeUnit) -> tuple[str, ...]:
        """Measured ids that stand in for a unit of this device, nearest first."""
        own = (accelerator.relatives for accelerator in self.accelerators if accelerator.unit == unit)
        return next((names for names in own if names is not None), self.relatives)

    def peak_gops(self, unit: ComputeUnit, precision: Precision, threads: int | None = None) -> float | None:
        """The peak of a compute unit in 10⁹ operations per second, None where the profile does not know it.

        ``threads``: of a CPU; that many of its fast cores.
        """
        if unit == "cpu":
            peak = self.cpu_peaks.of(precision)
            if peak is None or threads is None or not self.fast_cores:
                return peak
            return peak * min(threads, self.fast_cores) / self.fast_cores
        found = [accelerator.peaks.of(precision) for accelerator in self.accelerators if accelerator.unit == unit]
        return next((peak for peak in found if peak is not None), None)

    def speed(self, unit: ComputeUnit, precision: Precision, threads: int | None = None) -> Speed:
        """Arithmetic and values moved, by which rates go from one device to another."""
        bandwidth = self.memory_bandwidth_gb_s.value / BYTES[precision] if self.memory_bandwidth_gb_s else None
        return Speed(self.peak_gops(unit, precision, threads), bandwidth)


def speeds(
    of: DeviceProfile, of_precision: Precision, to: DeviceProfile, to_precision: Precision, unit: ComputeUnit,
    threads: int | None,
) -> tuple[Speed, Speed]:  # fmt: skip
    """The speeds of two devices, to be divided. Where one precision's peak is not known of both, fp32 stands in."""
    first, second = of.speed(unit, of_precision, threads), to.speed(unit, to_precision, threads)
    if of_precision == to_precision and (first.peak_gops is None or second.peak_gops is None):
        first = Speed(of.peak_gops(unit, "fp32", threads), first.values_per_ns)
        second = Speed(to.peak_gops(unit, "fp32", threads), second.values_per_ns)
    return first, second
