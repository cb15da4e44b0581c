"""Latency on this host: several models interleaved in one process, so that all see the same machine."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeopt.errors import ModelError
from edgeopt.types import Frozen, Kind

Array = npt.NDArray[Any]

WARM_UP = 5
"""Runs before the clock counts: the first ones allocate and pack weights."""
BOOTSTRAPS = 1000
RUNTIMES: Mapping[str, Literal["onnxruntime", "tflite", "coreml"]] = {
    ".onnx": "onnxruntime", ".tflite": "tflite", ".mlpackage": "coreml",
}  # fmt: skip
"""Suffix of a model → what runs it."""


class LatencyMs(Frozen):
    """Milliseconds. ``low``–``high``: 95 % bootstrap interval of the median."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    low: float
    high: float


class Conditions(Frozen):
    """What the number holds for."""

    machine: str
    runtime: str
    threads: int
    runs: int
    load: float
    """Load average of the machine over the last minute, before measuring: above 0 others shared it."""
    interleaved_with: tuple[str, ...]


class BenchResult(Frozen):
    """One model's latency, and how it came to be."""

    model: str
    device: str = "host"
    runtime: Literal["onnxruntime", "tflite", "coreml"]
    compute_unit: Literal["cpu"] = "cpu"
    threads: int
    kind: Kind = "measured"
    latency_ms: LatencyMs
    conditions: Conditions


def measure(
    models: Mapping[str, Path], *, threads: int = 1, seconds: float = 1.0, seed: int = 0
) -> dict[str, BenchResult]:
    """Run each model in turn until each had its share of time.

    Args:
        models: name → ``.onnx`` or ``.tflite`` file; on macOS also an ``.mlpackage``.
        threads: of the runtime.
        seconds: measured time per model; at least 20 and at most 500 runs each.
        seed: of the input values.

    Raises:
        ModelError: a file that its runtime does not load, or of another kind.
    """
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        runs = {name: _open(path, threads, seed, stack) for name, path in models.items()}
        for run, _ in runs.values():
            for _ in range(WARM_UP):
                run()
        times: dict[str, list[float]] = {name: [] for name in models}
        end = time.perf_counter() + seconds * len(models)
        count = 0
        while count < 20 or (count < 500 and time.perf_counter() < end):
            for name, (run, _) in runs.items():
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
            count += 1
    return {
        name: BenchResult(
            model=str(models[name]),
            runtime=RUNTIMES[models[name].suffix],
            threads=threads,
            latency_ms=summarise(np.array(values), seed),
            conditions=Conditions(
                machine=machine(),
                runtime=runs[name][1],
                threads=threads,
                runs=count,
                load=round(load, 2),
                interleaved_with=tuple(other for other in models if other != name),
            ),
        )
        for name, values in times.items()
    }


def runs_here(path: Path) -> bool:
    """Whether this machine has a runtime whose time says something: Core ML has its own on macOS only."""
    return path.suffix in (".onnx", ".tflite") or (path.suffix == ".mlpackage" and sys.platform == "darwin")


def summarise(times_ms: npt.NDArray[np.float64], seed: int = 0) -> LatencyMs:
    """Percentiles of measured times [runs] in ms, and the 95 % bootstrap interval of their median."""
    draws = np.random.default_rng(seed).integers(0, len(times_ms), (BOOTSTRAPS, len(times_ms)))
    low, high = np.percentile(np.median(times_ms[draws], axis=1), [2.5, 97.5])
    p50, p90, p95, p99 = np.percentile(times_ms, [50, 90, 95, 99])
    values = {"p50": p50, "p90": p90, "p95": p95, "p99": p99, "mean": times_ms.mean(), "low": low, "high": high}
    return LatencyMs(**{name: round(float(value), 4) for name, value in values.items()})


def machine() -> str:
    """Processor and operating system in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the platform's own word does
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _open(path: Path, threads: int, seed: int, stack: ExitStack) -> tuple[Callable[[], object], str]:
    """A function that runs the model once on seeded values, and the runtime's name with its version."""
    from edgeopt.runtimes import litert, onnxruntime

    random = np.random.default_rng(seed)

    def values(dtype: str, shape: tuple[int, ...]) -> Array:
        if np.dtype(dtype).kind == "f":
            return random.random(shape, np.float32).astype(dtype)
        return np.zeros(shape, dtype)

    try:
        if path.suffix == ".tflite":
            tflite = stack.enter_context(litert.Session(path, threads=threads))
            feed = {name: values(info.dtype, info.shape) for name, info in tflite.inputs.items()}
            return (lambda: tflite.run(feed)), f"ai-edge-litert {litert.version()}"
        if path.suffix == ".onnx":
            session = stack.enter_context(onnxruntime.Session(path, threads=threads))
            feed = {
                name: values(dtype, tuple(size if isinstance(size, int) else 1 for size in shape))
                for name, (dtype, shape) in session.inputs.items()
            }
            return (lambda: session.run(feed)), f"onnxruntime {onnxruntime.version()}"
        if path.suffix == ".mlpackage" and sys.platform == "darwin":
            from edgeopt.runtimes import coreml

            program = stack.enter_context(coreml.Session(path))
            given = {name: values(info.dtype, info.shape) for name, info in program.inputs.items()}
            return (lambda: program.run(given)), f"Core ML, {coreml.version()}"
    except ValueError as error:
        raise ModelError(f"cannot be run: {' '.join(str(error).split())[:300]}", where=str(path)) from error
    raise ModelError("is neither .onnx nor .tflite", where=str(path), hint="Convert it first: edgeopt convert")
