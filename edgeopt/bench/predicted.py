"""A prediction as a result of ``edgeopt.bench/1``: the same form as a measured one, labelled everywhere."""

from __future__ import annotations

from edgeopt.bench.results import BenchResult, LatencyMs, OperatorTime, Profile
from edgeopt.devices.prediction import Prediction


def result_of(model: str, prediction: Prediction) -> BenchResult:
    """Percentiles are None: a prediction knows the median and its interval, not the spread of single runs."""
    return BenchResult(
        model=model,
        device=prediction.device,
        runtime=prediction.runtime,
        compute_unit=prediction.compute_unit,
        precision=prediction.precision,
        threads=prediction.threads,
        kind="predicted",
        latency_ms=LatencyMs(p50=prediction.median_ms, low=prediction.low_ms, high=prediction.high_ms),
        throughput_per_s=round(1e3 / prediction.median_ms, 3) if prediction.median_ms else None,
        memory_mb=prediction.memory_mb,
        coverage=prediction.coverage,
        profile=Profile(
            kind="predicted",
            source="cost per kernel, the ten costliest",
            operators=tuple(
                OperatorTime(name=kernel.name, op=" + ".join(kernel.fused), ms=kernel.ms, share=kernel.share)
                for kernel in prediction.kernels
            ),
        ),
        prediction=prediction,
    )
