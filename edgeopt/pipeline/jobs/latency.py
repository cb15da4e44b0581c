"""Every artifact's time on this machine, beside its float twin's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from edgeopt.bench.latency import measure
from edgeopt.bench.results import BenchResult
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.pipeline.jobs.folder import GRAPH, stage
from edgeopt.targets.base import Target


@dataclass(frozen=True)
class LatencyJob:
    """Artifacts by target name, and the same targets' float files, made for the comparison only."""

    imported: Path
    artifacts: dict[str, Path]
    targets: dict[str, Target]
    compare_float: bool
    seconds: float
    scratch: Path
    threads: int = 1
    seed: int = field(default=0)


def measure_latency(job: LatencyJob) -> dict[str, tuple[BenchResult, BenchResult | None]]:
    """Each artifact beside the float file that its target writes of the same graph. Timed: never stored."""
    found: dict[str, tuple[BenchResult, BenchResult | None]] = {}
    graph = QuantizedGraph(ir.load(job.imported / GRAPH)) if job.compare_float else None
    with stage("latency on this machine"):
        for name, path in job.artifacts.items():
            models = {"target": path}
            if graph is not None:
                folder = job.scratch / name
                folder.mkdir(parents=True)
                models["float"] = folder / type(job.targets[name])().lower(graph, folder).path
            results = measure(models, threads=job.threads, seconds=job.seconds, seed=job.seed)
            found[name] = (results["target"], results.get("float"))
    return found
