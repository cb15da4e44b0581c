"""What a benchmark says: ``edgeopt.bench/1``. Measured and predicted results have one form; each says which it is."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from edgeopt.devices.prediction import Prediction
from edgeopt.devices.profile import ComputeUnit, Runtime
from edgeopt.types import Frozen, Kind


class LatencyMs(Frozen):
    """Milliseconds of one run: inputs copied in, inference, outputs copied out.

    ``low``–``high``: the 95 % bootstrap interval of a measured median, the 90 % interval of a prediction. Percentiles
    that a source does not give (a prediction, a runner that reports its median only) are None.
    """

    p50: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    mean: float | None = None
    low: float
    high: float


class Change(Frozen):
    """One reading before and one after measuring; None where the machine does not tell."""

    before: float | None
    after: float | None


class Conditions(Frozen):
    """What the number holds for. What the machine does not tell is None.

    Args:
        machine: processor, board and system in words.
        runtime: with its version.
        runs: timed ones; ``warm_up_runs`` went before.
        load: load average over the last minute before measuring: above 0 others shared the machine.
        affinity: cores that the process may use.
        throttled: what a Raspberry Pi's firmware says of its supply and temperature; empty: nothing.
        power_mode: Jetson's ``nvpmodel``.
        delegate: what took the graph over inside the runtime; ``partitions`` in how many parts; ``undelegated``:
            operator types that it left to the built-in kernels.
        judged: what of all this makes the times doubtful, in words.
    """

    machine: str
    runtime: str
    threads: int | None
    batch: int = 1
    runs: int
    warm_up_runs: int = 0
    load: float | None
    interleaved_with: tuple[str, ...] = ()
    cores: int | None = None
    affinity: tuple[int, ...] | None = None
    governor: str | None = None
    frequency_mhz: Change | None = None
    temperature_c: Change | None = None
    gpu_frequency_mhz: Change | None = None
    gpu_clocks_locked: bool | None = None
    throttled: tuple[str, ...] | None = None
    power_mode: str | None = None
    delegate: str | None = None
    partitions: int | None = None
    undelegated: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()


class Energy(Frozen):
    """Of one inference, the machine's rest included, by the counter that is named."""

    counter: str
    mj_per_inference: float
    watts: float


class OperatorTime(Frozen):
    """Mean time of one operator (or fused kernel) and its share of all of them."""

    name: str
    op: str
    ms: float
    share: float


class Profile(Frozen):
    """Time per operator, costliest first. ``kind`` ``predicted``: shares of the model's cost, not of a run."""

    kind: Kind
    source: str
    operators: tuple[OperatorTime, ...]


class BenchResult(Frozen):
    """One model's latency, and how it came to be.

    Args:
        precision: ``fp32``, ``fp16``, ``int8``, or None where it is not known.
        throughput_per_s: inferences (of the whole batch: samples) per second, one after the other.
        load_ms: reading the file and making it ready; ``first_ms``: the first run.
        memory_mb: most that loading and one run add to a process that has the runtime loaded; of a prediction the
            weights and the largest activations alive at once.
        stable: False where the times did not come to rest; ``unstable_because`` says why. Then no number is a result.
        coverage: measured: share of operators that the delegate took; predicted: share of the cost that is of known
            kernels.
        quantiles_ms: 101 of them, smallest to largest run; ``timeline_ms``: medians of stretches in the order of time.
        prediction: what a predicted result rests on.
    """

    model: str
    device: str = "host"
    runtime: Runtime
    compute_unit: ComputeUnit = "cpu"
    precision: str | None = None
    threads: int | None
    batch: int = 1
    kind: Kind = "measured"
    verified: bool = True
    """False: by a way that was never tried on a real device."""
    latency_ms: LatencyMs
    throughput_per_s: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    memory_mb: float | None = None
    energy: Energy | None = None
    stable: bool = True
    unstable_because: tuple[str, ...] = ()
    coverage: float | None = None
    conditions: Conditions | None = None
    quantiles_ms: tuple[float, ...] = ()
    timeline_ms: tuple[float, ...] = ()
    profile: Profile | None = None
    prediction: Prediction | None = None


class Ratio(Frozen):
    """Median of ``model`` over the median of ``to``, with its 95 % bootstrap interval (same turns drawn for both)."""

    model: str
    to: str
    ratio: float
    low: float
    high: float
    stable: bool = True
    """False where one of the two did not come to rest."""


class BenchDocument(Frozen):
    """What ``edgeopt bench --json`` prints."""

    schema_: Literal["edgeopt.bench/1"] = Field(default="edgeopt.bench/1", alias="schema")
    edgeopt: str
    results: tuple[BenchResult, ...]
    ratios: tuple[Ratio, ...] = ()
    budget_ms: float | None = None
    failures: tuple[str, ...] = ()
    """Model and device that are not shown to keep to the budget, in words. A measurement is held by its median, if its
    times were stable, a prediction by its ``high``."""
    refusals: tuple[str, ...] = ()
    """Devices of a comparison for which there is no prediction, and why."""
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
